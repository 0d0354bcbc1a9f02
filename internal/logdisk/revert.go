// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"slices"

	"swiftnbd/internal/logdisk/layout"
)

// Revert makes the disk what it was when a snapshot was made, its size too. What
// it is now is gone, unless it has a snapshot. Nothing is copied: the next root
// names the runs that the snapshot's root names.
//
// The disk is to be opened with Options.Brief. No other request may be under way,
// and after it only such changes, snapshots, Save and Close may come. After an error
// the disk is as it was, or it is reverted if Swift has not answered.
func (d *Disk) Revert(ctx context.Context, name string) error {
	if err := d.settle(ctx); err != nil {
		return err
	}
	d.mu.RLock()
	pin := findPin(d.root.Pins, name)
	d.mu.RUnlock()
	if pin == nil {
		return fmt.Errorf("snapshot %s: %w", name, ErrNoSnapshot)
	}
	then, err := d.pinnedDisk(ctx, *pin)
	if err != nil {
		return err
	}
	defer then.cancel(ErrClosed)
	if err := d.goOn(ctx); err != nil {
		return err
	}
	if err := d.revertTo(ctx, then); err != nil {
		return fmt.Errorf("save the map: %w", err)
	}
	return nil
}

// pinnedDisk returns the disk as it was at a pin: the root, the indexes of its
// runs, and its table of objects.
func (d *Disk) pinnedDisk(ctx context.Context, pin layout.Pin) (then *Disk, err error) {
	then = newDisk(d.o)
	root, err := then.readRoot(ctx, pin.Root)
	if err == nil {
		then.setRoot(pin.Root, root)
		err = then.setBase(root)
	}
	if err == nil {
		err = then.openMap(ctx)
	}
	if err != nil {
		then.cancel(ErrClosed)
		return nil, fmt.Errorf("snapshot %s: %w", pin.Name, err)
	}
	return then, nil
}

// revertTo makes a checkpoint whose root has the map of another moment of the
// disk, which a pin has. Nothing in memory changes before the root is in Swift.
//
// It walks all objects in one hold of mu: 2 seconds for ten million of them. The disk has
// no clients then (see Revert), and only the renewal of the lease waits.
func (d *Disk) revertTo(ctx context.Context, then *Disk) error {
	if err := d.lockSaving(ctx); err != nil {
		return err
	}
	defer d.unlockSaving()
	d.mu.Lock()
	if d.sent != nil || d.open != nil || d.next-1 != d.durable || !d.delta.empty() || d.merged != nil || !pinned(d.root.Pins, then.rootAt) {
		d.mu.Unlock()
		return errMeanwhile
	}
	c := &checkpoint{
		root: d.root, at: layout.Position{Epoch: d.o.Epoch, N: d.roots + 1}, savedN: d.durable, dying: d.dying.close(),
		tree: then.tree, then: then, fresh: slices.Clone(d.pins.fresh), epochs: d.neededEpochs(),
		tableBase: then.tableBase, tableDeltas: then.tableDeltas,
	}
	// The log up to here is in this root: it has nothing of it that the pin has not.
	// So At goes on, as all numbers do.
	c.root.At = layout.Position{Epoch: d.o.Epoch, N: c.savedN}
	c.root.Name, c.root.Size, c.root.Runs = c.at, then.size.Load(), then.root.Runs
	// Bases has what any of the pins may need.
	c.root.Below = then.root.Below
	// If a pin needs chunks, this is required already.
	c.root.Requires = without(c.root.Requires, layout.FeatureClone)
	if c.root.Below != nil && c.root.Below.Clone != nil {
		c.root.Requires = append(c.root.Requires, layout.FeatureClone)
	}
	named := runsOf(then.root)
	for _, at := range slices.Concat(d.root.Runs.Blocks, d.root.Runs.Objects) {
		if !named[at] {
			c.obsolete = append(c.obsolete, layout.RunName(at))
		}
	}
	for at, o := range d.objects.all() {
		if then.objects.has(at) {
			continue
		}
		k := layout.KeptObject{At: at, Size: o.size, Last: d.pins.moment}
		if objectNeeded(d.pins.list, k) {
			c.dead = append(c.dead, k)
		} else {
			c.freed.add(at, o.size)
		}
	}
	rows := then.objects.freeze(nil) // if its root is of before there were tables
	d.pins.moment = c.at
	d.mu.Unlock()

	if err := d.saveTable(ctx, c, then.root, rows); err != nil {
		return err
	}
	then.objects.thaw(true)
	// Of the epochs that have ended none is missing in the root: the objects of before
	// and what is kept have those of then among them.
	return d.send(ctx, c, c.root.Pins)
}

// become takes the map of another moment, whose root is the newest now. d.mu is
// held.
func (d *Disk) become(then *Disk) {
	d.m, d.regions, d.objects, d.phantoms = then.m, then.regions, then.objects, false
	if d.base, d.baseSize = then.base, then.baseSize; d.base != nil {
		d.base.of = d // nobody has opened it yet
		if d.base.lower != nil {
			d.base.lower.of = d
		}
	}
}

// alive returns the list of what is kept without what the map needs again, and
// says whether that is less.
func (d *Disk) alive(kept layout.Kept) (layout.Kept, bool) {
	named := runsOf(d.root)
	n := len(kept.Objects) + len(kept.Runs)
	kept.Objects = slices.DeleteFunc(slices.Clone(kept.Objects), func(o layout.KeptObject) bool { return d.objects.has(o.At) })
	kept.Runs = slices.DeleteFunc(slices.Clone(kept.Runs), func(o layout.KeptObject) bool { return named[o.At] })
	return kept, len(kept.Objects)+len(kept.Runs) < n
}
