// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/cmdline"
	"swiftnbd/internal/config"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
	"swiftnbd/internal/words"
)

func (t *tool) setupCommand() *cobra.Command {
	var (
		objectSize string
		size       string
		format     string
		force      bool
	)
	cmd := &cobra.Command{
		Use:   "setup CONTAINER {OBJECTS | --size SIZE}",
		Short: "Set up a container to hold a disk",
		Long: `Set up a container for a disk. With --size, the disk has objects of 1 MiB. With
OBJECTS, it has that many objects of 64 KiB, as with swiftnbd 0.11. --object-size
changes the size of the objects. If the container does not exist, it is created.
The command writes the container's metadata only, and never touches an object.

With --format 2, the disk is a log of packed objects: small writes and flushes are
packed together, and what Swift holds is always the disk as it was at one moment. It
needs --size, an empty container, and credentials that may create containers, for
the lease. swiftnbd 0.11 cannot use such a disk.

It refuses a container that is set up already or that holds objects, unless you
give --force. It always refuses a locked container.`,
		Example: `  swiftnbd-ctl setup mynbd0 16384
  swiftnbd-ctl setup mynbd0 --size 10G`,
		Args: cobra.ArbitraryArgs,
		RunE: t.verb(func(ctx context.Context, args []string) error {
			switch format {
			case "", "1":
			case "2":
				out, err := t.setupLog(ctx, args, size, objectSize, force)
				if err != nil {
					return err
				}
				return t.done(out, "Done, %s: version 2, %s", out.Container, humanSize(out.Size))
			default:
				return usagef("--format: must be 1 or 2, not %q", format)
			}
			g, asked, err := parseGeometry(args, size, objectSize)
			if err != nil {
				return err
			}
			if asked != 0 && asked != g.Size() {
				t.say("%s is no multiple of the object size, rounded up to %d bytes", size, g.Size())
			}
			out, err := t.setup(ctx, args[0], g, force)
			if err != nil {
				return err
			}
			return t.done(out, "%s", doneSetup(args[0], g))
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	f := cmd.Flags()
	f.StringVar(&objectSize, "object-size", "", "size of an object in `bytes`, such as 65536, 64K or 1M. If not given: 1M with --size, 64K with OBJECTS")
	cmdline.Old(f, "object-size")
	f.StringVar(&size, "size", "", "size of the disk in `bytes`, such as 10G, instead of OBJECTS")
	f.StringVar(&format, "format", "", "`version` of the format, 1 or 2. If not given: 1")
	values(cmd, "format", "1", "2")
	t.policyFlag(cmd)
	t.jsonFlag(cmd)
	f.BoolVarP(&force, "force", "f", false, "write the metadata although the container is set up already or holds objects")
	cmdline.Old(f, "force")
	return cmd
}

// policyFlag gives a command its --policy.
func (t *tool) policyFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.policy, "policy", "", "storage policy (`NAME`) of a container that is created. If not given: the cluster's default")
}

// parseGeometry makes the disk's geometry from setup's arguments. asked is the
// value of --size, or 0.
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
	each := int64(chunked.SwiftnbdObjectSize)
	if size != "" {
		each = chunked.DefaultObjectSize
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

// Object sizes outside these bounds, in bytes, work. But hardly anybody wants
// such a disk.
const (
	leastSensible = 4 << 10
	mostSensible  = 64 << 20
)

// setUp is what setup prints as JSON.
type setUp struct {
	Container  string `json:"container"`
	Version    int    `json:"version"`
	Size       int64  `json:"size"`        // bytes
	Objects    *int64 `json:"objects"`     // of version 1
	ObjectSize *int64 `json:"object_size"` // of version 1, bytes
	Created    bool   `json:"created"`     // the container was created, and not only set up
}

// doneSetup is the line for people.
func doneSetup(name string, g geometry.Geometry) string {
	return fmt.Sprintf("Done, %s: %s of %s, %s", name, words.Count(g.Objects(), "object"), humanSize(g.ObjectSize()), humanSize(g.Size()))
}

// setup writes the metadata of a disk with the geometry g, unless something
// forbids it.
func (t *tool) setup(ctx context.Context, name string, g geometry.Geometry, force bool) (out setUp, err error) {
	objects, objectSize := g.Objects(), g.ObjectSize()
	out = setUp{Container: name, Version: volume.Version1, Size: g.Size(), Objects: &objects, ObjectSize: &objectSize}
	c, err := t.open(name)
	if err != nil {
		return out, err
	}
	md, exists, err := t.place(ctx, c)
	if err != nil {
		return out, err
	}
	look := func(md store.Metadata) (there bool, err error) {
		if err := md.Versions.Restores(name); err != nil {
			return false, fmt.Errorf("%s %w", name, err)
		}
		if there, err = t.setupOver(ctx, c, md, g, force); err != nil {
			return false, err
		}
		if kept := md.Versions.Kept(); kept != "" {
			t.warn("%s: %s", name, kept)
		}
		return there, nil
	}
	there := false
	if exists {
		if there, err = look(md); err != nil {
			return out, err
		}
	}
	// Ask the cluster for its limit. /info may be hidden.
	if info, err := c.client.Info(ctx); err == nil && info.MaxFileSize > 0 && g.ObjectSize() > info.MaxFileSize {
		return out, fmt.Errorf("%s: objects of %s are too large for this Swift, which takes %s", name, humanSize(g.ObjectSize()), humanSize(info.MaxFileSize))
	}
	switch {
	case g.ObjectSize() < leastSensible:
		t.tell("objects of %s make a slow disk: each is a request", humanSize(g.ObjectSize()))
	case g.ObjectSize() > mostSensible:
		t.tell("objects of %s are written and kept in memory as a whole, however little of one changes", humanSize(g.ObjectSize()))
	}
	if !there { // with --force what is there is written over
		turn := c.turn()
		defer func() { turn.leave(ctx, err == nil) }()
		seen := exists
		out.Created, err = t.room(ctx, c, exists, turn, func(md store.Metadata) (err error) {
			if seen {
				_, err = c.replaces(ctx, md, force)
			} else {
				_, err = look(md)
			}
			seen = true
			return err
		})
		if err != nil {
			return out, err
		}
	}
	if err := volume.SetUp(ctx, c, g, out.Created); err != nil {
		return out, c.explain(ctx, err)
	}
	return out, nil
}

// place reads the metadata of the container for a new disk, if it exists, and refuses
// a storage policy that it cannot have.
func (t *tool) place(ctx context.Context, c *container) (md store.Metadata, exists bool, err error) {
	if md, exists, err = c.firstLook(ctx, t.policy); err == nil && !exists {
		t.say("%s doesn't exist, will be created", c.name)
	}
	return md, exists, err
}

// firstLook is place without a word.
func (c *container) firstLook(ctx context.Context, policy string) (md store.Metadata, exists bool, err error) {
	md, err = c.contact.Metadata(ctx)
	exists = err == nil
	if err != nil && !errors.Is(err, store.ErrContainerNotFound) {
		return md, false, c.explain(ctx, err)
	}
	if !exists && c.namesSnapshot() {
		return md, false, fmt.Errorf("%s is not made: where the secrets file has no section of this name, it means a snapshot", c.name)
	}
	return md, exists, c.checkPolicy(ctx, policy, exists)
}

// checkPolicy returns why the container cannot have the storage policy. An empty
// policy is the container's own, or the default.
func (c *container) checkPolicy(ctx context.Context, policy string, exists bool) error {
	if policy == "" {
		return nil
	}
	info, err := c.client.Info(ctx)
	if err != nil {
		return c.explain(ctx, err)
	}
	name, err := info.FindPolicy(policy)
	if err != nil {
		return fmt.Errorf("%s: --policy: %w", c.name, err)
	}
	if !exists {
		return nil
	}
	u, err := c.client.Usage(ctx, c.name)
	if err != nil {
		return c.explain(ctx, err)
	}
	if u.Policy != "" && !strings.EqualFold(u.Policy, name) {
		return fmt.Errorf("%s: --policy: the container exists, with the storage policy %s, and Swift gives no container another one", c.name, u.Policy)
	}
	return nil
}

// replaces returns why an existing container with these metadata must not be set up,
// and whether there is a disk that the new one takes the place of.
func (c *container) replaces(ctx context.Context, md store.Metadata, force bool) (there bool, err error) {
	if err := lease.Locked(md.Items[volume.KeyClient]); err != nil {
		return false, fmt.Errorf("%s is %w: unlock it first", c.name, err)
	}
	old, err := volume.ParseMeta(md.Items)
	var format *volume.FormatError
	if err == nil {
		// What it has in the container would stay, and mean nothing.
		if err := old.Need(volume.Version1); err != nil {
			return false, c.explain(ctx, err)
		}
	}
	switch {
	case err == nil && !force:
		return false, fmt.Errorf("%s has already been setup (%s of %s)", c.name, words.Count(old.Geometry.Objects(), "object"), humanSize(old.Geometry.ObjectSize()))
	case errors.As(err, &format) && format.Version != volume.Version1:
		// The objects of another version of the format would be taken for
		// chunks.
		return false, c.explain(ctx, err)
	case errors.As(err, &format) && !force:
		return false, fmt.Errorf("%w: --force would set it up anew", c.explain(ctx, err))
	}
	return err == nil || format != nil, nil
}

// setupOver is replaces for a container that has these metadata and the geometry g
// from now on: it looks at the objects, too, and warns if some of them cannot be used.
func (t *tool) setupOver(ctx context.Context, c *container, md store.Metadata, g geometry.Geometry, force bool) (there bool, err error) {
	if there, err = c.replaces(ctx, md, force); err != nil {
		return false, err
	}
	if !there && !force {
		page, err := c.List(ctx, store.ListOptions{Limit: 1})
		if err != nil {
			return false, c.explain(ctx, err)
		}
		if len(page) > 0 {
			return false, fmt.Errorf("%s is not a swiftnbd container and holds objects, such as %s: --force would set it up all the same", c.name, store.OneLine(page[0].Name))
		}
	}
	page, err := c.List(ctx, store.ListOptions{Prefix: chunked.Prefix, Limit: 1})
	if err != nil {
		return false, c.explain(ctx, err)
	}
	if len(page) > 0 && page[0].Size != g.ObjectSize() {
		t.warn("%s holds objects of %d bytes (%s), which a disk with objects of %d bytes cannot read",
			c.name, page[0].Size, store.OneLine(page[0].Name), g.ObjectSize())
	}
	if len(page) > 0 {
		beyond, err := c.List(ctx, store.ListOptions{Prefix: chunked.Prefix, Marker: chunked.ObjectName(geometry.ChunkIndex(g.Objects() - 1)), Limit: 1})
		if err != nil {
			return false, c.explain(ctx, err)
		}
		if len(beyond) > 0 {
			t.warn("%s holds objects beyond the new end, from %s: they stay, unused", c.name, store.OneLine(beyond[0].Name))
		}
	}
	return there, nil
}
