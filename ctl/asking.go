// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"swiftnbd/internal/control"
	"swiftnbd/internal/lease"
)

const (
	// askTime is how long a server may take to see a request, do it and answer:
	// a renewal of the longest lease that makes sense, and a flush.
	askTime = 3 * time.Minute
	// askEvery is the pause between looks for the answer.
	askEvery = 500 * time.Millisecond
)

// ordered is a change of a disk of version 2 that a server may be asked for.
type ordered struct {
	request control.Request // without the lease
	// there says whether the change is there: wrong is why it cannot be made
	// then.
	there func(ctx context.Context, c *container, s lease.State) (bool, error)
	wrong error
	// do makes the change when no server has the disk.
	do func(c *container) error
}

// order has a change made by the server that has the disk, or makes it where none
// has. It looks whether it is there before it asks, and again when the server goes
// away before it answers.
func (t *tool) order(ctx context.Context, name string, o ordered) error {
	deadline := time.Now().Add(askTime)
	for asked := false; ; asked = true {
		c, state, err := t.openLog(ctx, name)
		if err != nil {
			return err
		}
		served := state.Held() != nil && state.Leased && !state.Never && time.Now().Before(deadline)
		if served || asked {
			there, err := o.there(ctx, c, state)
			switch {
			case err != nil:
				return c.explain(ctx, err)
			case there && asked:
				return nil
			case there:
				return c.explain(ctx, o.wrong)
			}
		}
		if !served {
			return o.do(c)
		}
		o.request.Lease = state.Epoch
		if err := t.ask(ctx, c, o.request, state, deadline); !errors.Is(err, control.ErrGone) {
			return err
		}
	}
}

// ask asks the server that has the disk.
func (t *tool) ask(ctx context.Context, c *container, r control.Request, was lease.State, deadline time.Time) error {
	if err := r.Check(); err != nil {
		return usagef("%w", err)
	}
	o := c.lease("", 0)
	if _, ok := terminal(t.stderr); ok {
		fmt.Fprintf(t.stderr, "%s: %s is in use by %s: waiting for its answer\n", program, c.name, was.Holder)
	}
	wait, cancel := context.WithDeadlineCause(ctx, deadline, fmt.Errorf("for %v", askTime))
	defer cancel()
	err := control.Ask(wait, o.Store, r, askEvery, func(ctx context.Context) (bool, error) {
		now, err := lease.Inspect(ctx, o)
		return err == nil && now.Mark == was.Mark && now.Held() != nil, err
	})
	var refused *control.RefusedError
	switch {
	case err == nil, errors.Is(err, control.ErrGone):
		return err
	case errors.As(err, &refused):
		return fmt.Errorf("%s: %w", c.name, err)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: interrupted; %s was asked, and may do it still", c.name, was.Holder)
	case errors.Is(err, control.ErrNoAnswer):
		return fmt.Errorf("%s: %s has the disk, and has not answered for %v; it may do it still", c.name, was.Holder, askTime)
	}
	return c.explain(ctx, err)
}
