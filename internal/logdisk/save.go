// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

const (
	// runBytes is how large a run becomes before the next one begins, bytes.
	runBytes = 8 << 20
	// maxRuns is how many runs a root names before they are written anew as one.
	maxRuns = 64 // of objects
	// saveEvery is how long changes go without a checkpoint.
	saveEvery = time.Hour
	// horizon is Options.Horizon unless it is given: readers may be at the root
	// before the newest.
	horizon = 10 * time.Minute
)

// due says whether a checkpoint is due. d.mu is held.
func (d *Disk) due() bool {
	return d.durable >= d.savedN+uint64(d.o.Checkpoint) || d.dying.len() >= d.o.Checkpoint || len(d.pins.fresh) >= d.o.Checkpoint ||
		d.durable > d.savedN && time.Since(d.savedAt) > saveEvery ||
		d.frozen == nil && !d.delta.empty() && d.delta.bytes() > d.deltaLimit()
}

// Save makes a checkpoint of what is durable and sealed: opening the disk
// reads no log then. Drain comes before it.
func (d *Disk) Save(ctx context.Context) error { return d.save(ctx) }

// checkpoint is what becomes true when a root is in Swift.
type checkpoint struct {
	root     layout.Root
	at       layout.Position // the root's name
	bytes    []byte          // of the root
	savedN   uint64
	dying    int // so many of the sets of Disk.dying
	obsolete []string
	tree     []*runFile
	merged   *merged // nil: the runs were not merged
	then     *Disk   // whose map the root has; nil: it has the disk's own

	tableBase, tableDeltas int64
	tables                 []layout.Position // runs of objects that were written for it

	epochs map[uint32]bool // that have objects which the root needs

	fresh []layout.KeptObject // the first ones of Disk.pins.fresh
	dead  []layout.KeptObject // what dies by its merge, if a pin needs it
	kept  layout.Kept         // of the root
	freed objectSet           // data objects that no pin needs any more
}

