// SPDX-License-Identifier: MIT

package store

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of a Fence.
var (
	// ErrLapsed says that the right to write has ended and was not renewed. The
	// right may come back, so the error is Transient.
	ErrLapsed = errors.New("the lease has run out")
	// ErrFenced says that the store has refused a signed write. The key may
	// have been changed; the holder of the lease finds that out. Or the
	// server's clock is ahead, or the server still knows an older key. So the
	// error is Transient.
	ErrFenced = errors.New("the store refuses the lease's signature")
)

// Grant is the right to write until some moment.
type Grant struct {
	// Key signs the writes. The store itself then refuses them when the right
	// has ended or belongs to another holder. Empty: the writes are not signed,
	// and only the holder's own clock ends the right.
	Key string
	// Until is the end by the holder's clocks, wall or monotonic. The one that
	// comes first counts. Zero: there is no end.
	Until time.Time
	// Server is the time of the store's clock at the moment Taken of ours. If
	// Key is not empty, UntilServer is the end by the store's clock.
	Server, Taken, UntilServer time.Time
	// Slack is how much later than Taken the store's clock may have been read.
	// The store's clock is behind what Server and Taken say by at most Slack.
	Slack time.Duration
	// SignedFor is how long one signature is valid; 0 means 10 s. That is long
	// enough for a request that waits in a queue on its way, and for clocks
	// that differ. It is short enough for us to wait until a request that was
	// lost on its way can do no harm any more.
	SignedFor time.Duration
}

const signedFor = 10 * time.Second

// Expires returns the end of a signature that is made now. server is the end by
// the store's clock, in whole seconds. local is a moment of our clock that is
// not before it, with one more second for clocks that differ.
func (g Grant) Expires() (server int64, local time.Time) {
	now := time.Now()
	end := g.Server.Add(now.Sub(g.Taken)).Add(cmp.Or(g.SignedFor, signedFor))
	if end.After(g.UntilServer) {
		end = g.UntilServer
	}
	server = end.Unix()
	return server, now.Add(time.Unix(server, 0).Sub(g.Server.Add(now.Sub(g.Taken)))).Add(g.Slack + time.Second)
}

// over says whether the right has ended by either clock. The monotonic clock
// stands still while the machine sleeps, and the wall clock may be set.
func (g Grant) over() bool {
	if g.Until.IsZero() {
		return false
	}
	now := time.Now()
	return !now.Before(g.Until) || !now.Round(0).Before(g.Until.Round(0))
}

// Fence is a volume's right to write. The lease renews and ends the right.
// Everything that writes asks the Fence whether the right still holds. The zero
// Fence has no grant yet and allows nothing.
type Fence struct {
	state atomic.Pointer[fenceState]

	mu      sync.Mutex    // guards all below
	changed chan struct{} // closed at the next Set or Lose; nil: nobody waits
	doubt   chan struct{}
}

type fenceState struct {
	grant Grant
	lost  error // not nil: for good
}

// Set renews the right, unless it is lost.
func (f *Fence) Set(g Grant) { f.change(fenceState{grant: g}) }

// Lose ends the right for good. why is the error of every later Grant and
// Check.
func (f *Fence) Lose(why error) { f.change(fenceState{lost: why}) }

// change replaces the state, unless the right is lost, and wakes the waiting
// calls.
func (f *Fence) change(to fenceState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Lost() != nil {
		return
	}
	f.state.Store(&to)
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Grant returns the right as it is now. Its error is ErrLapsed, or the error
// that Lose was given.
func (f *Fence) Grant() (Grant, error) {
	s := f.state.Load()
	switch {
	case s == nil:
		return Grant{}, ErrLapsed
	case s.lost != nil:
		return Grant{}, s.lost
	case s.grant.over():
		return Grant{}, ErrLapsed
	}
	return s.grant, nil
}

// Check returns Grant's error. It reads a clock twice.
func (f *Fence) Check() error {
	_, err := f.Grant()
	return err
}

// Lost returns the error that Lose was given, or nil.
func (f *Fence) Lost() error {
	if s := f.state.Load(); s != nil {
		return s.lost
	}
	return nil
}

// Wait is Check, but if the right has lapsed, Wait waits for up to patience for
// it to come back.
func (f *Fence) Wait(ctx context.Context, patience time.Duration) error {
	err := f.Check()
	if !errors.Is(err, ErrLapsed) {
		return err
	}
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		f.mu.Lock()
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		if err = f.Check(); !errors.Is(err, ErrLapsed) {
			return err
		}
		select {
		case <-changed:
		case <-end.C:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Doubt says that the store has refused a signature. The holder of the lease
// should check whether it still holds it.
func (f *Fence) Doubt() {
	select {
	case f.Doubts() <- struct{}{}:
	default:
	}
}

// Doubts returns a channel that has an item after Doubt.
func (f *Fence) Doubts() chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.doubt == nil {
		f.doubt = make(chan struct{}, 1)
	}
	return f.doubt
}

// Guard returns a context that ends when the right ends. Renewals prolong it.
// Its cause is ErrLapsed, or the error that Lose was given. The caller must
// call stop.
func (f *Fence) Guard(ctx context.Context) (guarded context.Context, stop func(), err error) {
	g, err := f.Grant()
	if err != nil {
		return nil, nil, err
	}
	if g.Until.IsZero() {
		return ctx, func() {}, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var (
		mu    sync.Mutex // guards timer: the function below may run at once
		timer *time.Timer
	)
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(time.Until(g.Until), func() {
		g, err := f.Grant()
		if err != nil {
			cancel(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			timer.Reset(max(time.Until(g.Until), time.Millisecond))
		}
	})
	return ctx, func() {
		mu.Lock()
		timer.Stop()
		mu.Unlock()
		cancel(nil)
	}, nil
}
