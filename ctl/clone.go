// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

func (t *tool) cloneCommand() *cobra.Command {
	var o cloneOptions
	cmd := &cobra.Command{
		Use:   "clone CONTAINER[@SNAPSHOT] NEW",
		Short: "Make a new disk that begins as a copy of another",
		Long: `Make a new disk, NEW, that has what a snapshot of another disk has. It takes the same
time for a disk of any size: the clone reads from its parent what it has not written
itself. Both must be of version 2. The parent may be in use.

Without SNAPSHOT, a snapshot named clone-NEW is made first. A server that has the
parent is asked for it.

A note in the parent's container says that it has a clone: until the clone is deleted
or flattened, neither that snapshot nor the parent can be deleted. With credentials
that may only read the parent, a SNAPSHOT must be given, and no note is made.`,
		Example: `  swiftnbd-ctl clone golden@v1 web7
  swiftnbd-ctl clone --flatten mynbd0 copy`,
		Args: needs("CONTAINER", "NEW"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			name, snap, err := t.splitSnapshot(args[0])
			if err != nil {
				return err
			}
			return t.clone(ctx, name, snap, args[1], o)
		}),
		ValidArgsFunction: completing(t.completeMoment),
	}
	f := cmd.Flags()
	f.BoolVar(&o.flatten, "flatten", false, "copy what the parent has into the new disk at once, which then needs no parent")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "with --flatten, show no progress bar")
	t.policyFlag(cmd)
	connectionsFlag(cmd, &o.connections)
	t.jsonFlag(cmd)
	return cmd
}

// cloned is what clone prints as JSON.
type cloned struct {
	Container string `json:"container"`
	Parent    string `json:"parent"`
	Snapshot  string `json:"parent_snapshot"`
	Size      int64  `json:"size"`      // of the disk, bytes
	Protected bool   `json:"protected"` // the parent has a note of the clone
	Flattened bool   `json:"flattened"`
}

// flattened is what flatten prints as JSON.
type flattened struct {
	Container string   `json:"container"`
	Size      int64    `json:"size"`      // of the disk, bytes
	Snapshots []string `json:"snapshots"` // that need the parent still
}

type cloneOptions struct {
	flatten, quiet bool
	connections    int
}

// cloning is one run of clone.
type cloning struct {
	*tool
	parent, child *container
	made          bool // we have created the child's container

	// Where each is for the other: the URL of its storage, or layout.SameAccount.
	parentURL, childURL string
	base                store.Store // the parent's container with the child's credentials
	noted               bool        // the parent has a note of it
}

// cloneTimeout bounds what is cleared up after an error.
const cloneTimeout = 30 * time.Second

func (t *tool) clone(ctx context.Context, name, snap, fresh string, o cloneOptions) error {
	if name == fresh {
		return fmt.Errorf("%s: a disk cannot be a clone of itself", name)
	}
	if err := config.CheckContainer(fresh); err != nil {
		return usagef("NEW: %w", err)
	}
	c := &cloning{tool: t}
	var err error
	if c.parent, err = t.open(name); err != nil {
		return err
	}
	if c.child, err = t.open(fresh); err != nil {
		return err
	}
	if err := c.child.writable(); err != nil {
		return err
	}
	own := ""
	if snap == "" {
		own = "clone-" + fresh
		if err := logdisk.CheckSnapshotName(own); err != nil {
			return fmt.Errorf("%s: name a snapshot of it, %s@SNAPSHOT: %w", name, name, err)
		}
		if err := c.parent.writable(); err != nil {
			return fmt.Errorf("%w: name a snapshot of it, %s@SNAPSHOT", err, name)
		}
		// What cannot be is said before anything is made.
		if _, _, err := t.openLog(ctx, name); err != nil {
			return err
		}
	}
	if err := c.places(ctx); err != nil {
		return err
	}
	var p *logdisk.Parent
	if own == "" {
		if p, err = c.find(ctx, snap); err != nil {
			return err
		}
	}
	snap, size, err := c.take(ctx, p, snap, own)
	if err != nil {
		return err
	}
	t.say("Done, %s: a clone of %s@%s, %s", fresh, name, snap, humanSize(size))
	if !c.noted && !o.flatten {
		t.warn("%s: nothing protects the parent: these credentials may not write to %s, and whoever deletes it, or its snapshot %s, takes from the clone what it has not written itself", fresh, name, snap)
	}
	out := cloned{Container: fresh, Parent: name, Snapshot: snap, Size: size, Protected: c.noted}
	if o.flatten {
		if _, err := t.flatten(ctx, fresh, o.connections, o.quiet); err != nil {
			return err
		}
		t.say("Done, %s has all of its data itself", fresh)
		out.Protected, out.Flattened = false, true
	}
	if t.json {
		return t.encode(out)
	}
	return nil
}

