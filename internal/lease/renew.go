// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"swiftnbd/internal/store"
)

// checkEvery is the pause between looks at a mark that is no lease.
const checkEvery = 10 * time.Second

// begin starts the renewals.
func (h *Held) begin() {
	if h.o.Term == Forever {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.stop, h.done = cancel, make(chan struct{})
	go h.loop(ctx)
}

// end stops the renewals and waits for the one under way.
func (h *Held) end() {
	if h.stop != nil {
		h.stop()
		<-h.done
	}
}

// loop renews the lease until it is lost or end is called.
func (h *Held) loop(ctx context.Context) {
	defer close(h.done)
	defer func() {
		if p := recover(); p != nil {
			h.lose(fmt.Errorf("%w: renewing it has failed: %v", ErrLost, p))
		}
	}()
	pause := checkEvery
	if h.leased {
		pause = h.o.renewEvery()
	}
	lapsed := false
	// The first look comes soon. A program such as 0.11 may have read the
	// volume's metadata before our mark was there, and set its own mark since.
	next := min(pause, markWait)
	for {
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-h.o.Fence.Doubts():
			h.doubt()
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
		err := h.tend(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrLost):
			h.lose(err)
			if h.leased { // so that no request waits for the lease
				ctx, cancel := h.bounded(ctx)
				defer cancel()
				h.mu.Lock()
				defer h.mu.Unlock()
				_ = h.o.endRecord(ctx, h.epoch.Load(), h.mark, nil)
			}
			return
		case err == nil:
			if lapsed {
				h.o.Log("the lease is renewed, and was nobody else's meanwhile")
			}
			lapsed, next = false, pause
		default:
			// Try again after a third of the pause, to see the end of an outage
			// soon.
			next = max(min(pause/3, time.Second), 10*time.Millisecond)
			if !lapsed && h.o.Fence.Check() != nil {
				lapsed = true
				h.o.Log("the lease has run out and cannot be renewed: nothing is written, and nothing read, until it can; nothing is lost while this process runs: %v", err)
			}
		}
	}
}

// doubt makes the next renewal check the signatures again, because Swift has
// refused one. If we hold the volume all the same, a replica of its container
// may be behind, and a proxy may know an older key for as long as that lasts.
// Then the writes go without a signature.
func (h *Held) doubt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checked = false
}

// lose ends the right to write for good.
func (h *Held) lose(err error) {
	h.o.Fence.Lose(err)
	h.o.Log("the disk is lost to this server, which writes nothing any more: %v; what was flushed is in Swift: unmount it, end this server, and start it again", err)
}

// tend checks once that we hold the volume, and renews the lease. ErrLost says
// that we do not hold it. Any other error says that this could not be found
// out.
func (h *Held) tend(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.leased:
		return h.look(ctx)
	case h.o.Fence.Check() != nil:
		return h.retake(ctx)
	}
	return h.renew(ctx)
}

// bounded returns a context for a few requests of a renewal. There is more time
// when the lease has run out.
func (h *Held) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	switch {
	case !h.leased || h.o.Term == Forever:
		return context.WithTimeout(ctx, checkEvery)
	case h.o.Fence.Check() != nil:
		return context.WithTimeout(ctx, h.o.Term/2)
	}
	return context.WithTimeout(ctx, h.o.step())
}

// look reads the volume's metadata, and compares it with what it should be.
func (h *Held) look(ctx context.Context) error {
	_, err := h.read(ctx)
	if errors.Is(err, errNumber) {
		return nil
	}
	return err
}

// read is look, and also returns a reading of Swift's clock. While the lease
// holds and writes are signed, Swift itself protects the data of others. Then
// any copy of the metadata that names us is enough, since it is read again at
// the next renewal. A copy that does not name us may be behind, and proves
// nothing.
func (h *Held) read(ctx context.Context) (clock, error) {
	ctx, cancel := h.bounded(ctx)
	defer cancel()
	if h.signed && h.o.Fence.Check() == nil {
		sent := time.Now()
		md, err := h.store.MetadataHint(ctx)
		if err == nil && h.checkMark(md) == nil {
			return newClock(md, sent), nil
		}
	}
	c, err := h.certain(ctx)
	if errors.Is(err, store.ErrContainerNotFound) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return c, err
}

// looks is how many readings in a row must say that another process holds the
// volume, or that we have never had it, before we believe it. If there were two changes in one second, we
// cannot always tell which is newer.
const looks = 3

