// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// The holders in the marks that this tool sets. Those of lock, download and delete
// are the same as in swiftnbd 0.11.
const (
	holderLock     = "ctl"
	holderDownload = "ctl-download"
	holderUpload   = "ctl-upload"
	holderResize   = "ctl-resize"
	holderDelete   = "ctl-delete"
	holderVerify   = "ctl-verify"
	holderSnapshot = "ctl-snapshot"
	holderFlatten  = "ctl-flatten"
	holderRevert   = "ctl-revert"
	holderRewind   = "ctl-rewind"
	holderConvert  = "ctl-convert"
)

// downloadTerm is the lease of a download, which renews it. If the download is
// killed, the container is free again after this time.
const downloadTerm = 30 * time.Second

// resizeTerm is the lease of a resize, in the same way.
const resizeTerm = 30 * time.Second

// markTimeout bounds the setting and removing of a mark. No signal interrupts
// these, because a mark must not stay behind.
const markTimeout = 30 * time.Second

// locked is what lock prints as JSON.
type locked struct {
	Container string     `json:"container"`
	Holder    string     `json:"holder"`
	Since     *time.Time `json:"since"`
}

// unlocked is what unlock prints as JSON: how the container was held.
type unlocked struct {
	Container string     `json:"container"`
	Holder    string     `json:"holder"`
	Since     *time.Time `json:"since"`
	Lease     *int64     `json:"lease"`          // its number; null: there was none
	Until     *time.Time `json:"lease_until"`    // null: never, or there was none
	Expired   bool       `json:"lease_expired"`  // it had ended already
	Refused   *bool      `json:"writes_refused"` // Swift refuses what the holder writes from now on; null: there was no lease, or an operator's
}

func (t *tool) lockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock CONTAINER",
		Short: "Lock a container against use by servers",
		Long: `Lock a container. Until it is unlocked, no server can serve it for writing. This
lock never expires. If the container is locked already, nothing changes and the
exit status is 1.`,
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
			return t.done(locked{c.name, holder, utc(at)}, "Done, %s is locked by %s%s", c.name, holder, since(at))
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	t.jsonFlag(cmd)
	return cmd
}

