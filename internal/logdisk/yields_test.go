// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/store"
)

// busy is a store in which each request makes those beside it slower.
type busy struct {
	under atomic.Int64
	most  atomic.Int64 // requests at once
	gets  atomic.Int64
}

func (b *busy) wrap(s store.Store) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		n := b.under.Add(1)
		defer b.under.Add(-1)
		for m := b.most.Load(); n > m && !b.most.CompareAndSwap(m, n); m = b.most.Load() {
		}
		if op.Kind == store.OpGet {
			b.gets.Add(1)
		}
		select {
		case <-time.After(10*time.Millisecond + time.Duration(n-1)*5*time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return call(ctx)
	})
}

// TestCollectorYields has a client write a block and flush, again and again, on a
// store that is slower with each request beside others, on a disk with many small
// objects. Beside the collector the slow ones of its flushes take at most three times
// as long as without: that is four requests of others, whatever the connections allow. The collector joins the small objects all the same, with about one
// GET for each that was there, and none for those that were written meanwhile. When
// nobody writes any more it takes what the connections allow.
func TestCollectorYields(t *testing.T) {
	const blocks, before, flushes = 4096, 6000, 3000
	rng := rand.New(rand.NewPCG(1, 2))
	change := func(t *testing.T, d *Disk, n int) (took []time.Duration) {
		for range n {
			if err := d.Write(t.Context(), make([]byte, blockSize), rng.Int64N(blocks)*blockSize); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		return took
	}
	open := func(t *testing.T, gc int) (b *busy, d *Disk) {
		v := newClosing(t, blocks*blockSize)
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		change(t, d, before)
		d.Close()
		v.o = Options{GC: gc, Connections: 16}
		b = &busy{}
		if d, err = v.open(t.Context(), b.wrap(v.box)); err != nil {
			t.Fatal(err)
		}
		b.gets.Store(0)
		b.most.Store(0)
		return b, d
	}
	var alone time.Duration
	t.Run("alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, d := open(t, 0)
			alone = change(t, d, flushes)[flushes*99/100]
		})
	})
	t.Run("beside", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, d := open(t, 70)
			slow := change(t, d, flushes)[flushes*99/100]
			collected, gets := d.stats.Collected.Load(), b.gets.Load()
			t.Logf("p99 %v, alone %v; %d objects collected with %d GETs, at most %d requests at once", slow, alone, collected, gets, b.most.Load())
			if slow > 3*alone { // with all that the connections allow it is seven times
				t.Errorf("p99 of a flush is %v beside the collector, and %v alone", slow, alone)
			}
			if collected < flushes/2 {
				t.Errorf("%d objects were collected of %d", collected, flushes)
			}
			if gets > blocks+blocks/10 {
				t.Errorf("%d GETs, and at most %d objects were there", gets, blocks)
			}
		})
	})
	t.Run("nobody", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, d := open(t, 70)
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := b.most.Load(); n < 8 || n >= 16 {
				t.Errorf("at most %d requests at once when nobody writes", n)
			}
			if n := d.Use().Objects; n > 4 {
				t.Errorf("%d objects are left", n)
			}
		})
	})
}
