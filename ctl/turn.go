// SPDX-License-Identifier: MIT

package main

import (
	"context"
	mathrand "math/rand/v2"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

// turn says whose turn it is to make a disk in a container that is there and empty: it
// is the container that a lease of number 0 would have, which no lease has. Who has
// created it makes the disk and then deletes it. If it is there, somebody else is about
// to make the disk, or has died before the end.
type turn struct {
	store.Store
	known bool // it is there, as far as this run knows
	ours  bool // this run has created it
}

func (c *container) turn() *turn {
	return &turn{Store: c.sibling(lease.ContainerName(c.name, 0))}
}

// take creates it with these metadata, unless it is there.
func (t *turn) take(ctx context.Context, items map[string]string) (err error) {
	t.ours, err = t.CreateContainer(ctx, items)
	t.known = err == nil
	return err
}

// leave is to be called when the disk is there (made), or will not be. If there is none,
// what is somebody else's turn stays so.
func (t *turn) leave(ctx context.Context, made bool) {
	if t.ours || made && t.known {
		// If it stays, the next one waits for longer.
		_ = t.DeleteContainer(context.WithoutCancel(ctx))
	}
}

// room makes the container of a new disk, or waits until no other run can be about to
// make a disk in the one that is there: of two who make the disk at the same moment one
// has created the container, and the other would write another disk over theirs. Of
// several who find an empty one, those that come after the first see that it is not
// their turn, wait for longer, and find the disk. exists says that the container has
// been seen; free returns why there must be no new disk in it, whose metadata it gets.
// turn.leave is the caller's, after an error, too.
func (t *tool) room(ctx context.Context, c *container, exists bool, turn *turn, free func(store.Metadata) error) (made bool, err error) {
	freeNow := func() error {
		md, err := c.contact.Metadata(ctx)
		if err != nil {
			return c.explain(ctx, err)
		}
		return free(md)
	}
	if !exists {
		if made, err := c.CreateContainer(ctx, nil); err != nil || made {
			return made, c.explain(ctx, err)
		}
		if err := freeNow(); err != nil {
			return false, err
		}
	}
	if !turn.known {
		// Without an answer, such as where these credentials may not create
		// containers, it is not our turn.
		_ = turn.take(ctx, nil)
	}
	wait := t.pace.setup // who has just created the container had no need of a turn
	if !turn.ours {
		wait += 2*t.pace.setup + mathrand.N(2*t.pace.setup)
	}
	select {
	case <-time.After(wait):
		return false, freeNow()
	case <-ctx.Done():
		return false, c.explain(ctx, ctx.Err())
	}
}
