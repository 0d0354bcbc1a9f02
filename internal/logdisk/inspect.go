// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// KeyDurable, in the lease's container, is the position up to which its holder
// had the log in Swift at the last renewal.
const KeyDurable = "Swiftnbd-Lease-Durable"

// DurableIn returns what the items that a lease keeps (lease.Kept) say to have
// been durable; zero: nothing.
func DurableIn(kept map[string][]string) (durable layout.Position) {
	for _, v := range kept[KeyDurable] {
		var at layout.Position
		if at.UnmarshalText([]byte(v)) == nil && durable.Less(at) {
			durable = at
		}
	}
	return durable
}

// Fetch fills p, which is whole blocks, with the blocks from number first on. It
// goes past the cache: it is for who reads the whole disk once. hole says that
// none of them has data.
func (d *Disk) Fetch(ctx context.Context, first uint64, p []byte) (hole bool, err error) {
	return d.read(ctx, first, p)
}

// Hole says whether none of count blocks from number first on has data.
func (d *Disk) Hole(first, count int64) bool { return d.holes(first, count) }

// Moment says in words without blanks which disk this is, and at which moment it
// was opened: the root, and the end of the log that was read after it. What has
// both in common is the same, byte for byte, since no name of a root or of a data
// object is ever used twice. It is for a disk that was opened for reading only.
func (d *Disk) Moment() (disk, at string) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.o.UUID.String(), d.rootAt.String() + "/" + d.at.String()
}

// Inspection is what Inspect has found out about a disk.
type Inspection struct {
	Root    string       // the newest root without its prefix; empty: none was found
	Made    time.Time    // when it was written
	Size    int64        // bytes of the disk
	Runs    Objects      // that the root names
	Log     Objects      // data objects after the root, as far as a listing shows them
	Base    *BaseInfo    // what it is a clone of; nil: of nothing
	Chunks  *layout.Disk // the disk of version 1 that lies below it; nil: none does
	Trouble error        // why it cannot be opened, as far as was looked; nil: it can

	// Full says that the map was read. The rest is empty otherwise.
	Full bool
	Data Objects // all data objects, as far as a listing shows them
	Live int64   // bytes of the disk that have data
	// Compressed says that some of the data objects have compressed records.
	Compressed bool
	Used       int64 // bytes of the data objects that these have, about where they are compressed
}

// Ratio returns how many bytes of objects the live data takes for each byte of
// frames, percent; 100: nothing is compressed.
func (i *Inspection) Ratio() float64 {
	if i.Live == 0 {
		return 100
	}
	return 100 * float64(i.Used) / float64(i.Live/layout.BlockSize*layout.FrameSize)
}

// Use returns how much of the log's bytes is in use, percent.
func (i *Inspection) Use() float64 {
	if i.Data.Bytes == 0 {
		return 100
	}
	return 100 * float64(i.Used) / float64(i.Data.Bytes)
}

// Garbage returns how many bytes of the data objects have no live block.
func (i *Inspection) Garbage() int64 {
	return max(0, i.Data.Bytes-i.Used)
}

const (
	// smallMap is how large the map is that Inspect reads unasked, bytes of runs,
	// smallLog how long the log after it, objects, and smallDisk how many data
	// objects are counted unasked.
	smallMap  = 4 << 20
	smallLog  = 64
	smallDisk = 10_000
)

// Inspect looks at a disk, which may be in use, and changes nothing. It makes a
// dozen requests, and reads the map and the log, as opening does, only of a small
// disk or if full. objects is
// how many the container has, about. What is wrong with the disk is in the
// inspection; the errors are those of requests.
func Inspect(ctx context.Context, o Options, objects int64, full bool) (*Inspection, error) {
	o.Epoch = 0
	var i *Inspection
	err := whileGone(func() error {
		d := newDisk(o)
		defer d.cancel(ErrClosed)
		i = &Inspection{}
		return d.inspect(ctx, i, objects, full)
	})
	if content(err) || errors.Is(err, errNoRoot) || unsupported(err) {
		i.Trouble, err = err, nil
	}
	return i, err
}

func unsupported(err error) bool {
	var u *layout.UnsupportedError
	return errors.As(err, &u)
}

func (d *Disk) inspect(ctx context.Context, i *Inspection, objects int64, full bool) error {
	at, err := d.findRoot(ctx)
	if err != nil {
		return err
	}
	i.Root = layout.RootText(at)
	root, err := d.readRoot(ctx, at)
	if err != nil {
		return err
	}
	info, err := d.store.Head(ctx, layout.RootName(at))
	if err != nil {
		return err
	}
	d.setRoot(at, root)
	if err := d.setBase(root); err != nil {
		return err
	}
	i.Base = d.baseInfo()
	if root.Below != nil {
		i.Chunks = root.Below.Disk
	}
	i.Made, i.Size = info.LastModified, root.Size
	sizes, err := d.sizes(ctx, layout.RunPrefix)
	if err != nil {
		return err
	}
	for _, run := range root.Runs.Blocks {
		i.Runs.add(sizes[layout.RunName(run)])
	}
	from := layout.Position{Epoch: at.Epoch, N: 1}
	if root.At.Epoch == at.Epoch {
		from.N = root.At.N + 1
	}
	log, _, err := d.listLog(ctx, from)
	if err != nil {
		return err
	}
	for _, size := range log {
		i.Log.add(size)
	}
	if !full && (i.Runs.Bytes > smallMap || i.Log.Count > smallLog || objects > smallDisk) {
		return nil
	}
	if err := d.openMap(ctx); err != nil {
		return err
	}
	tail, whole, err := d.readWholeLog(ctx, from)
	if err != nil {
		return err
	}
	d.replay(from, tail.objects, whole)
	i.Full, i.Size = true, d.size.Load()
	use := d.Use()
	i.Live, i.Used = use.Live, use.Used
	for _, o := range d.objects.all() {
		if o.density != 0 {
			i.Compressed = true
			break
		}
	}
	if sizes, err = d.sizes(ctx, layout.LogPrefix); err != nil {
		return err
	}
	for _, size := range sizes {
		i.Data.add(size)
	}
	return nil
}

// sizes returns the sizes of the listed objects with the prefix.
func (d *Disk) sizes(ctx context.Context, prefix string) (map[string]int64, error) {
	sizes := make(map[string]int64)
	for page, err := range store.Pages(ctx, d.store, store.ListOptions{Prefix: prefix}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, o := range page {
			sizes[o.Name] = o.Size
		}
	}
	return sizes, nil
}
