// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"

	"swiftnbd/internal/logdisk/layout"
)

// ErrNoClones says that the volume is of version 1.
var ErrNoClones = errors.New("a disk of version 1 of the format has no clones, and is none")

// cloned is a Disk of a version that has clones.
type cloned interface {
	Flatten(ctx context.Context, add func(n int64)) error
	Base(ctx context.Context) (b *layout.Base, snapshots []string, err error)
	DropBase(ctx context.Context) error
	ChunksNeeded(ctx context.Context) (left bool, snapshots []string, err error)
}

// Flatten copies into the disk what it has from its parent, and writes a root
// without it. Nobody else may write to the disk meanwhile. add is told how many
// bytes are done.
func (d *Device) Flatten(ctx context.Context, add func(n int64)) error {
	return d.clone(ctx, func(ctx context.Context, c cloned) error { return c.Flatten(ctx, add) })
}

// Base returns where the disk's parent is, or was before Flatten; nil: it is no
// clone. After Flatten, snapshots are those that need the parent still.
func (d *Device) Base(ctx context.Context) (b *layout.Base, snapshots []string, err error) {
	err = d.clone(ctx, func(ctx context.Context, c cloned) error {
		b, snapshots, err = c.Base(ctx)
		return err
	})
	return b, snapshots, err
}

// ChunksNeeded says whether a disk that was converted may have objects of version
// 1 still, and which of its snapshots need them.
func (d *Device) ChunksNeeded(ctx context.Context) (left bool, snapshots []string, err error) {
	err = d.clone(ctx, func(ctx context.Context, c cloned) error {
		left, snapshots, err = c.ChunksNeeded(ctx)
		return err
	})
	return left, snapshots, err
}

// DropBase forgets the parent after Flatten.
func (d *Device) DropBase(ctx context.Context) error {
	return d.clone(ctx, func(ctx context.Context, c cloned) error { return c.DropBase(ctx) })
}

func (d *Device) clone(ctx context.Context, do func(context.Context, cloned) error) error {
	c, ok := d.disk.(cloned)
	if !ok {
		return ErrNoClones
	}
	return d.work(ctx, func(ctx context.Context) error { return do(ctx, c) })
}
