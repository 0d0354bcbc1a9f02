// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"fmt"
	"strconv"

	"swiftnbd/internal/control"
)

// controlled is a Disk that swiftnbd-ctl may ask for something while it is served.
type controlled interface {
	// Control returns what sees the requests. It is not started yet.
	Control() *control.Server
}

// startControl begins to obey requests of swiftnbd-ctl.
func (d *Device) startControl() {
	c, ok := d.disk.(controlled)
	if !ok || d.held == nil || d.opts.Brief {
		return
	}
	d.control = c.Control()
	d.control.Store, d.control.Lease, d.control.Log, d.control.Do = d.opts.Store, d.held.Epoch, d.opts.Log, d.asked
	d.control.Start(d.disk.Context())
}

// asked does what swiftnbd-ctl asks for, as a request of a client. The answer is
// given before the request ends, so that Close waits for it: whoever finds the
// disk free and no answer knows that there will be none.
func (d *Device) asked(ctx context.Context, r control.Request, answered func(ctx context.Context, err error) error) error {
	ctx, end, err := d.beginChange(ctx)
	if err != nil {
		return err
	}
	defer end()
	s, ok := d.disk.(snapshotter)
	switch {
	case !ok:
		err = ErrNoSnapshots
	case r.Verb == control.Snapshot:
		err = s.Snapshot(ctx, r.Argument)
	case r.Verb == control.DeleteSnapshot:
		err = s.DeleteSnapshot(ctx, r.Argument, false)
	case r.Verb == control.DropSnapshot:
		err = s.DeleteSnapshot(ctx, r.Argument, true)
	case r.Verb == control.Grow:
		var size int64
		if size, err = strconv.ParseInt(r.Argument, 10, 64); err == nil {
			err = s.Grow(ctx, size)
		}
	default:
		err = fmt.Errorf("this version of the server cannot do %q", r.Verb)
	}
	if err == nil {
		err = d.waitForFence(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return answered(ctx, err)
}
