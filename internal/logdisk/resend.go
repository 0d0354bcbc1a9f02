// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// unsure is an object that was found when the disk was opened, and of which nobody has
// said that it was acknowledged: its PUT may have reached one replica of three before the
// former holder died.
type unsure struct {
	name  string
	check func(data []byte) error // says what is wrong with its bytes
}

// noteUnsure notes which objects that count from now on are not known to be durable:
// those of the log behind the last one of which somebody says so, up to the last whole
// cut; and the newest root if it is a snapshot's, which the next root only names.
func (d *Disk) noteUnsure(from layout.Position, l log, whole int) {
	if d.o.Epoch == 0 {
		return
	}
	for i := range l.objects[:whole] {
		if at := (layout.Position{Epoch: from.Epoch, N: from.N + uint64(i)}); at.N > l.durable {
			d.unsure = append(d.unsure, unsure{layout.LogName(at), func(data []byte) error { return checkWhole(data, at, &d.o.UUID) }})
		}
	}
	if told, _ := layout.ParseRootText(d.o.Root); told.Less(d.rootAt) && pinned(d.root.Pins, d.rootAt) {
		at := d.rootAt
		d.unsure = append(d.unsure, unsure{layout.RootName(at), func(data []byte) error { _, err := d.parseRoot(at, data); return err }})
	}
}

// resentAtOnce is how many objects are in memory at once while they are sent again:
// of up to 4 MiB each.
const resentAtOnce = 4

// resend sends those objects again, with the same bytes under the same names. What a
// client reads and then flushes, and every root that is to come, relies on them as on
// what a majority of the replicas has.
//
// An object that a reader would refuse is left as it is. It may be this copy alone that
// is damaged, and a PUT would bring it to the others. So is one for which there is no
// room, or whose timestamp is of a clock that was ahead: no more of it is lost by that than
// without resend. That Swift has it is no answer to the PUT: it had it before.
func (d *Disk) resend(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(resentAtOnce)
	for _, u := range d.unsure {
		g.Go(guarded(func() error {
			data, err := d.readWhole(ctx, u.name, "Swift's answer before")
			if err != nil {
				return err
			}
			if u.check(data) != nil {
				return nil
			}
			err = d.store.Put(store.WithFew(ctx), u.name, data, etagOf(data))
			if err != nil && !errors.Is(err, store.ErrNoSpace) && !errors.Is(err, store.ErrSuperseded) {
				return fmt.Errorf("write object %s again, which may be on too few servers: %w", u.name, err)
			}
			return nil
		}))
	}
	err := g.Wait()
	d.unsure = nil
	return err
}

// checkWhole returns what is wrong with a whole data object, down to the checksum of
// each frame.
func checkWhole(data []byte, at layout.Position, u *layout.UUID) error {
	f, records, _, err := layout.ParseTail(data, int64(len(data)))
	if err == nil {
		err = f.Check(*u, at)
	}
	for _, r := range records {
		switch {
		case err != nil:
			return err
		case r.Kind == layout.Zstd:
			err = checkRecord(data[r.Place:][:r.Bytes], r, u)
		case r.Kind == layout.Data:
			for i := uint64(0); i < uint64(r.Count) && err == nil; i++ {
				err = layout.CheckFrame(data[uint64(r.Place)+i*layout.FrameSize:][:layout.FrameSize], r.First+i, u)
			}
		}
	}
	return err
}
