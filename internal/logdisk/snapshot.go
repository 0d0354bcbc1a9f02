// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// Errors of snapshots.
var (
	ErrNoSnapshot    = errors.New("there is no such snapshot")
	ErrSnapshotThere = errors.New("there is such a snapshot already")
)

// maxSnapshots bounds the snapshots of a disk: each root has all their names.
const maxSnapshots = 10_000

// CheckSnapshotName says what is wrong with a snapshot's name.
func CheckSnapshotName(name string) error {
	switch {
	case name == "":
		return errors.New("a snapshot's name is empty")
	case len(name) > 255:
		return fmt.Errorf("a snapshot's name has at most 255 bytes, and this one has %d", len(name))
	case !layout.Plain(name):
		return fmt.Errorf("%q cannot be a snapshot's name: it is not UTF-8, or has control characters", name)
	case strings.ContainsAny(name, "@/") || name[0] == '-' || strings.TrimSpace(name) != name:
		return fmt.Errorf("%q cannot be a snapshot's name: @ and / are not allowed, nor - or a space at the beginning", name)
	}
	return nil
}

// Snapshot keeps the disk as it is now under a name: every change that was
// completed before is in it. It costs a flush, and what a checkpoint costs. After
// an error the snapshot may have been made all the same, if Swift has not
// answered.
func (d *Disk) Snapshot(ctx context.Context, name string) error {
	return d.SnapshotOf(ctx, name, layout.Copied{})
}

// SnapshotOf is Snapshot of a disk that has just become a copy of a snapshot of
// another disk, and notes that.
func (d *Disk) SnapshotOf(ctx context.Context, name string, of layout.Copied) error {
	if err := CheckSnapshotName(name); err != nil {
		return err
	}
	return d.edit(ctx, func(c *checkpoint) error {
		if findPin(c.root.Pins, name) != nil {
			return fmt.Errorf("snapshot %s: %w", name, ErrSnapshotThere)
		}
		if len(c.root.Pins) >= maxSnapshots {
			return fmt.Errorf("snapshot %s: the disk has %d snapshots, which is as many as it can have", name, len(c.root.Pins))
		}
		pin := layout.Pin{Name: name, Root: c.at, At: c.root.At, Made: time.Now(), Size: c.root.Size, Of: of}
		if d.collected > 0 {
			pin.Collected = layout.FirstCollected + d.collected - 1
		}
		pin.Bytes = d.objects.live() * layout.BlockSize
		c.root.Pins = append(slices.Clip(c.root.Pins), pin)
		return nil
	})
}

// DeleteSnapshot gives a snapshot up. What only it needs is deleted when the
// collector comes to it. One that has clones is refused with a *ChildrenError,
// unless force.
func (d *Disk) DeleteSnapshot(ctx context.Context, name string, force bool) error {
	root, err := d.announce(ctx, name, force)
	if err != nil {
		return err
	}
	err = d.edit(ctx, func(c *checkpoint) error {
		pin := findPin(c.root.Pins, name)
		if pin == nil {
			return fmt.Errorf("snapshot %s: %w", name, ErrNoSnapshot)
		}
		c.root.Pins = slices.DeleteFunc(slices.Clone(c.root.Pins), func(p layout.Pin) bool { return p.Name == name })
		return nil
	})
	if err != nil {
		// The root without it may be in Swift, or be sent later. So the note that it
		// goes stays for as long as this session.
		return err
	}
	d.announced(root)
	return nil
}

// edit makes a checkpoint of the disk as it is now, with a change of its root.
// change is called with d.mu held, and its error ends it.
func (d *Disk) edit(ctx context.Context, change func(c *checkpoint) error) error {
	if d.o.Epoch == 0 {
		return ErrReadOnly
	}
	return d.saveWith(ctx, change)
}

func findPin(pins []layout.Pin, name string) *layout.Pin {
	i := slices.IndexFunc(pins, func(p layout.Pin) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &pins[i]
}

// Snapshot is what is known of a snapshot.
type Snapshot struct {
	Name  string
	Made  time.Time
	Size  int64 // bytes of the disk
	Bytes int64 // of it that have data
	// Only is how many bytes of objects are in Swift for this snapshot alone, as
	// far as is known: objects that it shares with the disk or with another
	// snapshot do not count.
	Only int64

	Root layout.Position // the name of its root, as layout.RootName takes it
	Of   layout.Copied   // what it is a copy of; zero: of nothing
}

// Copies returns the snapshots of an open disk, the oldest first, without what
// only they need. written says of each whether the log has gone on since it was
// made: then a client may have changed the disk.
func (d *Disk) Copies() (list []Snapshot, written []bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, p := range d.root.Pins {
		list = append(list, Snapshot{Name: p.Name, Made: p.Made, Size: p.Size, Bytes: p.Bytes, Root: p.Root, Of: p.Of})
		at := d.at
		if d.next > 1 {
			at = layout.Position{Epoch: d.o.Epoch, N: d.next - 1}
		}
		written = append(written, d.open != nil || at != p.At)
	}
	return list, written
}

// RootSize reads what size the newest root says that the disk has, bytes. The disk
// may be in use.
func RootSize(ctx context.Context, o Options) (int64, error) {
	o.Epoch = 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	_, root, err := d.readNewest(ctx)
	return root.Size, err
}

// Snapshots reads the disk's snapshots, the oldest first. The disk may be in use.
func Snapshots(ctx context.Context, o Options) ([]Snapshot, error) {
	o.Epoch = 0
	d := newDisk(o)
	defer d.cancel(ErrClosed)
	_, root, err := d.readNewest(ctx)
	if err != nil {
		return nil, err
	}
	kept, err := d.readKept(ctx, root)
	if err != nil {
		return nil, err
	}
	list := make([]Snapshot, len(root.Pins))
	for i, p := range root.Pins {
		list[i] = Snapshot{Name: p.Name, Made: p.Made, Size: p.Size, Bytes: p.Bytes, Root: p.Root, Of: p.Of}
	}
	for _, k := range kept.Objects {
		// Which pins need it: those from the first that knows it to Last.
		first := sort.Search(len(list), func(i int) bool { return root.Pins[i].HasObject(k.At) })
		if first < len(list) && (first+1 == len(list) || k.Last.Less(root.Pins[first+1].Root)) {
			list[first].Only += k.Size
		}
	}
	return list, nil
}
