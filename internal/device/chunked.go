// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// chunkedFormat opens volumes of version 1.
type chunkedFormat struct {
	o     Options
	size  int64 // of the cache
	watch *versionsWatch
}

func (f *chunkedFormat) prepare(ctx context.Context, meta volume.Meta, l *lease.Options) (err error) {
	if !f.o.ReadOnly && meta.Versions.Stack != "" {
		meta, err = volume.Read(ctx, f.o.Store) // a hint may be old
		if err == nil {
			err = meta.Need(volume.Version1)
		}
		if err == nil {
			err = meta.Versions.Restores(f.o.Lease.Name)
		}
		if err != nil {
			return err
		}
	}
	if f.size, err = CacheSize(f.o.Cache, meta.Geometry.ObjectSize()); err != nil {
		return err
	}
	f.watch = &versionsWatch{log: f.o.Log, name: f.o.Lease.Name}
	l.Seen = f.watch.see
	return nil
}

func (f *chunkedFormat) open(ctx context.Context, held *lease.Held, meta volume.Meta) (Disk, error) {
	o := &f.o
	restores := meta.Versions.Restores(o.Lease.Name)
	switch {
	case held == nil:
		if restores != nil {
			o.Log("warning: the container %v", restores)
		}
		if err := lease.Locked(meta.Client); err != nil {
			o.Log("reading a volume that somebody else may be writing: %v", err)
		}
	case restores != nil:
		return nil, restores
	default:
		if kept := meta.Versions.Kept(); kept != "" {
			o.Log("warning: %s", kept)
		}
	}
	if held == nil {
		o.Store = store.Wrap(o.Store, newStill(o.Store).present)
	}
	vol, warning := chunked.Open(ctx, o.Store, meta, o.ReadOnly)
	if warning != nil {
		o.Log("going on without the map of the last session: %v", warning)
	}
	vol.BatchHashes(o.Connections)
	vol.Warn(o.Log)
	f.watch.watch(vol, meta.Versions)
	c, err := cache.New(backend{vol}, meta.Geometry, cache.Options{
		Size:        f.size,
		Connections: o.Connections,
		Queued:      chunked.BatchQueue,
		Readahead:   o.Readahead,
		Age:         o.Age,
		FlushTime:   o.FlushTime,
		Patience:    o.Timeout,
		Log:         o.Log,
	})
	if err != nil {
		return nil, err
	}
	d := &chunkedDisk{Cache: c, vol: vol}
	if held != nil {
		d.session = held.Mark()
	}
	return d, nil
}

// still makes sure, for a volume that is read without a lease, that what is not found is
// a hole of it. It may have been converted since it was opened, and then its chunks are
// deleted, though not before stillFor has passed many times (logdisk, retire.go). Or it
// was deleted as a whole.
type still struct {
	store store.Store

	mu     sync.Mutex // guards all below
	looked time.Time  // when the volume was of version 1
}

// stillFor is how long a look at the metadata is good for.
const stillFor = time.Minute

func newStill(s store.Store) *still { return &still{store: s, looked: time.Now()} }

// ErrGone says that a volume of version 1 is not there any more as it was opened.
var ErrGone = errors.New("the disk was converted or deleted while it was read: open it again")

// present looks at what was not found.
func (s *still) present(ctx context.Context, op store.Op, call func(context.Context) error) error {
	err := call(ctx)
	if !errors.Is(err, store.ErrNotFound) || op.Kind != store.OpGet && op.Kind != store.OpHead {
		return err
	}
	now := time.Now()
	s.mu.Lock()
	// The machine may have slept, and somebody may have set its clock.
	age, wall := now.Sub(s.looked), now.Round(0).Sub(s.looked.Round(0))
	s.mu.Unlock()
	if age < stillFor && wall < stillFor && wall >= 0 {
		return err
	}
	meta, merr := volume.Read(ctx, s.store)
	if merr == nil {
		merr = meta.Need(volume.Version1)
	}
	switch {
	case merr == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.looked = now
		return err
	case errors.As(merr, new(*volume.VersionError)), errors.Is(merr, store.ErrContainerNotFound), errors.Is(merr, volume.ErrNotSetUp):
		return fmt.Errorf("%w: %w", ErrGone, merr)
	}
	return fmt.Errorf("whether the disk still has what was not found: %w", merr)
}

// chunkedDisk is a volume of version 1: the cache over its chunks, which are its
// objects. The cache has what is dirty, and writes it back by chunk.
type chunkedDisk struct {
	*cache.Cache
	vol     *chunked.Volume
	session string // empty when it is for reading only
}

func (d *chunkedDisk) Size() int64      { return d.vol.Geometry().Size() }
func (d *chunkedDisk) Unit() string     { return "chunk" }
func (d *chunkedDisk) Preferred() int64 { return d.vol.Geometry().ObjectSize() }

// Save writes a map of the chunks, where there is something new to say in one.
func (d *chunkedDisk) Save(ctx context.Context) (Ending, error) {
	if !d.vol.Changed() && d.vol.Mapped() {
		return Ending{Unchanged: true}, nil
	}
	obsolete, err := d.vol.SaveMap(ctx, d.session)
	if err != nil {
		return Ending{}, err
	}
	return Ending{
		Items: map[string]string{volume.KeyMap: d.session},
		Tidy:  func(ctx context.Context, s store.Store) { chunked.Forget(ctx, s, obsolete) },
	}, nil
}

// Stats returns the cache's counters.
func (d *chunkedDisk) Stats() Stats {
	s := d.Cache.Stats()
	return Stats{
		Hits: s.Hits.Load(), Misses: s.Misses.Load(), Fetches: s.Fetches.Load(), Fills: s.Fills.Load(), Ahead: s.Ahead.Load(),
		Uploads: s.Uploads.Load(), Deletes: s.Deletes.Load(), Failures: s.Failures.Load(), Evicted: s.Evicted.Load(), Flushes: s.Flushes.Load(),
		Used: d.Used(), Dirty: d.DirtyMemory(), FlushTime: d.FlushTime(), DirtyAge: age(d.OldestDirty()),
	}
}

// backend makes the volume what the cache needs.
type backend struct{ *chunked.Volume }

func (b backend) Hole(i geometry.ChunkIndex) bool { return b.Knowledge(i) == chunked.Hole }
