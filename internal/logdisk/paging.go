// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// Paging
//
// The map has three layers, of which the upper one wins:
//
//	delta   what has changed since the last checkpoint began
//	frozen  what a checkpoint that is being made writes
//	tree    the runs that the newest root names
//
// All of delta and frozen is in memory, and of the tree the indexes. Disk.m has
// some regions of the disk with all three layers in one: who looks up a block
// loads its region first. Any region of m may be forgotten at any time. What a
// client writes goes into the delta, and into m where m has the region.
//
// A disk whose map is small is loaded as a whole when it is opened. It is then
// looked up without requests until the map becomes large.

const (
	// defaultMapMemory is Options.MapMemory unless it is given.
	defaultMapMemory = 64 << 20
	// extentsAtOnce is of how many regions Extents asks at once.
	extentsAtOnce = 16
)

// wholeMap is how large the runs are, bytes, that are loaded as a whole when the
// disk is opened.
func (d *Disk) wholeMap() int64 { return d.o.MapMemory / 8 }

// deltaLimit is how large the delta becomes before a checkpoint is due, bytes of
// memory.
func (d *Disk) deltaLimit() int64 { return d.o.MapMemory / 4 }

// flight is a load under way.
type flight struct {
	lo, end uint64 // regions
	done    chan struct{}
}

// viewed calls f with d.mu held, for reading at least, and with the map of the
// blocks in memory. The range is to be small.
func (d *Disk) viewed(ctx context.Context, first, count uint64, f func()) error {
	for {
		d.mu.RLock()
		if d.regions.all(first, count) {
			d.regions.touch(first, count)
			f()
			d.mu.RUnlock()
			return nil
		}
		d.mu.RUnlock()
		done, err := d.load(ctx, first, count, f)
		if done || err != nil {
			return err
		}
	}
}

// inView calls f if the map of the blocks from first to before end is in memory,
// and says whether it is.
func (d *Disk) inView(first, end uint64, f func()) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.regions.all(first, end-first) {
		return false
	}
	f()
	return true
}

// load brings the regions of the blocks into memory and then calls f with d.mu
// held. If somebody else loads them, it waits, and returns false: they may be
// gone already.
func (d *Disk) load(ctx context.Context, first, count uint64, f func()) (done bool, err error) {
	d.mu.Lock()
	lo, end := d.regions.of(first, count)
	d.regions.grow(end << d.regions.shift)
	if d.regions.all(first, count) {
		f()
		d.mu.Unlock()
		return true, nil
	}
	for _, other := range d.flights {
		if other.lo < end && lo < other.end {
			d.mu.Unlock()
			select {
			case <-other.done:
				return false, nil
			case <-ctx.Done():
				return false, context.Cause(ctx)
			}
		}
	}
	tree := d.tree
	lo, end = d.widen(lo, end)
	own := &flight{lo: lo, end: end, done: make(chan struct{})}
	d.flights = append(d.flights, own)
	d.mu.Unlock()

	base, err := d.readTree(ctx, tree, lo<<d.regions.shift, end<<d.regions.shift)

	d.mu.Lock()
	defer d.mu.Unlock()
	for i, other := range d.flights {
		if other == own {
			d.flights = append(d.flights[:i:i], d.flights[i+1:]...)
			break
		}
	}
	close(own.done)
	same := len(tree) == len(d.tree) && (len(tree) == 0 || &tree[0] == &d.tree[0])
	if !same && (err == nil || errors.Is(err, errMoved)) {
		return false, nil // a checkpoint has come between
	}
	if err != nil {
		return false, fmt.Errorf("read the map: %w", err)
	}
	d.loaded(lo, end, base)
	d.regions.touch(first, count)
	f()
	d.evict()
	return true, nil
}

// widen returns the regions that the pages of the regions [lo, end) have all of,
// and that nobody loads. d.mu is held.
func (d *Disk) widen(lo, end uint64) (uint64, uint64) {
	r := d.regions
	from, to := uint64(0), r.n<<r.shift
	for _, run := range d.tree {
		i, j := run.pages(lo<<r.shift, end<<r.shift)
		p := run.index.Pages
		switch {
		case len(p) == 0:
		case i == j && lo<<r.shift >= run.end:
			from = max(from, run.end)
		case i == j:
			to = min(to, p[0].First)
		default:
			if i > 0 {
				from = max(from, p[i].First)
			}
			if j < len(p) {
				to = min(to, p[j].First)
			}
		}
	}
	from, to = (from+1<<r.shift-1)>>r.shift, to>>r.shift
	for _, f := range d.flights {
		if f.end <= lo {
			from = max(from, f.end)
		} else {
			to = min(to, f.lo)
		}
	}
	return min(lo, from), max(end, to)
}

// readTree reads what the runs, the oldest first, have of the blocks.
func (d *Disk) readTree(ctx context.Context, tree []*runFile, first, end uint64) (*blockmap.Map, error) {
	var pieces []*somePages
	for _, run := range tree {
		i, j := run.pages(first, end)
		for ; i < j; i += pagesAtOnce {
			pieces = append(pieces, &somePages{run: run, i: i, j: min(j, i+pagesAtOnce)})
		}
	}
	m := blockmap.New()
	return m, d.readPieces(ctx, pieces, func(e blockmap.Extent) {
		if x := clip(e, first, end); x.Count > 0 {
			m.Set(x.First, x.Count, x.Value, nil)
		}
	})
}

