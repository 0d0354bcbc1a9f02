// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"sync"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// fetchBufs are the buffers of fetches whose wants have no room for the frames.
var fetchBufs = sync.Pool{New: func() any { return new([]byte) }}

// fetchGroup fetches wants of one object, sorted by their places, with one
// request. Frames are checked and copied while they come in: then they are still in
// the processor's cache.
func (d *Disk) fetchGroup(ctx context.Context, group []want) error {
	a := arrival{d: d, group: group, from: int64(group[0].Place)}
	end := a.from
	for _, w := range group {
		end = max(end, w.end())
	}
	n := int(end - a.from)
	if w := group[0]; len(group) == 1 && w.roomy && !w.record() && cap(w.p) >= n {
		a.buf = w.p[:n]
	} else {
		lent := fetchBufs.Get().(*[]byte)
		defer fetchBufs.Put(lent) // Get has returned, so nothing writes into it
		if cap(*lent) < n {
			*lent = make([]byte, max(n, 128<<10))
		}
		a.buf = (*lent)[:n]
	}
	if err := d.getLog(ctx, group[0].At, a.buf, store.GetOptions{Offset: a.from, Arrived: a.arrived}); err != nil {
		return err
	}
	return a.end()
}

// arrival takes the frames of a group of wants while they come in.
type arrival struct {
	d     *Disk
	group []want
	// buf has the group's bytes of the object, as they come in. It may be the
	// memory of the only want: each block then moves down to its place, which ends
	// before the next frame begins.
	buf  []byte
	from int64 // buf's place in the object

	told int // how many bytes have come in
	next int // the first want that is not complete
	done int // how many of its blocks are
	err  error
}

// arrived is store.GetOptions.Arrived.
func (a *arrival) arrived(n int) {
	if n == 0 { // another attempt: the bytes come again
		a.next, a.done, a.err = 0, 0, nil
	}
	a.told = n
	for a.err == nil && a.next < len(a.group) {
		w := a.group[a.next]
		frames := a.buf[int64(w.Place)-a.from:]
		have := a.from + int64(n) - int64(w.Place) // of frames
		if w.record() {
			if have < int64(w.Bytes) {
				return
			}
			a.err = a.d.unpackRecord(w, frames)
		} else {
			all := len(w.p) / layout.BlockSize
			blocks := min(int(max(0, have)/layout.FrameSize), all)
			a.err = a.d.unframe(w, frames, a.done, blocks)
			if a.done = blocks; blocks < all {
				return
			}
		}
		a.next, a.done = a.next+1, 0
	}
}

// end returns the error of the frames. All of them have come in.
func (a *arrival) end() error {
	if a.told != len(a.buf) { // against the contract: blocks would be missing
		return fmt.Errorf("read object %s: %d of %d bytes have come in", layout.LogName(a.group[0].At), a.told, len(a.buf))
	}
	return a.err
}

// unframe checks the frames of a want's blocks i to end-1, and puts the blocks
// where they are wanted. frames are all of the want's.
func (d *Disk) unframe(w want, frames []byte, i, end int) error {
	for ; i < end; i++ {
		frame := frames[i*layout.FrameSize:][:layout.FrameSize]
		if err := layout.CheckFrame(frame, w.First+uint64(i), &d.o.UUID); err != nil {
			return fmt.Errorf("read object %s: %w", layout.LogName(w.At), err)
		}
		copy(w.p[i*layout.BlockSize:][:layout.BlockSize], frame)
	}
	return nil
}

// unpackRecord checks the compressed record of a want, and puts its blocks, or
// itself, where they are wanted.
func (d *Disk) unpackRecord(w want, record []byte) (err error) {
	record = record[:w.Bytes]
	if !w.raw {
		err = unpack(record, w.Extent, &d.o.UUID, w.p)
	} else if _, err = layout.CheckCompressed(record, w.First, &d.o.UUID); err == nil {
		copy(w.p, record)
	}
	if err != nil {
		return fmt.Errorf("read object %s: %w", layout.LogName(w.At), err)
	}
	return nil
}

// unpackWant is unframe for all of a want, or unpackRecord.
func (d *Disk) unpackWant(w want, bytes []byte) error {
	if w.record() {
		return d.unpackRecord(w, bytes)
	}
	return d.unframe(w, bytes, 0, len(w.p)/layout.BlockSize)
}
