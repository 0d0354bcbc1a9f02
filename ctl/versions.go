// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// again makes a request until it succeeds or fails for good, with the same
// policy as the container's other requests.
func (c *container) again(ctx context.Context, call func(context.Context) error) error {
	return store.Again(ctx, c.pace.work, store.Op{Kind: store.OpList}, call)
}

// eachVersion calls do for every version of the container's objects.
func (c *container) eachVersion(ctx context.Context, do func([]swiftstore.ObjectVersion) error) error {
	var after swiftstore.ObjectVersion
	for {
		var page []swiftstore.ObjectVersion
		err := c.again(ctx, func(ctx context.Context) (err error) {
			page, err = c.client.Versions(ctx, c.name, after)
			return err
		})
		if err != nil || len(page) == 0 {
			return err
		}
		if err := do(page); err != nil {
			return err
		}
		after = page[len(page)-1]
	}
}

// oldVersions counts the versions that readers do not get, and their bytes.
func (c *container) oldVersions(ctx context.Context) (n, bytes int64, err error) {
	err = c.eachVersion(ctx, func(page []swiftstore.ObjectVersion) error {
		for _, v := range page {
			if v.ID != "" && v.Old() {
				n++
				bytes += v.Size
			}
		}
		return nil
	})
	return n, bytes, err
}

// deleteVersions deletes all versions of all objects, and the marks of
// deletions too. It is no error if a version is gone already.
func (d *deletion) deleteVersions(ctx context.Context) error {
	return d.container.eachVersion(ctx, func(page []swiftstore.ObjectVersion) error {
		if err := d.ours.look(ctx); err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(d.connections)
		for _, v := range page {
			if v.ID == "" || gctx.Err() != nil {
				continue
			}
			d.begun = true
			g.Go(func() error {
				err := d.container.again(gctx, func(ctx context.Context) error {
					if err := d.ours.confirm(ctx); err != nil {
						return err
					}
					return d.container.client.DeleteVersion(ctx, d.container.name, v)
				})
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("delete version %s of %s: %w", v.ID, v.Name, err)
				}
				if v.Old() {
					d.old.Add(1)
				}
				return nil
			})
		}
		return g.Wait()
	})
}

// archived counts the older versions of the disk's chunks in another container.
// Swift keeps them there under names that begin with the length of the object's
// name, as three hexadecimal digits, and the name.
func (c *container) archived(ctx context.Context, archive string, g int64) (n, bytes int64, err error) {
	s := c.sibling(archive)
	lengths := map[int]bool{len(chunked.ObjectName(0)): true}
	for top := int64(10); top <= g; top *= 10 {
		lengths[len(chunked.ObjectName(0))+max(0, len(fmt.Sprint(top))-8)] = true
	}
	for length := range lengths {
		prefix := fmt.Sprintf("%03x%s", length, chunked.Prefix)
		for page, err := range store.Pages(ctx, s, store.ListOptions{Prefix: prefix}) {
			if err != nil {
				return n, bytes, err
			}
			for _, o := range page {
				n++
				bytes += o.Size
			}
		}
	}
	return n, bytes, nil
}

// sayArchived warns about the older versions that stay in another container.
func (t *tool) sayArchived(ctx context.Context, c *container, v store.Versions, objects int64) {
	header := store.HeaderHistory
	if v.Stack != "" {
		header = store.HeaderStack
	}
	n, bytes, err := c.archived(ctx, v.Archive(), objects)
	switch {
	case errors.Is(err, store.ErrContainerNotFound):
		return
	case err != nil:
		t.warn("%s: older versions of its objects stay in %s (%s); how many cannot be found out: %v", c.name, v.Archive(), header, oneLine{err})
	default:
		t.warn("%s: older versions of objects with its names stay in %s (%s): %d, of %s in all", c.name, v.Archive(), header, n, humanSize(bytes))
	}
}
