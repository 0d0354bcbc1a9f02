// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"

	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// ready finds out how the disk is, and sets it up if it is none.
func (t *tool) ready(ctx context.Context, c *container, in input, path string, o uploadOptions) (lease.State, error) {
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err == nil {
		if err := c.checkPolicy(ctx, t.policy, true); err != nil {
			return state, err
		}
	}
	if errors.Is(err, store.ErrContainerNotFound) || errors.Is(err, volume.ErrNotSetUp) {
		if err := t.setupFor(ctx, c, in, path, o); err != nil {
			return state, err
		}
		state, err = lease.Inspect(ctx, c.lease("", 0))
	}
	if err != nil {
		return state, c.explain(ctx, err)
	}
	if err := state.Held(); err != nil {
		return state, fmt.Errorf("%s is %w", c.name, err)
	}
	if c.export.Disk.Compress && state.Meta.Version == volume.Version1 {
		return state, t.secrets.Blame(c.name, "compression", device.ErrNoCompression)
	}
	if err := o.fits(c.name, state.Meta, in, path); err != nil || o.force || state.Meta.Version != volume.Version1 || state.Meta.Blank {
		return state, err
	}
	// Of version 1 it can be told without opening the disk that it is to stay as
	// it is.
	md, err := c.contact.Metadata(ctx)
	if err != nil {
		return state, c.explain(ctx, err)
	}
	if _, ok := unfinishedUpload(md.Items, cmp.Or(md.Items[volume.KeyClient], md.Items[volume.KeyLast])); ok {
		return state, nil
	}
	return state, c.empty(ctx, c.contact, state.Meta)
}

// setupFor sets a disk up for the image.
func (t *tool) setupFor(ctx context.Context, c *container, in input, path string, o uploadOptions) error {
	name, size := c.name, o.size
	switch n := in.size(); {
	case size != "":
	case n < 0:
		return fmt.Errorf("%s is not set up, and a pipe does not tell the disk's size: give --size", name)
	default:
		size = strconv.FormatInt(n, 10)
	}
	if want, err := config.ParseSize(size); err == nil && in.size() > want {
		return fmt.Errorf("%s has %s, more than --size", path, humanSize(in.size()))
	}
	if o.format == "2" {
		out, err := t.setupLog(ctx, []string{name}, size, o.objectSize, o.force)
		if err == nil {
			t.say("Done, %s: version 2, %s", name, humanSize(out.Size))
		}
		return err
	}
	if c.export.Disk.Compress {
		return t.secrets.Blame(name, "compression", device.ErrNoCompression)
	}
	g, _, err := parseGeometry([]string{name}, size, o.objectSize)
	if err != nil {
		return err
	}
	if _, err = t.setup(ctx, name, g, o.force); err == nil {
		t.say("%s", doneSetup(name, g))
	}
	return err
}

// fits returns why the image cannot go into the disk that is there, or why that
// is not the disk that the options ask for.
func (o uploadOptions) fits(name string, meta volume.Meta, in input, path string) error {
	if o.format != "" && o.format != strconv.Itoa(meta.Version) {
		return fmt.Errorf("%s is set up already, with --format %d", name, meta.Version)
	}
	if o.objectSize != "" {
		n, err := config.ParseSize(o.objectSize)
		if err != nil {
			return usagef("--object-size: %w", err)
		}
		if n != meta.Geometry.ObjectSize() || meta.Version != volume.Version1 {
			return fmt.Errorf("%s is set up already, and not with objects of %s", name, humanSize(n))
		}
	}
	if o.size != "" {
		n, err := config.ParseSize(o.size)
		if err != nil {
			return usagef("--size: %w", err)
		}
		each := int64(logGrain)
		if meta.Version == volume.Version1 {
			each = meta.Geometry.ObjectSize()
		}
		if n > meta.Size || meta.Size-n >= each {
			return fmt.Errorf("%s is set up already, with %s and not %s: resize changes that", name, humanSize(meta.Size), humanSize(n))
		}
	}
	if n := in.size(); n > meta.Size {
		return fmt.Errorf("%s has %d bytes, the disk %s %d", path, n, name, meta.Size)
	}
	return nil
}
