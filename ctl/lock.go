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

// downloadTerm is the lease of a download, which renews it: if it is killed the
// container is free again that much later.
const downloadTerm = 30 * time.Second

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
			held, _, err := c.mark(ctx, holderLock, lease.Forever)
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
		Long: `Remove the lock of a container, whoever holds it: that of "lock", or one that
a server has. What that server writes from then on is refused by Swift, and its
clients get errors: what they wrote and did not flush is lost. The lock of a
server that was killed goes by itself when its lease has run out. A container
that is not locked is left alone, and the exit status is 1.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			c, err := t.open(args[0])
			if err != nil {
				return err
			}
			unlockCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
			defer cancel()
			was, err := lease.Unlock(unlockCtx, c.lease("", 0))
			if errors.Is(err, lease.ErrNotLocked) {
				return fmt.Errorf("%s is not locked, nothing to do", c.name)
			}
			if err != nil {
				return c.explain(ctx, err)
			}
			t.say("%s lock was: %s%s%s", c.name, was.Holder, since(was.Since), leaseLeft(was))
			if was.Fenced {
				t.say("Whatever they write from now on is refused by Swift")
			}
			t.say("Done, %s is unlocked", c.name)
			return nil
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
}

// leaseLeft says how a lease stands, in parentheses; nothing where there is
// none, or none that ends.
func leaseLeft(s lease.State) string {
	switch {
	case !s.Leased || s.Never:
		return ""
	case s.Expired:
		return fmt.Sprintf(" (its lease ended at %s)", humanTime(s.Until))
	}
	return fmt.Sprintf(" (its lease was good until %s)", humanTime(s.Until))
}

// lease returns how the container's lease is taken, by holder.
func (c *container) lease(holder string, term time.Duration) lease.Options {
	return lease.Options{
		Store: c.contact, Name: c.name, Sibling: c.sibling, Holder: holder, Term: term,
		Log: func(format string, args ...any) { c.say("%s: %s", c.name, fmt.Sprintf(format, args...)) },
	}
}

// mark takes the container's lock, for term at a time or for ever. Once begun it
// is not interrupted, since a request that was cut short may still have set the
// mark.
func (c *container) mark(ctx context.Context, holder string, term time.Duration) (*lease.Held, volume.Meta, error) {
	if err := ctx.Err(); err != nil {
		return nil, volume.Meta{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return lease.Acquire(ctx, c.lease(holder, term))
}

// release gives the lock of a verb that has changed nothing back, interrupted
// or not. What is known of the disk's chunks stays known.
func (c *container) release(ctx context.Context, held *lease.Held) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return held.ReleaseUnchanged(ctx)
}