// certain checks the newest copy of the volume's metadata that it can find.
func (h *Held) certain(ctx context.Context) (clock, error) {
	for try := 1; ; try++ {
		sent := time.Now()
		md, err := h.store.Metadata(ctx)
		if err != nil {
			return clock{}, err
		}
		if err = h.checkMark(md); !errors.Is(err, ErrLost) && !errors.Is(err, errBehind) || try == looks {
			return newClock(md, sent), err
		}
	}
}

// renew moves the lease's end. It first writes the new end, and then looks
// whether we still hold the volume. A process that takes the volume over does
// this in the opposite order, so one of the two sees the other.
func (h *Held) renew(ctx context.Context) error {
	// Compute the time of Swift's clock from the reading in the grant.
	g, err := h.o.Fence.Grant()
	if err != nil {
		return err
	}
	if h.unsure {
		// Do not move the end before it is certain that there is a volume that
		// names us. It may have been deleted and made anew.
		if err := h.look(ctx); err != nil {
			return err
		}
		h.unsure = false
	}
	begun := time.Now()
	until := g.Server.Add(begun.Sub(g.Taken)).Add(h.o.Term)
	bounded, cancel := h.bounded(ctx)
	h.nextSlot()
	err = h.put(bounded, h.epoch.Load(), until, h.kept(false))
	cancel()
	if errors.Is(err, store.ErrContainerNotFound) {
		// Somebody has removed the lease: a process that took the volume, or a
		// person. The volume's metadata say which.
		if err := h.look(ctx); err != nil {
			return err
		}
		return h.retake(ctx)
	}
	if err != nil {
		return err
	}
	c, err := h.read(ctx)
	if errors.Is(err, errNumber) {
		if err := h.number(ctx); err != nil {
			return err
		}
		c, err = h.read(ctx)
	}
	if err != nil {
		h.unsure = errors.Is(err, errBehind)
		return err
	}
	if h.o.Fence.Check() != nil {
		return h.retake(ctx) // it took too long
	}
	h.grant(ctx, c, begun, until)
	return nil
}

// put writes the lease's record in the slots of this renewal, and notes whether that may
// still arrive: of a request whose answer was lost, too, after which another one was
// answered.
func (h *Held) put(ctx context.Context, epoch int64, until time.Time, kept map[string]string) error {
	var strays atomic.Bool
	err := h.o.writeRecord(store.WithStrays(ctx, &strays), epoch, h.mark, until, h.ends.now, kept)
	late := strays.Load() || store.Ambiguous(err)
	h.ends.late[h.ends.now], h.values.late[h.values.now] = late, late
	return err
}

// nextSlot sets the slots of the next renewal.
func (h *Held) nextSlot() {
	h.ends.next()
	h.values.next()
}

// number writes the number of our lease into the volume's metadata.
func (h *Held) number(ctx context.Context) error {
	ctx, cancel := h.bounded(ctx)
	defer cancel()
	return h.store.SetMetadata(ctx, map[string]string{KeyEpoch: strconv.FormatInt(h.epoch.Load(), 10)})
}

// retake takes the volume again after the lease has ended, with the next
// number, like any other process. The volume's mark and key must still be ours,
// so nobody has held it in between.
func (h *Held) retake(ctx context.Context) error {
	c, err := h.read(ctx)
	if err != nil && !errors.Is(err, errNumber) {
		return err
	}
	epoch, _, err := h.o.create(ctx, h.epoch.Load(), h.numbers, h.look)
	if err != nil {
		return err
	}
	h.numbers[epoch], h.old[epoch] = true, true
	begun, until := time.Now(), c.latest().Add(h.o.Term)
	h.nextSlot()
	bounded, cancel := h.bounded(ctx)
	defer cancel()
	if err := h.put(bounded, epoch, until, h.kept(true)); err != nil {
		return err
	}
	// Look once more, because of a process that may have had an earlier number.
	if c, err = h.read(bounded); err != nil && !errors.Is(err, errNumber) {
		return err
	}
	// As in take: a process that was stopped here must not disturb a later one.
	if h.o.late(begun) {
		return errLate
	}
	was := h.epoch.Load()
	h.epoch.Store(epoch)
	if err := h.number(bounded); err != nil {
		h.epoch.Store(was)
		return err
	}
	if _, err := h.verify(bounded); err != nil {
		return err
	}
	if h.o.late(begun) {
		return errLate
	}
	h.grant(ctx, c, begun, until)
	h.remove(ctx, epoch)
	return nil
}
