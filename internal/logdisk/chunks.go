// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Disks that were of version 1
//
// The root of a disk that was converted has the disk of version 1, whose chunks
// are in the same container, as its base. Blocks that the map does not have are
// read from the chunks, as version 1 reads them. Nobody writes chunks any more,
// and they are deleted only when no root needs them (retire.go).

// chunks is a disk of version 1 below the log.
type chunks struct {
	of   *Disk
	root layout.Position // the one that says so
	disk layout.Disk
	geo  geometry.Geometry

	once  sync.Once
	wg    sync.WaitGroup
	ready chan struct{}   // closed when vol is valid
	vol   *chunked.Volume // nothing is ever written to it
}

// setChunks takes a disk of version 1 that a root has below. d.mu is held, or
// nobody else has d.
func (d *Disk) setChunks(root layout.Root, disk layout.Disk) error {
	geo, err := geometry.New(disk.ObjectSize, disk.Objects)
	if err != nil {
		return &layout.DamagedError{What: "root " + layout.RootName(root.Name), Why: fmt.Sprintf("below it: %v", err)}
	}
	if disk.Size == 0 || !slices.Contains(root.Requires, layout.FeatureChunks) {
		return &layout.UnsupportedError{What: "root " + layout.RootName(root.Name), Why: "the disk below it has no size, or is not required"}
	}
	c := &chunks{of: d, root: root.Name, disk: disk, geo: geo, ready: make(chan struct{})}
	d.base, d.baseSize = &base{of: d, lower: c}, disk.Size
	return nil
}

// seenBelow returns below with at most so many bytes that are seen.
func seenBelow(below *layout.Below, size int64) *layout.Below {
	switch {
	case below == nil:
		return nil
	case below.Disk != nil:
		disk := *below.Disk
		disk.Size = min(disk.Size, size)
		return &layout.Below{Disk: &disk}
	}
	clone := *below.Clone
	clone.Size = min(clone.Size, size)
	return &layout.Below{Clone: &clone}
}

// open returns the volume, which is opened first if need be: that reads the index
// of its map.
func (c *chunks) open(ctx context.Context) (*chunked.Volume, error) {
	c.once.Do(func() {
		c.wg.Add(1)
		go c.fly()
	})
	select {
	case <-c.ready:
		return c.vol, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.of.ctx.Done():
		return nil, context.Cause(c.of.ctx)
	}
}

func (c *chunks) fly() {
	defer c.wg.Done()
	defer c.of.recoverPanic()
	s := c.of.store
	if c.of.o.Epoch == 0 {
		s = store.Wrap(s, c.present)
	}
	meta := volume.Meta{Version: volume.Version1, Geometry: c.geo, Map: c.disk.Map}
	vol, warning := chunked.Open(c.of.ctx, s, meta, false)
	if warning != nil && c.of.ctx.Err() == nil {
		c.of.o.Log("going on without the map of the disk of version 1: %v", warning)
	}
	vol.Warn(c.of.o.Log)
	c.vol = vol
	close(c.ready)
}

// present makes sure that what is not found was never there. Chunks are deleted
// when no root needs them, and that is after all roots that have them were
// deleted. Whoever has no lease may have such a root still: then the chunks of
// this moment are gone, and are no holes.
func (c *chunks) present(ctx context.Context, op store.Op, call func(context.Context) error) error {
	err := call(ctx)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	name := layout.RootName(c.root)
	_, there, herr := c.of.head(ctx, name)
	switch {
	case there:
		return err
	case herr != nil:
		return fmt.Errorf("whether the disk still has what was not found: %w", herr)
	}
	away := &AwayError{Name: name, By: "the listing, or the container's metadata,"}
	if gone := c.of.gone(ctx, err); gone != nil {
		return &GoneError{Snapshot: gone.Snapshot, Root: gone.Root, Err: away} // and not that it is not found
	}
	return away
}

// opened returns the volume if it is open, or nil.
func (c *chunks) opened() *chunked.Volume {
	select {
	case <-c.ready:
		return c.vol
	default:
		return nil
	}
}

