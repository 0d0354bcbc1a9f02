// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// Differences
//
// What has changed from one moment of a disk to another follows from their maps.
// Objects are written once, so blocks that both maps have at one place are equal.
// A client's write always gives a block a new place. So a change is never missed.
//
// The runs with which both roots begin are the same objects, the shared ones. For
// a block that none of the other runs has, both maps say the same. So the shared
// runs are not read for it, and the time is that of the changes:
//
//	from   shared runs | own runs
//	to     shared runs | own runs | log after the root
//	                   ^ only what is here is read
//
// A block may have a new place for another reason: the collector has moved it. A
// map's entry does not say so. The collector's object does: each of its records
// names the place that it was copied from (layout.Record.Source). An exact
// comparison follows these, from the newer place to the older one. It reads the
// ends of the collector's objects, and never data.

const (
	// diffBatch is how many parts of the disk are compared at once.
	diffBatch = 4096
	// diffRecords bounds how many of the collector's records are kept in memory.
	// What is in further objects counts as changed.
	diffRecords = 1 << 20
	// diffHops is how often a block is followed from one of the collector's
	// objects to the one before.
	diffHops = 16
)

// Moment is a moment of a disk.
type Moment struct {
	Snapshot string          // its name; empty: the newest moment
	Root     layout.Position // the name of its root, as layout.RootName takes it
	Size     int64           // bytes of the disk
}

// DiffOptions say what is compared.
type DiffOptions struct {
	From string // a snapshot; empty: nothing, as if all of the disk was zeroes
	To   string // a snapshot; empty: the newest moment
	// Exact leaves out what is known to be equal although it is at another place
	// in Swift: what the collector has moved, and zeroes that were zeroes before.
	// Without it the shared part of the map is not read for these.
	Exact bool
}

// Diff compares two moments of a disk.
type Diff struct {
	UUID     layout.UUID // of the disk
	From, To Moment      // From is zero if it is nothing

	d      *Disk // for its requests; its tree has all runs that were opened
	exact  bool
	pin    *layout.Pin // of From; nil: nothing
	below  belowBoth
	prefix []layout.Position
	shared []*runFile // prefix, once they were needed
	a, b   []*runFile // the own runs
	log    *delta     // of To, over its runs; nil: a snapshot has none
	origin records
}

// Change is a range of the disk that may have changed.
type Change struct {
	Off, Len int64 // bytes
	Hole     bool  // it reads as zeroes now
}

// OpenDiff reads the roots of two moments, which may be of a disk that is in use.
// Of the newest moment it also reads the log's records after the root.
func OpenDiff(ctx context.Context, o Options, what DiffOptions) (*Diff, error) {
	o.Epoch = 0
	x := &Diff{UUID: o.UUID, d: newDisk(o), exact: what.Exact}
	if err := x.open(ctx, what); err != nil {
		x.Close()
		return nil, x.d.explainGone(ctx, err, Moment{Snapshot: what.From, Root: x.From.Root}, Moment{Snapshot: what.To, Root: x.To.Root})
	}
	return x, nil
}

// Close ends the comparison.
func (x *Diff) Close() {
	x.d.cancel(ErrClosed)
	x.below.close(x.d)
}

func (x *Diff) open(ctx context.Context, what DiffOptions) error {
	d := x.d
	at, _, err := d.newestRoot(ctx)
	if err != nil {
		return err
	}
	newest, err := d.readRoot(ctx, at)
	if err != nil {
		return err
	}
	moment := func(name string) (Moment, layout.Root, error) {
		if name == "" {
			return Moment{Root: at, Size: newest.Size}, newest, nil
		}
		pin := findPin(newest.Pins, name)
		if pin == nil {
			return Moment{}, layout.Root{}, fmt.Errorf("snapshot %s: %w", name, ErrNoSnapshot)
		}
		root, err := d.readRoot(ctx, pin.Root)
		return Moment{Snapshot: name, Root: pin.Root, Size: root.Size}, root, err
	}
	var from, to layout.Root
	if what.From != "" {
		if x.From, from, err = moment(what.From); err != nil {
			return err
		}
		pin := *findPin(newest.Pins, what.From)
		x.pin = &pin
	}
	if x.To, to, err = moment(what.To); err != nil {
		return err
	}
	if err := x.below.set(d, from, to); err != nil {
		return err
	}
	n := 0
	for n < len(from.Runs.Blocks) && n < len(to.Runs.Blocks) && from.Runs.Blocks[n] == to.Runs.Blocks[n] {
		n++
	}
	x.prefix = from.Runs.Blocks[:n]
	if x.a, err = x.openRuns(ctx, from.Runs.Blocks[n:]); err != nil {
		return err
	}
	if x.b, err = x.openRuns(ctx, to.Runs.Blocks[n:]); err != nil {
		return err
	}
	if what.To != "" {
		return nil
	}
	d.setRoot(at, newest)
	d.regions = newRegions(blocksOf(newest.Size), d.o.regionShift)
	start := layout.Position{Epoch: at.Epoch, N: 1}
	if newest.At.Epoch == at.Epoch {
		start.N = newest.At.N + 1
	}
	log, whole, err := d.readWholeLog(ctx, start)
	if err != nil {
		return err
	}
	d.replay(start, log.objects, whole)
	x.log, x.To.Size = d.delta, d.size.Load()
	return nil
}

