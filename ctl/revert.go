// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"swiftnbd/internal/device"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
)

func (t *tool) revertCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "revert CONTAINER SNAPSHOT",
		Short: "Make a disk what it was when a snapshot was made",
		Long: `Make a disk of version 2 what it was when a snapshot was made, its size too, while no
server has it. It takes a few requests for any size. The snapshot stays, and so do all
others, the newer ones too.

What the disk is now is lost, unless it has a snapshot: make one before. The command
first asks you to type the container's name. Without a terminal it cannot ask, and you
must give --yes.

It refuses a locked container, and holds the lock itself meanwhile. If it is
interrupted, the disk is as it was, or it is reverted.`,
		Example: `  swiftnbd-ctl snapshot mynbd0 before-revert
  swiftnbd-ctl revert mynbd0 before-upgrade`,
		Args: needs("CONTAINER", "SNAPSHOT"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if err := logdisk.CheckSnapshotName(args[1]); err != nil {
				return usagef("%w", err)
			}
			return t.revert(ctx, args[0], args[1], yes)
		}),
		ValidArgsFunction: completing(t.completeContainer, t.completeSnapshot),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	t.jsonFlag(cmd)
	return cmd
}

// reverted is what revert prints as JSON.
type reverted struct {
	Container string `json:"container"`
	Snapshot  string `json:"snapshot"`
	Was       int64  `json:"was"`  // bytes of the disk
	Size      int64  `json:"size"` // and now
}

// revert makes a disk what it was in a snapshot.
func (t *tool) revert(ctx context.Context, name, snap string, yes bool) error {
	c, state, err := t.openFree(ctx, name)
	if err != nil {
		return err
	}
	list, err := logdisk.Snapshots(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections))
	if err != nil {
		return c.explain(ctx, err)
	}
	i := slices.IndexFunc(list, func(s logdisk.Snapshot) bool { return s.Name == snap })
	if i < 0 {
		return c.explain(ctx, fmt.Errorf("snapshot %s: %w", snap, logdisk.ErrNoSnapshot))
	}
	if !yes {
		question := fmt.Sprintf("This makes %s what it was in snapshot %s, %s, with %s. What it is now is lost, unless it has a snapshot.",
			name, store.OneLine(snap), humanTime(list[i].Made), humanSize(list[i].Size))
		if err := t.confirm(ctx, question, name, "revert", "reverted"); err != nil {
			return err
		}
	}
	out := reverted{Container: name, Snapshot: snap}
	var reverting error
	err = t.change(ctx, c, holderRevert, func(d *device.Device) error {
		out.Was = d.Size()
		defer func() { out.Size = d.Size() }()
		reverting = d.Revert(ctx, snap)
		return reverting
	})
	switch {
	case reverting != nil:
		return fmt.Errorf("%w; the disk is as it was, or it is reverted: to go on, run the same command again", err)
	case err != nil:
		return err
	}
	return t.done(out, "Done, %s is what it was in snapshot %s, %s", name, store.OneLine(snap), humanSize(out.Size))
}
