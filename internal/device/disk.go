// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Disk is an open volume of one version of the format, together with what of it
// is in memory. It is the door between the device and the versions: the device
// has the lease, and lets requests in and turns them away; what a write is, and
// when it is durable, is the version's own matter. Version 1 keeps dirty chunks
// in the cache, completes each, and uploads it as one object. Version 2 keeps
// what is dirty in the tail of its log, and uses the cache for reading only.
//
// Its methods may be called by many goroutines at once. Ranges lie on the disk.
// Requests end with ctx, and with Context.
type Disk interface {
	// Read fills p with the bytes from off.
	Read(ctx context.Context, p []byte, off int64) error
	// Write writes p at off: it is durable after the next Flush.
	Write(ctx context.Context, p []byte, off int64) error
	// Zero makes the range read as zeroes.
	Zero(ctx context.Context, off, n int64) error
	// FastZero says whether Zero would be quicker than writing zeroes.
	FastZero(off, n int64) bool
	// Trim says that the range is not needed any more: as much of it as costs
	// little is made to read as zeroes.
	Trim(ctx context.Context, off, n int64) error
	// Extents tells, in order, what parts of the range are data or holes, until
	// emit returns false. A hole reads as zeroes.
	Extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) error
	// Prefetch brings the range into memory. Advise begins to, and does not
	// wait; it may do nothing.
	Prefetch(ctx context.Context, off, n int64) error
	Advise(off, n int64)

	// Flush returns when every change that was completed before it is durable,
	// or with the error of one that could not be made so now. It is tried again
	// in the background then, and is the next Flush's too. FlushRange does so
	// for the changes of a range, at least.
	Flush(ctx context.Context) error
	FlushRange(ctx context.Context, off, n int64) error
	// Drain is Flush for the end: it goes on after an error for as long as
	// anything succeeds.
	Drain(ctx context.Context) error
	// Dirty returns how many bytes are not durable, and in how many chunks, or
	// what the version has in their place.
	Dirty() (bytes int64, chunks int)
	// Unit says what Dirty counts besides bytes: "chunk" or "object".
	Unit() string

	// Size returns the disk's size, bytes. It may grow.
	Size() int64
	// Preferred returns the size of requests that cost least, bytes: the best
	// alignment of them, too.
	Preferred() int64
	// Stats returns what has been counted. It may be called after Close.
	Stats() Stats

	// Context is done when the disk is closed, or fails for good; its cause says
	// why.
	Context() context.Context
	// Save writes, after a Drain and with no request under way, what makes the
	// next start quick, and returns how to give the volume back. After an error
	// it is given back all the same: nothing is missing then but speed.
	Save(ctx context.Context) (Ending, error)
	// Close ends the disk. What is not durable is lost. No request may be under
	// way, and none may come.
	Close()
}

// Ending is how a session leaves its volume.
type Ending struct {
	// Unchanged says that the container's metadata are to be as they were before
	// the session, who held it last included. The rest is of no account then.
	Unchanged bool
	// Items are set in the container's metadata in the same request that gives
	// the volume back.
	Items map[string]string
	// Tidy, when not nil, deletes what nobody needs any more after that. s is
	// the container, and asks no fence. What stays is garbage.
	Tidy func(ctx context.Context, s store.Store)
}

// Stats is what a disk has counted, and what it has in memory. Chunks are
// objects, or what the version has in their place.
type Stats struct {
	Hits     int64 // pieces of reads answered from memory
	Misses   int64 // pieces of reads that had to wait for Swift
	Fetches  int64 // reads of Swift, readahead and filling included
	Fills    int64 // of them: the rest of a chunk that was to be uploaded
	Ahead    int64 // of them: readahead
	Uploads  int64 // chunks written to Swift
	Deletes  int64 // chunks deleted there
	Failures int64 // uploads that failed and are tried again
	Evicted  int64 // clean chunks that made room
	Flushes  int64

	Used      int64         // bytes in memory, clean, dirty and in flight
	Dirty     int64         // of them, bytes that Swift lacks
	FlushTime time.Duration // how long a flush would take now, as far as is known
	DirtyAge  time.Duration // for how long the oldest dirty byte has waited; 0: there is none

	// The rest is version 2's; Logged says that it is valid.
	Logged      bool
	Objects     int64 // data objects that the map needs
	Stored      int64 // bytes of data objects in Swift, garbage included
	Live        int64 // bytes of the disk that have data
	Garbage     int64 // of Stored: what nothing needs
	Log         int64 // data objects after the newest root
	ByClients   int64 // bytes written to Swift: of clients' objects
	ByCollector int64 // of the collector's
	ByMap       int64 // of runs and roots

	CompressFrom int64 // bytes of blocks that were compressed, as frames
	CompressTo   int64 // and what they became
}

// age returns how long ago t was; zero for the zero time.
func age(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(time.Since(t), 1)
}

// ErrNoCompression says that the volume is of version 1.
var ErrNoCompression = errors.New("a disk of version 1 of the format cannot be compressed")

// format opens volumes of one version. A value is good for one.
type format interface {
	// prepare is called before the lease is taken, with meta as a hint may have
	// them. It ends with what can be told to be wrong by then, and may set what
	// the version wants of the lease.
	prepare(ctx context.Context, meta volume.Meta, l *lease.Options) error
	// open opens the volume that meta describes. held is nil where it is for
	// reading only; after an error the caller gives it back.
	open(ctx context.Context, held *lease.Held, meta volume.Meta) (Disk, error)
}

// formatOf returns what opens the volume that meta describes.
func formatOf(o Options, meta volume.Meta) (format, error) {
	if meta.Version == volume.Version2 {
		return &loggedFormat{o: o}, nil
	}
	if err := meta.Need(volume.Version1); err != nil {
		return nil, err
	}
	if o.Snapshot != "" {
		return nil, ErrNoSnapshots
	}
	if o.Follow > 0 {
		return nil, ErrNoFollow
	}
	if o.Compress {
		return nil, ErrNoCompression
	}
	return &chunkedFormat{o: o}, nil
}

// openDisk opens the volume, and takes the lease unless it is for reading only.
// After an error nothing is left behind.
func openDisk(ctx context.Context, o Options) (disk Disk, held *lease.Held, meta volume.Meta, err error) {
	read := volume.Read
	if !o.ReadOnly {
		read = volume.ReadHint // to know the version: it is read again under the lease
	}
	if meta, err = read(ctx, o.Store); err != nil {
		return nil, nil, meta, err
	}
	version := meta.Version
	f, err := formatOf(o, meta)
	if err != nil {
		return nil, nil, meta, err
	}
	if err = f.prepare(ctx, meta, &o.Lease); err != nil {
		return nil, nil, meta, err
	}
	if !o.ReadOnly {
		if held, meta, err = take(ctx, o); err != nil {
			return nil, nil, meta, err
		}
	}
	if err = meta.Need(version); err == nil { // it may have been set up anew
		disk, err = f.open(ctx, held, meta)
	}
	if err != nil {
		if held != nil {
			// Also when ctx has ended: nobody is to wait for the lease's end.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
			defer cancel()
			err = errors.Join(err, held.ReleaseUnchanged(ctx))
		}
		return nil, nil, meta, err
	}
	return disk, held, meta, nil
}