// lockSaving waits until no checkpoint is being made.
func (d *Disk) lockSaving(ctx context.Context) error {
	select {
	case d.saving <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

func (d *Disk) unlockSaving() { <-d.saving }

// save writes what has changed in the map since the newest root as runs, and
// then a root.
func (d *Disk) save(ctx context.Context) error {
	if err := d.saveWith(ctx, nil); err != nil {
		return fmt.Errorf("save the map: %w", err)
	}
	return nil
}

// saveWith is save. If edit is not nil, it is a checkpoint of all that was
// completed before, and edit changes its root, with d.mu held.
func (d *Disk) saveWith(ctx context.Context, edit func(c *checkpoint) error) (err error) {
	if err := d.lockSaving(ctx); err != nil {
		return err
	}
	defer d.unlockSaving()
	// A root that was sent may be in Swift, or arrive there later. So its name
	// never gets other bytes, and since the next one is looked for under the
	// next number, it goes first.
	if d.sent != nil {
		if err := d.putRoot(ctx); err != nil {
			return err
		}
	}
	d.mu.Lock()
	if edit != nil && d.open != nil {
		d.seal()
	}
	if edit == nil && d.rootAt.Epoch == d.o.Epoch && d.next-1 == d.savedN && d.delta.empty() && d.dying.len() == 0 && d.merged == nil {
		d.mu.Unlock()
		return nil
	}
	c := &checkpoint{
		root: d.root, at: layout.Position{Epoch: d.o.Epoch, N: d.roots + 1}, savedN: d.next - 1, dying: d.dying.close(),
		tree: d.tree, merged: d.merged,
	}
	c.root.Name, c.root.At = c.at, d.at
	var done chan struct{} // of the last sealed object; nil: it is durable
	if c.savedN > 0 {
		c.root.At = layout.Position{Epoch: d.o.Epoch, N: c.savedN}
		if c.savedN > d.durable {
			done = d.objects.writing[c.root.At].done
		}
	}
	c.root.Size = d.size.Load()
	if d.base != nil {
		c.root.Below = seenBelow(c.root.Below, d.baseSize)
	}
	from := d.root
	before := c.root.Pins
	if edit != nil {
		if err := edit(c); err != nil {
			d.mu.Unlock()
			return err
		}
		// Until it is known which root is the newest, what either needs is kept.
		d.pins.list = bothPins(before, c.root.Pins)
	}
	c.root.Below = seenBelow(c.root.Below, c.root.Size)
	delta := d.delta
	d.frozen, d.delta = delta, newDelta()
	var drops *tally
	if m := c.merged; m != nil {
		drops = m.drops
		i := len(c.tree)
		if len(m.old) > 0 { // else it is what a resize cuts off
			i = slices.Index(c.tree, m.old[0])
		}
		c.tree = slices.Concat(c.tree[:i], m.runs, c.tree[i+len(m.old):])
	}
	rows := d.objects.freeze(drops)
	c.fresh, c.epochs = slices.Clone(d.pins.fresh), d.neededEpochs()
	pins, moment := d.pins.list, d.pins.moment
	d.pins.moment = c.at
	c.tableBase, c.tableDeltas = d.tableBase, d.tableDeltas
	d.mu.Unlock()
	thaw := func(written bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.objects.thaw(written)
	}
	var runs []*runFile
	defer func() {
		if err == nil || d.sent != nil {
			return
		}
		d.giveUp(runs)
		for _, at := range c.tables {
			d.giveUpRun(at, 0)
		}
		// What was not saved is the next checkpoint's.
		d.mu.Lock()
		delta.over(d.delta, d.replaced)
		d.delta, d.frozen = delta, nil
		d.objects.thaw(false)
		d.pins.list = before
		d.mu.Unlock()
	}()
	if done != nil {
		d.mu.RLock()
		failing := d.failing
		d.mu.RUnlock()
		if err := d.await(ctx, done, failing); err != nil {
			return err
		}
	}
	if runs, err = d.writeRuns(ctx, delta.all()); err != nil {
		return err
	}
	c.tree = slices.Concat(c.tree, runs)
	c.root.Runs.Blocks = nil
	for _, r := range c.tree {
		c.root.Runs.Blocks = append(c.root.Runs.Blocks, r.at)
	}
	if m := c.merged; m != nil {
		for _, r := range m.old {
			c.obsolete = append(c.obsolete, layout.RunName(r.at))
		}
	}
	if err := d.saveTable(ctx, c, from, rows); err != nil {
		return err
	}
	c.dead = deadBy(rows, pins, moment)
	thaw(true)
	return d.send(ctx, c, before)
}

// send completes a checkpoint of which all but the list of what pins need is
// written, and brings its root to Swift. before has the pins of the root before.
// saving is held.
func (d *Disk) send(ctx context.Context, c *checkpoint, before []layout.Pin) (err error) {
	if err := d.writeKept(ctx, c, before); err != nil {
		return err
	}
	c.root.Requires = without(c.root.Requires, layout.FeatureInline)
	if c.root.Table != nil || c.root.KeptMore != nil {
		c.root.Requires = append(c.root.Requires, layout.FeatureInline)
	}
	c.root.Ended = d.ended(c)
	if c.bytes, err = c.root.Marshal(); err != nil {
		return err
	}
	d.sent = c
	return d.putRoot(ctx)
}

// sendAgain brings the root to Swift that was sent and not answered, if there is one.
func (d *Disk) sendAgain(ctx context.Context) error {
	if err := d.lockSaving(ctx); err != nil {
		return err
	}
	defer d.unlockSaving()
	if d.sent == nil {
		return nil
	}
	return d.putRoot(ctx)
}

// putRoot brings the root of the checkpoint sent to Swift. saving is held.
func (d *Disk) putRoot(ctx context.Context) error {
	c := d.sent
	if err := d.store.Put(ctx, layout.RootName(c.at), c.bytes, etagOf(c.bytes)); err != nil {
		return err
	}
	d.sent, d.pins.anew = nil, false
	d.stats.Saves.Add(1)
	d.stats.SaveBytes.Add(int64(len(c.bytes)))
	after := time.Now().Add(d.o.Horizon)
	d.mu.Lock()
	if d.rootAt.N > 0 && !pinned(c.root.Pins, d.rootAt) {
		c.obsolete = append(c.obsolete, layout.RootName(d.rootAt))
	}
	for _, roots := range []bool{true, false} { // these come first: see garbageList
		for _, name := range c.obsolete {
			if strings.HasPrefix(name, layout.RootPrefix) == roots {
				d.discard(garbage{name: name, after: after})
			}
		}
	}
	for _, s := range d.dying.take(c.dying) {
		d.garbage.addSet(garbageSet{after, s})
	}
	d.garbage.addSet(garbageSet{after, &c.freed})
	d.waste += c.freed.bytes()
	d.pins.list, d.pins.kept, d.pins.fresh = c.root.Pins, c.kept, slices.Clone(d.pins.fresh[len(c.fresh):])
	d.root, d.rootAt, d.roots, d.savedN, d.savedAt = c.root, c.at, c.at.N, c.savedN, time.Now()
	d.tableBase, d.tableDeltas = c.tableBase, c.tableDeltas
	if c.root.Below == nil {
		d.base, d.baseSize = nil, 0
	}
	d.frozen = nil
	d.setTree(c.tree)
	if c.then != nil {
		d.become(c.then)
	}
	d.resized(c.root.Size)
	var seen []layout.Position
	if m := c.merged; m != nil {
		d.merged = nil
		d.merges++
		if m.all {
			d.phantoms = false
		}
		seen, d.objects.seen = d.objects.seen, nil
	}
	d.mu.Unlock()
	if c.merged != nil {
		d.takeOff(c.merged.drops, seen)
	}
	d.wakeMerging()
	// A hint: an old one costs the next start some requests. With it goes the size.
	err := d.store.SetMetadata(ctx, volume.RootItems(d.o.UUID, layout.RootText(c.at), c.root.Size))
	if err != nil {
		d.o.Log("note the newest root: %v (no data is concerned: the next start takes some requests more)", err)
	}
	return nil
}

// takeOff takes what a merge has found off the counts, when the newest root has it,
// and has the collector look again at the objects of which it has seen that their
// counts are too high. Until it is done the counts are too high still, which does
// no harm. saving is held: no checkpoint comes between.
func (d *Disk) takeOff(drops *tally, seen []layout.Position) {
	n := 0
	d.mu.Lock()
	defer d.mu.Unlock()
	pause := func() {
		if n++; n%rowsAtOnce == 0 {
			d.mu.Unlock()
			runtime.Gosched()
			d.mu.Lock()
		}
	}
	for at, blocks := range drops.all() {
		if d.objects.takeOff(at, blocks) {
			d.dead(at)
		}
		pause()
	}
	for _, at := range seen {
		d.objects.unsee(at)
		pause()
	}
}

// neededEpochs returns the epochs of which the map or a pin needs objects. d.mu is held.
func (d *Disk) neededEpochs() map[uint32]bool {
	needed := make(map[uint32]bool)
	for epoch := range d.objects.epochs() {
		needed[epoch] = true
	}
	d.keptEpochs(needed)
	return needed
}

// ended returns the epochs that have ended and of which the root of a checkpoint needs
// objects: those of its moment. What has died since is in its map.
func (d *Disk) ended(c *checkpoint) (ended []layout.Position) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	last := make(map[uint32]uint64)
	for _, e := range c.root.Ended {
		last[e.Epoch] = e.N
	}
	last[d.former.Epoch] = d.former.N // 0 too: the collector's objects may be left
	for e, n := range last {
		if c.epochs[e] {
			ended = append(ended, layout.Position{Epoch: e, N: n})
		}
	}
	slices.SortFunc(ended, layout.Position.Compare)
	return ended
}

// writeRuns writes the entries, which are in the order of their blocks, as one
// run or several. What it returns beside an error is in Swift.
func (d *Disk) writeRuns(ctx context.Context, entries iter.Seq[layout.Entry]) (runs []*runFile, err error) {
	var (
		w    *layout.RunWriter
		at   layout.Position // its name
		last uint64          // block
	)
	end := func() error {
		if w == nil {
			return nil
		}
		b := w.Bytes()
		w = nil
		if err := d.putRun(ctx, at, b); err != nil {
			return err
		}
		r, err := newRunFile(at, b, last, d.o.UUID)
		if err != nil {
			return err
		}
		runs = append(runs, r)
		return nil
	}
	for e := range entries {
		if w == nil {
			at = d.nextRun()
			w = layout.NewRunWriter(d.o.UUID, layout.RunBlocks, at)
		}
		if err := w.Add(e); err != nil {
			return runs, err
		}
		if last = e.End(); w.Len() >= runBytes {
			if err := end(); err != nil {
				return runs, err
			}
		}
	}
	return runs, end()
}

// nextRun returns a name for a run.
func (d *Disk) nextRun() layout.Position {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.runs++
	return layout.Position{Epoch: d.o.Epoch, N: d.runs}
}

func (d *Disk) putRun(ctx context.Context, at layout.Position, b []byte) error {
	if err := d.putOnce(ctx, layout.RunName(at), b); err != nil {
		return err
	}
	d.stats.SaveBytes.Add(int64(len(b)))
	return nil
}

// putOnce writes an object that nothing names yet. After an error its name is not used
// again, and nothing will name it: if it may be there all the same, it is garbage.
func (d *Disk) putOnce(ctx context.Context, name string, b []byte) error {
	err := d.store.Put(ctx, name, b, etagOf(b))
	if err != nil && store.Ambiguous(err) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.discard(garbage{name: name, after: time.Now().Add(d.o.Horizon)})
	}
	return err
}

func etagOf(b []byte) store.ETag {
	sum := md5.Sum(b)
	return store.ETag(hex.EncodeToString(sum[:]))
}
