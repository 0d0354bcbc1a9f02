// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"slices"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// verifiedPins is what Verify knows of the snapshots.
type verifiedPins struct {
	maps []*blockmap.Map          // of each
	runs map[layout.Position]bool // that only they need, as their roots say
}

// readPins reads the roots of the snapshots, their maps, and the list of what is
// kept for them. whole says that all of it was there.
func (v *verification) readPins(ctx context.Context) (whole bool, err error) {
	whole = true
	bad := func(name string, err error) error {
		if !content(err) {
			return fmt.Errorf("object %s: %w", name, err)
		}
		v.damagedOnce(name, err)
		whole = false
		return nil
	}
	v.pinned.runs = map[layout.Position]bool{}
	kept, err := v.readKept(ctx, v.root)
	if err != nil {
		if err := bad(layout.KeptName(v.root.Kept), err); err != nil {
			return false, err
		}
	}
	v.Disk.pins.list, v.Disk.pins.moment, v.Disk.pins.kept = v.root.Pins, v.rootAt, kept
	for _, p := range v.root.Pins {
		root, err := v.readRoot(ctx, p.Root)
		if err != nil {
			if err := bad(layout.RootName(p.Root), err); err != nil {
				return false, err
			}
			continue
		}
		d := newDisk(v.o)
		defer d.cancel(ErrClosed)
		counts, known := map[layout.Position]int64{}, true
		for _, name := range root.Runs.Blocks {
			v.pinned.runs[name] = true
			b, err := v.readWhole(ctx, layout.RunName(name), "snapshot "+p.Name)
			if err == nil {
				err = d.loadRun(name, b, counts)
			}
			if err != nil {
				if err := bad(layout.RunName(name), err); err != nil {
					return false, err
				}
				known = false
			}
		}
		for _, name := range root.Runs.Objects {
			v.pinned.runs[name] = true
		}
		if !known {
			counts = nil
		}
		ok, err := v.checkTable(ctx, root, "snapshot "+p.Name, counts)
		if err != nil {
			return false, err
		}
		whole = whole && ok
		v.pinned.maps = append(v.pinned.maps, d.m)
		for at := range d.objects.all() {
			v.needed[at] = true
			v.snapshotObjects[at] = p.Name
		}
	}
	return whole, nil
}

// checkKept finds what a snapshot needs that is neither in the map nor in the list
// of what is kept: it would be deleted as a stray.
func (v *verification) checkKept() {
	keeps, keepsRun := v.keeps()
	for at, snap := range v.snapshotObjects {
		// A count may be too high: then the object counts as needed until a merge
		// tells, and is in no list.
		if !v.objects.has(at) && v.counted[at] == 0 && !keeps(at) {
			v.damaged(layout.LogName(at), fmt.Errorf("snapshot %s needs it, and the list of what snapshots need lacks it: %w", snap, &layout.DamagedError{What: "list", Why: "an object is missing"}))
		}
	}
	named := map[layout.Position]bool{}
	for _, at := range slices.Concat(v.root.Runs.Blocks, v.root.Runs.Objects) {
		named[at] = true
	}
	for at := range v.pinned.runs {
		if !named[at] && !keepsRun(at) {
			v.damaged(layout.RunName(at), &layout.DamagedError{What: "list of what snapshots need", Why: "a run is missing"})
		}
	}
}

// inSnapshot says whether a snapshot has the block, which is one, at its place.
func (v *verification) inSnapshot(e blockmap.Extent) bool {
	for _, m := range v.pinned.maps {
		if value, ok := m.Get(e.First); ok && value == e.Value {
			return true
		}
	}
	return false
}

// keptStray says whether a list of what snapshots need is not the newest root's.
func (v *verification) keptStray(info store.ObjectInfo) bool {
	at, ok := layout.ParseKeptName(info.Name)
	return ok && at != v.root.Kept
}
