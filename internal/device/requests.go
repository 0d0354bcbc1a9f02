// SPDX-License-Identifier: MIT

package device

import "fmt"

// enter lets a request in, unless the device is being closed. The caller calls
// d.gate.RUnlock after it.
func (d *Device) enter(off, n int64, write bool) error {
	if !d.geo.Contains(off, n) {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, d.geo.Size(), ErrOutOfRange)
	}
	if write && d.opts.ReadOnly {
		return ErrReadOnly
	}
	d.gate.RLock()
	err := ErrClosed
	if !d.closing {
		err = d.Lost()
	}
	if err != nil {
		d.gate.RUnlock()
	}
	return err
}

// ReadAt fills p from off. It reads all or fails; n is len(p) or 0.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	if err := d.enter(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Read(d.ctx, p, off); err != nil {
		return 0, err
	}
	if err := d.ours(); err != nil {
		return 0, err
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
	if err := d.enter(off, int64(len(p)), true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Write(d.ctx, p, off); err != nil {
		return err
	}
	return d.settle(off, int64(len(p)), fua)
}

// settle is called after a change: what must be in Swift now is written.
func (d *Device) settle(off, n int64, fua bool) error {
	if fua || d.opts.WriteThrough {
		if err := d.cache.FlushRange(d.ctx, off, n); err != nil {
			return err
		}
	}
	return d.ours()
}

// Sync returns when every change that was completed before it, by any client,
// is in Swift.
func (d *Device) Sync() error {
	if err := d.enter(0, 0, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Flush(d.ctx); err != nil {
		return err
	}
	return d.ours()
}

// Zero makes the range read as zeroes. With fast it ends with ErrSlow where
// that takes as long as writing zeroes.
func (d *Device) Zero(off, n int64, fua, fast bool) error {
	if err := d.enter(off, n, true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if fast && !d.cache.FastZero(off, n) {
		return ErrSlow
	}
	if err := d.cache.Zero(d.ctx, off, n); err != nil {
		return err
	}
	return d.settle(off, n, fua)
}

// Trim tells that the range is not needed any more.
func (d *Device) Trim(off, n int64, fua bool) error {
	if err := d.enter(off, n, true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Trim(d.ctx, off, n); err != nil {
		return err
	}
	return d.settle(off, n, fua)
}

// Extents is cache.Extents.
func (d *Device) Extents(off, n int64, emit func(off, n int64, hole bool) bool) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Extents(d.ctx, off, n, emit); err != nil {
		return err
	}
	return d.ours()
}

// Advise begins to bring the range into the cache, and does not wait for it.
func (d *Device) Advise(off, n int64) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	d.cache.Advise(off, n)
	return nil
}

// Prefetch brings the range into the cache.
func (d *Device) Prefetch(off, n int64) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	return d.cache.Prefetch(d.ctx, off, n)
}
