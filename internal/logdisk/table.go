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
//
// What has changed since the newest of these runs is in the root itself
// (Root.Table), as long as that is short. The next root has it again, with what
// has changed meanwhile. So a checkpoint that is soon after another costs no
// request for the table.

// saveTable puts what a checkpoint writes of the table into its root: what the
// root from has in itself, and rows over that. If it is too long for that, runs are
// written. saving is held.
func (d *Disk) saveTable(ctx context.Context, c *checkpoint, from layout.Root, rows *tableRows) error {
	// A root with a map and without a table is of before there were tables.
	always := len(c.tree) > 0 && (rows.whole || len(c.root.Runs.Objects) == 0)
	table, fits, err := d.inlineTable(c.at, d.tableEntries(ctx, from, rows), always)
	if err != nil {
		return err
	}
	var names []layout.Position
	var bytes int64
	if !fits {
		if n := len(c.root.Runs.Objects); n == 0 || n >= maxRuns || c.tableDeltas > c.tableBase {
			rows.takeAll()
		}
		names, bytes, err = d.writeTable(ctx, d.tableEntries(ctx, from, rows))
		if c.tables = names; err != nil {
			return err
		}
	}
	c.root.Table = table
	if !rows.whole {
		c.root.Runs.Objects = slices.Concat(c.root.Runs.Objects, names)
		c.tableDeltas += bytes
		return nil
	}
	for _, at := range c.root.Runs.Objects {
		c.obsolete = append(c.obsolete, layout.RunName(at))
	}
	c.root.Runs.Objects, c.tableBase, c.tableDeltas = names, bytes, 0
	return nil
}

// tableEntries returns the entries of rows, and those that the root from has in
// itself and that rows say nothing of: none if rows are all. They are in order. If
// there are no runs of objects, then what is gone has no entry.
func (d *Disk) tableEntries(ctx context.Context, from layout.Root, rows *tableRows) iter.Seq2[layout.ObjectEntry, error] {
	if rows.whole {
		from.Table = nil
	}
	removes := len(from.Runs.Objects) > 0
	return func(yield func(layout.ObjectEntry, error) bool) {
		next, stop := iter.Pull2(from.TableEntries())
		defer stop()
		old, err, more := next()
		for r := range rows.all() {
			for ; err == nil && more && old.At.Less(r.at); old, err, more = next() {
				if !yield(old, nil) {
					return
				}
			}
			if err == nil && more && old.At == r.at {
				old, err, more = next()
			}
			if err != nil {
				break
			}
			if r.live <= 0 && !removes {
				continue
			}
			if e, err := d.tableEntry(ctx, r); !yield(e, err) || err != nil {
				return
			}
		}
		for ; more; old, err, more = next() {
			if !yield(old, err) || err != nil {
				return
			}
		}
	}
}

// tableEntry returns a row as a run of objects has it.
func (d *Disk) tableEntry(ctx context.Context, r tableRow) (e layout.ObjectEntry, err error) {
	e = layout.ObjectEntry{At: r.at, Remove: true}
	if r.live > 0 {
		e.Remove, e.Live = false, r.live*layout.FrameSize
		if e.Size, err = d.sizeOf(ctx, r); err != nil {
			return e, err
		}
		if e.Density = d.densityOf(r); e.Density == 0 && e.Live > e.Size-layout.FooterSize {
			e.Density = densityOf(r.live, e.Size)
		}
	}
	return e, nil
}

// inlineTable returns the entries as the root of the name has them in itself; nil:
// there are none, and it is not to have a table always. They fit or not: it does not
// go on when they do not.
func (d *Disk) inlineTable(root layout.Position, entries iter.Seq2[layout.ObjectEntry, error], always bool) (b []byte, fits bool, err error) {
	w := layout.NewRunWriter(d.o.UUID, layout.RunObjects, root)
	some := always
	for e, err := range entries {
		if err == nil {
			err = w.AddObject(e)
		}
		if err != nil {
			return nil, false, err
		}
		if some = true; w.Len() > d.o.tableLimit {
			return nil, false, nil
		}
	}
	if !some {
		return nil, true, nil
	}
	if b = w.Bytes(); len(b) > d.o.tableLimit {
		return nil, false, nil
	}
	return b, true, nil
}

// writeTable writes entries as runs of objects. What it returns beside an error is in
// Swift.
func (d *Disk) writeTable(ctx context.Context, entries iter.Seq2[layout.ObjectEntry, error]) (names []layout.Position, bytes int64, err error) {
	var w *layout.RunWriter
	var at layout.Position // its name
	end := func() error {
		if w == nil {
			return nil
		}
		b := w.Bytes()
		w = nil
		if err := d.putRun(ctx, at, b); err != nil {
			return err
		}
		names, bytes = append(names, at), bytes+int64(len(b))
		return nil
	}
	for e, err := range entries {
		if err != nil {
			return names, bytes, err
		}
		if w == nil {
			at = d.nextRun()
			w = layout.NewRunWriter(d.o.UUID, layout.RunObjects, at)
		}
		if err := w.AddObject(e); err != nil {
			return names, bytes, err
		}
		if w.Len() >= runBytes {
			if err := end(); err != nil {
				return names, bytes, err
			}
		}
	}
	err = end()
	return names, bytes, err
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

// readTable reads the table of a root, which is there, as by says, or needs what it
// names. The disk has no object yet.
func (d *Disk) readTable(ctx context.Context, root layout.Root, by string) error {
	for batch := range slices.Chunk(root.Runs.Objects, d.o.Connections) {
		runs := make([][]byte, len(batch))
		g, gctx := errgroup.WithContext(ctx)
		for i, at := range batch {
			g.Go(guarded(func() (err error) {
				runs[i], err = d.readWhole(gctx, layout.RunName(at), by)
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
	if err := d.takeEntries(root.TableEntries()); err != nil {
		return fmt.Errorf("object %s: %w", layout.RootName(root.Name), err)
	}
	return nil
}

// takeTable takes what a run of objects says.
func (d *Disk) takeTable(name layout.Position, b []byte) error {
	run, err := parseRun(name, b, d.o.UUID)
	if err != nil {
		return err
	}
	return d.takeEntries(run.Objects())
}

// takeEntries takes what a part of the table says.
func (d *Disk) takeEntries(entries iter.Seq2[layout.ObjectEntry, error]) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for e, err := range entries {
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
