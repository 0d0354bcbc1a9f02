// SPDX-License-Identifier: MIT

package lease

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	ctx, cancel := context.WithCancel(store.WithClass(context.Background(), store.Unlimited))
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
	// The first look comes soon: whoever read the volume's metadata before our
	// mark was there, as 0.11 does it, may have set theirs since.
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
			if h.leased { // so that nobody waits for it
				ctx, cancel := h.bounded(ctx)
				defer cancel()
				h.mu.Lock()
				defer h.mu.Unlock()
				_ = h.o.endRecord(ctx, h.epoch, h.mark)
			}
			return
		case err == nil:
			if lapsed {
				h.o.Log("the lease is renewed, and was nobody else's meanwhile")
			}
			lapsed, next = false, pause
		default:
			// A third of the pause, so that an outage's end is soon seen.
			next = max(min(pause/3, time.Second), 10*time.Millisecond)
			if !lapsed && h.o.Fence.Check() != nil {
				lapsed = true
				h.o.Log("the lease has run out and cannot be renewed: nothing is written, and nothing read, until it can: %v", err)
			}
		}
	}
}

// doubt has the signatures tried again: one was refused. Where that is so
// although the volume is ours, a replica of its container may be behind, and a
// proxy know an older key for as long as that takes; then the writes go without.
func (h *Held) doubt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checked = false
}

// lose ends the right to write for good.
func (h *Held) lose(err error) {
	h.o.Fence.Lose(err)
	h.o.Log("%v", err)
}

// tend makes sure once that the volume is ours, and goes on to be. ErrLost
// says that it is not; any other error, that it could not be found out.
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

// look reads the volume's metadata, and holds it against what it should be.
func (h *Held) look(ctx context.Context) error {
	_, err := h.read(ctx)
	if errors.Is(err, errNumber) {
		return nil
	}
	return err
}

// read is look; it says what Swift's clock shows, too. While the lease holds,
// and Swift sees to it that nobody else's data is harmed, any copy of the
// metadata will do that calls the volume ours: it is read again at the next
// renewal. A copy that does not may be behind, and proves nothing.
func (h *Held) read(ctx context.Context) (clock, error) {
	ctx, cancel := h.bounded(ctx)
	defer cancel()
	if h.signed && h.o.Fence.Check() == nil {
		sent := time.Now()
		md, err := h.store.Metadata(store.WithHint(ctx))
		if err == nil && h.ours(md) == nil {
			return newClock(md, sent), nil
		}
	}
	c, err := h.certain(ctx)
	if errors.Is(err, store.ErrContainerNotFound) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return c, err
}

// looks is how often a volume has to seem another's until that is believed. Of
// two changes in one second it cannot always be told which is newer.
const looks = 3

// certain is ours, of the volume's metadata as they are now.
func (h *Held) certain(ctx context.Context) (clock, error) {
	for try := 1; ; try++ {
		sent := time.Now()
		md, err := h.store.Metadata(ctx)
		if err != nil {
			return clock{}, err
		}
		if err = h.ours(md); !errors.Is(err, ErrLost) || try == looks {
			return newClock(md, sent), err
		}
	}
}

// renew puts the lease's end off. First it says so, and then it looks whether
// the volume is ours still, while whoever takes it over does it the other way
// round: one of the two sees the other.
func (h *Held) renew(ctx context.Context) error {
	// How late it is in Swift: what the grant was reckoned with, run on.
	g, err := h.o.Fence.Grant()
	if err != nil {
		return err
	}
	begun := time.Now()
	until := g.Server.Add(begun.Sub(g.Taken)).Add(h.o.Term)
	bounded, cancel := h.bounded(ctx)
	h.slot++
	err = h.o.writeRecord(bounded, h.epoch, h.mark, until, h.slot)
	cancel()
	if errors.Is(err, store.ErrContainerNotFound) {
		// Removed, by whoever took it or by hand: the volume tells.
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
		return err
	}
	if h.o.Fence.Check() != nil {
		return h.retake(ctx) // it took too long
	}
	h.grant(ctx, c, begun, until)
	return nil
}

// number tells the volume the number of our lease.
func (h *Held) number(ctx context.Context) error {
	ctx, cancel := h.bounded(ctx)
	defer cancel()
	return h.store.SetMetadata(ctx, map[string]string{KeyEpoch: strconv.FormatInt(h.epoch, 10)})
}

// retake takes a lease again that has run out, by the next number, as anybody
// else would have to. The volume's mark and key are still ours then, so nobody
// has had it in between.
func (h *Held) retake(ctx context.Context) error {
	c, err := h.read(ctx)
	if err != nil && !errors.Is(err, errNumber) {
		return err
	}
	epoch, err := h.o.create(ctx, h.epoch, h.numbers, h.look)
	if err != nil {
		return err
	}
	h.numbers[epoch], h.old[epoch] = true, true
	begun, until := time.Now(), c.latest().Add(h.o.Term)
	h.slot++
	bounded, cancel := h.bounded(ctx)
	defer cancel()
	if err := h.o.writeRecord(bounded, epoch, h.mark, until, h.slot); err != nil {
		return err
	}
	// One more look, for whoever had an earlier number than this one.
	if c, err = h.read(bounded); err != nil && !errors.Is(err, errNumber) {
		return err
	}
	// As in take: whoever was stopped here must not disturb those who came.
	if h.o.late(begun) {
		return errAgain
	}
	was := h.epoch
	h.epoch = epoch
	if err := h.number(bounded); err != nil {
		h.epoch = was
		return err
	}
	if _, err := h.verify(bounded); err != nil {
		return err
	}
	if h.o.late(begun) {
		return errAgain
	}
	h.grant(ctx, c, begun, until)
	h.remove(ctx, epoch)
	return nil
}
