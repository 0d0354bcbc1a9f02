// SPDX-License-Identifier: MIT

package logdisk

import (
	"math"
	"slices"
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
	full  bool // it is likely to become as large as an object may be
}

// openCut returns the open cut with room for n more bytes of frames. d.mu is held.
func (d *Disk) openCut(n int) *cut {
	if d.open != nil && (int64(len(d.open.buf)+n) > d.sealAt.Load() || d.open.m.Extents() >= sealExtents) && len(d.open.buf) > 0 {
		d.seal()
	}
	if d.open == nil {
		d.open = &cut{m: blockmap.New(), spare: &d.spareBufs, full: d.sealAt.Load() >= int64(d.o.Seal)/2}
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
		c.put(p[:n*layout.BlockSize], block, d.o.Seal, &d.o.UUID)
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
// overwritten in its place. The frames get their checksums here, while the bytes
// are in the processor's cache: u is the volume's.
func (c *cut) put(p []byte, number uint64, seal int, u *layout.UUID) {
	at := number
	set := func(place int, n uint64) { // the next n blocks
		for ; n > 0; n-- {
			layout.PutFrame(c.buf[place:][:layout.FrameSize], p[(at-number)*layout.BlockSize:][:layout.BlockSize], at, u)
			place += layout.FrameSize
			at++
		}
	}
	add := func(n uint64) { // the next n blocks are new
		if n == 0 {
			return
		}
		place := len(c.buf)
		c.grow(int(n)*layout.FrameSize, seal)
		c.m.Set(at, n, blockmap.Value{Kind: layout.Data, At: c.at, Place: uint32(place)}, nil)
		set(place, n)
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
		set(int(e.Place), e.Count)
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
		if size > seal/16 { // it will be full
			buf = c.spare.take(max(need, seal)+tailRoom, c.full)
		} else {
			buf = make([]byte, 0, size)
		}
		c.buf = append(buf, c.buf...)
	}
	c.buf = c.buf[:need]
}

// keepZero makes count blocks zero in the open cut. reserved bytes of room are
// its. The caller calls zeroed with the result when the cache has forgotten them. If
// the last block goes on behind end, and the disk does so too, keepZero does nothing
// and returns nil.
func (d *Disk) keepZero(first, count, end int64, kind layout.Kind, reserved int64) *zeroing {
	d.lastWrite.Store(time.Now().UnixNano())
	d.mu.Lock()
	defer d.mu.Unlock()
	if (first+count)*layout.BlockSize > end && d.size.Load() > end {
		return nil
	}
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