// span returns the chunks from the byte off to before end: the first, and how
// many.
func (c *chunks) span(off, end int64) (i geometry.ChunkIndex, n int64) {
	size := c.geo.ObjectSize()
	return geometry.ChunkIndex(off / size), (end-1)/size - off/size + 1
}

// read is base.read.
func (c *chunks) read(ctx context.Context, first uint64, p []byte, size int64) (hole bool, err error) {
	vol, err := c.open(ctx)
	if err != nil {
		return false, err
	}
	off := int64(first) * layout.BlockSize
	end := min(off+int64(len(p)), size)
	if off >= end {
		clear(p)
		return true, nil
	}
	clear(p[end-off:])
	i, n := c.span(off, end)
	piece := func(ctx context.Context, i geometry.ChunkIndex) (hole bool, err error) {
		at := c.geo.Offset(i)
		lo, hi := max(off, at), min(end, at+c.geo.ObjectSize())
		q := p[lo-off : hi-off]
		if hole, err = vol.Read(ctx, i, lo-at, q); hole {
			clear(q)
		}
		return hole, err
	}
	if n == 1 {
		return piece(ctx, i)
	}
	holes := make([]bool, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for k := range holes {
		g.Go(guarded(func() (err error) {
			holes[k], err = piece(gctx, i+geometry.ChunkIndex(k))
			return err
		}))
	}
	err = g.Wait()
	return !slices.Contains(holes, false), err
}

// holes is base.holes.
func (c *chunks) holes(first, count uint64) bool {
	vol := c.opened()
	if vol == nil {
		return false
	}
	off := int64(first) * layout.BlockSize
	end := min(int64(first+count)*layout.BlockSize, c.geo.Size())
	if off >= end {
		return true
	}
	i, n := c.span(off, end)
	return vol.Holes(i, n) == n
}

// probes is how many chunks are looked at beside each other to tell holes.
const probes = 16

// extents is base.extents: what it tells begins and ends at blocks. What cannot
// be found out counts as data.
func (c *chunks) extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) {
	vol, err := c.open(ctx)
	if err != nil {
		emit(off, n, false)
		return
	}
	// A unit has whole chunks and whole blocks, or is a block with parts of chunks.
	unit := c.geo.ObjectSize()
	if unit%layout.BlockSize != 0 {
		unit = layout.BlockSize
	}
	end := off + n
	from, state := off, false // of what is not told yet
	tell := func(to int64, hole bool) bool {
		if to > from && hole != state {
			if !emit(from, to-from, state) {
				return false
			}
			from = to
		}
		state = hole
		return true
	}
	begun := false
	for at := off; at < end; {
		var bounds []int64 // the ends of the next units
		for e := at; e < end && len(bounds) < probes; {
			e = min(end, e/unit*unit+unit)
			bounds = append(bounds, e)
		}
		last := bounds[len(bounds)-1]
		found := make([]bool, len(bounds))
		if i, k := c.span(at, min(last, c.geo.Size())); at < c.geo.Size() && vol.Holes(i, k) < k {
			g, gctx := errgroup.WithContext(ctx)
			for b := range bounds {
				lo := at
				if b > 0 {
					lo = bounds[b-1]
				}
				g.Go(guarded(func() (err error) {
					found[b] = c.hole(gctx, vol, lo, bounds[b])
					return nil
				}))
			}
			_ = g.Wait() // what a bug has left is data
		} else {
			for b := range found {
				found[b] = true
			}
		}
		for b, hole := range found {
			lo := at
			if b > 0 {
				lo = bounds[b-1]
			}
			if !begun {
				begun, state = true, hole
			} else if !tell(lo, hole) {
				return
			}
		}
		at = last
	}
	emit(from, end-from, state)
}

// hole says whether the bytes from off to before end have no chunk.
func (c *chunks) hole(ctx context.Context, vol *chunked.Volume, off, end int64) bool {
	if end = min(end, c.geo.Size()); off >= end {
		return true
	}
	i, n := c.span(off, end)
	for k := range n {
		if hole, err := vol.Probe(ctx, i+geometry.ChunkIndex(k)); err != nil || !hole {
			return false
		}
	}
	return true
}
