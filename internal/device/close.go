// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"fmt"
	"time"

	"swiftnbd/internal/volume"
)

// DrainError is dirty data that could not be written.
type DrainError struct {
	Bytes  int64
	Chunks int
	Err    error
}

func (e *DrainError) Error() string {
	return fmt.Sprintf("%d bytes in %d chunks could not be written: %v", e.Bytes, e.Chunks, e.Err)
}
func (e *DrainError) Unwrap() error { return e.Err }

// LostError is a device that has ended without its volume: somebody else has
// it. What was dirty then is lost.
type LostError struct {
	Bytes  int64
	Chunks int
	Err    error
}

func (e *LostError) Error() string {
	if e.Chunks == 0 {
		return fmt.Sprintf("%v; nothing was left to be written", e.Err)
	}
	return fmt.Sprintf("%v; %d bytes in %d chunks were not written and are lost", e.Err, e.Bytes, e.Chunks)
}
func (e *LostError) Unwrap() error { return e.Err }

// Close ends the device: it turns requests away, writes back what is dirty and
// gives the lock back. With a *DrainError nothing has ended: the device goes
// on, with its data and its lock, and Close may be called again. A *LostError
// says that the volume is somebody else's; the device has ended then. Calling
// it after it has ended does nothing.
func (d *Device) Close() error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closing {
		return nil
	}
	var err error
	if d.Lost() == nil {
		err = d.cache.Flush(d.ctx)
	}
	if lost := d.Lost(); lost != nil {
		bytes, chunks := d.cache.Dirty()
		d.end()
		return &LostError{bytes, chunks, lost}
	}
	if err != nil {
		bytes, chunks := d.cache.Dirty()
		return &DrainError{bytes, chunks, err}
	}
	if d.held != nil {
		err = d.release()
	}
	d.end()
	return err
}

// release gives the lock back, with a map of the chunks where there is
// something new to say in one. Each step has its own time: a map that takes too
// long must not cost the lock's release.
func (d *Device) release() error {
	within := func(do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), max(d.opts.Timeout, time.Second))
		defer cancel()
		return do(ctx)
	}
	if !d.vol.Changed() && d.vol.Mapped() {
		return within(d.held.ReleaseUnchanged)
	}
	var obsolete []string
	err := within(func(ctx context.Context) (err error) {
		obsolete, err = d.vol.SaveMap(ctx, d.held.Mark())
		return err
	})
	if err != nil {
		d.opts.Log("the next start will be slower: %v", err)
		return within(d.held.Release)
	}
	if err := within(d.held.ReleaseMapped); err != nil {
		return err
	}
	s := d.opts.Store
	if d.opts.Lease.Sibling != nil {
		s = d.opts.Lease.Sibling(d.opts.Lease.Name)
	}
	return within(func(ctx context.Context) error {
		volume.Forget(ctx, s, obsolete)
		return nil
	})
}

// Abandon ends the device as it is: what is dirty is lost, and the lock stays,
// so that nobody takes the volume unaware.
func (d *Device) Abandon() {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closing {
		return
	}
	if d.held != nil {
		ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
		defer cancel()
		d.held.Keep(ctx)
	}
	d.end()
}

// keepTimeout bounds the attempt to make an abandoned volume's lease last:
// most often Swift is away then.
const keepTimeout = 5 * time.Second

// end is the last of the device. gate is held for writing.
func (d *Device) end() {
	d.closing = true
	d.cache.Close()
}
