// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// patience is how long what should end at once may take on a busy machine
// before a test says that it hangs.
const patience = 180 * time.Second

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
		c, err := New(v, geo, Options{Size: 8 * size, Connections: 8, Queued: 4, Age: time.Millisecond, Patience: 20 * time.Millisecond, Pause: time.Millisecond, Check: true})
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
			err := c.Write(ctx, b, off)
			if errors.Is(err, errInjected) {
				break // it waited, for longer than patience
			}
			if err != nil {
				t.Fatal(err)
			}
			copy(want[off:], b)
		}
		for range 20 {
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

// TestOutageBegins has everything fail from a random moment on, with clients at
// work in a small cache. Each of their requests must end, with an error if it
// has to, and none may wait for memory for good. When all is well again one
// flush does, and nothing is lost of the account.
func TestOutageBegins(t *testing.T) {
	seed := newSeed(t)
	for round := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, round))
		const size = 150000
		geo, err := geometry.New(size, 30)
		if err != nil {
			t.Fatal(err)
		}
		v := newFakeVolume(t, size, seed+round)
		v.delay.Store(int64(100 * time.Microsecond))
		c, err := New(v, geo, Options{Size: 2 << 20, Connections: 4, Queued: 2, Age: 3 * time.Millisecond, Patience: 100 * time.Millisecond, Pause: 10 * time.Millisecond, Check: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		var wg sync.WaitGroup
		for k := range 4 {
			wg.Add(1)
			seed := rng.Uint64()
			go func() {
				defer wg.Done()
				rng := rand.New(rand.NewPCG(seed, 3))
				var err error
				for err == nil {
					off := int64(rng.IntN(3)*4+k) * 400000
					n := min(400000, geo.Size()-off)
					if n <= 0 {
						continue
					}
					if rng.IntN(3) > 0 {
						skip := rng.Int64N(n)
						off, n = off+skip, 1+rng.Int64N(n-skip)
					}
					switch rng.IntN(10) {
					case 0, 1, 2, 3, 4:
						b := make([]byte, n)
						b[0] = 1
						err = c.Write(ctx, b, off)
					case 5, 6, 7:
						err = c.Read(ctx, make([]byte, n), off)
					case 8:
						err = c.Zero(ctx, off, n)
					default:
						err = c.Flush(ctx)
					}
				}
			}()
		}
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
		v.fail.Store(1000)
		within(t, "a request that everything fails for", wg.Wait)
		v.fail.Store(0)
		within(t, "a flush when all is well", func() {
			for c.Flush(ctx) != nil { // what was under way may fail yet
			}
		})
		// A fetch for a read that has ended with another's error goes on.
		within(t, "the last fetch", func() {
			for c.reclaim(1<<62, false); c.Used() != 0; c.reclaim(1<<62, false) {
				time.Sleep(time.Millisecond)
			}
		})
		c.Close()
	}
}
