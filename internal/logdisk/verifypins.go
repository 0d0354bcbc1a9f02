// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"maps"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// verifiedPins is what Verify knows of the snapshots.
type verifiedPins struct {
	objects positions                // that their maps have blocks of
	runs    map[layout.Position]bool // that only they need, as their roots say
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
		known := true
		root, tree, err := v.snapshotRuns(ctx, p, func(name string, err error) error {
			known = false
			return bad(name, err)
		})
		if err != nil {
			return false, err
		}
		maps.Copy(v.pinned.runs, runsOf(root))
		table, ok, err := v.tableOf(ctx, root, "snapshot "+p.Name)
		if err != nil {
			return false, err
		}
		counts := &tally{}
		err = v.merged(ctx, tree, counts.add, func(e layout.Entry) bool {
			if stored(e.Kind) {
				v.needed.add(e.At)
				v.pinned.objects.add(e.At)
				counts.add(e.At, int64(e.Count))
			}
			return true
		})
		if err != nil {
			return false, fmt.Errorf("snapshot %s: read the map: %w", p.Name, err)
		}
		if table != nil && known {
			if err := table.sameTally(counts); err != nil {
				v.damaged(layout.RootName(root.Name), err)
				ok = false
			}
		}
		whole = whole && ok
	}
	return whole, nil
}

// snapshotRuns reads the root of a snapshot and its runs of blocks. bad is as in
// checkRuns. Without a root there are none.
func (v *verification) snapshotRuns(ctx context.Context, p layout.Pin, bad func(name string, err error) error) (root layout.Root, tree []*runFile, err error) {
	if root, err = v.readRoot(ctx, p.Root); err != nil {
		return layout.Root{}, nil, bad(layout.RootName(p.Root), err)
	}
	tree, err = v.checkRuns(ctx, root.Runs.Blocks, "snapshot "+p.Name, bad)
	return root, tree, err
}

// overSnapshots calls f for all that the maps of the snapshots have, once more: what is
// wrong with them is known.
func (v *verification) overSnapshots(ctx context.Context, f func(layout.Pin, blockmap.Extent)) error {
	known := func(name string, err error) error {
		if content(err) {
			return nil
		}
		return fmt.Errorf("object %s: %w", name, err)
	}
	for _, p := range v.root.Pins {
		_, tree, err := v.snapshotRuns(ctx, p, known)
		if err == nil {
			err = v.merged(ctx, tree, nil, func(e layout.Entry) bool {
				f(p, extentOf(e))
				return true
			})
		}
		if err != nil {
			return fmt.Errorf("snapshot %s: read the map: %w", p.Name, err)
		}
	}
	return nil
}

// checkKept finds data objects that a snapshot needs and that are neither in the map
// nor in the list of what is kept: they would be deleted as strays.
func (v *verification) checkKept(w *window, missing *positions) {
	keeps, _ := v.keeps()
	for at := range v.pinned.objects.from(w.lo, w.hi) {
		// A count may be too high: then the object counts as needed until a merge
		// tells, and is in no list.
		if m := w.get(at); (m == nil || m.live == 0 && m.counted == 0) && !keeps(at) && !v.diedInLog(w, at) {
			missing.add(at)
		}
	}
}

// notKept notes the data objects that checkKept has found, and runs of which the same
// is true.
func (v *verification) notKept(ctx context.Context, missing *positions) error {
	if missing.len() > 0 {
		snaps := map[layout.Position]string{} // one of those that need it
		err := v.overSnapshots(ctx, func(p layout.Pin, e blockmap.Extent) {
			if stored(e.Kind) && missing.has(e.At) {
				snaps[e.At] = p.Name
			}
		})
		if err != nil {
			return err
		}
		for at, snap := range snaps {
			v.damaged(layout.LogName(at), fmt.Errorf("snapshot %s needs it, and the list of what snapshots need lacks it: %w", snap, &layout.DamagedError{What: "list", Why: "an object is missing"}))
		}
	}
	_, keepsRun := v.keeps()
	named := runsOf(v.root)
	for at := range v.pinned.runs {
		if !named[at] && !keepsRun(at) {
			v.damaged(layout.RunName(at), &layout.DamagedError{What: "list of what snapshots need", Why: "a run is missing"})
		}
	}
	return nil
}

// keptStray says whether a list of what snapshots need is not the newest root's.
func (v *verification) keptStray(info store.ObjectInfo) bool {
	at, ok := layout.ParseKeptName(info.Name)
	return ok && at != v.root.Kept
}
