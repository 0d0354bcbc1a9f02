// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

const (
	// bulkNames is how many names one bulk delete takes: few enough that
	// several run side by side and the progress bar moves.
	bulkNames = 200
	// bulkAtOnce is how many bulk deletes are made at once: each is a long
	// run of deletes inside of one proxy.
	bulkAtOnce = 8
	// emptyTries is how often a container that seems empty, and that Swift
	// calls not empty, is looked at again. Listings are late.
	emptyTries = 12
)

func (t *tool) deleteCommand() *cobra.Command {
	var yes, quiet bool
	var connections int
	cmd := &cobra.Command{
		Use:   "delete CONTAINER",
		Short: "Delete a container with all that is in it",
		Long: `Delete a container with all the objects in it. The container's name is asked
for first, on a terminal; where there is none, --yes has to be given. One that
is locked is refused.

The container is locked while it is deleted, and stays so when that is
interrupted, since what is left of the disk is of no use: delete it again.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if err := checkConnections(connections); err != nil {
				return err
			}
			return t.delete(ctx, args[0], connections, yes, quiet)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &connections)
	return cmd
}

// delete removes all objects of the container and then itself.
func (t *tool) delete(ctx context.Context, name string, connections int, yes, quiet bool) error {
	c, err := t.open(name)
	if err != nil {
		return err
	}
	state, err := lease.Inspect(ctx, c.lease("", 0))
	if err != nil {
		return c.explain(ctx, err)
	}
	// What a delete that was cut short has left behind is ours to finish.
	unfinished := state.Holder == holderDelete
	if err := state.Held(); err != nil && !unfinished {
		return fmt.Errorf("%s is %w", name, err)
	}
	if !yes {
		question := fmt.Sprintf("This deletes %s, a disk of %s, with about %d objects of %s in all.",
			name, humanSize(state.Meta.Geometry.Size()), state.Objects, humanSize(state.Bytes))
		if err := t.confirm(ctx, question, name); err != nil {
			return err
		}
	}
	if unfinished {
		if _, err := lease.Unlock(ctx, c.lease("", 0)); err != nil && !errors.Is(err, lease.ErrNotLocked) {
			return c.explain(ctx, err)
		}
	}
	// For ever: what is half deleted is of no use to whoever finds it free.
	held, _, err := c.mark(ctx, holderDelete, lease.Forever)
	if err != nil {
		return c.explain(ctx, err)
	}

	d := &deletion{container: c, connections: connections, bar: t.newProgress("Deleting "+name, max(state.Objects, 1), false, quiet)}
	err = d.run(ctx)
	d.bar.end(err == nil)
	if err == nil {
		if err := held.Drop(ctx); err != nil {
			t.warn("%s: %v", name, oneLine{err})
		}
		t.say("Done, %s has been deleted", name)
		return nil
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

// confirm asks for the container's name on a terminal. Where there is none,
// nobody can be asked.
func (t *tool) confirm(ctx context.Context, question, name string) error {
	in, ok := terminal(t.stdin)
	if !ok {
		return fmt.Errorf("%s: not deleted: there is no terminal to ask on, give --yes to delete without being asked", name)
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
		return fmt.Errorf("%s: interrupted, nothing has been deleted", name)
	case line := <-answer:
		if strings.TrimRight(line, "\r\n") != name {
			return fmt.Errorf("%s: not confirmed, nothing has been deleted", name)
		}
		return nil
	}
}

// deletion is one run over a container.
type deletion struct {
	container   *container
	connections int
	bar         *progress

	begun bool  // something may have been deleted
	noted int64 // objects that have been deleted
}

// run empties the container, page by page, and deletes it. A listing may lack
// objects that exist and show some that do not, so when Swift says that the
// container is not empty, the listing is read again a little later.
func (d *deletion) run(ctx context.Context) error {
	wait := 100 * time.Millisecond
	for try := 1; ; try++ {
		if err := d.empty(ctx); err != nil {
			return err
		}
		err := d.container.DeleteContainer(ctx)
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

// empty deletes all that the listing names.
func (d *deletion) empty(ctx context.Context) error {
	marker := ""
	for {
		page, err := d.container.List(ctx, store.ListOptions{Marker: marker})
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		names := make([]string, len(page))
		for i, o := range page {
			names[i] = o.Name
		}
		d.bar.grow(d.noted + int64(len(names)))
		d.begun = true
		if err := d.deletePage(ctx, names); err != nil {
			return err
		}
		d.noted += int64(len(names))
		marker = names[len(names)-1]
	}
}

// deletePage deletes the named objects, by bulk delete where Swift has it, and
// one by one otherwise.
func (d *deletion) deletePage(ctx context.Context, names []string) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(d.connections, bulkAtOnce))
	for rest := names; len(rest) > 0; {
		n := min(len(rest), bulkNames)
		batch := rest[:n]
		rest = rest[n:]
		g.Go(func() error {
			if err := d.container.BulkDelete(gctx, batch); err != nil {
				return err
			}
			d.bar.add(int64(len(batch)))
			return nil
		})
	}
	err := g.Wait()
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}

	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(d.connections)
	for _, name := range names {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := d.container.Delete(gctx, name)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("delete object %s: %w", name, err)
			}
			d.bar.add(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
