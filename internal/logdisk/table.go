// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
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

// row is what a checkpoint writes of an object.
type row struct {
	at   layout.Position
	live int64   // blocks; 0: the object is not needed
	o    *object // nil: it is gone
}

// rows returns what has changed in the table since the last checkpoint began, or
// if whole all of it. drops are taken off. d.mu is held.
func (d *Disk) rows(whole bool, drops map[layout.Position]int64) []row {
	if whole {
		for at := range d.objects {
			d.changed[at] = struct{}{}
		}
	}
	for at := range drops {
		d.changed[at] = struct{}{}
	}
	list := make([]row, 0, len(d.changed))
	for at := range d.changed {
		r := row{at: at, o: d.objects[at]}
		if r.o != nil {
			r.live = r.o.live - drops[at]
		}
		if r.live > 0 || !whole {
			list = append(list, r)
		}
	}
	d.changed = map[layout.Position]struct{}{}
	slices.SortFunc(list, func(a, b row) int { return a.at.Compare(b.at) })
	return list
}

// writeTable writes rows as runs of objects.
func (d *Disk) writeTable(ctx context.Context, rows []row) (names []layout.Position, bytes int64, err error) {
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
	for _, r := range rows {
		e := layout.ObjectEntry{At: r.at, Remove: true}
		if r.live > 0 {
			e.Remove, e.Live = false, r.live*layout.FrameSize
			if e.Size, err = d.sizeOf(ctx, r.o); err != nil {
				return nil, 0, err
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
func (d *Disk) sizeOf(ctx context.Context, o *object) (int64, error) {
	d.mu.RLock()
	size := o.size
	d.mu.RUnlock()
	if size != 0 {
		return size, nil
	}
	size, err := d.headKnown(ctx, layout.LogName(o.at), "the map")
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o.size = size
	return size, nil
}

// readTable reads the table that a root names. The disk has no object yet.
func (d *Disk) readTable(ctx context.Context, names []layout.Position) error {
	for batch := range slices.Chunk(names, d.o.Connections) {
		runs := make([][]byte, len(batch))
		g, gctx := errgroup.WithContext(ctx)
		for i, at := range batch {
			g.Go(func() (err error) {
				runs[i], err = d.readWhole(gctx, layout.RunName(at), "the root")
				return err
			})
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
			delete(d.objects, e.At)
		default:
			o := d.objectAt(e.At)
			o.size, o.live = e.Size, e.Live/layout.FrameSize
		}
	}
	return nil
}

// countTree counts the live blocks of all objects by the runs alone: a root of
// before there were tables has none.
func (d *Disk) countTree(ctx context.Context) error {
	groups := sortedRuns(d.tree)
	return d.mergeEntries(ctx, groups, true, nil, func(e layout.Entry) bool {
		if e.Kind == layout.Data {
			d.mu.Lock()
			o := d.objectAt(e.At)
			o.live += int64(e.Count)
			d.changed[e.At] = struct{}{}
			d.mu.Unlock()
		}
		return true
	})
}
