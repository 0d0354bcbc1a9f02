// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

const (
	// sweepEvery is the pause between looks for objects that nothing names.
	sweepEvery = 24 * time.Hour
	// sweepAtOnce is how many names are looked at before Disk.mu is given back for a
	// moment.
	sweepAtOnce = 500
)

// sweep looks through the container for objects that nothing names: what a
// process left behind that died, and PUTs that surfaced late. It also learns the
// sizes of the objects that the map needs.
//
// What is of our own epoch is not listed: it is known, and a client that flushes
// adds to it faster than it could be listed.
func (d *Disk) sweep(ctx context.Context) error {
	after := time.Now().Add(d.o.Horizon)
	ours := layout.Position{Epoch: d.o.Epoch}
	for _, list := range []store.ListOptions{
		{Prefix: layout.LogPrefix, EndMarker: layout.LogName(ours)},
		{Prefix: layout.RunPrefix, EndMarker: layout.RunName(ours)},
		{Prefix: layout.RootPrefix, EndMarker: layout.RootName(ours)},
		{Prefix: layout.KeptPrefix, EndMarker: layout.KeptName(ours)},
		{Prefix: layout.GonePrefix},
		{Prefix: layout.ChildPrefix},
	} {
		prefix := list.Prefix
		for page, err := range store.Pages(ctx, d.store, list) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			for some := range slices.Chunk(page, sweepAtOnce) {
				d.mu.Lock()
				d.sweepLocked(some, prefix, after)
				d.mu.Unlock()
				runtime.Gosched()
			}
		}
	}
	return nil
}

// sweepLocked is sweep of some names: each is judged, and becomes garbage, without
// that anything changes between.
func (d *Disk) sweepLocked(some []store.ObjectInfo, prefix string, after time.Time) {
	d.swept = max(d.swept, len(some))
	keepsObject, keepsRun := d.keeps()
	if prefix == layout.LogPrefix {
		for _, info := range some {
			if at, ok := layout.ParseLogName(info.Name); ok && d.strayObject(at, info.Size, keepsObject) && d.garbage.addObject(after, deadObject{at, info.Size}) {
				d.waste += int64(rowSize(info.Size))
			}
		}
		return
	}
	var named map[layout.Position]bool
	if prefix == layout.RunPrefix {
		named = runsOf(d.root)
	}
	var known map[string]bool // what is garbage already; nil: not looked at yet
	for _, info := range some {
		if !d.strayLocked(info, named, keepsRun) {
			continue
		}
		if known == nil {
			known = d.garbage.names()
		}
		if !known[info.Name] {
			g := garbage{name: info.Name, after: after, size: info.Size}
			if prefix == layout.GonePrefix || prefix == layout.ChildPrefix { // after the pin's root
				g.after = after.Add(d.o.Horizon)
			}
			d.discard(g)
		}
	}
}

// strayObject says whether nothing names a data object that was listed, and that is not
// known to be garbage. It learns its size. What is of our own epoch we know without a
// listing, and who has a later one has taken the disk from us. d.mu is held.
func (d *Disk) strayObject(at layout.Position, size int64, keeps func(layout.Position) bool) bool {
	if at.Epoch >= d.o.Epoch {
		return false
	}
	if h, ok := d.objects.get(at); ok {
		if h.size == 0 {
			d.objects.setSize(at, size)
		}
		return false
	}
	return !d.dying.has(at) && !keeps(at) && !d.garbage.has(at)
}

// strayLocked says whether nothing names a listed object that is no data object.
func (d *Disk) strayLocked(info store.ObjectInfo, runs map[layout.Position]bool, keepsRun func(layout.Position) bool) bool {
	switch {
	case strings.HasPrefix(info.Name, layout.RunPrefix):
		at, ok := layout.ParseRunName(info.Name)
		return ok && at.Epoch < d.o.Epoch && !runs[at] && !keepsRun(at)
	case strings.HasPrefix(info.Name, layout.KeptPrefix):
		at, ok := layout.ParseKeptName(info.Name)
		return ok && at.Epoch < d.o.Epoch && at != d.root.Kept
	case strings.HasPrefix(info.Name, layout.GonePrefix):
		at, ok := layout.ParseGoneName(info.Name)
		return ok && !d.going[at]
	case strings.HasPrefix(info.Name, layout.ChildPrefix):
		at, ok := layout.ParseRecentName(info.Name) // notes are the clones'
		return ok && !pinned(d.pins.list, at)
	default:
		at, ok := layout.ParseRootName(info.Name)
		return ok && at.Epoch < d.o.Epoch && at != d.rootAt && !pinned(d.pins.list, at)
	}
}
