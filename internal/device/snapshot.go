// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"

	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
)

// ErrNoSnapshots says that the volume is of version 1.
var ErrNoSnapshots = errors.New("a disk of version 1 of the format has no snapshots")

// snapshotter is a Disk of a version that has snapshots.
type snapshotter interface {
	// Snapshot keeps the disk as it is now under a name, and DeleteSnapshot gives
	// that up.
	Snapshot(ctx context.Context, name string) error
	DeleteSnapshot(ctx context.Context, name string, force bool) error
	// Resize gives the disk another size, bytes. It cuts data off only if force.
	Resize(ctx context.Context, size int64, force bool) error
	// Grow makes a disk that is served larger.
	Grow(ctx context.Context, size int64) error
	// Revert makes the disk what it was when a snapshot was made.
	Revert(ctx context.Context, name string) error
	// SnapshotOf is Snapshot of a copy, and Copies returns what snapshots there
	// are, and whether the log has gone on since.
	SnapshotOf(ctx context.Context, name string, of layout.Copied) error
	Copies() (list []logdisk.Snapshot, written []bool)
}

// Snapshot keeps the disk as it is now under a name: every change that was
// completed before is in it. It takes as long as a flush and two requests.
func (d *Device) Snapshot(ctx context.Context, name string) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.Snapshot(ctx, name) })
}

// SnapshotOf is Snapshot of a disk that has become a copy of another disk's
// snapshot, and notes that.
func (d *Device) SnapshotOf(ctx context.Context, name string, of layout.Copied) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.SnapshotOf(ctx, name, of) })
}

// Copies is logdisk.Disk.Copies; nothing of a disk that has no snapshots.
func (d *Device) Copies() (list []logdisk.Snapshot, written []bool) {
	if s, ok := d.disk.(snapshotter); ok {
		return s.Copies()
	}
	return nil, nil
}

// DeleteSnapshot gives a snapshot up. One that has clones is refused unless force.
func (d *Device) DeleteSnapshot(ctx context.Context, name string, force bool) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.DeleteSnapshot(ctx, name, force) })
}

// Resize gives a disk that was opened with Options.Brief another size, bytes
// (logdisk.Disk.Resize). Only Close may come after it.
func (d *Device) Resize(ctx context.Context, size int64, force bool) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.Resize(ctx, size, force) })
}

// Grow makes the disk larger while it is served. Size tells the new size at once.
func (d *Device) Grow(ctx context.Context, size int64) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.Grow(ctx, size) })
}

// Revert makes a disk that was opened with Options.Brief what it was when a
// snapshot was made (logdisk.Disk.Revert). Only Close may come after it.
func (d *Device) Revert(ctx context.Context, name string) error {
	return d.change(ctx, func(ctx context.Context, s snapshotter) error { return s.Revert(ctx, name) })
}

// change does something with the snapshots.
func (d *Device) change(ctx context.Context, do func(context.Context, snapshotter) error) error {
	s, ok := d.disk.(snapshotter)
	if !ok {
		return ErrNoSnapshots
	}
	return d.work(ctx, func(ctx context.Context) error { return do(ctx, s) })
}

// work does something with the disk as a request of a client is done. It ends
// with ctx, too.
func (d *Device) work(ctx context.Context, do func(context.Context) error) error {
	ctx, end, err := d.beginChange(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := do(ctx); err != nil {
		return ended(ctx, err)
	}
	return ended(ctx, d.waitForFence(ctx))
}

// beginChange is beginRequest for a change of the disk that is no client's. Its
// context ends with ctx, too. end ends the request.
func (d *Device) beginChange(ctx context.Context) (_ context.Context, end func(), err error) {
	own, err := d.beginRequest(0, 0, true)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(own, func() { cancel(context.Cause(own)) })
	return ctx, func() {
		stop()
		cancel(nil)
		d.gate.RUnlock()
	}, nil
}