// somePages is pages of a run: from i to before j.
type somePages struct {
	run  *runFile
	i, j int
	b    []byte
}

// readPieces calls take for each extent of the pieces, in their order. Some of them are
// read beside each other.
func (d *Disk) readPieces(ctx context.Context, pieces []*somePages, take func(blockmap.Extent)) error {
	for batch := range slices.Chunk(pieces, fetchLimit) {
		g, gctx := errgroup.WithContext(ctx)
		for _, p := range batch {
			g.Go(guarded(func() (err error) {
				p.b, err = d.readPages(gctx, p.run, p.i, p.j)
				return err
			}))
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for _, p := range batch {
			from := p.run.index.Pages[p.i].Place
			for k := p.i; k < p.j; k++ {
				ref := p.run.index.Pages[k]
				for e, err := range p.run.entries(k, p.b[ref.Place-from:][:ref.Bytes]) {
					if err != nil {
						return inObject(layout.RunName(p.run.at), err)
					}
					take(extentOf(e))
				}
			}
			p.b = nil
		}
	}
	return nil
}

// loaded puts what the tree has of the regions into m, and what lies over it.
// d.mu is held.
func (d *Disk) loaded(lo, end uint64, base *blockmap.Map) {
	r := d.regions
	for k := r.next(lo, end, false); k < end; k = r.next(k, end, false) {
		to := r.next(k, end, true)
		first, count := k<<r.shift, (to-k)<<r.shift
		for e := range base.Lookup(first, count) {
			d.m.Set(e.First, e.Count, e.Value, nil)
		}
		if d.frozen != nil {
			for _, half := range []*blockmap.Map{d.frozen.known, d.frozen.blind} {
				for e := range half.Lookup(first, count) {
					d.m.Set(e.First, e.Count, e.Value, nil)
				}
			}
		}
		// Now it is known what lies under the blind ones.
		var blind []blockmap.Extent
		for e := range d.delta.blind.Lookup(first, count) {
			blind = append(blind, e)
		}
		for _, e := range blind {
			d.m.Set(e.First, e.Count, e.Value, d.replaced)
			d.delta.blind.Remove(e.First, e.Count, nil)
			d.delta.known.Set(e.First, e.Count, e.Value, nil)
		}
		for e := range d.delta.known.Lookup(first, count) {
			d.m.Set(e.First, e.Count, e.Value, nil)
		}
		for ; k < to; k++ {
			r.set(k, true)
		}
	}
}

// evict has m forget regions until it is small enough. d.mu is held.
func (d *Disk) evict() {
	limit := d.o.MapMemory - d.delta.bytes() - d.treeBytes
	if d.frozen != nil {
		limit -= d.frozen.bytes()
	}
	limit = max(limit, d.o.MapMemory/4)
	for n := 0; n%16 != 0 || d.m.Bytes() > limit; n++ {
		k, ok := d.regions.victim()
		if !ok {
			return
		}
		d.m.Remove(k<<d.regions.shift, 1<<d.regions.shift, nil)
		d.regions.set(k, false)
	}
}

// setTree takes the runs of the newest root. d.mu is held.
func (d *Disk) setTree(tree []*runFile) {
	d.tree, d.treeBytes = tree, 0
	for _, r := range tree {
		d.treeBytes += r.bytes()
	}
}

// mapBytes is the memory that the map takes. d.mu is held.
func (d *Disk) mapBytes() int64 {
	n := d.m.Bytes() + d.delta.bytes() + d.treeBytes
	if d.frozen != nil {
		n += d.frozen.bytes()
	}
	return n
}

// install puts an extent of an object into the map. d.mu is held.
func (d *Disk) install(e blockmap.Extent) {
	if stored(e.Kind) {
		d.count(e.At, int64(e.Count))
	}
	d.regions.grow(e.First + e.Count)
	for _, w := range d.watches {
		w.Remove(e.First, e.Count, nil)
	}
	for span, have := range d.regions.spans(e.First, e.Count) {
		p := part(e, span[0], span[1])
		if have {
			d.m.Set(p.First, p.Count, p.Value, d.replaced)
			d.delta.put(p, true, nil)
		} else {
			d.delta.put(p, false, d.replaced)
		}
	}
}

// relocate is install for blocks of which the caller knows that they are in
// Swift at the place of source. d.mu is held.
func (d *Disk) relocate(e blockmap.Extent, source layout.Position) {
	d.count(e.At, int64(e.Count))
	d.count(source, -int64(e.Count))
	for span, have := range d.regions.spans(e.First, e.Count) {
		p := part(e, span[0], span[1])
		if have {
			d.m.Set(p.First, p.Count, p.Value, nil)
		}
		d.delta.put(p, true, nil)
	}
}

// count adds blocks to an object's count of live ones, if there is such an object.
// d.mu is held.
func (d *Disk) count(at layout.Position, blocks int64) {
	if d.objects.count(at, blocks) && blocks < 0 {
		d.dead(at)
	}
}

// replaced notes that the map does not have the extent any more. d.mu is held.
func (d *Disk) replaced(e blockmap.Extent) {
	if stored(e.Kind) {
		d.count(e.At, -int64(e.Count))
	}
}
