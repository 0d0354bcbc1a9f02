// SPDX-License-Identifier: MIT

package cache

import (
	"sync/atomic"
	"testing"

	"swiftnbd/internal/geometry"
)

// blank is a volume of holes that counts how often it is asked for them.
type blank struct {
	far
	asked atomic.Int64
}

func (b *blank) Hole(geometry.ChunkIndex) bool { b.asked.Add(1); return true }

func (b *blank) Holes(_ geometry.ChunkIndex, n int64) int64 { b.asked.Add(1); return n }

// TestExtentsByTheRun describes a blank disk of many chunks, one of which was
// written: the holes are told by the run, and not chunk by chunk.
func TestExtentsByTheRun(t *testing.T) {
	geo, err := geometry.New(64<<10, 1<<24)
	if err != nil {
		t.Fatal(err)
	}
	b := &blank{}
	c, err := New(b, geo, Options{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const written = 5<<30 + 8192
	if err := c.Write(t.Context(), make([]byte, 4096), written); err != nil {
		t.Fatal(err)
	}
	b.asked.Store(0)
	var at, calls int64
	var data []int64
	for at < geo.Size() {
		calls++
		n := min(4<<30-4096, geo.Size()-at) // as NBD's clients ask
		before := at
		if err := c.Extents(t.Context(), at, n, func(off, n int64, hole bool) bool {
			if off != at {
				t.Fatalf("an extent at %d, expected at %d", off, at)
			}
			if !hole {
				data = append(data, off, n)
			}
			at += n
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if at != before+n {
			t.Fatalf("of %d bytes at %d only %d were told", n, before, at-before)
		}
	}
	if len(data) != 2 || data[0] != written || data[1] != 4096 {
		t.Errorf("data is told at %v, want 4096 bytes at %d", data, written)
	}
	if asked := b.asked.Load(); asked > 4*calls+8 {
		t.Errorf("%d calls for %d chunks asked the volume %d times", calls, geo.Objects(), asked)
	}
}
