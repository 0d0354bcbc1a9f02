// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

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
	if exists {
		if _, err = t.freeForLog(ctx, c, md, force); err != nil {
			return out, err
		}
	}
	if err := c.canLease(ctx); err != nil {
		return out, err
	}
	// The root first: who finds the disk must find its content, too.
	created := false
	var roots uint64 // what interrupted setups have left
	if exists {
		roots, err = t.freeNow(ctx, c, force)
	} else {
		var leave func()
		roots, created, leave, err = t.room(ctx, c, force)
		defer leave()
	}
	if err != nil {
		return out, err
	}
	m := volume.Meta{Version: volume.Version2, Size: bytes, UUID: layout.NewUUID()}
	if m.Root, err = logdisk.SetupAfter(ctx, c, m.UUID, bytes, roots); err != nil {
		return out, c.explain(ctx, err)
	}
	if err := volume.Create2(ctx, c, m); err != nil {
		return out, c.explain(ctx, err)
	}
	return setUp{Container: name, Version: volume.Version2, Size: bytes, Created: created}, nil
}

// room makes the container of a disk of version 2, or finds out that there is an empty
// one: of two who make the disk at the same moment one has created it, and the other
// would write another disk over theirs. Of several who find an empty one, those that
// come after the first see that it is one's turn: a container with the name of a lease
// that is none, which one of them has created. leave is to be called when the disk is
// there, or will not be, and after an error, too. room returns how many first roots are
// there of runs that were interrupted.
func (t *tool) room(ctx context.Context, c *container, force bool) (roots uint64, made bool, leave func(), err error) {
	leave = func() {}
	if made, err = c.CreateContainer(ctx, nil); err != nil || made {
		return 0, made, leave, c.explain(ctx, err)
	}
	if _, err := t.freeNow(ctx, c, force); err != nil {
		return 0, false, leave, err
	}
	wait := t.pace.setup
	turn := c.noLease()
	ours, err := turn.CreateContainer(ctx, nil)
	if err != nil || !ours {
		// Somebody is about to make the disk, or did not come to its end, or these
		// credentials may not create containers.
		wait += 2*t.pace.setup + mathrand.N(2*t.pace.setup)
	}
	if err == nil {
		within := context.WithoutCancel(ctx)
		leave = func() { _ = turn.DeleteContainer(within) } // if it stays, the next one waits for longer
	}
	select {
	case <-time.After(wait):
		roots, err = t.freeNow(ctx, c, force)
	case <-ctx.Done():
		err = c.explain(ctx, ctx.Err())
	}
	if err != nil && !ours {
		leave = func() {} // the turn is somebody else's
	}
	return roots, false, leave, err
}

// freeNow is freeForLog of what the container says now.
func (t *tool) freeNow(ctx context.Context, c *container, force bool) (roots uint64, err error) {
	md, err := c.contact.Metadata(ctx)
	if err != nil {
		return 0, c.explain(ctx, err)
	}
	return t.freeForLog(ctx, c, md, force)
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
// without. A lease is a container of its own: one is created and deleted again.
func (c *container) canLease(ctx context.Context) error {
	s := c.noLease()
	// Writes are signed with a key. Swift drops it without an error where the
	// credentials are not the owner's, and then there is no lease for them.
	created, err := s.CreateContainer(ctx, map[string]string{lease.KeyFence: rand.Text()})
	switch {
	case errors.Is(err, store.ErrForbidden):
		return fmt.Errorf("%s: a disk of version 2 needs a lease, which is a container of its own, and these credentials may not create containers: %w", c.name, oneLine{err})
	case err != nil:
		return c.explain(ctx, err)
	}
	md, err := s.Metadata(ctx)
	if !created {
		// It says whose turn it is (room).
	} else if err := s.DeleteContainer(ctx); err != nil && !errors.Is(err, store.ErrContainerNotFound) {
		return c.explain(ctx, fmt.Errorf("delete a container that was created to see whether there can be a lease: %w", err))
	}
	if err != nil {
		return c.explain(ctx, err)
	}
	if md.Items[lease.KeyFence] == "" {
		if foreign, err := c.client.Foreign(ctx); err == nil && foreign {
			return fmt.Errorf("%s: a disk of version 2 needs a lease: %w", c.name, lease.ErrNotOwner)
		}
	}
	return nil
}

// noLease is the container that a lease of number 0 would have: no lease has that
// number.
func (c *container) noLease() store.Store { return c.sibling(lease.ContainerName(c.name, 0)) }

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
