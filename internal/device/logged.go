// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"

	"swiftnbd/internal/control"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

// loggedFormat opens volumes of version 2.
type loggedFormat struct {
	o    Options
	size int64 // of the cache
	disk atomic.Pointer[logdisk.Disk]

	control control.Server
}

func (f *loggedFormat) prepare(_ context.Context, meta volume.Meta, l *lease.Options) (err error) {
	if f.size, err = CacheFor(f.o.Cache, meta); err != nil {
		return err
	}
	if root, ok := layout.ParseRootText(meta.Root); ok {
		l.After = int64(root.Epoch)
	}
	l.Seen = f.control.Seen
	l.Extra = func() map[string]string {
		d := f.disk.Load()
		if d == nil {
			return nil
		}
		return map[string]string{logdisk.KeyDurable: d.Durable().String()}
	}
	return nil
}

func (f *loggedFormat) open(ctx context.Context, held *lease.Held, meta volume.Meta) (Disk, error) {
	o := &f.o
	lo := logdisk.Options{
		Store: o.Store, UUID: meta.UUID, Root: meta.Root,
		Cache: f.size, Connections: o.Connections, Readahead: o.Readahead,
		Age: o.Age, FlushTime: o.FlushTime, Timeout: o.Timeout, GC: gc(o.GC), Log: o.Log, Compress: o.Compress,
		Snapshot: o.Snapshot, Rewind: o.Rewind, Brief: o.Brief, Bases: o.Bases,
	}
	if held == nil {
		if err := lease.Locked(meta.Client); err != nil && o.Snapshot == "" {
			o.Log("reading a volume that somebody else may be writing: %v", err)
		}
		var err error
		if err = f.newest(ctx, &lo); err != nil {
			return nil, err
		}
	} else {
		epoch := held.Epoch()
		if epoch < 1 || epoch > math.MaxUint32 {
			return nil, fmt.Errorf("lease number %d cannot name objects", epoch)
		}
		lo.Epoch = uint32(epoch)
		lo.Durable = logdisk.DurableIn(held.Former())
	}
	d, err := logdisk.Open(ctx, lo)
	if err != nil {
		return nil, err
	}
	f.disk.Store(d)
	if held == nil && o.Follow > 0 && o.Snapshot == "" {
		return newFollowed(&loggedDisk{d, &f.control}, *o, func(ctx context.Context, cur *logdisk.Disk) (*loggedDisk, error) {
			lo := lo
			if err := f.newest(ctx, &lo); err != nil {
				return nil, err
			}
			d, err := logdisk.OpenNewer(ctx, lo, cur)
			if d == nil || err != nil {
				return nil, err
			}
			return &loggedDisk{d, &f.control}, nil
		}), nil
	}
	return &loggedDisk{d, &f.control}, nil
}

// newest sets what the newest lease says: its number, and what is durable at least.
func (f *loggedFormat) newest(ctx context.Context, lo *logdisk.Options) error {
	l := f.o.Lease
	l.Store = f.o.Store
	state, err := lease.Inspect(ctx, l)
	lo.Newest = uint32(min(state.Epoch, math.MaxUint32))
	lo.Durable = logdisk.DurableIn(state.Kept)
	return err
}

// DefaultGC is Options.GC unless it is given, percent.
const DefaultGC = 70

// gc returns the option for logdisk, where 0 is never.
func gc(percent int) int {
	switch {
	case percent == 0:
		return DefaultGC
	case percent < 0:
		return 0
	}
	return percent
}

// loggedDisk is a volume of version 2.
type loggedDisk struct {
	*logdisk.Disk
	control *control.Server
}

// Control returns what sees the requests of swiftnbd-ctl.
func (d *loggedDisk) Control() *control.Server { return d.control }

// FlushRange flushes everything: what is durable is always all up to one moment.
func (d *loggedDisk) FlushRange(ctx context.Context, _, _ int64) error { return d.Flush(ctx) }

// Unit returns what holds the changes that are not durable.
func (d *loggedDisk) Unit() string { return "object" }

// Preferred returns the block's size: smaller requests read the rest of their
// block first.
func (d *loggedDisk) Preferred() int64 { return layout.BlockSize }

func (d *loggedDisk) Save(ctx context.Context) (Ending, error) {
	d.Rest()
	err := d.Disk.Save(ctx)
	return Ending{Items: volume.RootItems(d.UUID(), d.RootName(), d.Size())}, err
}

// Stats returns the counters of the log and of its cache.
func (d *loggedDisk) Stats() Stats {
	s, l := d.Cache().Stats(), d.Disk.Stats()
	dirty, _ := d.Dirty()
	use := d.Use()
	stored := use.Bytes + use.Garbage
	return Stats{
		Hits: s.Hits.Load(), Misses: s.Misses.Load(), Fetches: l.Gets.Load(), Ahead: s.Ahead.Load(),
		Uploads: l.Uploads.Load(), Deletes: l.Deleted.Load(), Failures: l.Failures.Load(), Evicted: s.Evicted.Load(), Flushes: l.Flushes.Load(),
		Used: d.Cache().Used() - d.Borrowed() + dirty, Dirty: dirty, FlushTime: d.FlushTime(),
		Logged: true, Objects: use.Objects, Stored: stored, Live: use.Live,
		Garbage: max(0, stored-use.Used), Log: use.Log,
		ByClients: l.Bytes.Load(), ByCollector: l.CollectedBytes.Load(), ByMap: l.SaveBytes.Load(),
		CompressFrom: l.CompressFrom.Load(), CompressTo: l.CompressTo.Load(), DirtyAge: age(d.OldestDirty()),
	}
}
