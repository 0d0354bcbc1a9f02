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

// gone returns why a reader does not find an object, if it is because its moment
// is over. What a server that is away has is no such reason.
func (d *Disk) gone(ctx context.Context, err error) *GoneError {
	if d.o.Epoch != 0 || d.o.depth > 0 || d.rootAt.IsZero() || !errors.Is(err, store.ErrNotFound) {
		return nil
	}
	e := &GoneError{Snapshot: d.o.Snapshot, Root: d.rootAt, Err: err}
	if d.over.Load() {
		return e
	}
	at, ferr := d.findRoot(ctx)
	if ferr != nil || at == d.rootAt {
		return nil
	}
	if d.o.Snapshot != "" {
		root, rerr := d.readRoot(ctx, at)
		if rerr != nil || pinned(root.Pins, d.rootAt) {
			return nil
		}
	} else if _, there, herr := d.head(ctx, layout.RootName(d.rootAt)); there || herr != nil {
		return nil // a root is deleted before what only it needs, or with it
	}
	d.over.Store(true)
	return e
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
