// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
)

// What pins need
//
// A snapshot is a pin: a root that is kept, with all that it needs. What the
// newest root needs, too, needs no note. When a data object loses its last live
// block, or a root drops a run, a pin may need it still. Then it is not garbage,
// but goes into the list of what is kept (layout.Kept), which the next root
// names. So the list is as long as what only pins need, and no pin has to be
// read to know what may be deleted.
//
//	born   a pin knows by the numbers of its root whether an object was there
//	dead   the list has the last root that may need the object
//
// A pin needs an object if it knows it, and its own root is not after the last
// one. The pins are in the order of their roots, and what one pin knows, those
// after it know: only the first that knows the object is looked at.

// needed says whether a pin needs what the pins know by has, and of which last is
// the last root that may need it.
func needed(pins []layout.Pin, has func(layout.Pin) bool, last layout.Position) bool {
	i := sort.Search(len(pins), func(i int) bool { return has(pins[i]) })
	return i < len(pins) && !last.Less(pins[i].Root)
}

func objectNeeded(pins []layout.Pin, o layout.KeptObject) bool {
	return needed(pins, func(p layout.Pin) bool { return p.HasObject(o.At) }, o.Last)
}

func runNeeded(pins []layout.Pin, o layout.KeptObject) bool {
	return needed(pins, func(p layout.Pin) bool { return p.HasRun(o.At) }, o.Last)
}

// pinned says whether the root of one of the pins, which are in the order of their
// roots, has the name.
func pinned(pins []layout.Pin, root layout.Position) bool {
	_, ok := slices.BinarySearchFunc(pins, root, func(p layout.Pin, root layout.Position) int { return p.Root.Compare(root) })
	return ok
}

// pins is what the disk knows of its snapshots. Disk.mu guards it.
type pins struct {
	list   []layout.Pin    // those of the newest root, and of one that is being made
	moment layout.Position // the newest root of which it is settled what it needs
	kept   layout.Kept     // of the newest root; never changed in place
	fresh  []layout.KeptObject
	anew   bool   // kept was found anew, and the next root has all of it; guarded by Disk.saving
	n      uint64 // the number of the newest list of this epoch; guarded by Disk.saving
}

// keepDead says whether a pin needs an object that has no live block any more,
// and notes it then. d.mu is held.
func (d *Disk) keepDead(o deadObject) bool {
	if keptIn(d.pins.kept.Objects, o.at) { // by the root that has its merge
		return true
	}
	k := layout.KeptObject{At: o.at, Size: o.size, Last: d.pins.moment}
	if !objectNeeded(d.pins.list, k) {
		return false
	}
	d.pins.fresh = append(d.pins.fresh, k)
	return true
}

// deadBy returns the objects of the table that have no live block any more when the
// drops are taken off their counts, and that one of the pins needs. moment is the
// newest root of which it is settled what it needs. The root that has the merge
// lacks the objects in its table, and they have to be in its list.
func deadBy(rows *tableRows, pins []layout.Pin, moment layout.Position) (dead []layout.KeptObject) {
	if len(pins) == 0 {
		return nil
	}
	for at, blocks := range rows.drops.all() {
		o, ok := rows.get(at)
		if !ok || o.live != blocks {
			continue
		}
		k := layout.KeptObject{At: at, Size: o.size, Last: moment}
		if objectNeeded(pins, k) {
			dead = append(dead, k)
		}
	}
	return dead
}

// keptIn says whether the list, which is in order, has the position.
func keptIn(list []layout.KeptObject, at layout.Position) bool {
	_, ok := slices.BinarySearchFunc(list, at, func(o layout.KeptObject, at layout.Position) int { return o.At.Compare(at) })
	return ok
}

// keeps returns what says whether a pin needs a data object that is not in the
// map, and a run that the newest root does not name. d.mu is held, for as long as
// they are used.
func (d *Disk) keeps() (data, run func(layout.Position) bool) {
	fresh := make(map[layout.Position]bool, len(d.pins.fresh))
	for _, o := range d.pins.fresh {
		fresh[o.At] = true
	}
	kept := d.pins.kept
	return func(at layout.Position) bool { return fresh[at] || keptIn(kept.Objects, at) },
		func(at layout.Position) bool { return keptIn(kept.Runs, at) }
}