// places finds out where the two are for each other. It makes no request but a
// login where they have the same credentials.
func (c *cloning) places(ctx context.Context) (err error) {
	c.parentURL, c.childURL = layout.SameAccount, layout.SameAccount
	at := ""
	if c.parent.client != c.child.client {
		mine, err := c.child.client.StorageURL(ctx)
		if err != nil {
			return c.child.explain(ctx, err)
		}
		other, err := c.parent.client.StorageURL(ctx)
		if err != nil {
			return c.parent.explain(ctx, err)
		}
		if !swiftstore.SameAccount(mine, other) {
			c.parentURL, c.childURL, at = other, mine, other
		}
	}
	if c.base, err = c.child.bases(ctx, at, c.parent.name); err != nil {
		return fmt.Errorf("%s cannot be a clone of %s: %w", c.child.name, c.parent.name, oneLine{err})
	}
	return nil
}

// options are those of reading roots.
func (c *cloning) options() logdisk.Options {
	return logdisk.Options{Timeout: c.child.pace.work.Timeout, Connections: defaultConnections}
}

// find finds the snapshot in the parent, or says what is wrong with that.
func (c *cloning) find(ctx context.Context, snap string) (*logdisk.Parent, error) {
	p, err := logdisk.FindParent(ctx, c.parent, snap, c.options())
	if err == nil {
		return p, nil
	}
	if errors.Is(err, logdisk.ErrNoSnapshot) {
		if p, nerr := c.findNewest(ctx, snap); nerr == nil {
			return p, nil
		}
		return nil, c.parent.explain(ctx, err)
	}
	// Is it a disk, and of which version?
	if _, _, oerr := c.openLog(ctx, c.parent.name); oerr != nil {
		return nil, oerr
	}
	return nil, c.parent.explain(ctx, err)
}

// findNewest is find where the listing is late, or may be: the snapshot is in the newest
// root, which takes more requests.
func (c *cloning) findNewest(ctx context.Context, snap string) (*logdisk.Parent, error) {
	_, state, err := c.openLog(ctx, c.parent.name)
	if err != nil {
		return nil, err
	}
	o := c.options()
	o.Root, o.Newest = state.Meta.Root, uint32(min(max(state.Epoch, 0), math.MaxUint32))
	p, err := logdisk.FindParent(ctx, c.parent, snap, o)
	return p, c.parent.explain(ctx, err)
}

// stale says whether the snapshot of the name is another one by now: p is of an older
// root, which was still the newest in the listing. It is in p then.
func (c *cloning) stale(ctx context.Context, p *logdisk.Parent) bool {
	now, err := c.findNewest(ctx, p.Pin.Name)
	if err != nil || now.Pin.Root == p.Pin.Root {
		return false
	}
	*p = *now
	return true
}

// take makes room for the clone, and then the clone. p is the snapshot of the parent
// with the name snap; nil: one is made with the name own.
func (c *cloning) take(ctx context.Context, p *logdisk.Parent, snap, own string) (_ string, size int64, err error) {
	turn := c.child.turn()
	defer func() { turn.leave(ctx, err == nil) }()
	roots, err := c.childRoom(ctx, turn)
	if err != nil {
		return "", 0, err
	}
	made := ""
	if p == nil {
		if snap, err = c.snapshot(ctx, own); err != nil {
			c.undo(ctx, nil, "")
			return "", 0, err
		}
		if p, err = c.find(ctx, snap); err != nil {
			c.undo(ctx, nil, snap)
			return "", 0, err
		}
		made = snap
	}
	size, err = c.make(ctx, p, roots, made)
	return snap, size, err
}

// childRoom makes room for the clone. It returns how many first roots are there of runs
// that were interrupted. To create a container that is there changes nothing and says so.
// So nobody looks for it before, which would be a tenth request, unless that decides.
func (c *cloning) childRoom(ctx context.Context, turn *turn) (roots uint64, err error) {
	var md store.Metadata
	exists := false
	if c.policy != "" || c.child.namesSnapshot() {
		if md, exists, err = c.child.firstLook(ctx, c.policy); err != nil {
			return 0, err
		}
	}
	free := func(md store.Metadata) (err error) {
		roots, err = c.freeForLog(ctx, c.child, md, false)
		return err
	}
	if exists {
		if err := free(md); err != nil {
			return 0, err
		}
	}
	c.made, err = c.room(ctx, c.child, exists, turn, free)
	return roots, err
}

