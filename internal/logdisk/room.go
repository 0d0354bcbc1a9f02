// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"sync"
)

// room bounds what is written and not durable. On a quick Swift it may use memory
// of the cache for that, too: what is just being written fills the cache anyway,
// and objects that wait for each other's hashes need it (see hashes).
type room struct {
	mu       sync.Mutex // guards all below
	own      int64      // bytes that are there without the cache's
	want     int64      // what Swift takes within FlushTime, bytes; it may be more than own
	borrowed int64      // of the cache, bytes
	asked    int64      // of it, bytes that it has not lent yet
	used     int64
	line     []*roomWaiter
}

type roomWaiter struct {
	n    int64
	wake chan struct{} // closed when n bytes are his
}

// bound sets what Swift takes, bytes.
func (r *room) bound(want int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.want = want
	r.letIn()
}

// crowded says whether somebody waits.
func (r *room) crowded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.line) > 0
}

// try counts n bytes if they are there and nobody waits. What is larger than the
// limit may come when nothing else is used.
func (r *room) try(n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.line) > 0 || !r.fits(n) {
		return false
	}
	r.used += n
	return true
}

func (r *room) fits(n int64) bool { return r.used == 0 || r.used+n <= min(r.own+r.borrowed, r.want) }

// release gives n bytes back.
func (r *room) release(n int64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= n
	r.letIn()
}

func (r *room) letIn() {
	for len(r.line) > 0 && r.fits(r.line[0].n) {
		r.used += r.line[0].n
		close(r.line[0].wake)
		r.line = r.line[1:]
	}
}

// leave takes w out of the line, or gives back what it has got.
func (r *room) leave(w *roomWaiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range r.line {
		if o == w {
			r.line = append(r.line[:i:i], r.line[i+1:]...)
			r.letIn()
			return
		}
	}
	r.used -= w.n
	r.letIn()
}

// borrow notes that n more bytes of the cache's are asked for, if Swift takes so
// much, and if they are not more than most then. lent comes after it.
func (r *room) borrow(n, most int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n += r.asked
	if r.own+r.borrowed+n > r.want || r.borrowed+n > most {
		return false
	}
	r.asked = n
	return true
}

// reaches says whether n bytes may be written and not durable if the cache lends
// so much.
func (r *room) reaches(n, lends int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return min(r.own+lends, r.want) >= n
}

// lent notes that the cache has lent n bytes that were asked for, or has not.
func (r *room) lent(n int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked -= n
	if ok {
		r.borrowed += n
	}
	r.letIn()
}

// left returns how many more bytes may be written and not durable.
func (r *room) left() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, min(r.own+r.borrowed, r.want)-r.used)
}

// idle returns what was borrowed, which is the cache's again, if no more than few
// bytes are used.
func (r *room) idle(few int64) (borrowed int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used > few {
		return 0, false
	}
	borrowed, r.borrowed = r.borrowed, 0
	return borrowed, true
}

// borrow takes memory of the cache for another object, and says whether it did.
func (d *Disk) borrow() bool {
	n := int64(d.o.Seal)
	if !d.room.borrow(n, d.lends()) {
		return false
	}
	ok := d.cache.Borrow(n)
	d.room.lent(n, ok)
	return ok
}

// lends returns how much memory the cache lends, bytes: at most half of it, and as
// much as there is without it.
func (d *Disk) lends() int64 {
	if d.cache == nil || d.o.Cache < leastLender {
		return 0
	}
	return min(d.o.Cache/2, d.o.Tail)
}

// leastLender is how large a cache is, at least, that lends memory, bytes.
const leastLender = 16 << 20

// Borrowed returns how many bytes of the cache's memory hold what is written and
// not durable.
func (d *Disk) Borrowed() int64 {
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	return d.room.borrowed
}

// giveMemoryBack gives the cache back what is not needed while little is written,
// and returns the buffers that are not. d.mu is held.
func (d *Disk) giveMemoryBack() [][]byte {
	n, ok := d.room.idle(d.o.Tail / 4)
	if !ok {
		return nil
	}
	if n > 0 {
		d.cache.Return(n)
	}
	return d.spareBufs.trim(fewSpare)
}

// admit waits until n more bytes may be written. It ends with the error of an
// upload that has failed while it waited.
func (d *Disk) admit(ctx context.Context, n int64) error {
	if d.o.Epoch == 0 {
		return ErrReadOnly
	}
	if d.room.try(n) || d.borrow() && d.room.try(n) {
		return nil
	}
	d.mu.RLock()
	failing := d.failing
	d.mu.RUnlock()
	w := &roomWaiter{n: n, wake: make(chan struct{})}
	d.room.mu.Lock()
	d.room.line = append(d.room.line, w)
	d.room.letIn()
	d.room.mu.Unlock()
	// What holds the room may be the open cut. An upload that ends seals it for
	// those who are in the line by then; if none is under way, it is our turn.
	d.mu.Lock()
	if d.open != nil && len(d.queue) == 0 && d.flying == 0 && d.room.crowded() {
		d.seal()
	}
	d.hashGathered(false)
	d.mu.Unlock()
	err := d.await(ctx, w.wake, failing)
	if err != nil {
		d.room.leave(w)
	}
	return err
}
