// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// cut is what changes go into: the object that will be sealed next.
type cut struct {
	object
	m     *blockmap.Map // its blocks, with their places in buf
	spare *spare
	held  bool // for more flushes: see crowd
}

// spare keeps the buffers of objects that are durable for the next ones: a fresh
// buffer's pages cost more than filling them. Disk.mu guards it.
type spare struct{ free [][]byte }

// take returns an empty buffer of at least size bytes, or nil.
func (s *spare) take(size int) []byte {
	n := len(s.free)
	if n == 0 || cap(s.free[n-1]) < size {
		return nil
	}
	b := s.free[n-1]
	s.free = s.free[:n-1]
	return b
}

// give takes a buffer back that nobody reads any more. It keeps those of full
// objects only, and few.
func (s *spare) give(b []byte, seal int) {
	if cap(b) >= seal && len(s.free) < 4 {
		s.free = append(s.free, b[:0])
	}
}

// openCut returns the open cut with room for n more bytes of frames. d.mu is held.
func (d *Disk) openCut(n int) *cut {
	if d.open != nil && (int64(len(d.open.buf)+n) > d.sealAt.Load() || d.open.m.Extents() >= sealExtents) && len(d.open.buf) > 0 {
		d.seal()
	}
	if d.open == nil {
		d.open = &cut{m: blockmap.New(), spare: &d.spareBufs}
		d.open.at = layout.Position{Epoch: d.o.Epoch} // it gets its number when it is sealed
		d.open.done = make(chan struct{})
		d.open.opened = time.Now()
		d.wake()
	}
	return d.open
}

// wake makes the loop look at the open cut.
func (d *Disk) wake() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// keep takes whole blocks into the open cut. reserved bytes of room are theirs.
// head and tail say that a part of the first and of the last block was not
// written, but comes from the cache.
func (d *Disk) keep(p []byte, off int64, reserved int64, head, tail bool) {
	block := uint64(off) / layout.BlockSize
	d.lastWrite.Store(time.Now().UnixNano())
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, z := range d.zeroing {
		if head {
			z.note(block)
		}
		if tail {
			z.note(block + uint64(len(p))/layout.BlockSize - 1)
		}
	}
	for len(p) > 0 {
		// As much as one object takes.
		n := min(len(p)/layout.BlockSize, int(d.sealAt.Load())/layout.FrameSize)
		c := d.openCut(n * layout.FrameSize)
		c.put(p[:n*layout.BlockSize], block, d.o.Seal)
		c.reserved += reserved
		reserved = 0
		p = p[n*layout.BlockSize:]
		block += uint64(n)
	}
	if int64(len(d.open.buf)) > d.sealAt.Load()-layout.FrameSize {
		d.seal()
	}
}

// put sets the blocks from number on to p. A block that the cut has already is
// overwritten in its place.
func (c *cut) put(p []byte, number uint64, seal int) {
	at := number
	add := func(n uint64) { // the next n blocks are new
		if n == 0 {
			return
		}
		place := len(c.buf)
		c.grow(int(n)*layout.FrameSize, seal)
		for i := range n {
			from := (at + i - number) * layout.BlockSize
			copy(c.buf[place+int(i)*layout.FrameSize:], p[from:from+layout.BlockSize])
		}
		c.m.Set(at, n, blockmap.Value{Kind: layout.Data, At: c.at, Place: uint32(place)}, nil)
		at += n
	}
	count := uint64(len(p) / layout.BlockSize)
	var has [8]blockmap.Extent
	old := has[:0]
	for e := range c.m.Lookup(number, count) {
		if e.Kind == layout.Data {
			old = append(old, e)
		}
	}
	for _, e := range old {
		add(e.First - at)
		for i := range e.Count {
			from := (e.First + i - number) * layout.BlockSize
			copy(c.buf[int(e.Place)+int(i)*layout.FrameSize:], p[from:from+layout.BlockSize])
		}
		at = e.First + e.Count
	}
	add(number + count - at)
}

// grow makes the buffer n bytes longer. seal is how long it becomes in the end.
func (c *cut) grow(n, seal int) {
	need := len(c.buf) + n
	if need > cap(c.buf) {
		size := max(16<<10, cap(c.buf))
		for size < need {
			size *= 2
		}
		var buf []byte
		if size > seal/16 { // it will be full: with the records of most objects
			size = max(need, seal) + 64<<10
			buf = c.spare.take(size)
		}
		if buf == nil {
			buf = make([]byte, 0, size)
		}
		c.buf = append(buf, c.buf...)
	}
	c.buf = c.buf[:need]
}

// keepZero makes count blocks zero in the open cut. reserved bytes of room are
// its. The caller calls zeroed with the result when the cache has forgotten them.
func (d *Disk) keepZero(first, count int64, kind layout.Kind, reserved int64) *zeroing {
	d.lastWrite.Store(time.Now().UnixNano())
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.openCut(0)
	c.m.Set(uint64(first), uint64(count), blockmap.Value{Kind: kind, At: c.at}, nil)
	c.reserved += reserved
	if c.m.Extents() >= sealExtents {
		d.seal()
	}
	z := &zeroing{first: uint64(first), end: uint64(first + count)}
	d.zeroing = append(d.zeroing, z)
	return z
}

// zeroing is a range of blocks that the log has made zero and the cache may have
// as they were.
type zeroing struct {
	first, end uint64
	parts      []uint64 // blocks of it of which a part was written meanwhile
}

func (z *zeroing) note(block uint64) {
	if block >= z.first && block < z.end {
		z.parts = append(z.parts, block)
	}
}

// zeroed ends z, and returns the blocks of which a part was written meanwhile.
func (d *Disk) zeroed(z *zeroing) []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.zeroing = slices.DeleteFunc(d.zeroing, func(other *zeroing) bool { return other == z })
	slices.Sort(z.parts)
	return slices.Compact(z.parts)
}

// seal makes the open cut an object that is to be uploaded. d.mu is held, and
// there is an open cut.
func (d *Disk) seal() {
	c := d.open
	d.open = nil
	d.wanted = false
	o := &c.object
	o.at.N = d.next
	d.objects.write(o)
	for e := range c.m.All() {
		for first, left := e.First, e.Count; left > 0; { // a record counts in 32 bits
			n := min(left, math.MaxUint32)
			r := layout.Record{First: first, Count: uint32(n), Kind: e.Kind}
			if e.Kind == layout.Data {
				r.Place, r.Bytes = e.Place, uint32(n)*layout.FrameSize
			}
			o.records = append(o.records, r)
			first, left = first+n, left-n
		}
		e.At = o.at
		d.install(e)
	}
	d.evict()
	d.next++
	d.stats.Sealed.Add(1)
	d.queue = append(d.queue, o)
	d.startUploads()
}

// room bounds what is written and not durable.
type room struct {
	mu    sync.Mutex // guards all below
	limit int64
	used  int64
	line  []*roomWaiter
}

type roomWaiter struct {
	n    int64
	wake chan struct{} // closed when n bytes are his
}

// bound sets the limit.
func (r *room) bound(limit int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = limit
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

func (r *room) fits(n int64) bool { return r.used == 0 || r.used+n <= r.limit }

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

// admit waits until n more bytes may be written. It ends with the error of an
// upload that has failed while it waited.
func (d *Disk) admit(ctx context.Context, n int64) error {
	if d.o.Epoch == 0 {
		return ErrReadOnly
	}
	if d.room.try(n) {
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
	d.mu.Unlock()
	err := d.await(ctx, w.wake, failing)
	if err != nil {
		d.room.leave(w)
	}
	return err
}
