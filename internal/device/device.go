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
	meta, err := volume.Read(ctx, o.Store)
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
	d.cache, err = cache.New(backend{d.vol}, d.geo, cache.Options{
		Size:        size,
		Connections: o.Connections,
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

// enter lets a request in, unless the device is being closed. The caller calls
// d.gate.RUnlock after it.
func (d *Device) enter(off, n int64, write bool) error {
	if !d.geo.Contains(off, n) {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, d.geo.Size(), ErrOutOfRange)
	}
	if write && d.opts.ReadOnly {
		return ErrReadOnly
	}
	d.gate.RLock()
	err := ErrClosed
	if !d.closing {
		err = d.Lost()
	}
	if err != nil {
		d.gate.RUnlock()
	}
	return err
}

// ReadAt fills p from off. It reads all or fails; n is len(p) or 0.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	if err := d.enter(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Read(d.ctx, p, off); err != nil {
		return 0, err
	}
	if err := d.ours(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt writes p at off. The bytes are in Swift after the next Sync, or when
// it returns with Options.WriteThrough.
func (d *Device) WriteAt(p []byte, off int64) (n int, err error) {
	if err := d.WriteFUA(p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteFUA is WriteAt; with fua the bytes are in Swift when it returns.
func (d *Device) WriteFUA(p []byte, off int64, fua bool) error {
	if err := d.enter(off, int64(len(p)), true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Write(d.ctx, p, off); err != nil {
		return err
	}
	return d.settle(off, int64(len(p)), fua)
}

// settle is called after a change: what must be in Swift now is written.
func (d *Device) settle(off, n int64, fua bool) error {
	if fua || d.opts.WriteThrough {
		if err := d.cache.FlushRange(d.ctx, off, n); err != nil {
			return err
		}
	}
	return d.ours()
}

// Sync returns when every change that was completed before it, by any client,
// is in Swift.
func (d *Device) Sync() error {
	if err := d.enter(0, 0, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Flush(d.ctx); err != nil {
		return err
	}
	return d.ours()
}

// Zero makes the range read as zeroes. With fast it ends with ErrSlow where
// that takes as long as writing zeroes.
func (d *Device) Zero(off, n int64, fua, fast bool) error {
	if err := d.enter(off, n, true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if fast && !d.cache.FastZero(off, n) {
		return ErrSlow
	}
	if err := d.cache.Zero(d.ctx, off, n); err != nil {
		return err
	}
	return d.settle(off, n, fua)
}

// Trim tells that the range is not needed any more.
func (d *Device) Trim(off, n int64, fua bool) error {
	if err := d.enter(off, n, true); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Trim(d.ctx, off, n); err != nil {
		return err
	}
	return d.settle(off, n, fua)
}

// Extents is cache.Extents.
func (d *Device) Extents(off, n int64, emit func(off, n int64, hole bool) bool) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	if err := d.cache.Extents(d.ctx, off, n, emit); err != nil {
		return err
	}
	return d.ours()
}

// Advise begins to bring the range into the cache, and does not wait for it.
func (d *Device) Advise(off, n int64) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	d.cache.Advise(off, n)
	return nil
}

// Prefetch brings the range into the cache.
func (d *Device) Prefetch(off, n int64) error {
	if err := d.enter(off, n, false); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	return d.cache.Prefetch(d.ctx, off, n)
}

// DrainError is dirty data that could not be written.
type DrainError struct {
	Bytes  int64
	Chunks int
	Err    error
}

func (e *DrainError) Error() string {
	return fmt.Sprintf("%d bytes in %d chunks could not be written: %v", e.Bytes, e.Chunks, e.Err)
}
func (e *DrainError) Unwrap() error { return e.Err }

// LostError is a device that has ended without its volume: somebody else has
// it. What was dirty then is lost.
type LostError struct {
	Bytes  int64
	Chunks int
	Err    error
}

func (e *LostError) Error() string {
	if e.Chunks == 0 {
		return fmt.Sprintf("%v; nothing was left to be written", e.Err)
	}
	return fmt.Sprintf("%v; %d bytes in %d chunks were not written and are lost", e.Err, e.Bytes, e.Chunks)
}
func (e *LostError) Unwrap() error { return e.Err }

// Close ends the device: it turns requests away, writes back what is dirty and
// gives the lock back. With a *DrainError nothing has ended: the device goes
// on, with its data and its lock, and Close may be called again. A *LostError
// says that the volume is somebody else's; the device has ended then. Calling
// it after it has ended does nothing.
func (d *Device) Close() error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closing {
		return nil
	}
	var err error
	if d.Lost() == nil {
		err = d.cache.Flush(d.ctx)
	}
	if lost := d.Lost(); lost != nil {
		bytes, chunks := d.cache.Dirty()
		d.end()
		return &LostError{bytes, chunks, lost}
	}
	if err != nil {
		bytes, chunks := d.cache.Dirty()
		return &DrainError{bytes, chunks, err}
	}
	if d.held != nil {
		err = d.release()
	}
	d.end()
	return err
}

// release gives the lock back, with a map of the chunks where there is
// something new to say in one. Each step has its own time: a map that takes too
// long must not cost the lock's release.
func (d *Device) release() error {
	within := func(do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), max(d.opts.Timeout, time.Second))
		defer cancel()
		return do(ctx)
	}
	if !d.vol.Changed() && d.vol.Mapped() {
		return within(d.held.ReleaseUnchanged)
	}
	var obsolete []string
	err := within(func(ctx context.Context) (err error) {
		obsolete, err = d.vol.SaveMap(ctx, d.held.Mark())
		return err
	})
	if err != nil {
		d.opts.Log("the next start will be slower: %v", err)
		return within(d.held.Release)
	}
	if err := within(d.held.ReleaseMapped); err != nil {
		return err
	}
	s := d.opts.Store
	if d.opts.Lease.Sibling != nil {
		s = d.opts.Lease.Sibling(d.opts.Lease.Name)
	}
	return within(func(ctx context.Context) error {
		volume.Forget(ctx, s, obsolete)
		return nil
	})
}

// Abandon ends the device as it is: what is dirty is lost, and the lock stays,
// so that nobody takes the volume unaware.
func (d *Device) Abandon() {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closing {
		return
	}
	if d.held != nil {
		ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
		defer cancel()
		d.held.Keep(ctx)
	}
	d.end()
}

// keepTimeout bounds the attempt to make an abandoned volume's lease last:
// most often Swift is away then.
const keepTimeout = 5 * time.Second

// end is the last of the device. gate is held for writing.
func (d *Device) end() {
	d.closing = true
	d.cache.Close()
}

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
