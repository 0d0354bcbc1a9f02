// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// The end of chunks
//
// A disk that was converted and then flattened has a root without anything below.
// As long as that requires chunks, they may be there still. A server deletes them:
//
//	no root has them     neither the newest nor a pinned one, and all others that
//	                     the container has are deleted
//	and has had them     for two horizons, as long as this server runs
//	they are deleted     page by page; interrupted, the next server goes on
//	none is listed       a root is written that does not require them
//
// So what a reader does not find while it finds its root was never there.

// retirement is how far a server is with that. It is the collector's own.
type retirement struct {
	at    time.Time                // when to go on; zero: nothing was seen yet
	root  layout.Position          // the first root of ours without chunks below
	needs map[layout.Position]bool // of pins' roots: whether they have chunks below
}

// retireChunks goes on with the end of the chunks, if its time has come.
func (d *Disk) retireChunks(ctx context.Context, r *retirement) error {
	d.mu.RLock()
	left := d.base == nil && slices.Contains(d.root.Requires, layout.FeatureChunks)
	pins, at := d.root.Pins, d.rootAt
	d.mu.RUnlock()
	now := time.Now()
	switch {
	case !left:
		*r = retirement{}
		return nil
	case r.at.IsZero():
		*r = retirement{at: now.Add(2 * d.o.Horizon), root: at, needs: map[layout.Position]bool{}}
		return nil
	case now.Before(r.at):
		return nil
	}
	r.at = now.Add(d.o.Horizon) // when something is in the way
	pinned := map[layout.Position]bool{}
	var unknown []layout.Pin
	for _, p := range pins {
		pinned[p.Root] = true
		if _, known := r.needs[p.Root]; !known {
			unknown = append(unknown, p)
		}
	}
	with, err := d.pinsWith(ctx, unknown, onChunks)
	if err != nil {
		return err
	}
	for _, p := range unknown {
		r.needs[p.Root] = false
	}
	for _, p := range with {
		r.needs[p.Root] = true
	}
	for _, p := range pins {
		if r.needs[p.Root] {
			return nil
		}
	}
	for page, err := range store.Pages(ctx, d.store, store.ListOptions{Prefix: layout.RootPrefix}) {
		if err != nil {
			return fmt.Errorf("list the roots: %w", err)
		}
		for _, info := range page {
			if at, ok := layout.ParseRootName(info.Name); ok && at.Less(r.root) && !pinned[at] {
				return nil // it will be deleted
			}
		}
	}
	found := false
	for _, prefix := range []string{chunked.Prefix, chunked.MapPrefix} {
		for page, err := range store.Pages(ctx, d.store, store.ListOptions{Prefix: prefix}) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			var names []string
			for _, info := range page {
				if _, ok := chunked.ParseObjectName(info.Name); ok || strings.HasPrefix(info.Name, chunked.MapPrefix) {
					names = append(names, info.Name)
				}
			}
			for batch := range slices.Chunk(names, deleteAtOnce) {
				found = true
				if err := d.remove(ctx, batch); err != nil {
					return fmt.Errorf("delete %d objects: %w", len(batch), err)
				}
				d.stats.Deleted.Add(int64(len(batch)))
			}
		}
	}
	if found {
		return nil // a listing is late
	}
	return d.edit(ctx, func(c *checkpoint) error {
		if c.root.Below == nil {
			c.root.Requires = without(c.root.Requires, layout.FeatureChunks)
		}
		return nil
	})
}

// ChunksNeeded says whether a disk that was converted may have chunks of version 1
// still, and which of its snapshots need them.
func (d *Disk) ChunksNeeded(ctx context.Context) (left bool, snapshots []string, err error) {
	d.mu.RLock()
	root := d.root
	d.mu.RUnlock()
	if !slices.Contains(root.Requires, layout.FeatureChunks) {
		return false, nil, nil
	}
	pins, err := d.pinsWith(ctx, root.Pins, onChunks)
	return true, pinNames(pins), err
}
