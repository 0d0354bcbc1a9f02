// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"swiftnbd/internal/config"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// setupLog sets a container up as a disk of version 2. What is set up already, or
// holds objects, is refused, with --force too: a log does not go with objects of
// others.
func (t *tool) setupLog(ctx context.Context, args []string, size, objectSize string, force bool) (out setUp, err error) {
	switch {
	case len(args) == 0:
		return out, usagef("CONTAINER is missing")
	case len(args) > 1:
		return out, usagef("%q: with --format 2 the disk has no number of objects, but a --size", args[1])
	case size == "":
		return out, usagef("--size is missing, which --format 2 needs")
	case objectSize != "":
		return out, usagef("--object-size: with --format 2 the objects have no fixed size")
	}
	bytes, err := config.ParseSize(size)
	if err != nil {
		return out, usagef("--size: %w", err)
	}
	if bytes == 0 {
		return out, usagef("--size: a disk of no bytes")
	}
	asked := bytes
	if bytes, err = logSize(bytes); err != nil {
		return out, usagef("--size: %w", err)
	}
	if bytes != asked {
		t.say("%s is no multiple of %d bytes, rounded up to %d bytes", size, layout.BlockSize, bytes)
	}
	name := args[0]
	c, err := t.open(name)
	if err != nil {
		return out, err
	}
	md, exists, err := t.place(ctx, c)
	if err != nil {
		return out, err
	}
	var roots uint64 // what interrupted setups have left
	if exists {
		if roots, err = t.freeForLog(ctx, c, md, force); err != nil {
			return out, err
		}
	}
	turn := c.turn()
	defer func() { turn.leave(ctx, err == nil) }()
	if err := c.canLease(ctx, turn); err != nil {
		return out, err
	}
	created, err := t.room(ctx, c, exists, turn, func(md store.Metadata) (err error) {
		roots, err = t.freeForLog(ctx, c, md, force)
		return err
	})
	if err != nil {
		return out, err
	}
	m := volume.Meta{Version: volume.Version2, Size: bytes, UUID: layout.NewUUID()}
	if roots > 0 {
		left, err := logdisk.FindLeft(ctx, c)
		if err != nil {
			return out, c.explain(ctx, err)
		}
		if left != (layout.UUID{}) {
			m.UUID = left
		}
	}
	// The root first: who finds the disk must find its content, too.
	if m.Root, err = logdisk.SetupAfter(ctx, c, m.UUID, bytes, roots); err != nil {
		return out, c.explain(ctx, err)
	}
	if err := volume.Create2(ctx, c, m); err != nil {
		return out, c.explain(ctx, err)
	}
	return setUp{Container: name, Version: volume.Version2, Size: bytes, Created: created}, nil
}

// logSize rounds the size of a disk of version 2, which is positive, up to whole
// blocks: partitions and file systems count in these.
func logSize(bytes int64) (int64, error) {
	if rest := bytes % layout.BlockSize; rest != 0 && bytes < logdisk.MaxSize {
		bytes += layout.BlockSize - rest
	}
	return bytes, logdisk.CheckSize(bytes)
}

// canLease finds out whether the disk can have a lease, which version 2 cannot do
// without. A lease is a container of its own: the one that says whose turn it is to
// make the disk is such a container, too.
func (c *container) canLease(ctx context.Context, turn *turn) error {
	// Writes are signed with a key. Swift drops it without an error where the
	// credentials are not the owner's, and then there is no lease for them.
	err := turn.take(ctx, map[string]string{lease.KeyFence: rand.Text()})
	switch {
	case errors.Is(err, store.ErrForbidden):
		return fmt.Errorf("%s: a disk of version 2 needs a lease, which is a container of its own, and these credentials may not create containers: %w", c.name, oneLine{err})
	case err != nil:
		return c.explain(ctx, err)
	}
	md, err := turn.Metadata(ctx)
	if err != nil && (turn.ours || !errors.Is(err, store.ErrContainerNotFound)) {
		return c.explain(ctx, err)
	}
	if err == nil && md.Items[lease.KeyFence] == "" {
		if foreign, err := c.client.Foreign(ctx); err == nil && foreign {
			return fmt.Errorf("%s: a disk of version 2 needs a lease: %w", c.name, lease.ErrNotOwner)
		}
	}
	return nil
}

// freeForLog returns why an existing container must not be set up as a log, or
// how many first roots are there of setups that were interrupted.
func (t *tool) freeForLog(ctx context.Context, c *container, md store.Metadata, force bool) (roots uint64, err error) {
	if err := lease.Locked(md.Items[volume.KeyClient]); err != nil {
		return 0, fmt.Errorf("%s is %w: unlock it first", c.name, err)
	}
	if err := md.Versions.Restores(c.name); err != nil {
		return 0, fmt.Errorf("%s %w", c.name, err)
	}
	hint := ""
	if force {
		hint = "; --force does not change that, with --format 2"
	}
	switch old, err := volume.ParseMeta(md.Items); {
	case err == nil:
		return 0, fmt.Errorf("%s has already been setup (version %d, %s)%s", c.name, old.Version, humanSize(old.Size), hint)
	case !errors.Is(err, volume.ErrNotSetUp):
		return 0, c.explain(ctx, err)
	}
	for page, err := range store.Pages(ctx, c, store.ListOptions{Limit: 100}) {
		if err != nil {
			return 0, c.explain(ctx, err)
		}
		for _, o := range page {
			at, ok := layout.ParseRootName(o.Name)
			if !ok || at.Epoch != 0 {
				return 0, fmt.Errorf("%s holds objects, such as %s: a disk of version 2 needs an empty container%s", c.name, store.OneLine(o.Name), hint)
			}
			roots = at.N
		}
	}
	if kept := md.Versions.Kept(); kept != "" {
		t.warn("%s: %s", c.name, kept)
	}
	return roots, nil
}
