// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
	"swiftnbd/internal/words"
)

const (
	// bulkNames is how many names one bulk delete takes. It is small, so that
	// several run side by side and the progress bar moves.
	bulkNames = 200
	// bulkAtOnce is how many bulk deletes run at once. Each one is a long run
	// of deletes inside one proxy.
	bulkAtOnce = 8
	// emptyTries is how often a container is listed again if its listing is
	// empty but Swift calls it not empty. Listings are late.
	emptyTries = 12
)

func (t *tool) deleteCommand() *cobra.Command {
	var o deleteOptions
	cmd := &cobra.Command{
		Use:   "delete CONTAINER",
		Short: "Delete a container and everything in it",
		Long: `Delete a container and all objects in it. The command first asks you to type
the container's name. Without a terminal it cannot ask, and you must give --yes.

It refuses a locked container. It also refuses one that holds older versions of
its objects (X-Versions-Enabled), unless you give --old-versions, and a disk that
has clones, unless you give --force.

The command locks the container while it deletes. If it is interrupted, the
container stays locked, because the rest of the disk is of no use. Run delete
again to finish.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.delete(ctx, args[0], o)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.oldVersions, "old-versions", false, "also delete the older versions of the objects that Swift keeps in the container")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "delete the disk although it has clones: what they have not written themselves is lost")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &o.connections)
	t.jsonFlag(cmd)
	return cmd
}

// deleted is what delete prints as JSON.
type deleted struct {
	Container string  `json:"container"`
	Version   int     `json:"version"`
	Size      int64   `json:"size"`               // of the disk, bytes
	Objects   int64   `json:"deleted_objects"`    // that the listing had
	Versions  int64   `json:"deleted_versions"`   // older versions of them, with --old-versions
	Archive   *string `json:"versions_container"` // where older versions stay
}

type deleteOptions struct {
	yes, quiet, oldVersions, force bool
	connections                    int
}

// delete removes all objects of the container and then itself.
func (t *tool) delete(ctx context.Context, name string, o deleteOptions) error {
	c, err := t.open(name)
	if err != nil {
		return err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	// An earlier delete was interrupted. This one finishes it.
	unfinished := state.Holder == holderDelete
	if err := state.Held(); err != nil && !unfinished {
		return fmt.Errorf("%s is %w", name, err)
	}
	if !o.force && !unfinished {
		if err := c.protected(ctx, state); err != nil {
			return err
		}
	}
	base, baseErr := c.parentOf(ctx, state) // before it is gone
	versions, kept := state.Meta.Versions, ""
	if versions.Inside() {
		n, bytes, err := c.oldVersions(ctx)
		if err != nil {
			return c.explain(ctx, err)
		}
		if n > 0 {
			kept = fmt.Sprintf("%s of its objects, %s in all (%s)", words.Count(n, "older version"), humanSize(bytes), store.HeaderEnabled)
		}
		if n > 0 && !o.oldVersions {
			return fmt.Errorf("%s: not deleted: it holds %s, which Swift wants deleted first: give --old-versions to delete them as well", name, kept)
		}
	}
	if !o.yes {
		question := fmt.Sprintf("This deletes %s, a disk of %s, with about %s of %s in all.",
			name, humanSize(state.Meta.Size), words.Count(state.Objects, "object"), humanSize(state.Bytes))
		if kept != "" {
			question += "\nIt deletes " + kept + " as well."
		}
		if err := t.confirm(ctx, question, name, "delete", "deleted"); err != nil {
			return err
		}
	}
	if unfinished {
		if _, err := lease.Unlock(ctx, c.lease("", 0)); err != nil && !errors.Is(err, lease.ErrNotLocked) {
			return c.explain(ctx, err)
		}
	}
	// The lock has no end: a disk that is half deleted is of no use to anybody.
	held, _, err := c.mark(ctx, holderDelete, lease.Forever)
	if err != nil {
		return c.explain(ctx, err)
	}
	if !o.force && !unfinished {
		if err := c.ending(ctx, t, held, state); err != nil {
			if rerr := c.release(ctx, held); rerr != nil {
				t.fault(fmt.Errorf("%s stays locked: %w", name, oneLine{rerr}))
			}
			return err
		}
	}

	if versions.Stack != "" {
		// Otherwise each DELETE would bring the previous version back. If the
		// header cannot be removed, all versions are deleted one after the
		// other.
		if err := c.again(ctx, func(ctx context.Context) error { return c.client.RemoveStack(ctx, name) }); err != nil {
			t.warn("%s: %s cannot be removed: %v", name, store.HeaderStack, oneLine{err})
		}
	}
	d := &deletion{container: c, connections: o.connections, versions: versions.Inside(), log: state.Meta.Version == volume.Version2, bar: t.newProgress("Deleting "+name, max(state.Objects, 1), false, o.quiet)}
	d.ours = newStillOurs(held, t.pace.ours)
	d.store = store.Retry(c.watch(name, d.ours.guard(c.client.Container(name))), t.telling(name, t.pace.work))
	// A clone that has no objects any more needs no parent. Once its container is gone,
	// no other run can find out what parent it had.
	d.emptied = func() { t.dropNotesOfDeleted(ctx, c, base, baseErr) }
	err = d.run(ctx)
	d.bar.end(err == nil)
	if err == nil {
		if versions.Archive() != "" {
			t.sayArchived(ctx, c, versions, state.Meta.Geometry.Objects())
		}
		if !d.others { // whose leases are those of a new disk by now
			if err := held.Drop(ctx); err != nil {
				t.warn("%s: %v", name, oneLine{err})
			}
			if unfinished {
				c.dropLeases(ctx, held.Epoch())
			}
		}
		out := deleted{Container: name, Version: state.Meta.Version, Size: state.Meta.Size, Objects: d.noted, Versions: d.old.Load()}
		if archive := versions.Archive(); archive != "" {
			out.Archive = &archive
		}
		return t.done(out, "Done, %s has been deleted", name)
	}
	if errors.Is(err, lease.ErrLost) {
		return fmt.Errorf("%s: nothing more is deleted: somebody has unlocked or deleted it meanwhile, and this may be another disk by now (%w)", name, oneLine{err})
	}
	err = c.explain(ctx, err)
	if d.begun || unfinished {
		return fmt.Errorf("%w; it is not deleted to the end: delete it again", err)
	}
	if rerr := c.release(ctx, held); rerr != nil {
		t.fault(fmt.Errorf("%s stays locked: %w", name, oneLine{rerr}))
	}
	return err
}

// dropLeases deletes the leases before number last that are left of a disk that
// is deleted: a delete that was interrupted leaves the one before its own.
func (c *container) dropLeases(ctx context.Context, last int64) {
	const back = 16
	for n := max(1, last-back); n < last; n++ {
		// One that stays is an empty container, and does no harm.
		_ = c.sibling(lease.ContainerName(c.name, n)).DeleteContainer(ctx)
	}
}

// confirm asks for the container's name on a terminal. Without a terminal it
// fails. verb is what is to be done, and done its participle.
func (t *tool) confirm(ctx context.Context, question, name, verb, done string) error {
	in, ok := terminal(t.stdin)
	if !ok {
		return fmt.Errorf("%s: not %s: there is no terminal to ask on, give --yes to %s without being asked", name, done, verb)
	}
	fmt.Fprintf(t.stderr, "%s\nType the container's name to go on: ", question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(t.stderr)
		return fmt.Errorf("%s: interrupted, nothing has been %s", name, done)
	case line := <-answer:
		if strings.TrimRight(line, "\r\n") != name {
			return fmt.Errorf("%s: not confirmed, nothing has been %s", name, done)
		}
		return nil
	}
}

// deletion is one run over a container.
type deletion struct {
	container   *container
	store       store.Store // container's, whose writes ask ours
	ours        *stillOurs
	connections int
	bar         *progress
	log         bool   // the disk is of version 2
	versions    bool   // Swift may keep older versions in the container
	emptied     func() // called before the container goes; may be nil

	begun  bool         // something may have been deleted
	sent   bool         // the container's DELETE
	others bool         // another deletion has come to the end
	noted  int64        // objects that have been deleted
	old    atomic.Int64 // older versions that have been deleted
}

// run empties the container, page by page, and deletes it. A listing may lack
// objects that exist and show objects that do not. So if Swift says that the
// container is not empty, run reads the listing again a little later.
func (d *deletion) run(ctx context.Context) (err error) {
	defer func() {
		if errors.Is(err, lease.ErrLost) && errors.Is(err, store.ErrContainerNotFound) {
			d.others, err = !d.sent, nil
		}
	}()
	wait := 100 * time.Millisecond
	for try := 1; ; try++ {
		if err := d.empty(ctx); err != nil {
			return err
		}
		if d.versions {
			if err := d.deleteVersions(ctx); err != nil {
				return err
			}
		}
		if d.emptied != nil && try == 1 {
			if err := d.ours.look(ctx); err != nil {
				return err
			}
			d.emptied()
		}
		d.sent = true
		err := d.store.DeleteContainer(ctx)
		switch {
		case err == nil, errors.Is(err, store.ErrContainerNotFound):
			return nil
		case !errors.Is(err, store.ErrNotEmpty) || try == emptyTries:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 4*time.Second)
	}
}

// empty deletes all objects that the listing names. Of a disk of version 2 two kinds are
// the last. What is not found of the chunks that lie below it is zeroes for whoever reads
// it, as long as its root is there. And as long as a snapshot's root is there, whoever
// makes a clone of it has to find the note that it goes.
func (d *deletion) empty(ctx context.Context) error {
	if d.log {
		own := store.ListOptions{Prefix: volume.ExtraPrefix}
		if err := d.emptyOf(ctx, own, func(name string) bool { return !strings.HasPrefix(name, layout.GonePrefix) }); err != nil {
			return err
		}
	}
	return d.emptyOf(ctx, store.ListOptions{}, func(string) bool { return true })
}

// emptyOf deletes those of the objects that are listed of which so says that they go.
func (d *deletion) emptyOf(ctx context.Context, list store.ListOptions, so func(name string) bool) error {
	for page, err := range store.Pages(ctx, d.store, list) {
		if err == nil || errors.Is(err, store.ErrContainerNotFound) {
			// Else these are another disk's, or another deletion has come to the end.
			err = cmp.Or(d.ours.look(ctx), err)
		}
		if err != nil {
			return err
		}
		names := make([]string, 0, len(page))
		for _, o := range page {
			if so(o.Name) {
				names = append(names, o.Name)
			}
		}
		d.bar.grow(d.noted + int64(len(names)))
		if err := d.remove(ctx, names); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes the objects.
func (d *deletion) remove(ctx context.Context, names []string) error {
	d.begun = d.begun || len(names) > 0
	err := store.DeleteAll(ctx, d.store, names, store.DeleteOptions{
		Batch: bulkNames, Batches: min(d.connections, bulkAtOnce), Singly: d.connections, Done: func(n int) { d.bar.add(int64(n)) },
	})
	if err == nil {
		d.noted += int64(len(names))
	}
	return err
}
