// SPDX-License-Identifier: MIT

// Package device is one open volume: the lock that it holds, its cache, and
// the requests of all its clients. It knows nothing of nbdkit: its face is
// ReadAt, WriteAt, Size, Sync and the rest, so any server may serve it.
//
// Open reads the container's metadata, takes the lock and starts the cache.
// Close turns new requests away, waits for those under way, writes back what
// is dirty and gives the lock back, in this order.
package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// DefaultCache is the cache's size in bytes unless the user gives one, as
// swiftnbd 0.11's was. Where objects are large it is what defaultObjects of
// them take, but no more than MaxDefaultCache: with less, too few of them would
// be on their way at once.
const (
	DefaultCache    = 64 << 20
	MaxDefaultCache = 256 << 20
	defaultObjects  = 32
)

// Options say how a volume is opened.
type Options struct {
	// Store is the volume's container, with retries and limits in place.
	Store store.Store
	// Holder names this process in the lock mark (lease.Holder).
	Holder string
	// Lease is how the volume is taken; Store, Holder and Log are filled in
	// here. Without a Term there is only the mark. Store must ask its Fence,
	// a new one for each device.
	Lease lease.Options
	// ReadOnly opens the volume without a lock, beside whoever writes it.
	ReadOnly bool
	// WriteThrough writes every request to Swift before it is answered.
	WriteThrough bool
	// Cache is the cache's size, bytes; 0 is CacheSize's choice.
	Cache int64
	// Connections is how many uploads may be under way at once.
	Connections int
	// Readahead bounds reading ahead of a sequential reader, bytes; 0 is
	// the cache's choice, negative is none.
	Readahead int64
	// Age is how long data may be dirty before it is written back; 0 is
	// the cache's choice.
	Age time.Duration
	// Timeout is how long Swift may fail before a client sees it.
	Timeout time.Duration
	// Log takes one line for the operator.
	Log func(format string, args ...any)
}

// CacheSize returns the cache's size for objects of objectSize bytes: asked
// for, or where that is 0 DefaultCache, or more where objects are large. It
// ends with an error where less was asked for than works.
func CacheSize(asked, objectSize int64) (int64, error) {
	least := cache.MinSize(objectSize)
	if asked == 0 {
		return max(DefaultCache, min(defaultObjects*objectSize, MaxDefaultCache), 2*least), nil
	}
	if asked < least {
		return 0, fmt.Errorf("cache=%d is too small for objects of %d bytes: at least %d", asked, objectSize, least)
	}
	return asked, nil
}

// Device is an open volume. Its methods may be called by many goroutines at
// once.
type Device struct {
	opts Options
	geo  geometry.Geometry
	vol  *volume.Volume
	held *lease.Held // nil when read-only

	// fence says whether the volume is ours still; nil when read-only.
	fence *store.Fence

	cache *cache.Cache
	ctx   context.Context // of every request: the cache's own

	gate    sync.RWMutex // held for reading by each request, for writing by Close
	closing bool         // guarded by gate
}

// Errors of requests; anything else is a failure of Swift.
var (
	ErrReadOnly   = errors.New("read-only")
	ErrOutOfRange = errors.New("beyond the end of the disk")
	ErrClosed     = errors.New("the disk is being closed")
	ErrSlow       = errors.New("no faster than writing zeroes")
)

// Open opens the volume. Errors are volume.Read's, a *lease.LockedError, or a
// wrong cache size; nothing is left behind then.
func Open(ctx context.Context, o Options) (*Device, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	d := &Device{opts: o}
	look := ctx
	if !o.ReadOnly {
		look = store.WithHint(ctx) // for the sizes: take reads it again
	}
	meta, err := volume.Read(look, o.Store)
	if err != nil {
		return nil, err
	}
	size, err := CacheSize(o.Cache, meta.Geometry.ObjectSize())
	if err != nil {
		return nil, err
	}
	if o.ReadOnly {
		if err := lease.Locked(meta.Client); err != nil {
			o.Log("reading a volume that somebody else may be writing: %v", err)
		}
	} else {
		if d.held, meta, err = take(ctx, o); err != nil {
			return nil, err
		}
		d.fence = d.held.Fence()
	}
	d.geo = meta.Geometry
	var warning error
	if d.vol, warning = volume.Open(ctx, o.Store, meta, o.ReadOnly); warning != nil {
		o.Log("going on without the map of the last session: %v", warning)
	}
	d.vol.Gather(o.Connections)
	d.cache, err = cache.New(backend{d.vol}, d.geo, cache.Options{
		Size:        size,
		Connections: o.Connections,
		Queued:      volume.Gathered,
		Readahead:   o.Readahead,
		Age:         o.Age,
		Patience:    o.Timeout,
		Log:         o.Log,
	})
	if err != nil {
		if d.held != nil {
			err = errors.Join(err, d.held.ReleaseUnchanged(ctx))
		}
		return nil, err
	}
	d.ctx = d.cache.Context()
	return d, nil
}

// take takes the volume.
func take(ctx context.Context, o Options) (*lease.Held, volume.Meta, error) {
	l := o.Lease
	if l.Sibling == nil {
		return lease.Mark(ctx, o.Store, o.Holder)
	}
	l.Store, l.Holder, l.Log = o.Store, o.Holder, o.Log
	return lease.Acquire(ctx, l)
}

// Lost returns why the volume is not ours any more, for good; nil while it is.
func (d *Device) Lost() error {
	if d.fence == nil {
		return nil
	}
	return d.fence.Lost()
}

// ours is called at the end of every request, and ends with an error unless the
// volume is ours: then what was read may be old, and what was written will
// never be kept. While the lease has lapsed and may come back it waits for as
// long as a failure of Swift is not to be seen.
func (d *Device) ours() error {
	if d.fence == nil {
		return nil
	}
	return d.fence.Wait(d.ctx, max(d.opts.Timeout, time.Second))
}

// Size returns the disk's size, bytes.
func (d *Device) Size() int64 { return d.geo.Size() }

// Geometry returns the disk's shape.
func (d *Device) Geometry() geometry.Geometry { return d.geo }

// ReadOnly says whether the disk refuses to be written.
func (d *Device) ReadOnly() bool { return d.opts.ReadOnly }

// Open says whether the device takes requests still.
func (d *Device) Open() bool {
	d.gate.RLock()
	defer d.gate.RUnlock()
	return !d.closing
}

// Cache returns the device's cache, for its counters.
func (d *Device) Cache() *cache.Cache { return d.cache }

// backend makes the volume what the cache needs. A write is done by nobody who
// waits, or by a flush, which is many; a read has somebody waiting.
type backend struct{ *volume.Volume }

func (b backend) Hole(i geometry.ChunkIndex) bool { return b.Knowledge(i) == volume.Hole }

func (b backend) Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	return b.Volume.Write(store.WithClass(ctx, store.Background), i, p)
}

func (b backend) Delete(ctx context.Context, i geometry.ChunkIndex) error {
	return b.Volume.Delete(store.WithClass(ctx, store.Background), i)
}