// snapshot makes a snapshot of the parent with the name, or with that and a
// number if there is one.
func (c *cloning) snapshot(ctx context.Context, name string) (snap string, err error) {
	snap = name
	for n := 2; ; n++ {
		err = c.changeSnapshots(ctx, c.parent.name, snap, false, false)
		if !errors.Is(err, logdisk.ErrSnapshotThere) {
			break
		}
		snap = fmt.Sprintf("%s-%d", name, n)
		if err := logdisk.CheckSnapshotName(snap); err != nil {
			return "", err
		}
	}
	if errors.Is(err, store.ErrForbidden) {
		return "", fmt.Errorf("%w; with credentials that may only read it, name a snapshot that it has, %s@SNAPSHOT", err, c.parent.name)
	}
	return snap, err
}

// make writes the clone. made is the snapshot that was made for it, or empty.
func (c *cloning) make(ctx context.Context, p *logdisk.Parent, roots uint64, made string) (size int64, err error) {
	if err := ctx.Err(); err != nil {
		c.undo(ctx, nil, made)
		return 0, c.child.explain(ctx, err)
	}
	// It is not interrupted between its few requests.
	within := context.WithoutCancel(ctx)
	child := &logdisk.Child{
		Parent: p, Notes: c.parent, Base: c.base, ParentURL: c.parentURL, ParentName: c.parent.name,
		URL: c.childURL, Name: c.child.name, Store: c.child, Again: !c.made, Roots: roots,
	}
	if c.parent.export.ReadOnly {
		child.Notes = nil
	}
	m := volume.Meta{Version: volume.Version2, Parent: parentHint(c.parent.name, p.Pin.Name)}
	m.Root, m.Size, err = child.Clone(within, c.options())
	if errors.Is(err, logdisk.ErrGoing) && child.Forget(within) == nil && c.stale(within, p) {
		m.Root, m.Size, err = child.Clone(within, c.options())
	}
	if errors.Is(err, logdisk.ErrNoNote) && errors.Is(err, store.ErrForbidden) {
		child.Notes = nil
		m.Root, m.Size, err = child.Clone(within, c.options())
	}
	if err != nil {
		c.undo(ctx, child, made)
		return 0, fmt.Errorf("%s: not cloned: %w", c.child.name, oneLine{err})
	}
	m.UUID = child.UUID
	if err := volume.Create2(within, c.child, m); err != nil {
		if store.Ambiguous(err) {
			// It may be there, or come to be.
			return 0, fmt.Errorf("%s: it is not known whether the clone was made: if not, run the same command again: %w", c.child.name, oneLine{err})
		}
		c.undo(ctx, child, made)
		return 0, c.child.explain(ctx, err)
	}
	c.noted = child.Notes != nil
	return m.Size, nil
}

// parentHint names the parent in the clone's metadata, as far as there is room:
// if there is none, it says only that there is a parent.
func parentHint(name, snap string) string {
	if s := volume.FormatParent(name, snap); len(s) <= store.MaxMetaValue {
		return s
	}
	return volume.FormatParent("", "")
}

// undo clears up after an error: the note, the container, the snapshot that was
// made. child may be nil. What cannot be cleared up is said.
func (c *cloning) undo(ctx context.Context, child *logdisk.Child, made string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cloneTimeout)
	defer cancel()
	if md, err := c.child.contact.Metadata(ctx); err == nil {
		if _, err := volume.ParseMeta(md.Items); err == nil {
			return // somebody else has made it: the note is of that, too
		}
	}
	if child != nil {
		if err := child.Forget(ctx); err != nil {
			c.fault(fmt.Errorf("%s: a note of the clone stays: %w", c.parent.name, oneLine{err}))
		}
	}
	if c.made {
		if child != nil && !child.Root.IsZero() {
			err := c.child.Delete(ctx, layout.RootName(child.Root))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				c.fault(fmt.Errorf("%s: the container stays: %w", c.child.name, oneLine{err}))
				return
			}
		}
		if err := c.child.DeleteContainer(ctx); err != nil && !errors.Is(err, store.ErrContainerNotFound) {
			c.fault(fmt.Errorf("%s: the container stays: %w", c.child.name, oneLine{err}))
		}
	}
	if made != "" {
		if err := c.changeSnapshots(ctx, c.parent.name, made, true, false); err != nil {
			c.fault(fmt.Errorf("%s: the snapshot %s stays: %w", c.parent.name, made, oneLine{err}))
		}
	}
}

