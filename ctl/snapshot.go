// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/control"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

func (t *tool) snapshotCommand() *cobra.Command {
	var gone, force bool
	cmd := &cobra.Command{
		Use:   "snapshot CONTAINER SNAPSHOT",
		Short: "Make a snapshot of a disk, or delete one",
		Long: `Make a snapshot of a disk of version 2: keep the disk as it is now, under a name.
It takes the same time for a disk of any size. What the snapshot and the disk have in
common is in Swift once. If a server has the disk, it is asked to do it, and answers
within about a third of its lease.

With --delete, delete a snapshot. What only it needs is deleted from Swift by the
next server, after ten minutes. A snapshot that has clones is refused.`,
		Example: `  swiftnbd-ctl snapshot mynbd0 before-upgrade
  swiftnbd-ctl snapshot --delete mynbd0 before-upgrade`,
		Args: needs("CONTAINER", "SNAPSHOT"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			if err := logdisk.CheckSnapshotName(args[1]); err != nil {
				return usagef("%w", err)
			}
			if force && !gone {
				return usagef("--force is for --delete")
			}
			return t.snapshot(ctx, args[0], args[1], gone, force)
		}),
		ValidArgsFunction: completing(t.completeContainer, func(cmd *cobra.Command, args []string, prefix string) []cobra.Completion {
			if !gone { // a new name
				return nil
			}
			return t.completeSnapshot(cmd, args, prefix)
		}),
	}
	t.jsonFlag(cmd)
	cmd.Flags().BoolVar(&gone, "delete", false, "delete the snapshot")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "with --delete, delete the snapshot although it has clones: what they have not written themselves is lost")
	return cmd
}

// snapshot makes a snapshot, or deletes one if gone.
func (t *tool) snapshot(ctx context.Context, name, snap string, gone, force bool) error {
	err := t.changeSnapshots(ctx, name, snap, gone, force)
	if err != nil {
		return err
	}
	format := "Done, %s has the snapshot %s"
	if gone {
		format = "Done, %s has no snapshot %s any more"
	}
	return t.done(snapshotted{name, snap, gone}, format, name, snap)
}

// snapshotted is what snapshot prints as JSON.
type snapshotted struct {
	Container string `json:"container"`
	Snapshot  string `json:"snapshot"`
	Deleted   bool   `json:"deleted"`
}

// changeSnapshots is snapshot without its last words.
func (t *tool) changeSnapshots(ctx context.Context, name, snap string, gone, force bool) error {
	o := ordered{
		request: control.Request{Verb: control.Snapshot, Argument: snap},
		wrong:   fmt.Errorf("snapshot %s: %w", snap, logdisk.ErrSnapshotThere),
	}
	if gone {
		o.request.Verb, o.wrong = control.DeleteSnapshot, fmt.Errorf("snapshot %s: %w", snap, logdisk.ErrNoSnapshot)
	}
	if force {
		o.request.Verb = control.DropSnapshot
	}
	o.there = func(ctx context.Context, c *container, state lease.State) (bool, error) {
		list, err := logdisk.Snapshots(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections))
		has := slices.ContainsFunc(list, func(s logdisk.Snapshot) bool { return s.Name == snap })
		return has != gone, err
	}
	o.do = func(c *container) error {
		return t.change(ctx, c, holderSnapshot, func(d *device.Device) error {
			if gone {
				return d.DeleteSnapshot(ctx, snap, force)
			}
			return d.Snapshot(ctx, snap)
		})
	}
	return t.order(ctx, name, o)
}

// openLog prepares the way to a disk of version 2, and returns how it is held.
func (t *tool) openLog(ctx context.Context, name string) (*container, lease.State, error) {
	c, err := t.open(name)
	if err != nil {
		return nil, lease.State{}, err
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return nil, state, err
	}
	if state.Meta.Version == volume.Version1 {
		return nil, state, fmt.Errorf("%s: %w", name, device.ErrNoSnapshots)
	}
	if err := state.Meta.Need(volume.Version2); err != nil {
		return nil, state, c.explain(ctx, err)
	}
	return c, state, nil
}

// openFree is openLog for a disk that is to be changed while nobody has it.
func (t *tool) openFree(ctx context.Context, name string) (*container, lease.State, error) {
	c, state, err := t.openLog(ctx, name)
	if err != nil {
		return nil, state, err
	}
	if err := c.writable(); err != nil {
		return nil, state, err
	}
	if err := state.Held(); err != nil {
		return nil, state, fmt.Errorf("%s is %w", name, err)
	}
	return c, state, nil
}

// change opens the disk as a server does, under the lock, has do change it, and
// closes it.
func (t *tool) change(ctx context.Context, c *container, holder string, do func(d *device.Device) error) error {
	return t.changeWith(ctx, c, holder, defaultConnections, do)
}

// changeWith is change with so many requests at once.
func (t *tool) changeWith(ctx context.Context, c *container, holder string, connections int, do func(d *device.Device) error) error {
	return t.changeAs(ctx, c, device.Options{
		Holder:   holder,
		Compress: holder == holderFlatten && c.export.Disk.Compress, // nothing else writes
	}, connections, do)
}

