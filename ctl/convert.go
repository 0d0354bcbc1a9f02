// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/device"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// convertTerm is the lease of a conversion, which renews it.
const convertTerm = 30 * time.Second

func (t *tool) convertCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "convert CONTAINER",
		Short: "Make a disk of version 1 one of version 2, in its place",
		Long: `Make a disk of version 1 of the format one of version 2, in its place. It takes a few
requests for a disk of any size: nothing is copied. What the disk has stays in its
objects, and what is written from then on goes into the log. "flatten" moves the rest.

There is no way back in place: swiftnbd 0.11, and every program that knows version 1
only, refuses the disk from then on. To go back, download it, and upload it to a disk of
version 1.

The command refuses a locked container, and a disk with an upload that has not come to
its end. If it is interrupted, the disk is of one version or the other, with the same
bytes: run it again to go on.`,
		Example: `  swiftnbd-ctl convert mynbd0`,
		Args:    needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.convert(ctx, args[0])
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	t.jsonFlag(cmd)
	return cmd
}

// converted is what convert prints as JSON.
type converted struct {
	Container  string `json:"container"`
	Version    int    `json:"version"`
	Size       int64  `json:"size"`        // of the disk, bytes
	Objects    int64  `json:"objects"`     // of version 1, those that are holes too
	ObjectSize int64  `json:"object_size"` // bytes
}

// convert makes a disk of version 1 one of version 2.
func (t *tool) convert(ctx context.Context, name string) error {
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
	if state.Meta.Version == volume.Version2 {
		return fmt.Errorf("%s is of version 2 of the format already: nothing to convert", name)
	}
	if err := state.Held(); err != nil {
		return fmt.Errorf("%s is %w", name, err)
	}
	o := device.Options{
		Store: c, Holder: holderConvert, Lease: c.lease(holderConvert, convertTerm),
		Log: t.warner(c.name),
	}
	meta, err := device.Convert(ctx, o, func(md store.Metadata, meta volume.Meta) error {
		if _, ok := unfinishedUpload(md.Items, meta.Last); ok {
			return fmt.Errorf("%s: not converted: an upload to it has not come to its end: run that again first, or set the disk up anew", name)
		}
		return nil
	})
	switch {
	case errors.Is(err, device.ErrConvertUnsure):
		return fmt.Errorf("%w; it has the same bytes either way: run the same command again", c.explain(ctx, err))
	case err != nil:
		return c.explain(ctx, err)
	}
	out := converted{
		Container: name, Version: volume.Version2, Size: meta.Size,
		Objects: meta.Geometry.Objects(), ObjectSize: meta.Geometry.ObjectSize(),
	}
	return t.done(out, "Done, %s is of version 2 of the format now: what it has, in up to %d objects of %s, is read from there until it is written anew", name, out.Objects, humanSize(out.ObjectSize))
}
