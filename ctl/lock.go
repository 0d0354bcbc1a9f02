// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/volume"
)

// The holders in the marks that this tool sets, as in swiftnbd 0.11's.
const (
	holderLock     = "ctl"
	holderDownload = "ctl-download"
	holderDelete   = "ctl-delete"
)

// markTimeout bounds the setting and removing of a mark, which no signal cuts
// short: a mark must not stay behind.
const markTimeout = 30 * time.Second

func (t *tool) lockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lock CONTAINER",
		Short: "Lock a container, so that no server uses it",
		Long: `Lock a container, so that no server uses it until it is unlocked. Such a lock
never expires. One that is locked already is left alone, and the exit status
is 1.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			c, err := t.open(args[0])
			if err != nil {
				return err
			}
			held, _, err := c.mark(ctx, holderLock)
			if err != nil {
				var locked *lease.LockedError
				if errors.As(err, &locked) {
					return fmt.Errorf("%s is already locked: %s%s", c.name, locked.Holder, since(locked.Since))
				}
				return c.explain(ctx, err)
			}
			holder, at := lease.ParseMark(held.Mark())
			t.say("Done, %s is locked by %s%s", c.name, holder, since(at))
			return nil
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
}

func (t *tool) unlockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unlock CONTAINER",
		Short: "Remove the lock of a container, whoever holds it",
		Long: `Remove the lock of a container, whoever holds it: that of "lock", or the one
that a server which was killed has left behind. Make sure that nobody uses the
container. One that is not locked is left alone, and the exit status is 1.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			c, err := t.open(args[0])
			if err != nil {
				return err
			}
			mark, err := lease.Break(ctx, c.contact)
			if errors.Is(err, lease.ErrNotLocked) {
				return fmt.Errorf("%s is not locked, nothing to do", c.name)
			}
			if err != nil {
				return c.explain(ctx, err)
			}
			holder, at := lease.ParseMark(mark)
			t.say("%s lock was: %s%s", c.name, holder, since(at))
			t.say("Done, %s is unlocked", c.name)
			return nil
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
}

// mark takes the container's lock. Once begun it is not interrupted, since a
// request that was cut short may still have set the mark.
func (c *container) mark(ctx context.Context, holder string) (*lease.Held, volume.Meta, error) {
	if err := ctx.Err(); err != nil {
		return nil, volume.Meta{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return lease.Mark(ctx, c.contact, holder)
}

// release gives the lock of a verb that has changed nothing back, interrupted
// or not. What is known of the disk's chunks stays known.
func (c *container) release(ctx context.Context, held *lease.Held) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return held.ReleaseUnchanged(ctx)
}