// changeAs is changeWith with options of its own.
func (t *tool) changeAs(ctx context.Context, c *container, o device.Options, connections int, do func(d *device.Device) error) error {
	if err := ctx.Err(); err != nil {
		return c.explain(ctx, err)
	}
	way := cloud.New(c.client, cloud.Options{
		Connections: connections, Policy: t.telling(c.name, t.pace.work),
		Watch: c.watch,
	})
	o.Brief, o.Bases, o.Connections, o.Timeout, o.Log = true, c.bases, connections, t.pace.work.Timeout, t.warner(c.name)
	o.Store, o.Lease = way.Writer(c.name, downloadTerm)
	// It cannot be interrupted: a request that was cut short may still have set
	// the mark.
	d, err := device.Open(context.WithoutCancel(ctx), o)
	if err != nil {
		return c.explain(ctx, err)
	}
	err = do(d)
	cerr := d.Close()
	switch {
	case cerr == nil:
	case d.Open():
		// Swift does not take what is left, and nobody was told that it is done.
		t.letGo(ctx, c, d)
		err = cmp.Or(err, cerr)
	case err == nil:
		return fmt.Errorf("%s may stay locked: %w", c.name, oneLine{cerr})
	default:
		t.fault(fmt.Errorf("%s may stay locked: %w", c.name, oneLine{cerr}))
	}
	return c.explain(ctx, err)
}

func (t *tool) snapshotsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshots CONTAINER",
		Short: "List the snapshots of a disk",
		Long: `List the snapshots of a disk of version 2, the oldest first: when each was made, the
size of the disk then, how much of it had data, and about how much is in Swift for this
snapshot alone. Deleting the snapshot frees at least that. The disk may be in use.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			return t.snapshots(ctx, args[0])
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	t.jsonArrayFlag(cmd)
	return cmd
}

// snapshotFound is a snapshot in JSON.
type snapshotFound struct {
	Name  string    `json:"name"`
	Made  time.Time `json:"made"`
	Size  int64     `json:"size"`       // bytes of the disk
	Bytes int64     `json:"bytes"`      // of it that have data
	Only  int64     `json:"only_bytes"` // in Swift for this snapshot alone, about
	Of    *copyOf   `json:"copy_of"`    // null: it is no copy
}

// copyOf is the snapshot of another disk that a snapshot is a copy of, in JSON.
type copyOf struct {
	UUID string `json:"uuid"` // the disk's
	Root string `json:"root"` // the name of the snapshot's root, without the prefix
}

func (t *tool) snapshots(ctx context.Context, name string) error {
	c, state, err := t.openLog(ctx, name)
	if err != nil {
		return err
	}
	list, err := logdisk.Snapshots(ctx, c.logOptions(t, state.Meta, nil, state, defaultConnections))
	if err != nil {
		return c.explain(ctx, err)
	}
	if t.json {
		found := []snapshotFound{}
		for _, s := range list {
			one := snapshotFound{Name: s.Name, Made: s.Made.UTC(), Size: s.Size, Bytes: s.Bytes, Only: s.Only}
			if !s.Of.IsZero() {
				one.Of = &copyOf{s.Of.UUID.String(), layout.RootText(s.Of.Root)}
			}
			found = append(found, one)
		}
		return t.encode(found)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, s := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s data\t%s alone\n", store.OneLine(s.Name), humanTime(s.Made), humanSize(s.Size), humanSize(s.Bytes), humanSize(s.Only))
	}
	_ = w.Flush()
	_, err = t.stdout.Write([]byte(b.String()))
	return err
}

// splitSnapshot splits CONTAINER@SNAPSHOT. A container of the secrets file whose
// name has an @ is meant as a whole.
func (t *tool) splitSnapshot(name string) (container, snap string, err error) {
	i := strings.LastIndexByte(name, '@')
	if i < 0 {
		return name, "", nil
	}
	if err := t.load(); err != nil {
		return "", "", err
	}
	if t.secrets.Has(name) {
		return name, "", nil
	}
	if err := logdisk.CheckSnapshotName(name[i+1:]); err != nil {
		return "", "", usagef("%s: %w", name, err)
	}
	if t.whole == nil {
		t.whole = make(map[string]string)
	}
	t.whole[name[:i]] = name
	return name[:i], name[i+1:], nil
}

// snapshotHint returns what explains that a container is not there whose name is that of
// a snapshot, which is snapshot, or was the first part of one.
func (t *tool) snapshotHint(name, snapshot string) string {
	if whole := t.whole[name]; whole != "" {
		return fmt.Sprintf(": %s is a snapshot of it. If it is a container, the secrets file needs a section [%s]", whole, whole)
	}
	if strings.Contains(name, "@") && !t.secrets.Has(name) {
		return snapshot
	}
	return ""
}

// downloadSnapshot copies a snapshot to a file. Snapshots do not change: no lock is
// taken.
func (t *tool) downloadSnapshot(ctx context.Context, name, snap string, o downloading) error {
	begun := time.Now()
	c, state, err := t.openLog(ctx, name)
	if err != nil {
		return err
	}
	lo := c.logOptions(t, state.Meta, nil, state, o.connections)
	lo.Snapshot = snap
	d, err := logdisk.Open(ctx, lo)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer d.Close()
	im, err := t.target(ctx, o)
	if err != nil {
		return c.cut(ctx, err)
	}
	src := logSource{d}
	if err := t.copyTo(ctx, c, src, im, src.moment(), o); err != nil {
		return im.end(err)
	}
	if err := im.commit(); err != nil {
		return err
	}
	return t.doneDownload(downloaded{Container: name, Snapshot: &snap, Version: state.Meta.Version, Size: d.Size()}, im, begun)
}
