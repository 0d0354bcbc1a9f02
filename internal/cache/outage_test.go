// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// patience is how long what should end at once may take on a busy machine
// before a test says that it hangs.
const patience = 60 * time.Second

// within fails the test, with all goroutines, when f does not return.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		stacks := make([]byte, 1<<20)
		t.Fatalf("%s does not end:\n%s", what, stacks[:runtime.Stack(stacks, true)])
	}
}

// TestOutage refuses every write for a while, with far more chunks dirty in
// part than fit in the budget once they are complete. Each flush must fail,
// what is dirty must stay, and when writes are taken again one flush must
// bring everything to Swift.
func TestOutage(t *testing.T) {
	for _, size := range []int64{16 << 10, 256 << 10} {
		seed := newSeed(t)
		rng := rand.New(rand.NewPCG(seed, 1))
		geo, err := geometry.New(size, 300)
		if err != nil {
			t.Fatal(err)
		}
		v := newFakeVolume(t, size, seed)
		for i := range geo.Objects() / 2 { // half of the chunks must be read to be completed
			b := make([]byte, size)
			noise(rng, b)
			v.objects[geometry.ChunkIndex(i)] = b
		}
		want := v.at(geo, 0, geo.Size())
		c, err := New(v, geo, Options{Size: 16 * size, Connections: 4, Age: time.Millisecond, Patience: 20 * time.Millisecond, Pause: time.Millisecond, Check: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		v.refuse.Store(true)
		dirty := int64(0)
		for i := range geo.Objects() {
			if dirty++; c.Used()+size > c.budget.limit-c.budget.reserve {
				break // the next write would wait for the outage's end
			}
			off := i*size + rng.Int64N(size-512)
			b := bytes.Repeat([]byte{byte(i) | 1}, 512)
			if err := c.Write(ctx, b, off); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], b)
		}
		for range 3 {
			within(t, "a flush during the outage", func() {
				if err := c.Flush(ctx); !errors.Is(err, errInjected) {
					t.Errorf("a flush whose writes were refused: %v", err)
				}
			})
		}
		if bytes.Equal(want, v.at(geo, 0, geo.Size())) {
			t.Error("Swift has everything, though it refused all of it")
		}
		if used := c.Used(); used > c.budget.limit {
			t.Errorf("%d bytes are in use of %d", used, c.budget.limit)
		}
		v.refuse.Store(false)
		within(t, "a flush after the outage", func() {
			if err := c.Flush(ctx); err != nil {
				t.Errorf("the flush after the outage: %v", err)
			}
		})
		if !bytes.Equal(want, v.at(geo, 0, geo.Size())) {
			t.Errorf("objects of %d bytes, %d dirty: Swift does not hold what was flushed", size, dirty)
		}
		c.Close()
	}
}
