// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/device"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/words"
)

func (t *tool) rewindCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rewind CONTAINER",
		Short: "Give up what a disk has lost, so that it can be used",
		Long: `Make a disk of version 2 usable again that lacks an object for good. What a flush has
acknowledged is in Swift, so a disk whose newest objects cannot be found is not served:
the servers that have them may be away, and the disk is whole when they are back. If
Swift has lost them, rewind makes the disk what it was before: a moment that it has
had. What was written after it is given up.

The command first says which object cannot be found, and asks you to type the
container's name. Without a terminal it cannot ask, and you must give --yes. If nothing
is missing, it changes nothing. Snapshots stay as they are.

It refuses a locked container, and holds the lock itself meanwhile.`,
		Example: `  swiftnbd-ctl rewind mynbd0`,
		Args:    needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.rewind(ctx, args[0], yes)
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	t.jsonFlag(cmd)
	return cmd
}

// rewound is what rewind prints as JSON.
type rewound struct {
	Container string   `json:"container"`
	Lost      []string `json:"lost"`     // objects that cannot be found
	GivenUp   int      `json:"given_up"` // objects that were written after them
	Size      int64    `json:"size"`     // of the disk, bytes
}

// rewind gives up what a disk has lost.
func (t *tool) rewind(ctx context.Context, name string, yes bool) error {
	c, state, err := t.openFree(ctx, name)
	if err != nil {
		return err
	}
	out := rewound{Container: name, Lost: []string{}}
	o := c.logOptions(t, state.Meta, nil, state, defaultConnections)
	o.Rewind = &logdisk.Rewind{Wait: t.pace.verify, Ask: func(lost *logdisk.AwayError, later int) bool {
		out.Lost = append(out.Lost, lost.Name)
		out.GivenUp += later
		return true
	}}
	d, err := logdisk.Open(ctx, o)
	if err != nil {
		return c.explain(ctx, err)
	}
	out.Size = d.Size()
	d.Close()
	if len(out.Lost) == 0 {
		return t.done(out, "Nothing is missing that was written last, %s is as it was", name)
	}
	lost := strings.Join(out.Lost, " and ")
	after := ""
	if out.GivenUp > 0 {
		after = fmt.Sprintf(", and what is in %s after it", words.Count(out.GivenUp, "object"))
	}
	if !yes {
		question := fmt.Sprintf("Swift does not find %s now. If a server of Swift is away, wait until it is back: nothing is lost then. "+
			"This gives up what is in it%s. %s becomes what it was before, with %s.", lost, after, name, humanSize(out.Size))
		if err := t.confirm(ctx, question, name, "rewind", "rewound"); err != nil {
			return err
		}
	}
	gone := false
	again := &logdisk.Rewind{Wait: min(t.pace.verify, time.Second), Ask: func(away *logdisk.AwayError, _ int) bool {
		gone = slices.Contains(out.Lost, away.Name)
		return gone
	}}
	err = t.changeAs(ctx, c, device.Options{Holder: holderRewind, Rewind: again}, defaultConnections, func(d *device.Device) error {
		out.Size = d.Size()
		return nil
	})
	if err != nil {
		return err
	}
	if !gone {
		out.Lost, out.GivenUp = []string{}, 0
		return t.done(out, "%s has been found again, %s has lost nothing", lost, name)
	}
	return t.done(out, "Done, %s is what it was before %s was written", name, lost)
}