func (t *tool) flattenCommand() *cobra.Command {
	var connections int
	var quiet bool
	cmd := &cobra.Command{
		Use:   "flatten CONTAINER",
		Short: "Copy into a clone what it has from its parent",
		Long: `Copy into a clone everything that it reads from its parent. After that it needs no
parent, and the parent may be deleted, unless it has other clones. Of a disk that was
converted, copy what it still has in its objects of version 1 into the log. The next
server deletes these, after 20 minutes.

The command refuses a locked container, and locks it while it copies. It can be
interrupted: run it again, and it copies the rest.

Snapshots that were made before need the parent, or the objects of version 1, still. If
there are such, the parent stays protected: delete them and run flatten again.`,
		Args: needs("CONTAINER"),
		RunE: t.verb(func(ctx context.Context, args []string) error {
			out, err := t.flatten(ctx, args[0], connections, quiet)
			if err != nil {
				return err
			}
			if len(out.Snapshots) == 0 {
				return t.done(out, "Done, %s has all of its data itself", out.Container)
			}
			return t.done(out, "Done, %s has all of its data itself, but for its snapshots: %s", out.Container, manyNames(out.Snapshots))
		}),
		ValidArgsFunction: t.completeContainers(false),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress bar")
	connectionsFlag(cmd, &connections)
	t.jsonFlag(cmd)
	return cmd
}

// flatten copies into a clone what it has from its parent.
func (t *tool) flatten(ctx context.Context, name string, connections int, quiet bool) (out flattened, err error) {
	c, _, err := t.openFree(ctx, name)
	if err != nil {
		return out, err
	}
	var base *layout.Base
	var snaps []string
	err = t.changeWith(ctx, c, holderFlatten, connections, func(d *device.Device) error {
		out = flattened{Container: name, Size: d.Size(), Snapshots: []string{}}
		bar := t.newProgress("Flattening "+name, d.Size(), true, quiet)
		err := d.Flatten(ctx, bar.add)
		bar.end(err == nil)
		if errors.Is(err, logdisk.ErrNoClone) {
			return fmt.Errorf("nothing to flatten: %w", err)
		}
		if err != nil {
			return err
		}
		if base, snaps, err = d.Base(ctx); err != nil || len(snaps) > 0 {
			return err
		}
		if base == nil {
			_, snaps, err = d.ChunksNeeded(ctx)
			return err
		}
		if err := c.SetMetadata(ctx, map[string]string{volume.KeyParent: ""}); err != nil { // for people
			t.warn("%s: %v", name, oneLine{err})
		}
		if err := c.dropNotes(ctx, *base); err != nil {
			switch {
			case errors.Is(err, store.ErrContainerNotFound), errors.Is(err, store.ErrNotFound):
			case errors.Is(err, store.ErrForbidden): // there is perhaps none: these credentials could not write it either
				t.noteStays(ctx, c, *base)
			default:
				return fmt.Errorf("it is flattened, and the note of it in %s stays: run flatten again: %w", base.Container, oneLine{err})
			}
		}
		return d.DropBase(ctx)
	})
	if err == nil && len(snaps) > 0 {
		out.Snapshots = snaps
		if base == nil {
			t.warn("%s: its snapshots need its objects of version 1 still, which stay until they are deleted", name)
			return out, nil
		}
		t.warn("%s: its snapshots need the parent, %s, still, which stays protected: delete them and run flatten again", name, base.Container)
	}
	return out, err
}

// parentOfNotes returns the container of a clone's parent, and where the clone is as
// the notes there have it.
func (c *container) parentOfNotes(ctx context.Context, base layout.Base) (parent store.Store, own string, err error) {
	at, own := "", layout.SameAccount
	if base.URL != layout.SameAccount {
		at = base.URL
		if own, err = c.client.StorageURL(ctx); err != nil {
			return nil, "", err
		}
	}
	parent, err = c.bases(ctx, at, base.Container)
	return parent, own, err
}

// dropNotes deletes the notes of the clone in its parent.
func (c *container) dropNotes(ctx context.Context, base layout.Base) error {
	parent, own, err := c.parentOfNotes(ctx, base)
	if err != nil {
		return err
	}
	return logdisk.DropNotes(ctx, parent, own, c.name)
}

// noteStays warns of a note of the clone that these credentials may not delete.
func (t *tool) noteStays(ctx context.Context, c *container, base layout.Base) {
	parent, own, err := c.parentOfNotes(ctx, base)
	if err != nil {
		return
	}
	switch there, err := logdisk.Noted(ctx, parent, own, c.name); {
	case err != nil:
		t.warn("%s: if %s has a note of it, that stays and protects a snapshot there: these credentials may not delete it, and whether there is one cannot be seen: %v", c.name, base.Container, oneLine{err})
	case there:
		t.warn("%s: the note of it in %s stays, and protects a snapshot there: these credentials may not delete it", c.name, base.Container)
	}
}

// manyNames lists names, and not too many of them.
func manyNames(names []string) string {
	const most = 10
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	s := ""
	for i, n := range names {
		if i > 0 {
			s += ", "
		}
		s += store.OneLine(n)
	}
	return s + more
}

// protected returns why a disk with clones must not be deleted, or nil.
func (c *container) protected(ctx context.Context, state lease.State) error {
	if state.Meta.Version != volume.Version2 {
		return nil
	}
	notes, err := logdisk.Children(ctx, c, layout.Position{})
	if err != nil {
		return c.explain(ctx, err)
	}
	return c.needed(notes)
}

// ending is protected once more, under the lock, and for good: no clone can be made
// from then on.
func (c *container) ending(ctx context.Context, t *tool, held *lease.Held, state lease.State) error {
	if state.Meta.Version != volume.Version2 {
		return nil
	}
	notes, withdraw, err := logdisk.AnnounceEnd(ctx, c.logOptions(t, state.Meta, held, state, defaultConnections))
	if err = c.explain(ctx, err); err == nil {
		err = c.needed(notes)
	}
	if err != nil {
		if werr := withdraw(context.WithoutCancel(ctx)); werr != nil {
			t.warn("%s: its snapshots are said to be going until a server has opened it: %v", c.name, oneLine{werr})
		}
	}
	return err
}

// needed returns why a disk with these clones must not be deleted, or nil.
func (c *container) needed(notes []layout.Note) error {
	if len(notes) > 0 {
		return fmt.Errorf("%s: not deleted: %w; flatten or delete them first, or give --force, and what they have not written themselves is lost", c.name, &logdisk.ChildrenError{Notes: notes})
	}
	return nil
}

// parentOf returns where a disk's parent is, or nil. If that cannot be read it returns
// the error, and what the container's metadata say: a name in the same account.
func (c *container) parentOf(ctx context.Context, state lease.State) (*layout.Base, error) {
	if state.Meta.Version != volume.Version2 || state.Meta.Parent == "" {
		return nil, nil
	}
	o := logdisk.Options{UUID: state.Meta.UUID, Root: state.Meta.Root, Connections: defaultConnections, Timeout: c.pace.contact.Timeout}
	if state.Holder == holderDelete { // its roots may be deleted already
		o.Timeout = time.Millisecond
	}
	base, err := logdisk.ReadBase(ctx, c, o)
	if name, _ := volume.ParseParent(state.Meta.Parent); err != nil && name != "" {
		base = &layout.Base{URL: layout.SameAccount, Container: name}
	}
	return base, err
}

// dropNotesOfDeleted deletes the notes of a disk that is deleted, which had base as its
// parent. baseErr is parentOf's error. What stays is said.
func (t *tool) dropNotesOfDeleted(ctx context.Context, c *container, base *layout.Base, baseErr error) {
	err := baseErr
	if base != nil {
		if err = c.dropNotes(ctx, *base); errors.Is(err, store.ErrContainerNotFound) {
			err = baseErr // it was perhaps not there at all
		}
	}
	switch {
	case err == nil:
	case base == nil || errors.Is(err, baseErr):
		t.warn("%s: its parent is not known: if that has a note of it, the note stays and protects a snapshot there: %v", c.name, oneLine{err})
	case errors.Is(err, store.ErrForbidden): // there is perhaps none: these credentials could not write it either
		t.noteStays(ctx, c, *base)
	default:
		t.warn("%s: the note in its parent, %s, stays, which protects a snapshot there: %v", c.name, base.Container, oneLine{err})
	}
}