func (t *tool) unlockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unlock CONTAINER",
		Short: "Remove the lock of a container, even one that a server holds",
		Long: `Remove the lock of a container: the lock that "lock" made, or the lock of a
server.

If Swift checks the disk's key ("info" shows this), Swift refuses what that server
writes from then on. Its clients get errors, and lose what they wrote and did not
flush. Otherwise make sure that the server has stopped: the output says when this
is necessary.

The lock of a server that was killed ends with its lease. A process that was killed
while it locked the disk has left a lease that keeps others away for a while: unlock
looks for up to 20 seconds whether it goes on, and ends that. If the container is not
locked, nothing changes and the exit status is 1.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			c, err := t.open(args[0])
			if err != nil {
				return err
			}
			unlockCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*markTimeout)
			defer cancel()
			fence, err := c.fenceNow(unlockCtx)
			if err != nil {
				return c.explain(ctx, err)
			}
			was, err := lease.Unlock(unlockCtx, c.lease("", 0))
			if errors.Is(err, lease.ErrNotLocked) {
				return fmt.Errorf("%s is not locked, nothing to do", c.name)
			}
			if errors.As(err, new(*lease.TakenError)) {
				return fmt.Errorf("%s is not locked, and nothing has been changed: %w", c.name, err)
			}
			if err != nil {
				return c.explain(ctx, err)
			}
			switch {
			case was.Mark != "":
				t.say("%s lock was: %s%s%s", c.name, was.Holder, since(was.Since), leaseLeft(was))
			case was.Holder != "":
				t.say("%s had no lock mark, and lease %d of %s%s%s", c.name, was.Epoch, was.Holder, since(was.Since), leaseLeft(was))
			default:
				t.say("%s had no lock mark, and lease %d, which somebody has made and not used", c.name, was.Epoch)
			}
			if s := formerHolder(was, fence); s != "" {
				t.say("%s", s)
			}
			return t.done(asUnlocked(c.name, was, fence), "Done, %s is unlocked", c.name)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	t.jsonFlag(cmd)
	return cmd
}

// asUnlocked says for JSON how a container was held.
func asUnlocked(name string, was lease.State, fence string) unlocked {
	out := unlocked{Container: name, Holder: was.Holder, Since: utc(was.Since)}
	if !was.Leased {
		return out
	}
	out.Lease, out.Expired = &was.Epoch, was.Expired
	if !was.Never { // an operator writes nothing
		refused := refusedNow(was, fence)
		out.Until, out.Refused = utc(was.Until), &refused
	}
	return out
}

// refusedNow says whether Swift refuses what the former holder, who had a lease,
// writes from now on.
func refusedNow(was lease.State, fence string) bool {
	return fence == fenceTempURL || fence == fenceExpiry && was.Expired
}

// fenceNow finds out how Swift refuses writes by anybody who does not hold the
// lease. It returns a kind of fencing, as info names it. It returns fenceNone
// also if it cannot find this out.
func (c *container) fenceNow(ctx context.Context) (string, error) {
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err != nil {
		return "", err
	}
	grant, ok := state.Grant()
	if !ok {
		return fenceNone, nil
	}
	err = c.client.SeeFence(ctx, c.name, grant)
	switch {
	case err == nil && c.client.FencedByAccount():
		return fenceExpiry, nil
	case err == nil, errors.Is(err, store.ErrFenced):
		return fenceTempURL, nil // it checks the key, or knows an older one for a while
	}
	return fenceNone, nil
}

// formerHolder says what happens to later writes of the former holder. It
// returns "" if the former holder had no lease, or was an operator's "lock".
func formerHolder(was lease.State, fence string) string {
	switch {
	case !was.Leased, was.Never && was.Holder == holderLock: // an operator writes nothing
		return ""
	case !was.Never && refusedNow(was, fence): // a delete has its login for its deletes
		return "Whatever they write from now on is refused by Swift"
	}
	s := "Swift does not refuse what they write from now on: make sure that they have stopped"
	if !was.Expired && !was.Never {
		s += fmt.Sprintf(". A server that runs stops by itself when it looks at its lease, at the latest at %s", humanTime(was.Until))
	}
	return s
}

// leaseLeft says in parentheses when the lease ends or has ended. It returns ""
// if there is no lease, or one without an end.
func leaseLeft(s lease.State) string {
	switch {
	case !s.Leased || s.Never:
		return ""
	case s.Expired:
		return fmt.Sprintf(" (its lease ended at %s)", humanTime(s.Until))
	}
	return fmt.Sprintf(" (its lease was good until %s)", humanTime(s.Until))
}

// lease returns the options with which holder takes the container's lease.
func (c *container) lease(holder string, term time.Duration) lease.Options {
	return lease.Options{
		Store: c.contact, Name: c.name, Sibling: c.sibling, Holder: holder, Term: term,
		Log: func(format string, args ...any) { c.say("%s: %s", c.name, fmt.Sprintf(format, args...)) },
	}
}

// inspect finds out how the disk is held.
func (c *container) inspect(ctx context.Context) (lease.State, error) {
	state, err := lease.Inspect(ctx, c.lease("", 0))
	return state, c.explain(ctx, err)
}

// writable returns an error if the secrets file says that the disk is read-only.
func (c *container) writable() error {
	if c.export.ReadOnly {
		return fmt.Errorf("%s is read-only in %s", c.name, c.where)
	}
	return nil
}

// mark takes the container's lock, for term at a time or for ever. It cannot be
// interrupted, since a request that was cut short may still have set the mark.
func (c *container) mark(ctx context.Context, holder string, term time.Duration) (*lease.Held, volume.Meta, error) {
	if err := ctx.Err(); err != nil {
		return nil, volume.Meta{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return lease.Acquire(ctx, c.lease(holder, term))
}

// release gives back the lock of a verb that has changed nothing. It does so
// even after an interrupt. The map of the disk's chunks stays valid.
func (c *container) release(ctx context.Context, held *lease.Held) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	return held.ReleaseUnchanged(ctx)
}