// loadKept reads the list of what pins need, which the newest root names, and
// takes out of dying what is in it. dying has what died before that root, too.
func (d *Disk) loadKept(ctx context.Context) error {
	kept, err := d.readKept(ctx, d.root)
	if d.o.Rewind != nil && away(err) {
		kept, err = d.findKept(ctx)
		d.pins.anew = true
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pins.list, d.pins.moment, d.pins.kept = d.root.Pins, d.rootAt, kept
	keepsObject, _ := d.keeps()
	dying := dyingObjects{}
	d.waste = 0
	for _, s := range d.dying.sets {
		for at, size := range s.all() {
			if !keepsObject(at) && dying.add(deadObject{at, size}) {
				d.waste += size
			}
		}
	}
	d.dying = dying
	return nil
}

// findKept makes the list of what pins need anew, for a root that has lost it, or that
// was not the newest for so long that its list was deleted. It has all that is listed,
// that the root does not need and that one of the pins knows. Some of that no pin needs:
// it stays until the pins are deleted.
func (d *Disk) findKept(ctx context.Context) (kept layout.Kept, err error) {
	err = d.eachListed(ctx, "the log", layout.LogPrefix, layout.ParseLogName, func(at layout.Position, size int64) {
		k := layout.KeptObject{At: at, Size: int64(rowSize(size)), Last: d.rootAt}
		if !d.objects.has(at) && objectNeeded(d.root.Pins, k) {
			kept.Objects = append(kept.Objects, k)
		}
	})
	if err != nil {
		return kept, err
	}
	runs := runsOf(d.root)
	err = d.eachListed(ctx, "the runs", layout.RunPrefix, layout.ParseRunName, func(at layout.Position, _ int64) {
		k := layout.KeptObject{At: at, Last: d.rootAt}
		if !runs[at] && runNeeded(d.root.Pins, k) {
			kept.Runs = append(kept.Runs, k)
		}
	})
	return kept, err
}

// readKept reads the list that a root names, with what it has in itself.
func (d *Disk) readKept(ctx context.Context, root layout.Root) (layout.Kept, error) {
	more, err := root.MoreKept()
	if err != nil {
		return layout.Kept{}, fmt.Errorf("object %s: %w", layout.RootName(root.Name), err)
	}
	if root.Kept.IsZero() {
		return more, nil
	}
	name := layout.KeptName(root.Kept)
	b, err := d.readWhole(ctx, name, "the root")
	if err != nil {
		return layout.Kept{}, err
	}
	kept, err := layout.ParseKept(b, d.o.UUID, root.Kept)
	if err == nil {
		kept, err = kept.With(more)
	}
	if err != nil {
		return layout.Kept{}, fmt.Errorf("object %s: %w", name, err)
	}
	return kept, nil
}

// writeKept puts what the pins of a root need and its map does not into the root, or
// into a list that the root names, and takes out of c.obsolete what that is. before are
// the pins of the newest root. saving is held.
func (d *Disk) writeKept(ctx context.Context, c *checkpoint, before []layout.Pin) error {
	pins := c.root.Pins
	d.mu.RLock()
	for i := range pins {
		if pins[i].Root == c.at {
			pins[i].Run = d.runs // those of this root included
		}
	}
	d.mu.RUnlock()
	c.root.Requires = without(c.root.Requires, layout.FeaturePins)
	if len(pins) > 0 {
		c.root.Requires = append(c.root.Requires, layout.FeaturePins)
	}
	c.kept = d.pins.kept // saving guards it, too
	c.root.KeptMore = nil
	if len(pins)+len(before) == 0 {
		return nil
	}
	var more layout.Kept // that is new
	less := d.pins.anew  // something is in it no more, or it is another one
	if c.then != nil {
		// If it stayed in the list, it would not be known when it dies again, and a
		// pin that is made meanwhile would lose it.
		var alive bool
		c.kept, alive = c.then.alive(c.kept)
		less = less || alive
	}
	c.obsolete = slices.DeleteFunc(c.obsolete, func(name string) bool {
		at, ok := layout.ParseRunName(name)
		k := layout.KeptObject{At: at, Last: d.rootAt}
		if !ok || !runNeeded(pins, k) {
			return false
		}
		more.Runs = append(more.Runs, k)
		return true
	})
	gone := slices.DeleteFunc(slices.Clone(before), func(p layout.Pin) bool { return pinned(pins, p.Root) })
	if len(gone) > 0 {
		for _, p := range gone {
			if p.Root != d.rootAt {
				c.obsolete = append(c.obsolete, layout.RootName(p.Root))
			}
		}
		c.kept.Objects = slices.DeleteFunc(slices.Clone(c.kept.Objects), func(o layout.KeptObject) bool {
			if objectNeeded(pins, o) {
				return false
			}
			c.freed.add(o.At, o.Size)
			less = true
			return true
		})
		c.kept.Runs = slices.DeleteFunc(slices.Clone(c.kept.Runs), func(o layout.KeptObject) bool {
			if runNeeded(pins, o) {
				return false
			}
			c.obsolete = append(c.obsolete, layout.RunName(o.At))
			less = true
			return true
		})
	}
	for _, o := range c.fresh {
		if c.then != nil && c.then.objects.has(o.At) {
			continue
		}
		if objectNeeded(pins, o) {
			more.Objects = append(more.Objects, o)
		} else {
			c.freed.add(o.At, o.Size)
		}
	}
	for _, o := range c.dead {
		if objectNeeded(pins, o) {
			more.Objects = append(more.Objects, o)
		}
	}
	order := func(a, b layout.KeptObject) int { return a.At.Compare(b.At) }
	slices.SortFunc(more.Objects, order)
	slices.SortFunc(more.Runs, order)
	var err error
	if c.kept, err = c.kept.With(more); err != nil {
		return err
	}
	if !less {
		// The list that there is stays, and the root has what it lacks.
		lacks, err := d.root.MoreKept()
		if err == nil {
			more, err = lacks.With(more)
		}
		if err != nil {
			return err
		}
		var fits bool
		if c.root.KeptMore, fits, err = d.inlineKept(more, c.at); err != nil || fits {
			return err
		}
	}
	if !c.root.Kept.IsZero() {
		c.obsolete = append(c.obsolete, layout.KeptName(c.root.Kept))
	}
	c.root.Kept = layout.Position{}
	var fits bool
	if c.root.KeptMore, fits, err = d.inlineKept(c.kept, c.at); err != nil || fits {
		return err
	}
	d.pins.n++
	at := layout.Position{Epoch: d.o.Epoch, N: d.pins.n}
	b, err := c.kept.Marshal(d.o.UUID, at)
	if err != nil {
		return err
	}
	if err := d.putOnce(ctx, layout.KeptName(at), b); err != nil {
		return err
	}
	d.stats.SaveBytes.Add(int64(len(b)))
	c.root.Kept = at
	return nil
}

// inlineKept returns a list as the root of the name has it in itself; nil: it is empty.
// It fits or not.
func (d *Disk) inlineKept(k layout.Kept, root layout.Position) (b []byte, fits bool, err error) {
	const least = 4 // bytes of an entry
	switch n := len(k.Objects) + len(k.Runs); {
	case n == 0:
		return nil, true, nil
	case n > d.o.keptLimit/least:
		return nil, false, nil
	}
	if b, err = k.Marshal(d.o.UUID, root); err != nil || len(b) > d.o.keptLimit {
		return nil, false, err
	}
	return b, true, nil
}

// bothPins returns the pins of two lists, each in the order of its roots.
func bothPins(a, b []layout.Pin) []layout.Pin {
	both := slices.Clone(a)
	for _, p := range b {
		if !pinned(a, p.Root) {
			both = append(both, p)
		}
	}
	slices.SortFunc(both, func(a, b layout.Pin) int { return a.Root.Compare(b.Root) })
	return both
}

// keptEpochs notes the epochs of which a pin needs objects. d.mu is held.
func (d *Disk) keptEpochs(needed map[uint32]bool) {
	for _, o := range d.pins.fresh {
		needed[o.At.Epoch] = true
	}
	for list := d.pins.kept.Objects; len(list) > 0; {
		e := list[0].At.Epoch
		needed[e] = true
		list = list[sort.Search(len(list), func(i int) bool { return list[i].At.Epoch > e }):]
	}
}

// pinsWith returns those of the pins whose roots have something below that is so. Their
// roots are read beside each other.
func (d *Disk) pinsWith(ctx context.Context, pins []layout.Pin, so func(*layout.Below) bool) (with []layout.Pin, err error) {
	needs := make([]bool, len(pins))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(d.o.Connections)
	for i, p := range pins {
		g.Go(guarded(func() error {
			root, err := d.readRoot(gctx, p.Root)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", p.Name, err)
			}
			needs[i] = root.Below != nil && so(root.Below)
			return nil
		}))
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, p := range pins {
		if needs[i] {
			with = append(with, p)
		}
	}
	return with, nil
}

// onChunks says whether chunks of version 1 lie below.
func onChunks(b *layout.Below) bool { return b.Disk != nil }

// pinNames returns the names of snapshots.
func pinNames(pins []layout.Pin) (names []string) {
	for _, p := range pins {
		names = append(names, p.Name)
	}
	return names
}
