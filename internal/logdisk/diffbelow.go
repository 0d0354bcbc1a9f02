// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// What lies below a moment
//
// Of what a moment's map does not have, the moment has what its base has (base.go): a
// clone's parent, or the chunks of a disk that was converted. Nothing of a base ever
// changes. So of two moments with the same base, what neither map has is the same. If
// only one has the base, or sees less of it, the rest of the base has changed. The
// base's own map, or the chunks that there are, tell where it has data. Nothing of the
// data is read, but by a copy, and only what has changed.

// belowOne is what lies below one moment.
type belowOne struct {
	base   *base  // nil: nothing
	size   int64  // bytes of it that are seen
	blocks uint64 // the same, in blocks
}

// nothing is a part that the moment's map does not have. It is as a whole in what the
// base has, or outside of it.
func (o belowOne) nothing(first, end uint64) blockmap.Extent {
	e := blockmap.Extent{First: first, Count: end - first, Value: blockmap.Value{Kind: layout.Zeroes}}
	if first < o.blocks {
		e.Kind = inBase
	}
	return e
}

// belowOf returns what a root has below. Nobody else has d.
func (d *Disk) belowOf(root layout.Root) (belowOne, error) {
	if err := d.setBase(root); err != nil || d.base == nil {
		return belowOne{}, err
	}
	size := min(d.baseSize, root.Size)
	one := belowOne{d.base, size, blocksOf(size)}
	d.base, d.baseSize = nil, 0
	return one, nil
}

// belowBoth is what lies below the two moments.
type belowBoth struct {
	from, to belowOne
	same     bool // it is the same base, of which one may see less
	// What neither map has is not the same in the blocks from the first to before the
	// second.
	first, end uint64
}

// set takes what the two roots have below. Requests go through d.
func (x *belowBoth) set(d *Disk, from, to layout.Root) error {
	var err error
	if x.from, err = d.belowOf(from); err == nil {
		x.to, err = d.belowOf(to)
	}
	if err != nil {
		return err
	}
	low, high := min(x.from.blocks, x.to.blocks), max(x.from.blocks, x.to.blocks)
	switch a, b := from.Below, to.Below; {
	case a == nil || b == nil:
	case a.Disk != nil && b.Disk != nil: // a disk is converted once
		x.same = true
	case a.Clone != nil && b.Clone != nil:
		x.same = a.Clone.Root == b.Clone.Root && x.from.base.from.UUID == x.to.base.from.UUID
	}
	x.first, x.end = 0, high
	if x.same {
		x.first = low
	}
	return nil
}

// close ends what was opened, when d was cancelled.
func (x *belowBoth) close(d *Disk) {
	for _, b := range []*base{x.from.base, x.to.base} {
		d.mu.Lock()
		d.base = b
		d.mu.Unlock()
		d.closeBase()
	}
}

// next returns the first block from at on that differs although neither map has it, or
// one that is behind all disks.
func (x *belowBoth) next(at uint64) uint64 {
	if at = max(at, x.first); at < x.end {
		return at
	}
	return ^uint64(0)
}

// gapBlocks is the most blocks of a part that neither map has over the shared runs:
// what those have of it is in memory.
const gapBlocks = 1 << 20

// cut returns a smaller end of a part, which then is as a whole in what each base has,
// or outside.
func (x *belowBoth) cut(first, end uint64) uint64 {
	for _, at := range []uint64{x.first, x.from.blocks, x.to.blocks} {
		if first < at && at < end {
			end = at
		}
	}
	return end
}

// hasBytes says whether blocks of the kind have bytes that a copy has to read.
func hasBytes(k layout.Kind) bool { return stored(k) || k == inBase }

// resolve tells what has changed from a to b, of the same blocks, of a disk of size
// bytes: where a base is concerned, only what that has. a.Count is 0 if it is not
// known.
func (x *belowBoth) resolve(ctx context.Context, size int64, a, b blockmap.Extent, tell func(blockmap.Extent) error) error {
	one, data, holes := x.to, layout.Kind(inBase), a.Count == 0 || hasBytes(a.Kind)
	switch {
	case b.Kind == inBase:
	case a.Kind == inBase && a.Count > 0 && !stored(b.Kind):
		one, data, holes = x.from, layout.Zeroes, false
	default:
		return tell(b)
	}
	off := int64(b.First) * layout.BlockSize
	n := min(int64(b.First+b.Count)*layout.BlockSize, one.size) - off
	at, end := b.First, b.First+b.Count
	put := func(to uint64, kind layout.Kind) error {
		first := at
		if at = max(at, to); first == at || kind == layout.Zeroes && data == inBase && !holes {
			return nil
		}
		return tell(blockmap.Extent{First: first, Count: at - first, Value: blockmap.Value{Kind: kind}})
	}
	var err error
	if n > 0 {
		one.base.extents(ctx, off, n, func(off, n int64, hole bool) bool {
			first, count := touchedBlocks(off, n)
			if hole || uint64(first+count) <= at {
				return true
			}
			// What is before it are holes.
			if uint64(first) > at {
				if data == inBase {
					err = put(uint64(first), layout.Zeroes)
				} else {
					at = uint64(first)
				}
			}
			if err == nil {
				err = put(uint64(first+count), data)
			}
			return err == nil && ctx.Err() == nil
		})
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if data == inBase {
		return put(end, layout.Zeroes)
	}
	return nil
}
