// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
)

// The table of objects
//
// A root's runs of objects say how many live blocks each data object has: how
// many entries of the root's runs of blocks name it, but for those that are known
// to be covered (see delta). So a count is never too low, and an object that no
// run needs has none. It is too high while entries are covered blindly.

// writeTable writes rows as runs of objects.
func (d *Disk) writeTable(ctx context.Context, rows iter.Seq[tableRow]) (names []layout.Position, bytes int64, err error) {
	var w *layout.RunWriter
	var at layout.Position // its name
	end := func() error {
		if w == nil {
			return nil
		}
		b := w.Bytes()
		w = nil
		names, bytes = append(names, at), bytes+int64(len(b))
		return d.putRun(ctx, at, b)
	}
	for r := range rows {
		e := layout.ObjectEntry{At: r.at, Remove: true}
		if r.live > 0 {
			e.Remove, e.Live = false, r.live*layout.FrameSize
			if e.Size, err = d.sizeOf(ctx, r); err != nil {
				return nil, 0, err
			}
			if e.Density = d.densityOf(r); e.Density == 0 && e.Live > e.Size-layout.FooterSize {
				e.Density = densityOf(r.live, e.Size)
			}
		}
		if w == nil {
			at = d.nextRun()
			w = layout.NewRunWriter(d.o.UUID, layout.RunObjects, at)
		}
		if err := w.AddObject(e); err != nil {
			return nil, 0, err
		}
		if w.Len() >= runBytes {
			if err := end(); err != nil {
				return nil, 0, err
			}
		}
	}
	return names, bytes, end()
}

// sizeOf returns an object's size, which it asks for if it is not known.
func (d *Disk) sizeOf(ctx context.Context, r tableRow) (int64, error) {
	if r.size != 0 {
		return r.size, nil
	}
	d.mu.RLock()
	h, _ := d.objects.get(r.at)
	if r.o != nil {
		h.size = r.o.size
	}
	d.mu.RUnlock()
	if h.size != 0 {
		return h.size, nil
	}
	size, err := d.headKnown(ctx, layout.LogName(r.at), "the map")
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.objects.setSize(r.at, size)
	return size, nil
}

// densityOf returns an object's density, as far as it is known.
func (d *Disk) densityOf(r tableRow) uint8 {
	if r.o == nil {
		return r.density
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return r.o.density
}

// readTable reads the table that a root names. The disk has no object yet.
func (d *Disk) readTable(ctx context.Context, names []layout.Position) error {
	for batch := range slices.Chunk(names, d.o.Connections) {
		runs := make([][]byte, len(batch))
		g, gctx := errgroup.WithContext(ctx)
		for i, at := range batch {
			g.Go(guarded(func() (err error) {
				runs[i], err = d.readWhole(gctx, layout.RunName(at), "the root")
				return err
			}))
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for i, at := range batch {
			if err := d.takeTable(at, runs[i]); err != nil {
				return fmt.Errorf("object %s: %w", layout.RunName(at), err)
			}
			d.tableBase += int64(len(runs[i]))
		}
	}
	return nil
}

// takeTable takes what a run of objects says.
func (d *Disk) takeTable(name layout.Position, b []byte) error {
	run, err := layout.ParseRun(b, d.o.UUID)
	if err == nil {
		err = run.Check(name)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for e, err := range run.Objects() {
		switch {
		case err != nil:
			return err
		case e.Live == 0 && !e.Remove:
			return &layout.UnsupportedError{What: "run", Why: fmt.Sprintf("object %v is kept for a snapshot", e.At)}
		case e.Live%layout.FrameSize != 0:
			return &layout.UnsupportedError{What: "run", Why: fmt.Sprintf("object %v has %d live bytes, which are not whole frames", e.At, e.Live)}
		case e.Remove:
			d.objects.durable.remove(e.At)
		default:
			d.objects.add(e.At, held{e.Size, e.Live / layout.FrameSize, e.Density})
		}
	}
	return nil
}

// countTree counts the live blocks of all objects by the runs alone: a root of
// before there were tables has none.
func (d *Disk) countTree(ctx context.Context) error {
	groups := sortedRuns(d.tree)
	return d.mergeEntries(ctx, groups, true, nil, func(e layout.Entry) bool {
		if stored(e.Kind) {
			d.mu.Lock()
			d.objects.ensure(e.At)
			d.objects.count(e.At, int64(e.Count))
			d.mu.Unlock()
		}
		return true
	})
}
