// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"swiftnbd/internal/config"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

func (t *tool) setupCommand() *cobra.Command {
	var (
		objectSize string
		size       string
		force      bool
	)
	cmd := &cobra.Command{
		Use:   "setup CONTAINER {OBJECTS | --size SIZE}",
		Short: "Set up a container to hold a disk",
		Long: `Set up a container to hold a disk of --size bytes in objects of 1 MiB, or, as
swiftnbd 0.11 did, of OBJECTS objects of 64 KiB; --object-size changes either. The container is created where it does not exist. Only the
container's metadata is written: no object is ever touched.

A container that has been set up, or that holds objects, is refused unless
--force is given; one that is locked is refused in any case.`,
		Example: `  swiftnbd-ctl setup mynbd0 16384
  swiftnbd-ctl setup mynbd0 --size 10G`,
		Args: cobra.ArbitraryArgs,
		RunE: t.verb(func(ctx context.Context, args []string) error {
			g, asked, err := parseGeometry(args, size, objectSize)
			if err != nil {
				return err
			}
			if asked != 0 && asked != g.Size() {
				t.say("%s is no multiple of the object size, rounded up to %d bytes", size, g.Size())
			}
			return t.setup(ctx, args[0], g, force)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	f := cmd.Flags()
	f.StringVar(&objectSize, "object-size", "", "size of an object, such as 65536, 64K or 1M `bytes`; 1M with --size, 64K with OBJECTS, unless given")
	f.StringVar(&size, "size", "", "size of the disk, such as 10G `bytes`, in place of OBJECTS")
	f.BoolVarP(&force, "force", "f", false, "write the metadata of a container that has been set up, or holds objects")
	return cmd
}

// parseGeometry makes the disk's shape of setup's arguments. asked is what
// --size said, or 0.
func parseGeometry(args []string, size, objectSize string) (g geometry.Geometry, asked int64, err error) {
	switch {
	case len(args) == 0:
		return g, 0, usagef("CONTAINER is missing")
	case len(args) == 1 && size == "":
		return g, 0, usagef("OBJECTS is missing, the number of objects (or --size, the disk's size)")
	case len(args) == 2 && size != "":
		return g, 0, usagef("OBJECTS and --size exclude each other")
	case len(args) > 2:
		return g, 0, usagef("%q is one argument too many (expected CONTAINER OBJECTS)", args[2])
	}
	each := int64(volume.SwiftnbdObjectSize)
	if size != "" {
		each = volume.DefaultObjectSize
	}
	if objectSize != "" {
		if each, err = config.ParseSize(objectSize); err != nil {
			return g, 0, usagef("--object-size: %w", err)
		}
	}
	var objects int64
	if size != "" {
		if asked, err = config.ParseSize(size); err != nil {
			return g, 0, usagef("--size: %w", err)
		}
		if asked == 0 {
			return g, 0, usagef("--size: a disk of no bytes")
		}
		if each < 1 {
			return g, 0, usagef("--object-size: must be at least 1 byte")
		}
		objects = (asked-1)/each + 1
	} else if objects, err = strconv.ParseInt(args[1], 10, 64); err != nil {
		if _, err := config.ParseSize(args[1]); err == nil {
			return g, 0, usagef("OBJECTS is a number of objects, not %q (a size goes behind --size)", args[1])
		}
		return g, 0, usagef("OBJECTS is a number of objects, not %q", args[1])
	}
	g, err = geometry.New(each, objects)
	if err != nil {
		return g, 0, &usageError{err}
	}
	return g, asked, nil
}

// Outside of these, bytes an object, a disk works, and hardly as anybody wants.
const (
	leastSensible = 4 << 10
	mostSensible  = 64 << 20
)

// setup writes the metadata of a disk of shape g, when nothing speaks against
// it.
func (t *tool) setup(ctx context.Context, name string, g geometry.Geometry, force bool) error {
	c, err := t.open(name)
	if err != nil {
		return err
	}
	md, err := c.contact.Metadata(ctx)
	switch {
	case errors.Is(err, store.ErrContainerNotFound):
		t.say("%s doesn't exist, will be created", name)
	case err != nil:
		return c.explain(ctx, err)
	default:
		if err := t.setupOver(ctx, c, md, g, force); err != nil {
			return err
		}
	}
	// A cluster that tells its limit is asked for it; /info may be hidden.
	if info, err := c.client.Info(ctx); err == nil && info.MaxFileSize > 0 && g.ObjectSize() > info.MaxFileSize {
		return fmt.Errorf("%s: objects of %s are too large for this Swift, which takes %s", name, humanSize(g.ObjectSize()), humanSize(info.MaxFileSize))
	}
	switch {
	case g.ObjectSize() < leastSensible:
		t.say("warning: objects of %s make a slow disk: each is a request", humanSize(g.ObjectSize()))
	case g.ObjectSize() > mostSensible:
		t.say("warning: objects of %s are written and kept in memory as a whole, however little of one changes", humanSize(g.ObjectSize()))
	}
	if err := volume.Create(ctx, c, g); err != nil {
		return c.explain(ctx, err)
	}
	t.say("Done, %s: %d objects of %s, %s", name, g.Objects(), humanSize(g.ObjectSize()), humanSize(g.Size()))
	return nil
}

// setupOver says why a container that exists must not be set up with shape g,
// or warns of what that means for the objects in it.
func (t *tool) setupOver(ctx context.Context, c *container, md store.Metadata, g geometry.Geometry, force bool) error {
	if err := lease.Locked(md.Items[volume.KeyClient]); err != nil {
		return fmt.Errorf("%s is %w: unlock it first", c.name, err)
	}
	old, err := volume.ParseMeta(md.Items)
	var format *volume.FormatError
	switch {
	case err == nil && !force:
		return fmt.Errorf("%s has already been setup (%d objects of %s)", c.name, old.Geometry.Objects(), humanSize(old.Geometry.ObjectSize()))
	case errors.As(err, &format) && format.Key == volume.KeyVersion:
		// Another version's objects would be taken for chunks.
		return c.explain(ctx, err)
	case errors.As(err, &format) && !force:
		return fmt.Errorf("%w: --force would set it up anew", c.explain(ctx, err))
	}

	if isVolume := err == nil || format != nil; !isVolume && !force {
		page, err := c.List(ctx, store.ListOptions{Limit: 1})
		if err != nil {
			return c.explain(ctx, err)
		}
		if len(page) > 0 {
			return fmt.Errorf("%s is not a swiftnbd container and holds objects, such as %s: --force would set it up all the same", c.name, page[0].Name)
		}
	}
	page, err := c.List(ctx, store.ListOptions{Prefix: volume.Prefix, Limit: 1})
	if err != nil {
		return c.explain(ctx, err)
	}
	if len(page) > 0 && page[0].Size != g.ObjectSize() {
		t.warn("%s holds objects of %d bytes (%s), which a disk with objects of %d bytes cannot read",
			c.name, page[0].Size, page[0].Name, g.ObjectSize())
	}
	if len(page) > 0 {
		beyond, err := c.List(ctx, store.ListOptions{Prefix: volume.Prefix, Marker: volume.ObjectName(geometry.ChunkIndex(g.Objects() - 1)), Limit: 1})
		if err != nil {
			return c.explain(ctx, err)
		}
		if len(beyond) > 0 {
			t.warn("%s holds objects beyond the new end, from %s: they stay, unused", c.name, beyond[0].Name)
		}
	}
	return nil
}
