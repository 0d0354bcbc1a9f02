// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// crowd decides whether a flush's cut stays open for a moment, so that flushes of
// other clients share its PUT. Clients that write and flush come back soon after
// the answer to their last flush. So the number that waited at once a moment ago
// says how many will come. A client alone never waits for others, and the cut is
// sealed as soon as all are there.
//
// A cut with more than half of them stays open for half as long. So those who
// wait for an answer that comes at another time fall behind with each flush,
// until the others come while their cut is open, and they have one PUT from then
// on. Disk.mu guards it.
type crowd struct {
	waiting int           // flushes that wait for an object to be durable
	put     time.Duration // how long the PUT of a small object takes; 0: not known
	// The most that waited at once, in this period and in the one before. A
	// period is two PUTs long, or until the next flush.
	peak, before int
	since        time.Time // when this period began
}

const (
	// fewFlushes is for how many flushes, at most, no cut stays open: they would
	// gain little.
	fewFlushes = 3
	// longestHold is how long a cut stays open for flushes, at most.
	longestHold = 5 * time.Millisecond
)

// waits notes a flush that waits for o.
func (w *crowd) waits(o *object, now time.Time) {
	if past := now.Sub(w.since); past >= 2*w.put {
		w.before, w.peak, w.since = w.peak, 0, now
		if past >= 4*w.put {
			w.before = 0
		}
	}
	o.flushes++
	w.waiting++
	w.peak = max(w.peak, w.waiting)
}

// usual returns how many flushes waited at once, lately.
func (w *crowd) usual() int { return max(w.peak, w.before) }

// leaves notes that a flush which has waited for o has ended before o is durable.
func (w *crowd) leaves(o *object) {
	o.flushes--
	w.waiting--
}

// answered notes that o is durable: its flushes end.
func (w *crowd) answered(o *object) {
	w.waiting -= o.flushes
	o.flushes = 0
}

// timed learns from the PUT of a small object.
func (w *crowd) timed(took time.Duration) {
	switch { // up slowly, since a PUT may have been tried more than once
	case w.put == 0:
		w.put = took
	case took < w.put:
		w.put += (took - w.put) / 2
	default:
		w.put += (took - w.put) / 8
	}
}

// hold returns how long the open cut o may wait for more flushes; 0: not at all.
func (w *crowd) hold(o *object) time.Duration {
	if w.usual() <= fewFlushes || o.flushes >= w.usual() {
		return 0
	}
	return min(w.put/2, longestHold)
}

// most says whether o has most of the flushes.
func (w *crowd) most(o *object) bool { return 2*o.flushes > w.usual() }

// Flush returns when every change that was completed before it is durable, or
// with the error of an upload that has failed meanwhile: what is not in Swift
// then is tried again in the background, and is the next Flush's too.
func (d *Disk) Flush(ctx context.Context) error {
	d.stats.Flushes.Add(1)
	return d.sync(ctx)
}

// sync waits until the cut that is open, or else the last one, is durable.
func (d *Disk) sync(ctx context.Context) error {
	d.mu.Lock()
	var o *object
	switch {
	case d.open != nil:
		o = &d.open.object
	case d.durable+1 < d.next:
		o = d.objects.writing[layout.Position{Epoch: d.o.Epoch, N: d.next - 1}]
	default:
		d.mu.Unlock()
		return nil
	}
	failing := d.failing
	d.crowd.waits(o, time.Now())
	var held *cut // by this flush
	var hold time.Duration
	if c := d.open; c != nil {
		switch hold = d.crowd.hold(o); {
		case hold == 0 || d.flying >= d.o.Connections:
			d.sealForFlush()
		case !c.held:
			held, c.held = c, true
		}
	}
	d.hashGathered(false)
	d.mu.Unlock()
	if held != nil {
		d.hold(ctx, held, hold, failing)
	}
	err := d.await(ctx, o.done, failing)
	if err != nil {
		d.mu.Lock()
		if !o.kept {
			d.crowd.leaves(o)
		}
		d.mu.Unlock()
	}
	return err
}

// sealForFlush seals the open cut. With every upload busy it is sealed when one
// ends, and more changes may join it. d.mu is held, and there is an open cut.
func (d *Disk) sealForFlush() {
	if d.flying < d.o.Connections {
		d.seal()
	} else {
		d.wanted = true
	}
}

// hold leaves c open for so long, or for half of it (see crowd), and has it sealed
// if nobody else has. Other flushes rely on this one: its own end ends the hold.
func (d *Disk) hold(ctx context.Context, c *cut, long time.Duration, failing *failure) {
	t := time.NewTimer(long / 2)
	defer t.Stop()
	for half := true; ; half = false {
		ends := !half
		select {
		case <-t.C:
		case <-c.done:
			return
		case <-failing.ch:
			ends = true
		case <-ctx.Done():
			ends = true
		case <-d.ctx.Done():
			return
		}
		d.mu.Lock()
		open := d.open == c
		if ends = ends || d.crowd.most(&c.object); open && ends {
			d.sealForFlush()
		}
		d.mu.Unlock()
		if ends || !open {
			return
		}
		t.Reset(long - long/2)
	}
}

// Drain is Flush for the end, when nobody will try again. It goes on after an
// error for as long as uploads succeed.
func (d *Disk) Drain(ctx context.Context) error {
	for {
		before := d.stats.Uploads.Load()
		err := d.sync(ctx)
		if err == nil || ctx.Err() != nil || d.ctx.Err() != nil || d.stats.Uploads.Load() == before {
			return err
		}
	}
}
