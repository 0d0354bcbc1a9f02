// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"math"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// MaxSize is how large a disk can be, bytes: NBD's sizes have 63 bits, and the
// cache counts in whole chunks.
const MaxSize = math.MaxInt64 / ChunkSize * ChunkSize

// errServed says that a disk was opened to be served, and what was asked for can
// be done by nobody else's leave only: see Options.Brief.
var errServed = errors.New("the disk is being served")

// errMeanwhile says that the disk was written while its form was changed.
var errMeanwhile = errors.New("the disk was written meanwhile")

// BeyondError says that a disk would lose data if it became as small as was asked
// for.
type BeyondError struct {
	Bytes int64 // of data behind the new end
	From  int64 // the first byte of it
}

func (e *BeyondError) Error() string {
	return fmt.Sprintf("%d bytes of data are behind the new end, from byte %d", e.Bytes, e.From)
}

// CheckSize says why a disk cannot have so many bytes.
func CheckSize(size int64) error {
	switch {
	case size > MaxSize:
		return fmt.Errorf("a disk of %d bytes is too large: it can have %d", size, int64(MaxSize))
	case size < layout.BlockSize || size%layout.BlockSize != 0:
		return fmt.Errorf("a disk of %d bytes: it must have whole blocks of %d bytes, and one at least", size, layout.BlockSize)
	}
	return nil
}

// Resize gives the disk another size, bytes, as CheckSize has it. What was never
// on the disk, or was cut off, reads as zeroes. With data behind the new end it
// ends with a *BeyondError, unless force cuts that off. Snapshots keep their
// sizes and their bytes.
//
// The disk is to be opened with Options.Brief. No other request may be under way,
// and after it only such changes, snapshots, Save and Close may come. After an error
// the disk has the old size, or also the new one if Swift has not answered.
func (d *Disk) Resize(ctx context.Context, size int64, force bool) error {
	if err := CheckSize(size); err != nil {
		return err
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	was := d.Size()
	if size == was {
		return nil
	}
	var off *merged
	if size < was {
		var err error
		if off, err = d.cutOff(ctx, uint64(size/layout.BlockSize), blocksOf(was), force); err != nil {
			return err
		}
	}
	if off != nil {
		if err := d.goOn(ctx); err != nil {
			return err
		}
	}
	return d.edit(ctx, func(c *checkpoint) error {
		if !d.delta.empty() || d.merged != nil {
			return errMeanwhile
		}
		c.root.Size, c.merged = size, off
		return nil
	})
}

// growRegions bounds by how much a disk may grow while it is served. The parts in
// which its map is loaded have the size that suits the disk as it was opened.
const growRegions = 16 * maxRegions

// ErrSmaller says that a disk that is served cannot become smaller.
var ErrSmaller = errors.New("a disk becomes smaller only while no server has it")

// Grow makes the disk larger while it is served. What is new reads as zeroes.
// Requests may be under way, and those that come after Grow may use the new part.
// If the disk has that size already, Grow does nothing. After an error the disk
// may have grown all the same, if Swift has not answered.
func (d *Disk) Grow(ctx context.Context, size int64) error {
	if err := CheckSize(size); err != nil {
		return err
	}
	if d.Size() == size {
		return nil
	}
	return d.edit(ctx, func(c *checkpoint) error {
		switch {
		case size < c.root.Size:
			return ErrSmaller
		case uint64(size/layout.BlockSize)>>d.regions.shift > growRegions:
			return fmt.Errorf("a disk of %d bytes cannot grow to %d while it is served: do it while no server has it", c.root.Size, size)
		}
		c.root.Size = size
		return nil
	})
}

// settle brings all that the disk has into the newest root, for who is to change
// more than its blocks.
func (d *Disk) settle(ctx context.Context) error {
	switch {
	case d.o.Epoch == 0:
		return ErrReadOnly
	case !d.o.Brief:
		return errServed
	}
	if err := d.Drain(ctx); err != nil {
		return err
	}
	return d.Save(ctx)
}

// goOn has the log go on by an object without records, for a change of the disk's
// bytes that is not in the log: its root is then after the position of every
// snapshot, and nobody takes the disk for what it was at one of them (see Copies).
func (d *Disk) goOn(ctx context.Context) error {
	d.mu.Lock()
	d.openCut(0)
	d.seal()
	d.mu.Unlock()
	return d.Drain(ctx)
}

// cutOff writes a run that makes the blocks from first to before end nothing, and
// returns it for the next root: a merge that puts nothing in the place of
// anything, but has counts to be taken off. It is nil if the blocks have no data.
// What lies under the run is looked up in the map, so the run's entry is not
// blind.
func (d *Disk) cutOff(ctx context.Context, first, end uint64, force bool) (*merged, error) {
	drops := &tally{}
	var data, from uint64
	var lows [][2]uint64 // blocks that the base has, from and to before
	look := func(first, end uint64) {
		for e := range d.view(first, end-first) {
			if e.Kind == inBase {
				lows = append(lows, [2]uint64{e.First, e.First + e.Count})
			}
			if !stored(e.Kind) {
				continue
			}
			if data == 0 {
				from = e.First
			}
			data += e.Count
			drops.add(e.At, int64(e.Count))
		}
	}
	if !d.inView(first, end, func() { look(first, end) }) {
		for at := first; at < end; {
			to := min(end, (at>>d.regions.shift+extentsAtOnce)<<d.regions.shift)
			if err := d.viewed(ctx, at, to-at, func() { look(at, to) }); err != nil {
				return nil, err
			}
			at = to
		}
	}
	for _, l := range lows {
		d.base.extents(ctx, int64(l[0])*layout.BlockSize, int64(l[1]-l[0])*layout.BlockSize, func(off, n int64, hole bool) bool {
			if !hole {
				if at := uint64(off) / layout.BlockSize; data == 0 || at < from {
					from = at
				}
				data += blocksOf(n)
			}
			return true
		})
	}
	if data == 0 {
		return nil, nil
	}
	if !force {
		return nil, &BeyondError{Bytes: int64(data) * layout.BlockSize, From: int64(from) * layout.BlockSize}
	}
	runs, err := d.writeRuns(ctx, func(yield func(layout.Entry) bool) {
		yield(layout.Entry{First: first, Count: end - first, Kind: layout.Trimmed})
	})
	if err != nil {
		return nil, err
	}
	return &merged{runs: runs, drops: drops}, nil
}

// resized notes that the newest root has another size. d.mu is held.
func (d *Disk) resized(size int64) {
	was := d.size.Load()
	d.size.Store(size)
	if d.cache != nil { // else it is being opened
		d.cache.SetEnd(wholeChunks(size))
	}
	d.cutBase(size)
	if d.o.Brief && size != was {
		// What is cut off is forgotten, and the parts in which the map is loaded have
		// the size that suits the disk.
		d.m, d.regions = blockmap.New(), newRegions(blocksOf(size), d.o.regionShift)
	}
}
