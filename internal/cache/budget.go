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
	// writeback is an upload that needs the rest of its chunk. It may use the
	// reserve too, so that dirty data can always be written and freed. While
	// clients wait, uploads that are being completed take no more than the
	// reserve. Frozen frames do not count against clients. Otherwise a flush
	// would stop the clients.
	writeback
	classes
)

// budget is the one account of the cache's memory: clean, dirty and in flight.
// A request that asks for more than is free waits. Each class has a line of its
// own, in order of arrival.
//
// Clients may not use the reserve. It is kept for chunks that are dirty in
// part: they need memory before they can be uploaded, so together they must
// leave the reserve. Frozen frames need none, and become clean or complete. A
// client's bytes are therefore within limit less reserve, and frozen frames are
// not counted there.
//
// No request holds memory while it waits here for memory of others. A request
// reserves for one chunk at a time, all at once. An upload's reservation ends
// in a clean chunk.
type budget struct {
	limit   int64
	reserve int64 // of limit, for writeback only

	reclaim func(n int64, spare bool) int64 // frees clean chunks; returns the bytes freed
	starved func()                          // called when a request begins to wait: write back

	used    atomic.Int64
	filling atomic.Int64 // bytes that uploads under way took as writeback; some may have come back
	frozen  atomic.Int64 // of used, the frames that are being uploaded; changes with mu held
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

// take counts n bytes if they are free.
func (b *budget) take(n int64, cl class) bool {
	if cl == writeback && b.waiting[foreground].Load() > 0 {
		if has := b.filling.Load(); has > 0 && has+n > b.reserve {
			return false
		}
	}
	if b.takeUpTo(n, b.bound(cl)) {
		return true
	}
	if cl == writeback || b.frozen.Load() == 0 {
		return false
	}
	b.mu.Lock() // otherwise a frame that is frozen now could be thawed, and be counted twice
	defer b.mu.Unlock()
	return b.takeUpTo(n, b.bound(cl)+min(b.frozen.Load(), b.reserve))
}

// hasRoom says whether n bytes are free for a client's request, and nobody waits
// for memory.
func (b *budget) hasRoom(n int64) bool {
	return b.waiting[foreground].Load() == 0 && b.used.Load()+n <= b.bound(foreground)
}

// takeUpTo counts n bytes if the sum stays within bound.
func (b *budget) takeUpTo(n, bound int64) bool {
	for {
		u := b.used.Load()
		if u+n > bound {
			return false
		}
		if b.used.CompareAndSwap(u, u+n) {
			return true
		}
	}
}

// fill notes that an upload under way has taken n bytes as writeback. A
// negative n notes that an upload which had taken them has ended.
func (b *budget) fill(n int64) {
	if n == 0 {
		return
	}
	if b.filling.Add(n); n < 0 {
		b.freed()
	}
}

// freeze notes that a frame of n bytes is being uploaded from now on. With -n
// it notes that the upload has ended; the caller has not used or freed the
// frame yet.
func (b *budget) freeze(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.frozen.Add(n)
	b.wakeFirst()
	b.mu.Unlock()
}

// get counts n bytes. It frees clean chunks for this, and waits if that is not
// enough. n must not be larger than bound(cl). The error is the context's, or
// the uploads' error if they fail and give no memory back.
func (b *budget) get(ctx context.Context, n int64, cl class) error {
	if b.takeAtOnce(n, cl) {
		return nil
	}
	w := &waiter{wake: make(chan struct{}, 1), fail: make(chan error, 1), since: time.Now()}
	b.mu.Lock()
	e := b.waiters[cl].PushBack(w)
	b.waiting[cl].Add(1)
	b.wakeFirst() // this request may be the first: bytes may have come back just before
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

// takeAtOnce counts n bytes if they are free or clean chunks can be evicted for
// them. It does not wait, and fails while another request of its class waits.
func (b *budget) takeAtOnce(n int64, cl class) bool {
	return n == 0 || (b.waiting[cl].Load() == 0 && b.reclaimFor(n, cl, false))
}

// try counts n bytes for a client's request that can do without them. It evicts
// clean chunks for this, except those that were fetched ahead. It does not
// wait.
func (b *budget) try(n int64) bool {
	return !b.starving() && b.reclaimFor(n, foreground, true)
}

// reclaimFor takes n bytes. It evicts clean chunks until the bytes are free or
// no chunk is left.
func (b *budget) reclaimFor(n int64, cl class, spare bool) bool {
	for !b.take(n, cl) {
		if b.reclaim(n, spare) == 0 {
			return b.take(n, cl)
		}
	}
	return true
}

// giveBack returns n bytes to the budget.
func (b *budget) giveBack(n int64) {
	if n == 0 {
		return
	}
	b.used.Add(-n)
	b.freed()
}

// freed wakes waiting requests: bytes came back, or a chunk became clean.
func (b *budget) freed() {
	if b.waiting[foreground].Load() == 0 && b.waiting[writeback].Load() == 0 {
		return
	}
	b.mu.Lock()
	b.wakeFirst()
	b.mu.Unlock()
}

// wakeFirst lets the first request of each class try. b.mu is held.
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

// failed notes that an upload has failed. The last successful one ended at
// lastWin. If that is patience ago, failed ends every request that has waited
// for as long, since no memory can be expected to come back. It ends an upload
// that waits for the rest of its chunk at once: a flush has to end if the
// uploads that hold the memory fail.
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

// starving says whether a request waits for memory.
func (b *budget) starving() bool {
	return b.waiting[foreground].Load() > 0 || b.waiting[writeback].Load() > 0
}
