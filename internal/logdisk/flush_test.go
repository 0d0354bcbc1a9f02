// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// far is a store to which the PUT of a data object takes a time.
type far struct {
	store.Store
	takes func() time.Duration
	puts  atomic.Int64 // of data objects, that have ended
}

func (f *far) Put(ctx context.Context, name string, p []byte, etag store.ETag) error {
	if _, ok := layout.ParseLogName(name); ok {
		select {
		case <-time.After(f.takes()):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		defer f.puts.Add(1)
	}
	return f.Store.Put(ctx, name, p, etag)
}

// commits is what clients that write a block and flush have done.
type commits struct {
	flushes int
	puts    int64
	longest time.Duration // of the flushes
}

// commit has so many clients write a block each and flush, for long, thinking
// for at most think before each. At the end the process dies, and each client's
// last flushed block has to be there.
func commit(t *testing.T, clients int, long, think time.Duration, takes func() time.Duration) (c commits) {
	rng := newRand(t)
	v := newClosing(t, 256*blockSize)
	f := &far{Store: v.box, takes: takes}
	d, err := v.open(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		end     = time.Now().Add(long)
		flushed = make([]uint64, clients)
	)
	for k := range clients {
		seed := rng.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(k)))
			p := make([]byte, blockSize)
			for n := uint64(1); time.Now().Before(end); n++ {
				if think > 0 {
					time.Sleep(time.Duration(rng.Int64N(int64(think))))
				}
				binary.LittleEndian.PutUint64(p, n)
				if err := d.Write(t.Context(), p, int64(k)*blockSize); err != nil {
					t.Error(err)
					return
				}
				start := time.Now()
				if err := d.Flush(t.Context()); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				c.flushes++
				c.longest = max(c.longest, time.Since(start))
				flushed[k] = n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	d.Close()
	c.puts = f.puts.Load()
	if d, err = v.open(t.Context(), v.box); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, blockSize)
	for k, want := range flushed {
		if err := d.Read(t.Context(), p, int64(k)*blockSize); err != nil {
			t.Fatal(err)
		}
		if n := binary.LittleEndian.Uint64(p); n < want {
			t.Errorf("client %d has flushed number %d, and number %d is there", k, want, n)
		}
	}
	return c
}

// TestGroupCommit has clients write and flush beside each other, with PUTs of 20
// ms: 16 share their PUTs and have their answers soon, and one alone waits for
// nothing but its PUT.
func TestGroupCommit(t *testing.T) {
	const put = 20 * time.Millisecond
	takes := func() time.Duration { return put }
	var alone commits
	t.Run("alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			alone = commit(t, 1, 2*time.Second, 0, takes)
			if alone.flushes != 100 || alone.longest != put {
				t.Errorf("%d flushes in 2 s, the longest took %v", alone.flushes, alone.longest)
			}
		})
	})
	t.Run("few", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := commit(t, fewFlushes, 2*time.Second, time.Millisecond, takes)
			if c.longest > put {
				t.Errorf("a flush of %d clients waited for others: it took %v", fewFlushes, c.longest)
			}
		})
	})
	t.Run("16", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := commit(t, 16, 2*time.Second, time.Millisecond, takes)
			t.Logf("%d flushes, %d PUTs; one client alone: %d", c.flushes, c.puts, alone.flushes)
			if c.flushes < 8*alone.flushes {
				t.Errorf("%d flushes of 16 clients, and %d of one", c.flushes, alone.flushes)
			}
			if c.puts*8 > int64(c.flushes) {
				t.Errorf("%d PUTs for %d flushes", c.puts, c.flushes)
			}
			if most := put + put/8; c.longest > most {
				t.Errorf("a flush took %v: more than a PUT and an eighth", c.longest)
			}
		})
	})
	t.Run("16 at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := commit(t, 16, 2*time.Second, 0, takes)
			if c.longest != put || c.flushes != 16*alone.flushes || c.puts > int64(c.flushes/16+15) {
				t.Errorf("%d flushes, %d PUTs, the longest took %v: all were there, and the cut stayed open", c.flushes, c.puts, c.longest)
			}
		})
	})
	// One that thinks for long among 16 who do not, and PUTs of any length.
	t.Run("uneven", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := commit(t, 16, 2*time.Second, 40*time.Millisecond, func() time.Duration {
				return time.Duration(1 + rand.Int64N(int64(60*time.Millisecond)))
			})
			t.Logf("%d flushes, %d PUTs", c.flushes, c.puts)
		})
	})
}

// TestCrowdGone has many clients flush, and then one: after a few flushes it
// waits for its PUT only.
func TestCrowdGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const put = 20 * time.Millisecond
		v := newClosing(t, 256*blockSize)
		d, err := v.open(t.Context(), &far{Store: v.box, takes: func() time.Duration { return put }})
		if err != nil {
			t.Fatal(err)
		}
		once := func(k int) time.Duration {
			if err := d.Write(t.Context(), make([]byte, blockSize), int64(k)*blockSize); err != nil {
				t.Error(err)
			}
			start := time.Now()
			if err := d.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			return time.Since(start)
		}
		all := func(clients int) {
			var wg sync.WaitGroup
			for k := range clients {
				wg.Go(func() { once(k) })
			}
			wg.Wait()
		}
		for range 3 {
			all(64)
		}
		var took []time.Duration
		for range 8 {
			took = append(took, once(0))
		}
		if took[0] == put || slices.Contains(took[:7], 0) {
			t.Errorf("this test shows little: %v", took)
		}
		if took[6] != put || took[7] != put {
			t.Errorf("a client alone waits for others still: %v", took)
		}
		all(64)
		time.Sleep(time.Second)
		if long := once(0); long != put {
			t.Errorf("a second later a client alone waits for others: %v", long)
		}
	})
}

// TestHeldFlushLeaves has the flush that holds a cut open give up: the others
// that wait for the cut get their answer all the same.
func TestHeldFlushLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const put = 40 * time.Millisecond
		v := newClosing(t, 256*blockSize)
		d, err := v.open(t.Context(), &far{Store: v.box, takes: func() time.Duration { return put }})
		if err != nil {
			t.Fatal(err)
		}
		flush := func(ctx context.Context, k int) error {
			if err := d.Write(t.Context(), make([]byte, blockSize), int64(k)*blockSize); err != nil {
				t.Error(err)
			}
			return d.Flush(ctx)
		}
		var wg sync.WaitGroup
		for k := range 16 {
			wg.Go(func() { _ = flush(t.Context(), k) })
		}
		wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var first, second error
		wg.Go(func() { first = flush(ctx, 0) })
		synctest.Wait()
		d.mu.RLock()
		if d.open == nil || !d.open.held {
			t.Error("no cut is held: this test shows nothing")
		}
		d.mu.RUnlock()
		start := time.Now()
		wg.Go(func() { second = flush(t.Context(), 1) })
		synctest.Wait()
		cancel()
		synctest.Wait()
		d.mu.RLock()
		if d.crowd.waiting != 1 {
			t.Errorf("%d flushes are counted, and one waits", d.crowd.waiting)
		}
		d.mu.RUnlock()
		wg.Wait()
		if first == nil || second != nil || time.Since(start) != put {
			t.Errorf("the first flush: %v; the second: %v after %v", first, second, time.Since(start))
		}
		d.mu.RLock()
		defer d.mu.RUnlock()
		if d.crowd.waiting != 0 {
			t.Errorf("%d flushes are counted, and none waits", d.crowd.waiting)
		}
	})
}
