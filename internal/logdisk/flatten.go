// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// ErrNoClone says that the disk is no clone, and was not converted.
var ErrNoClone = errors.New("it is not a clone, and has nothing in objects of version 1")

// Flatten copies into the disk what its blocks have in the base, which is a clone's
// parent or the chunks of a disk that was converted, and writes a
// root that has nothing below. Nobody else may write to the disk meanwhile. add
// is told how many bytes of the disk are done. When it was interrupted, it goes
// on with what is not copied yet. The base stays in the root's list until
// DropBase.
func (d *Disk) Flatten(ctx context.Context, add func(n int64)) error {
	if d.o.Epoch == 0 {
		return ErrReadOnly
	}
	d.mu.RLock()
	b, blocks, bases := d.base, d.baseBlocks(), len(d.root.Bases)
	chunks := slices.Contains(d.root.Requires, layout.FeatureChunks)
	d.mu.RUnlock()
	if b == nil {
		if bases == 0 && !chunks {
			return ErrNoClone
		}
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(d.o.Connections)
	next := uint64(0)            // all blocks before it are done, or somebody copies them
	from := func(first uint64) { // next comes here
		add(int64(first-next) * layout.BlockSize)
		next = first
	}
	found := d.eachData(gctx, int64(blocks)*layout.BlockSize, func(off, n int64) {
		first, count := touchedBlocks(off, n)
		for at := max(uint64(first)/chunkBlocks*chunkBlocks, next); at < uint64(first+count) && gctx.Err() == nil; at = next {
			from(at)
			count := min(chunkBlocks, blocks-at)
			next += count
			g.Go(guarded(func() error {
				if err := d.copyUp(gctx, b, at, count); err != nil {
					return err
				}
				add(int64(count) * layout.BlockSize)
				return nil
			}))
		}
	})
	err := cmp.Or(g.Wait(), found, ctx.Err())
	if err == nil {
		from(blocks)
	}
	// What is copied stays so.
	if ferr := d.Flush(context.WithoutCancel(ctx)); err == nil {
		err = ferr
	}
	if err != nil {
		return err
	}
	return d.edit(ctx, func(c *checkpoint) error {
		c.root.Below = nil
		c.root.Requires = without(c.root.Requires, layout.FeatureClone)
		return nil
	})
}

// eachData calls do with each run of the disk's first size bytes that may have data,
// in order. It does not look at each block of a hole.
func (d *Disk) eachData(ctx context.Context, size int64, do func(off, n int64)) error {
	size = min(size, d.size.Load())
	for off := int64(0); off < size && ctx.Err() == nil; {
		before := off
		err := d.Extents(ctx, off, size-off, func(at, n int64, hole bool) bool {
			if !hole {
				do(at, n)
			}
			off = at + n
			return ctx.Err() == nil
		})
		if err != nil {
			return err
		}
		if off == before {
			return fmt.Errorf("nothing is known of what the disk has at %d", off)
		}
	}
	return ctx.Err()
}

// copyUp writes into the disk what the base has of those of the blocks that the
// disk does not have.
func (d *Disk) copyUp(ctx context.Context, b *base, first, count uint64) error {
	var lows [][2]uint64
	var size int64
	err := d.viewed(ctx, first, count, func() {
		size = min(d.baseSize, d.size.Load())
		for e := range d.view(first, count) {
			if e.Kind == inBase {
				lows = append(lows, [2]uint64{e.First, e.First + e.Count})
			}
		}
	})
	if err != nil {
		return err
	}
	var todo [][2]int64 // off, n
	for _, l := range lows {
		off := int64(l[0]) * layout.BlockSize
		n := min(int64(l[1])*layout.BlockSize, size) - off
		if n <= 0 {
			continue
		}
		// extents would take a base that is away for data, which is right here, too:
		// the read fails.
		b.extents(ctx, off, n, func(off, n int64, hole bool) bool {
			if !hole {
				todo = append(todo, [2]int64{off, n})
			}
			return true
		})
	}
	for _, t := range todo {
		off, n := t[0], t[1]
		p := make([]byte, (n+layout.BlockSize-1)/layout.BlockSize*layout.BlockSize)
		hole, err := b.read(ctx, uint64(off)/layout.BlockSize, p, size)
		if err != nil {
			return err
		}
		if hole {
			continue
		}
		if err := d.Write(ctx, p[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// Base returns what the disk's root has as its base, or had before Flatten; nil:
// nothing. Of a disk that was flattened, snapshots are those that need it still.
func (d *Disk) Base(ctx context.Context) (b *layout.Base, snapshots []string, err error) {
	d.mu.RLock()
	root := d.root
	d.mu.RUnlock()
	if len(root.Bases) == 0 {
		return nil, nil, nil
	}
	if root.Below != nil {
		return &root.Bases[0], nil, nil
	}
	pins, err := d.pinsWith(ctx, root.Pins, func(*layout.Below) bool { return true })
	if err != nil {
		return nil, nil, err
	}
	return &root.Bases[0], pinNames(pins), nil
}

// DropBase writes a root without the base of a disk that was flattened, and of
// which no snapshot needs it.
func (d *Disk) DropBase(ctx context.Context) error {
	return d.edit(ctx, func(c *checkpoint) error {
		if c.root.Below == nil {
			c.root.Bases = nil
		}
		return nil
	})
}

// ReadBase reads what the newest root of a disk has as its base; nil: nothing.
func ReadBase(ctx context.Context, s store.Store, o Options) (*layout.Base, error) {
	o.Store, o.Epoch = s, 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	_, root, err := d.readNewest(ctx)
	if err != nil || len(root.Bases) == 0 {
		return nil, err
	}
	return &root.Bases[0], nil
}
