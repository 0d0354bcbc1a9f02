// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"fmt"
	"time"

	"swiftnbd/internal/words"
)

// DrainError is dirty data that could not be written.
type DrainError struct {
	Bytes  int64
	Chunks int    // or what the version has in their place
	Unit   string // what that is, as Disk.Unit has it
	Err    error
}

func (e *DrainError) Error() string {
	return fmt.Sprintf("%s in %s could not be written: %v", words.Count(e.Bytes, "byte"), words.Count(e.Chunks, e.Unit), e.Err)
}
func (e *DrainError) Unwrap() error { return e.Err }

// LostError says that the device has ended because another process has the
// volume. The data that was dirty then is lost.
type LostError struct {
	Bytes  int64
	Chunks int    // or what the version has in their place
	Unit   string // what that is, as Disk.Unit has it
	Err    error
}

func (e *LostError) Error() string {
	if e.Chunks == 0 {
		return fmt.Sprintf("%v; nothing was left to be written", e.Err)
	}
	return fmt.Sprintf("%v; %s in %s were not written and are lost", e.Err, words.Count(e.Bytes, "byte"), words.Count(e.Chunks, e.Unit))
}
func (e *LostError) Unwrap() error { return e.Err }

// Close ends the device: it turns requests away, writes back dirty data and
// gives the lock back. Requests under way that wait for Swift or for memory end
// with ErrClosed at once, and so do new ones. After a *DrainError the device
// goes on: it keeps its data and its lock, takes requests again, and Close may
// be called again. After a *LostError the device has ended, and another process
// has the volume. If the device has ended already, Close does nothing.
func (d *Device) Close() error {
	d.ending.Lock()
	defer d.ending.Unlock()
	d.turnAway(ErrClosed)
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closing {
		return nil
	}
	var err error
	if d.Lost() == nil {
		err = d.disk.Drain(d.disk.Context())
	}
	if lost := d.Lost(); lost != nil {
		bytes, chunks := d.disk.Dirty()
		d.end()
		return &LostError{bytes, chunks, d.disk.Unit(), lost}
	}
	if err != nil {
		bytes, chunks := d.disk.Dirty()
		d.letIn()
		return &DrainError{bytes, chunks, d.disk.Unit(), err}
	}
	if d.held != nil {
		err = d.release()
	}
	d.end()
	return err
}

// letIn gives requests a context to run in. The caller holds d.ending, and gate
// for writing, or nobody else has the device yet.
func (d *Device) letIn() {
	d.ctx, d.turnAway = context.WithCancelCause(d.disk.Context())
}

// release gives the lock back. Before, the disk saves what makes the next start
// quick. Each step has its own time limit, so that a slow one does not prevent
// the release.
func (d *Device) release() error {
	within := func(do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), max(d.opts.Timeout, time.Second))
		defer cancel()
		return do(ctx)
	}
	var ending Ending
	err := within(func(ctx context.Context) (err error) {
		ending, err = d.disk.Save(ctx)
		return err
	})
	switch {
	case err != nil:
		d.opts.Log("the next start will be slower: %v", err)
		return within(d.held.Release)
	case ending.Unchanged:
		return within(d.held.ReleaseUnchanged)
	}
	err = within(func(ctx context.Context) error { return d.held.ReleaseWith(ctx, ending.Items) })
	if err != nil || ending.Tidy == nil {
		return err
	}
	s := d.opts.Store
	if d.opts.Lease.Sibling != nil {
		s = d.opts.Lease.Sibling(d.opts.Lease.Name)
	}
	return within(func(ctx context.Context) error {
		ending.Tidy(ctx, s)
		return nil
	})
}

// Abandon ends the device without writing back. Dirty data is lost. The lock
// stays, so that nobody takes the volume without knowing this.
func (d *Device) Abandon() {
	d.ending.Lock()
	defer d.ending.Unlock()
	d.turnAway(ErrClosed)
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

// keepTimeout bounds the attempt to make the lease of an abandoned volume last.
// Mostly Swift cannot be reached then.
const keepTimeout = 5 * time.Second

// end is the last step of Close and Abandon. gate is held for writing.
func (d *Device) end() {
	d.closing = true
	d.disk.Close()
	if d.control != nil {
		d.control.Wait()
	}
}
