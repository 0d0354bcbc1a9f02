// SPDX-License-Identifier: MIT

package cache

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// class says who asks for memory.
type class int

const (
	// foreground is a client's request. It may use the budget less the
	// reserve.
	foreground class = iota
	// writeback is an upload that needs the rest of its chunk. It may use
	// the reserve too, so that dirty data can always be written and freed.
	writeback
	classes
)

// budget is the one account of the cache's memory: clean, dirty and in flight.
// Those who ask for more than there is wait in order of arrival, each class by
// itself.
//
// Nobody waits here while holding memory that waits for somebody else: a
// request reserves for one chunk at a time and all at once, and an upload's
// reservation ends in a clean chunk.
type budget struct {
	limit   int64
	reserve int64 // of limit, for writeback only

	reclaim func(n int64, spare bool) int64 // frees clean chunks; returns the bytes freed
	starved func()                          // somebody waits: write back

	used    atomic.Int64
	waiting [classes]atomic.Int32

	mu      sync.Mutex // guards waiters
	waiters [classes]list.List
}

type waiter struct {
	wake  chan struct{} // buffered: a wake-up is never lost
	fail  chan error
	since time.Time
}

func (b *budget) bound(cl class) int64 {
	if cl == writeback {
		return b.limit
	}
	return b.limit - b.reserve
}

// take counts n bytes if they are there.
func (b *budget) take(n int64, cl class) bool {
	for {
		u := b.used.Load()
		if u+n > b.bound(cl) {
			return false
		}
		if b.used.CompareAndSwap(u, u+n) {
			return true
		}
	}
}

// get counts n bytes, freeing clean chunks for it and waiting where that is
// not enough. n must not be larger than bound(cl). The error is the context's,
// or that of the uploads whose failure keeps memory from coming back.
func (b *budget) get(ctx context.Context, n int64, cl class) error {
	if b.now(n, cl) {
		return nil
	}
	w := &waiter{wake: make(chan struct{}, 1), fail: make(chan error, 1), since: time.Now()}
	b.mu.Lock()
	e := b.waiters[cl].PushBack(w)
	b.waiting[cl].Add(1)
	b.wakeFirst() // if it is we: bytes may have come back just before
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.waiters[cl].Remove(e)
		b.waiting[cl].Add(-1)
		b.wakeFirst()
		b.mu.Unlock()
	}()
	for {
		b.starved()
		select {
		case <-w.wake:
			if b.reclaimFor(n, cl, false) {
				return nil
			}
		case err := <-w.fail:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// now counts n bytes if they are there, or can be made free, without waiting
// for anybody and out of nobody's turn.
func (b *budget) now(n int64, cl class) bool {
	return n == 0 || (b.waiting[cl].Load() == 0 && b.reclaimFor(n, cl, false))
}

// try counts n bytes for a client's request that can do without, freeing clean
// chunks, but none that was fetched ahead, and waiting for nobody.
func (b *budget) try(n int64) bool {
	return !b.starving() && b.reclaimFor(n, foreground, true)
}

// reclaimFor takes n bytes, freeing clean chunks until they are there or no
// more can be freed.
func (b *budget) reclaimFor(n int64, cl class, spare bool) bool {
	for !b.take(n, cl) {
		if b.reclaim(n, spare) == 0 {
			return b.take(n, cl)
		}
	}
	return true
}

// put gives n bytes back.
func (b *budget) put(n int64) {
	if n == 0 {
		return
	}
	b.used.Add(-n)
	b.freed()
}

// freed wakes those who wait: bytes came back, or a chunk became clean.
func (b *budget) freed() {
	if b.waiting[foreground].Load() == 0 && b.waiting[writeback].Load() == 0 {
		return
	}
	b.mu.Lock()
	b.wakeFirst()
	b.mu.Unlock()
}

// wakeFirst lets the first of each class try. b.mu is held.
func (b *budget) wakeFirst() {
	for cl := range b.waiters {
		if e := b.waiters[cl].Front(); e != nil {
			select {
			case e.Value.(*waiter).wake <- struct{}{}:
			default:
			}
		}
	}
}

// failed is told of an upload that failed; the last one that did not ended at
// lastWin. When that is patience ago it ends all waiting that has lasted as
// long: nothing can be expected to come back. An upload that waits for the rest
// of its chunk ends whenever it began: a flush has to end where those that hold
// the memory fail.
func (b *budget) failed(err error, lastWin time.Time, patience time.Duration) {
	if time.Since(lastWin) < patience {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for cl := range b.waiters {
		for e := b.waiters[cl].Front(); e != nil; e = e.Next() {
			w := e.Value.(*waiter)
			if class(cl) == writeback || time.Since(w.since) >= patience {
				select {
				case w.fail <- err:
				default:
				}
			}
		}
	}
}

// starving says whether somebody waits for memory.
func (b *budget) starving() bool {
	return b.waiting[foreground].Load() > 0 || b.waiting[writeback].Load() > 0
}
