// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"
	"fmt"
)

// beginRequest lets a request in. If the device is closed or being closed, it
// turns the request away at once, without waiting for the drain. The request
// runs in the returned context. After it, the caller calls d.gate.RUnlock.
func (d *Device) beginRequest(off, n int64, write bool) (context.Context, error) {
	if !d.contains(off, n) {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, off, d.disk.Size(), ErrOutOfRange)
	}
	if write && d.opts.ReadOnly {
		return nil, ErrReadOnly
	}
	if !d.gate.TryRLock() { // Close holds it, or waits for it
		return nil, ErrClosed
	}
	err := ErrClosed
	if !d.closing {
		err = d.Lost()
	}
	if err != nil {
		d.gate.RUnlock()
		return nil, err
	}
	return d.ctx, nil
}

// contains says whether the range lies on the disk. An empty one at the very end
// does.
func (d *Device) contains(off, n int64) bool {
	size := d.disk.Size()
	return off >= 0 && n >= 0 && off <= size && n <= size-off
}

// ended returns the error of a request that ran in ctx and failed with err. If
// the request ended because the device is being closed, this is ErrClosed.
func ended(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), ErrClosed) {
		return ErrClosed
	}
	return err
}

// ReadAt fills p from off. It reads all or fails; n is len(p) or 0.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	ctx, err := d.beginRequest(off, int64(len(p)), false)
	if err != nil {
		return 0, err
	}
	defer d.gate.RUnlock()
	if err := d.disk.Read(ctx, p, off); err != nil {
		return 0, ended(ctx, err)
	}
	if err := d.waitForFence(ctx); err != nil {
		return 0, ended(ctx, err)
	}
	return len(p), nil
}

// WriteAt writes p at off. The bytes are in Swift after the next Sync, or when
// it returns with Options.WriteThrough.
func (d *Device) WriteAt(p []byte, off int64) (n int, err error) {
	if err := d.WriteFUA(p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteFUA is WriteAt; with fua the bytes are in Swift when it returns.
func (d *Device) WriteFUA(p []byte, off int64, fua bool) error {
	ctx, err := d.beginRequest(off, int64(len(p)), true)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.disk.Write(ctx, p, off); err != nil {
		return ended(ctx, err)
	}
	return d.finishChange(ctx, off, int64(len(p)), fua)
}

// finishChange is called after a change. It writes to Swift what must be there
// now.
func (d *Device) finishChange(ctx context.Context, off, n int64, fua bool) error {
	if fua || d.opts.WriteThrough {
		if err := d.disk.FlushRange(ctx, off, n); err != nil {
			return ended(ctx, err)
		}
	}
	return ended(ctx, d.waitForFence(ctx))
}

// Sync returns when every change that was completed before it, by any client,
// is in Swift.
func (d *Device) Sync() error {
	ctx, err := d.beginRequest(0, 0, false)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.disk.Flush(d.ctx); err != nil {
		return err
	}
	return ended(ctx, d.waitForFence(ctx))
}

// Zero makes the range read as zeroes. With fast it returns ErrSlow if this
// takes as long as writing zeroes.
func (d *Device) Zero(off, n int64, fua, fast bool) error {
	ctx, err := d.beginRequest(off, n, true)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if fast && !d.disk.FastZero(off, n) {
		return ErrSlow
	}
	if err := d.disk.Zero(ctx, off, n); err != nil {
		return ended(ctx, err)
	}
	return d.finishChange(ctx, off, n, fua)
}

// Trim says that the range is not needed any more.
func (d *Device) Trim(off, n int64, fua bool) error {
	ctx, err := d.beginRequest(off, n, true)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.disk.Trim(ctx, off, n); err != nil {
		return ended(ctx, err)
	}
	return d.finishChange(ctx, off, n, fua)
}

// Extents is Disk.Extents.
func (d *Device) Extents(off, n int64, emit func(off, n int64, hole bool) bool) error {
	ctx, err := d.beginRequest(off, n, false)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.disk.Extents(ctx, off, n, emit); err != nil {
		return ended(ctx, err)
	}
	return ended(ctx, d.waitForFence(ctx))
}

// Advise begins to bring the range into memory, and does not wait for it.
func (d *Device) Advise(off, n int64) error {
	if _, err := d.beginRequest(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	d.disk.Advise(off, n)
	return nil
}

// Prefetch brings the range into memory.
func (d *Device) Prefetch(off, n int64) error {
	ctx, err := d.beginRequest(off, n, false)
	if err != nil {
		return err
	}
	defer d.gate.RUnlock()
	return ended(ctx, d.disk.Prefetch(ctx, off, n))
}
