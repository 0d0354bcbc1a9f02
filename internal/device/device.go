// SPDX-License-Identifier: MIT

// Package device is one open volume: its lease, its disk, and the requests of
// all its clients. It knows nothing of nbdkit. Its methods are ReadAt, WriteAt,
// Size, Sync and so on, and any server may use them.
//
// Open reads the container's metadata, takes the lease (for writing) and opens
// the disk, as its version of the format has it (Disk).
//
// Close turns new requests away, ends those that wait, writes back what is dirty
// and gives the lease back, in this order.
package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/control"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// DefaultCache is the cache's default size in bytes, the same as swiftnbd
// 0.11's. If objects are large, the default is the size of defaultObjects of
// them, but no more than MaxDefaultCache. With less, too few objects could be
// on their way at once.
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
	// Lease says how the volume is taken. Open fills in its Store, Holder and
	// Log. Without a Term there is only the mark. Store must ask Lease's Fence.
	// Each device needs a new Fence.
	Lease lease.Options
	// ReadOnly opens the volume without a lock. Another process may write to
	// it.
	ReadOnly bool
	// Snapshot is the snapshot that is served in the place of the disk; empty:
	// none. ReadOnly must be set with it. Version 2's alone.
	Snapshot string
	// Follow has a disk that is read move to newer moments: a request sees none
	// that was left this long before; 0: it stays at the moment at which it was
	// opened. ReadOnly must be set with it. Version 2's alone.
	Follow time.Duration
	// Bases reaches the parent of a disk that is a clone; nil: nothing that the
	// clone has not written can be read. Version 2's alone.
	Bases logdisk.Bases
	// Rewind is for a disk that lacks an object for good: see logdisk.Rewind. Version
	// 2's alone.
	Rewind *logdisk.Rewind
	// Brief says that the disk is opened for one change of what it has, and not
	// to be served: nothing is done in the background.
	Brief bool
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
	// FlushTime is how long a flush may take: dirty data is limited to what
	// Swift takes in this time. 0 is the cache's choice, negative is no bound.
	FlushTime time.Duration
	// GC is how much of a log is live at least, percent, before garbage is
	// collected; 0 is the default, negative is never. Version 2's alone.
	GC int
	// Compress has what is written compressed where that saves bytes. Version 2's
	// alone.
	Compress bool
	// Timeout is how long Swift may fail before a client sees it.
	Timeout time.Duration
	// Log takes one line for the operator.
	Log func(format string, args ...any)
}

// CacheSize returns the cache's size for objects of objectSize bytes. It is
// asked, or if that is 0, DefaultCache or more for large objects. If asked is
// too small to work, CacheSize returns a *CacheSizeError.
func CacheSize(asked, objectSize int64) (int64, error) {
	least := cache.MinSize(objectSize)
	if asked == 0 {
		return max(DefaultCache, min(defaultObjects*objectSize, MaxDefaultCache), 2*least), nil
	}
	if asked < least {
		return 0, &CacheSizeError{asked, objectSize, least, "objects"}
	}
	return asked, nil
}

// CacheFor is CacheSize for the volume that meta describes. Version 2 caches in
// units of its own.
func CacheFor(asked int64, meta volume.Meta) (int64, error) {
	if meta.Version == volume.Version2 {
		size, err := CacheSize(asked, logdisk.ChunkSize)
		var small *CacheSizeError
		if errors.As(err, &small) {
			small.Unit = "chunks"
		}
		return size, err
	}
	return CacheSize(asked, meta.Geometry.ObjectSize())
}

// CacheSizeError says that a cache of Asked bytes is too small for objects of
// ObjectSize bytes. Least is the smallest size that works. Unit is "objects", or
// what the cache has in their place.
type CacheSizeError struct {
	Asked, ObjectSize, Least int64
	Unit                     string
}

func (e *CacheSizeError) Error() string {
	return fmt.Sprintf("cache=%d is too small for %s of %d bytes: at least %d", e.Asked, e.Unit, e.ObjectSize, e.Least)
}

// Device is an open volume. Its methods may be called by many goroutines at
// once.
type Device struct {
	opts Options
	disk Disk
	meta volume.Meta
	held *lease.Held // nil when read-only

	control *control.Server // nil when nobody can ask anything of the disk

	// fence says whether we still hold the volume; nil when read-only.
	fence *store.Fence

	// Close and Abandon hold ending from beginning to end. It guards turnAway.
	// gate is taken after it.
	ending   sync.Mutex
	turnAway context.CancelCauseFunc // ends ctx

	gate    sync.RWMutex // held for reading by each request, for writing by Close
	closing bool         // guarded by gate
	// ctx is the context of every request. It ends with the disk's own
	// context, or with ErrClosed when Close begins. Guarded by gate.
	ctx context.Context
}

// Errors of requests. Any other error is a failure of Swift.
var (
	ErrReadOnly   = errors.New("read-only")
	ErrOutOfRange = errors.New("beyond the end of the disk")
	ErrClosed     = errors.New("the disk is being closed")
	ErrSlow       = errors.New("no faster than writing zeroes")
)

// Open opens the volume. Its errors are volume.Read's, a *volume.VersionError,
// a *lease.LockedError, or a wrong cache size. After an error it leaves nothing
// behind.
func Open(ctx context.Context, o Options) (*Device, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	disk, held, meta, err := openDisk(ctx, o)
	if err != nil {
		return nil, err
	}
	d := &Device{opts: o, disk: disk, held: held, meta: meta}
	if held != nil {
		d.fence = held.Fence()
	}
	d.letIn()
	d.startControl()
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

// Lost returns why we have lost the volume for good, or nil if we have not.
func (d *Device) Lost() error {
	if d.fence == nil {
		return nil
	}
	return d.fence.Lost()
}

// waitForFence is called at the end of every request. It returns an error
// unless we hold the volume: otherwise the bytes that were read may be old, and
// written bytes would never be kept. If the lease has lapsed and may come back,
// waitForFence waits for it as long as clients must not see a failure of Swift.
func (d *Device) waitForFence(ctx context.Context) error {
	if d.fence == nil {
		return nil
	}
	return d.fence.Wait(ctx, max(d.opts.Timeout, time.Second))
}

// Size returns the disk's size, bytes.
func (d *Device) Size() int64 { return d.disk.Size() }

// Preferred returns the size of requests that cost least, bytes.
func (d *Device) Preferred() int64 { return d.disk.Preferred() }

// Meta returns the container's metadata as they were when the device was opened.
func (d *Device) Meta() volume.Meta { return d.meta }

// Session returns the mark of this session, and that of the last one before it
// that may have written to the volume. Both are empty where the volume is open
// for reading only.
func (d *Device) Session() (mark, after string) {
	if d.held == nil {
		return "", ""
	}
	return d.held.Mark(), d.meta.Last
}

// ReadOnly says whether the disk refuses to be written.
func (d *Device) ReadOnly() bool { return d.opts.ReadOnly }

// Open says whether the device still takes requests.
func (d *Device) Open() bool {
	if !d.gate.TryRLock() { // it is being closed, and may go on after that
		return true
	}
	defer d.gate.RUnlock()
	return !d.closing
}

// Stats returns what the disk has counted. It may be called after Close.
func (d *Device) Stats() Stats { return d.disk.Stats() }

// Dirty is Disk.Dirty.
func (d *Device) Dirty() (bytes int64, chunks int) { return d.disk.Dirty() }
