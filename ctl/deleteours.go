// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"sync"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

// stillOurs makes sure that a disk that is deleted still has our lock. A deletion may be
// stopped for long, or its network may hang. Meanwhile another one, which any operator
// may start, finishes it, and somebody makes a new disk of the name. Its objects have
// the names of the old ones. Nobody refuses our requests: they have our login. nil: there
// is no lock, as of a container for bench.
type stillOurs struct {
	held *lease.Held
	good time.Duration // how long a look is good for

	turn chan struct{} // full while somebody looks

	mu     sync.Mutex // guards looked
	looked time.Time  // before a look that has found our lock
}

func newStillOurs(held *lease.Held, good time.Duration) *stillOurs {
	return &stillOurs{held: held, good: good, turn: make(chan struct{}, 1), looked: time.Now()}
}

// guard returns s, of which nothing is deleted without our lock. It is to be below
// store.Retry: a request may be made again long after the first time.
func (o *stillOurs) guard(s store.Store) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		if op.Kind.Writes() {
			if err := o.confirm(ctx); err != nil {
				return err
			}
		}
		return call(ctx)
	})
}

// confirm is look, unless the last one is good yet.
func (o *stillOurs) confirm(ctx context.Context) error {
	if o == nil || o.fresh() {
		return nil
	}
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if o.fresh() {
		return nil
	}
	return o.look(ctx)
}

// fresh says whether the last look is good yet, by either clock: the machine may have
// slept, and somebody may have set its clock.
func (o *stillOurs) fresh() bool {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	age, wall := now.Sub(o.looked), now.Round(0).Sub(o.looked.Round(0))
	return age < o.good && wall < o.good && wall >= 0
}

// look returns lease.ErrLost unless the disk has our lock. What was listed before is ours
// then.
func (o *stillOurs) look(ctx context.Context) error {
	if o == nil {
		return nil
	}
	begun := time.Now()
	err := o.held.Look(ctx)
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.looked = begun
	}
	return err
}
