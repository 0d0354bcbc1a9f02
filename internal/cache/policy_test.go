// SPDX-License-Identifier: MIT

package cache

import (
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// TestVictimFresh has chunks that were fetched ahead and not read yet among
// others: they go last, the one that is read last first, and with spare they
// do not go at all. What nobody has come for in a long time is no exception.
func TestVictimFresh(t *testing.T) {
	now := time.Now().UnixNano()
	p := newPolicy()
	for i, fetched := range []int64{1: now, 2: now + 2, 3: now + 1, 4: 0, 5: now - int64(freshLife) - 1} {
		ch := &chunk{index: geometry.ChunkIndex(i)}
		if fetched != 0 {
			ch.fresh.Store(100)
			ch.freshAt.Store(fetched)
		}
		p.insert(ch, 1000)
	}
	next := func(spare bool, want int) {
		t.Helper()
		ch := p.victim(spare)
		if got := -1; ch == nil && want != got || ch != nil && int(ch.index) != want {
			t.Fatalf("victim(%t) is %+v, want chunk %d", spare, ch, want)
		}
	}
	next(true, 0)  // never fetched ahead
	next(false, 4) // behind those that are spared
	next(true, 5)
	next(true, -1)
	next(false, 2)
	next(false, 3)
	next(true, -1)
	next(false, 1)
	next(false, -1)
	if n := p.total.Load(); n != 0 {
		t.Errorf("%d bytes are left of an empty cache", n)
	}
}