// openRuns opens runs, and notes that the disk names them.
func (x *Diff) openRuns(ctx context.Context, names []layout.Position) ([]*runFile, error) {
	runs, err := x.d.openRuns(ctx, names)
	if err != nil {
		return nil, err
	}
	x.d.mu.Lock()
	defer x.d.mu.Unlock()
	x.d.tree = append(x.d.tree, runs...)
	return runs, nil
}

// Changes calls emit for what has changed, in the order of the disk, with ranges
// that do not touch if they are of one kind.
func (x *Diff) Changes(ctx context.Context, emit func(Change) error) error {
	var last Change
	err := x.compare(ctx, func(e blockmap.Extent) error {
		c := Change{Hole: !hasBytes(e.Kind)}
		c.Off, c.Len = x.bytesOf(e)
		if last.Len > 0 && last.Off+last.Len == c.Off && last.Hole == c.Hole {
			last.Len += c.Len
			return nil
		}
		c, last = last, c
		if c.Len == 0 {
			return nil
		}
		return emit(c)
	})
	if err != nil {
		return x.d.explainGone(ctx, err, x.From, x.To)
	}
	if last.Len > 0 {
		return emit(last)
	}
	return nil
}

// bytesOf returns the range of an extent, which ends with the disk.
func (x *Diff) bytesOf(e blockmap.Extent) (off, n int64) {
	off = int64(e.First) * layout.BlockSize
	return off, min(int64(e.Count)*layout.BlockSize, x.To.Size-off)
}

// explainGone says of an error that an object is not found whether it is because a
// snapshot was deleted, whose name another one may have by now, or because the newest
// moment, whose name is empty, is too old by now.
func (d *Disk) explainGone(ctx context.Context, err error, moments ...Moment) error {
	if !errors.As(err, new(*AwayError)) && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	at, root, rerr := d.readNewest(ctx)
	if rerr != nil {
		return err
	}
	for _, m := range moments {
		there := pinned(root.Pins, m.Root)
		if m.Root.IsZero() { // it was not found out
			there = findPin(root.Pins, m.Snapshot) != nil
		}
		switch {
		case m.Snapshot != "" && !there:
			return fmt.Errorf("snapshot %s was deleted meanwhile: %w", m.Snapshot, err)
		case m.Snapshot == "" && d.rootAt.N > 0 && at != d.rootAt:
			return fmt.Errorf("the disk was written on, and what it was when this began is gone: %w", err)
		}
	}
	return err
}

// above yields what is over the shared runs.
func (x *Diff) above(ctx context.Context, own []*runFile, log *delta) iter.Seq2[layout.Entry, error] {
	return func(yield func(layout.Entry, error) bool) {
		layers := x.d.layers(ctx, sortedRuns(own))
		if log != nil {
			top := func(yield func(layout.Entry, error) bool) {
				for e := range log.all() {
					if !yield(e, nil) {
						return
					}
				}
			}
			layers = append([]iter.Seq2[layout.Entry, error]{top}, layers...)
		}
		more := true
		err := mergeLayers(layers, false, nil, func(e layout.Entry) bool {
			more = yield(e, nil)
			return more
		})
		if err != nil && more {
			yield(layout.Entry{}, err)
		}
	}
}

// sides is a part of the disk in which each of the moments has one extent over the
// shared runs, or none.
type sides struct {
	first, end uint64
	a, b       blockmap.Extent // Count is 0: none
}

// walk yields, in order, the parts of the disk that may differ.
func (x *Diff) walk(ctx context.Context) iter.Seq2[sides, error] {
	return func(yield func(sides, error) bool) {
		var heads [2]*head
		for i, seq := range []iter.Seq2[layout.Entry, error]{x.above(ctx, x.a, nil), x.above(ctx, x.b, x.log)} {
			next, stop := iter.Pull2(seq)
			defer stop()
			heads[i] = &head{next: next}
			if err := heads[i].advance(); err != nil {
				yield(sides{}, err)
				return
			}
		}
		limit := blocksOf(x.To.Size)
		// Of what is behind the end of a smaller disk the map has nothing.
		for at := uint64(0); ; {
			s := sides{first: min(limit, x.below.next(at)), end: limit}
			for _, h := range heads {
				if h.ok {
					s.first = min(s.first, max(at, h.e.First))
				}
			}
			if s.first >= limit {
				return
			}
			for i, h := range heads {
				switch {
				case !h.ok:
				case h.e.First > s.first:
					s.end = min(s.end, h.e.First)
				default:
					s.end = min(s.end, h.e.End())
					if i == 0 {
						s.a = extentOf(h.e)
					} else {
						s.b = extentOf(h.e)
					}
				}
			}
			s.end = x.below.cut(s.first, s.end)
			if s.a.Count == 0 && s.b.Count == 0 {
				s.end = min(s.end, s.first+gapBlocks)
			}
			s.a, s.b = clip(s.a, s.first, s.end), clip(s.b, s.first, s.end)
			if !yield(s, nil) {
				return
			}
			at = s.end
			for _, h := range heads {
				for h.ok && h.e.End() <= at {
					if err := h.advance(); err != nil {
						yield(sides{}, err)
						return
					}
				}
			}
		}
	}
}
