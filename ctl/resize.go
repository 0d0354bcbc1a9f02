// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/spf13/cobra"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/config"
	"swiftnbd/internal/control"
	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
	"swiftnbd/internal/words"
)

// resizeOptions are the options of resize.
type resizeOptions struct {
	force       bool
	connections int
}

func (t *tool) resizeCommand() *cobra.Command {
	var o resizeOptions
	cmd := &cobra.Command{
		Use:   "resize CONTAINER SIZE",
		Short: "Make a disk larger or smaller",
		Long: `Make a disk larger or smaller. SIZE is rounded up to whole objects, or with version 2 to
whole blocks of 4096 bytes. The new part of a larger disk reads as zeroes. A server that
has a disk of version 2 is asked to make it larger, and clients that connect later see
the new size. Everything else needs a disk that no server has.

The command does not cut off data, unless you give --force: make the file system and
the partition smaller before. It refuses a locked container, and holds the lock itself
meanwhile. If it is interrupted, the disk has the old or the new size. With version 2
it takes a few requests for any size, and snapshots keep their own.`,
		Args: needs("CONTAINER", "SIZE"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			size, err := config.ParseSize(args[1])
			if err != nil {
				return usagef("SIZE: %w", err)
			}
			if size == 0 {
				return usagef("SIZE: a disk of no bytes")
			}
			return t.resize(ctx, args[0], size, o)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.force, "force", "f", false, "cut off data behind the disk's new end, and delete objects behind its old one")
	connectionsFlag(cmd, &o.connections)
	t.jsonFlag(cmd)
	return cmd
}

// resized is what resize prints as JSON.
type resized struct {
	Container string `json:"container"`
	Version   int    `json:"version"`
	Was       int64  `json:"was"`  // bytes
	Size      int64  `json:"size"` // bytes
	Deleted   int64  `json:"deleted_objects"`
}

// resize gives a disk another size.
func (t *tool) resize(ctx context.Context, name string, size int64, o resizeOptions) error {
	c, err := t.open(name)
	if err != nil {
		return err
	}
	if err := c.writable(); err != nil {
		return err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	if err := state.Held(); err != nil {
		if state.Meta.Version == volume.Version2 && state.Leased && !state.Never {
			return t.growServed(ctx, c, state, size, o)
		}
		return fmt.Errorf("%s is %w", name, err)
	}
	if state.Meta.Version == volume.Version2 {
		return t.resizeLog(ctx, c, size, o)
	}
	held, meta, err := c.mark(ctx, holderResize, resizeTerm)
	if err != nil {
		return c.explain(ctx, err)
	}
	out := resized{Container: name, Version: meta.Version, Was: meta.Size}
	err = t.resizeChunks(ctx, c, held, meta, size, o, &out)
	if err != nil {
		if rerr := c.release(ctx, held); rerr != nil && !errors.Is(rerr, lease.ErrLost) {
			t.fault(fmt.Errorf("%s stays locked: %w", name, oneLine{rerr}))
		}
		return err
	}
	return t.doneResized(out)
}

// doneResized prints the result.
func (t *tool) doneResized(out resized) error {
	return t.done(out, "Done, %s has %s now, %d bytes; it had %s", out.Container, humanSize(out.Size), out.Size, humanSize(out.Was))
}

// growServed makes a disk of version 2 larger by the server that has it.
func (t *tool) growServed(ctx context.Context, c *container, state lease.State, size int64, o resizeOptions) error {
	size, err := logSize(size)
	if err != nil {
		return usagef("SIZE: %w", err)
	}
	out := resized{Container: c.name, Version: volume.Version2, Size: size}
	if out.Was, err = logdisk.RootSize(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections)); err != nil {
		return c.explain(ctx, err)
	}
	if size < out.Was {
		return fmt.Errorf("%s is %w: %w", c.name, state.Held(), logdisk.ErrSmaller)
	}
	err = t.order(ctx, c.name, ordered{
		request: control.Request{Verb: control.Grow, Argument: strconv.FormatInt(size, 10)},
		there: func(ctx context.Context, c *container, state lease.State) (bool, error) {
			now, err := logdisk.RootSize(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections))
			return now == size, err
		},
		do: func(c *container) error {
			return t.change(ctx, c, holderResize, func(d *device.Device) error { return d.Resize(ctx, size, false) })
		},
	})
	if err != nil {
		return err
	}
	return t.doneResized(out)
}

