// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// A reader has one moment of the disk: a root, and the log after it, as they were
// when it was opened. It holds nothing in Swift. So a moment ends: what the
// newest root does not need is deleted when that root is ten minutes old, unless
// a snapshot needs it. Objects are written once, so until then the reader reads
// the same bytes, and after that no others.

// momentTries is how many moments a reader tries to open. One after the other is over
// before it is open only if opening takes ten minutes, or with a clock that jumps.
const momentTries = 10

// whileGone opens a moment, and a newer one if it was over before it was open.
func whileGone(open func() error) (err error) {
	for range momentTries {
		if err = open(); !errors.As(err, new(*GoneError)) {
			break
		}
	}
	return err
}

// GoneError says that the moment that is read is not in Swift any more.
type GoneError struct {
	Snapshot string          // it was this snapshot, which was deleted; empty: it was the disk
	Root     layout.Position // of the moment
	Err      error           // which object was not found
}

func (e *GoneError) Error() string {
	if e.Snapshot != "" {
		return fmt.Sprintf("the snapshot %s was deleted while it was read: %v", e.Snapshot, e.Err)
	}
	return fmt.Sprintf("the disk has gone on, and its moment that is read here, of root %s, is deleted: open it again: %v",
		layout.RootText(e.Root), e.Err)
}

func (e *GoneError) Unwrap() error { return e.Err }

// missing is the error of a data object that is not found.
type missing struct {
	at  layout.Position
	err error
}

func (e *missing) Error() string { return e.err.Error() }
func (e *missing) Unwrap() error { return e.err }

// notFound returns err, which says that the object of the name is not found, so that
// gone knows which one.
func notFound(name string, err error) error {
	if at, ok := layout.ParseLogName(name); ok {
		return &missing{at, err}
	}
	return err
}

// gone returns why a reader does not find an object, if it is because its moment
// is over. What a server that is away has is no such reason.
func (d *Disk) gone(ctx context.Context, err error) *GoneError {
	top := d
	for top.o.above != nil {
		top = top.o.above
	}
	if top.o.Epoch != 0 || top.rootAt.IsZero() || !errors.Is(err, store.ErrNotFound) {
		return nil
	}
	e := &GoneError{Snapshot: top.o.Snapshot, Root: top.rootAt, Err: err}
	if top.over.Load() {
		return e
	}
	at, ferr := top.findRoot(ctx)
	if ferr != nil || at == top.rootAt || !top.isOver(ctx, at, err, top != d) {
		return nil
	}
	top.over.Store(true)
	return e
}

// isOver says whether the moment is over, of which an object is not found, when the
// newest root is another one. below says that the object is of what lies below a clone.
func (d *Disk) isOver(ctx context.Context, newest layout.Position, err error, below bool) bool {
	if d.o.Snapshot == "" {
		if _, there, herr := d.head(ctx, layout.RootName(d.rootAt)); !there || herr != nil {
			return herr == nil // a root is deleted before what only it needs, or with it
		}
	}
	root, rerr := d.glance(ctx, newest)
	if rerr != nil {
		return false
	}
	now := pinned(root.Pins, d.rootAt)
	switch {
	case d.o.Snapshot != "":
		return !now
	case below:
		// Since the disk was flattened the parent is not protected, unless a snapshot
		// needs it. The root may be there for long.
		return !now && root.Below == nil
	}
	// A snapshot keeps the root, or has kept it, and not the log after it.
	var m *missing
	return pinned(d.root.Pins, d.rootAt) && errors.As(err, &m) && d.unneeded(ctx, root, m.at)
}

// unneeded says whether it is known that neither the root nor a pin of it needs a data
// object.
func (d *Disk) unneeded(ctx context.Context, root layout.Root, at layout.Position) bool {
	if root.At.Less(at) || len(root.Runs.Objects) == 0 && root.Table == nil {
		return false // the log after the root has it perhaps, or there is no table
	}
	look := newDisk(d.o)
	defer look.cancel(ErrClosed)
	look.o.Timeout = 0 // whoever asks tries again
	if err := look.readTable(ctx, root, "the root"); err != nil {
		return false
	}
	kept, err := look.readKept(ctx, root)
	return err == nil && !look.objects.has(at) && !keptIn(kept.Objects, at)
}

// glance reads a root, and does not wait for it.
func (d *Disk) glance(ctx context.Context, at layout.Position) (root layout.Root, err error) {
	name := layout.RootName(at)
	size, there, err := d.head(ctx, name)
	switch {
	case err != nil:
		return root, err
	case !there || size > wholeLimit:
		return root, store.ErrNotFound
	}
	b := make([]byte, size)
	if _, err := d.store.Get(ctx, name, b, store.GetOptions{Newest: true}); err != nil {
		return root, err
	}
	return d.parseRoot(at, b)
}

// OpenNewer opens the newest moment of a disk for reading, or returns nil if cur,
// which is read, is that still.
func OpenNewer(ctx context.Context, o Options, cur *Disk) (*Disk, error) {
	o.Epoch, o.Snapshot, o.Root, o.near = 0, "", cur.RootName(), cur
	look := newDisk(o)
	defer look.cancel(ErrClosed)
	at, err := look.findRoot(ctx)
	if err != nil {
		return nil, err
	}
	if at == cur.rootAt {
		next := cur.former
		next.N++
		if _, there, err := look.head(ctx, layout.LogName(next)); err != nil || !there {
			return nil, err
		}
	}
	return Open(ctx, o)
}

// tails is what a disk that is read knows of the log after its root, for the next
// moment: what a reader that follows has read once it does not read again. It is
// set before the disk is used, and never changed.
type tails struct {
	from    layout.Position
	objects []logged // without gaps
}

// maxTails bounds the records in tails. They take 48 bytes each, and an object has
// 1024 at most; most objects of a long log are flushes with a few.
const maxTails = 1 << 16

// keepTails keeps what was read of the log from a position on, up to the first gap.
func (d *Disk) keepTails(from layout.Position, objects []logged) {
	if d.o.Epoch != 0 {
		return // nobody opens a newer moment
	}
	n := 0
	for records := 0; n < len(objects) && objects[n].size != 0; n++ {
		if records += 1 + len(objects[n].records); records > maxTails {
			break
		}
	}
	d.tails = tails{from, slices.Clone(objects[:n])}
}

// tailsFrom returns what d knows of the log from a position on. d may be nil.
// Names are used once, so what was read under one stays right.
func (d *Disk) tailsFrom(from layout.Position) []logged {
	if d == nil || d.tails.from.Epoch != from.Epoch || from.N < d.tails.from.N {
		return nil
	}
	skip := min(from.N-d.tails.from.N, uint64(len(d.tails.objects)))
	return d.tails.objects[skip:]
}