// resizeLog gives a disk of version 2 another size.
func (t *tool) resizeLog(ctx context.Context, c *container, size int64, o resizeOptions) error {
	size, err := logSize(size)
	if err != nil {
		return usagef("SIZE: %w", err)
	}
	out := resized{Container: c.name, Version: volume.Version2, Size: size}
	var resizing error
	err = t.change(ctx, c, holderResize, func(d *device.Device) error {
		out.Was = d.Size()
		resizing = d.Resize(ctx, size, o.force)
		return resizing
	})
	var beyond *logdisk.BeyondError
	switch {
	case errors.As(resizing, &beyond):
		return fmt.Errorf("%s has %s of data behind its new end, from byte %d: --force cuts it off", c.name, humanSize(beyond.Bytes), beyond.From)
	case resizing != nil:
		return fmt.Errorf("%w; the disk has its old or its new size: to go on, run the same command again", err)
	case err != nil:
		return err
	}
	return t.doneResized(out)
}

// resizeChunks gives a disk of version 1 another size, and the lock back unless
// it fails. Objects behind both ends, the old and the new one, would be data of
// the disk as soon as it has grown over them. They go before it grows, and after
// it has become smaller: whenever it ends, the disk has all that its size says.
func (t *tool) resizeChunks(ctx context.Context, c *container, held *lease.Held, meta volume.Meta, size int64, o resizeOptions, out *resized) error {
	old := meta.Geometry
	g, err := geometry.New(old.ObjectSize(), (size-1)/old.ObjectSize()+1)
	if err != nil {
		return err
	}
	out.Size = g.Size()
	beyond, err := c.beyond(ctx, meta, min(g.Objects(), old.Objects()), max(g.Objects(), old.Objects()))
	if err != nil {
		return c.explain(ctx, err)
	}
	if len(beyond) > 0 && !o.force {
		if g.Objects() < old.Objects() {
			return fmt.Errorf("%s has data in %s behind its new end, from %s: --force cuts it off", c.name, words.Count(len(beyond), "object"), beyond[0])
		}
		return fmt.Errorf("%s has %s behind its end, from %s, which are not of the disk: --force deletes them", c.name, words.Count(len(beyond), "object"), beyond[0])
	}
	items := map[string]string{volume.KeyObjects: strconv.FormatInt(g.Objects(), 10)}
	if g.Objects() < old.Objects() {
		if err := c.setHeld(ctx, held, items); err != nil {
			return c.explain(ctx, err)
		}
	}
	n, err := c.deleteNames(ctx, held, beyond, o.connections)
	out.Deleted = n
	if err != nil {
		err = c.explain(ctx, err)
		if g.Objects() < old.Objects() {
			return fmt.Errorf("%w; the disk has its new size, and some of %s behind its end are still there: to delete them, run the same command again", err, words.Count(len(beyond), "object"))
		}
		return fmt.Errorf("%w; the disk has its old size: to go on, run the same command again", err)
	}
	if meta.Blank { // it stays so
		items[volume.KeyLast], items[volume.KeyBlank] = meta.Last, meta.Last
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return c.explain(ctx, held.ReleaseWith(within, items))
}

// beyond returns the objects from chunk n on. Names of nine digits stand among those
// of eight, so the listing is read from its beginning where the disk may have had
// any. A listing is late, so what the map of the last session has counts, too.
func (c *container) beyond(ctx context.Context, meta volume.Meta, n, most int64) (names []string, err error) {
	found, err := chunked.KnownFrom(ctx, c, meta, geometry.ChunkIndex(n), math.MaxInt)
	if err != nil {
		return nil, err
	}
	marker := ""
	if most <= 100_000_000 {
		marker = chunked.ObjectName(geometry.ChunkIndex(n - 1))
	}
	for page, err := range store.Pages(ctx, c, store.ListOptions{Prefix: chunked.Prefix, Marker: marker}) {
		if err != nil {
			return nil, err
		}
		for _, o := range page {
			if i, ok := chunked.ParseObjectName(o.Name); ok && int64(i) >= n {
				found = append(found, i)
			}
		}
	}
	slices.Sort(found)
	for _, i := range slices.Compact(found) {
		names = append(names, chunked.ObjectName(i))
	}
	return names, nil
}

// setHeld sets items of the container's metadata while we hold it.
func (c *container) setHeld(ctx context.Context, held *lease.Held, items map[string]string) error {
	ctx, stop, err := held.Fence().Guard(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return c.SetMetadata(ctx, items)
}

// deleteNames deletes objects while we hold the container, and returns how many
// were deleted.
func (c *container) deleteNames(ctx context.Context, held *lease.Held, names []string, connections int) (int64, error) {
	ctx, stop, err := held.Fence().Guard(ctx)
	if err != nil {
		return 0, err
	}
	defer stop()
	var done atomic.Int64
	err = store.DeleteAll(ctx, c, names, store.DeleteOptions{
		Batch: bulkNames, Batches: min(connections, bulkAtOnce), Singly: connections, Done: func(n int) { done.Add(int64(n)) },
	})
	return done.Load(), err
}
