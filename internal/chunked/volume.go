// SPDX-License-Identifier: MIT

// Package chunked keeps a disk in Swift in version 1 of the format: chunk i is
// object i. This is exactly swiftnbd 0.11's format, which docs/FORMAT.md
// describes. The package has the names of the objects, what is known of each
// chunk, and the map that passes this knowledge to the next session.
package chunked

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// Volume is one disk in Swift, chunk by chunk. Its methods may be called by
// many goroutines. But the caller must not have two writes of one chunk (Write,
// Delete) in flight at once: Swift would keep either of them.
type Volume struct {
	store    store.Store
	geo      geometry.Geometry
	readOnly bool

	table   *table
	old     *chunkMap // an earlier session's map, or nil
	initial Knowledge // of chunks that neither of the two knows
	changed atomic.Bool
	hasher  hasher

	warn    func(format string, args ...any) // nil: no warnings
	expires sync.Once                        // for the warning about objects that expire

	restoring  Restoring   // nil: nothing is called
	distrusted atomic.Bool // zeroes are written, and nothing is deleted
	zeroOnce   sync.Once
	zeroETag   store.ETag // valid after zeroOnce

	listing sync.Mutex // guards listed; held while the listing is read
	listed  bitmap     // nil: not read yet
}

// Open returns the volume that meta describes, in s's container. With readOnly
// another process may write to it. A chunk that has changed meanwhile is then
// read again, and not refused. warning, if not nil, says why the map of the
// last session is not used. This costs only speed.
func Open(ctx context.Context, s store.Store, meta volume.Meta, readOnly bool) (v *Volume, warning error) {
	v = &Volume{store: s, geo: meta.Geometry, readOnly: readOnly, table: newTable()}
	if meta.Blank {
		v.initial = Hole
	}
	if meta.Map != "" {
		if v.old, warning = openMap(ctx, s, meta.Map, meta.Geometry); warning == nil {
			v.initial = v.old.index.Default
		}
	}
	return v, warning
}

// Warn sets f, which gets one line about something that an operator should know
// of the objects and that is no error yet. Warn is called before the first
// Read.
func (v *Volume) Warn(f func(format string, args ...any)) { v.warn = f }

// BatchHashes lets concurrent Writes be hashed together, which is quicker. Some
// of them wait while connections PUTs and a few more are under way. It is
// called before the first Write.
func (v *Volume) BatchHashes(connections int) { v.hasher.busyPuts = connections + connections/4 }

// Changed says whether there was an attempt to write or delete a chunk.
func (v *Volume) Changed() bool { return v.changed.Load() }

// Mapped says whether an earlier session's map is in use.
func (v *Volume) Mapped() bool { return v.old != nil }

// know returns what is known of chunk i, with what an earlier session knew.
func (v *Volume) know(ctx context.Context, i geometry.ChunkIndex) (Knowledge, store.ETag, error) {
	k, etag, ok := v.table.get(i)
	if ok {
		return k, etag, nil
	}
	if err := v.recall(ctx, i); err != nil {
		return Unknown, "", err
	}
	if k, etag, ok = v.table.get(i); ok {
		return k, etag, nil
	}
	return v.initial, "", nil
}

// Geometry returns the geometry of the disk.
func (v *Volume) Geometry() geometry.Geometry { return v.geo }

// Knowledge returns what is known of chunk i. It does not ask Swift.
func (v *Volume) Knowledge(i geometry.ChunkIndex) Knowledge {
	k, _, ok := v.table.get(i)
	if !ok && (v.old == nil || !v.old.has(i)) {
		return v.initial
	}
	return k
}

// Holes returns how many chunks from i on, n at most, are known to be holes:
// Knowledge would return Hole for each. Chunks that were never set are counted
// by the page.
func (v *Volume) Holes(i geometry.ChunkIndex, n int64) int64 {
	end := i + geometry.ChunkIndex(min(n, v.geo.Objects()-int64(i)))
	for at := i; at < end; {
		last := min(end, (at/pageChunks+1)*pageChunks)
		untold := v.initial == Hole && (v.old == nil || !v.old.has(at)) // a page lies in one shard
		stop := v.table.holes(at, last, untold)
		if stop < last {
			return int64(stop - i)
		}
		at = last
	}
	return int64(max(0, end-i))
}

// ChangedError says that a chunk's object is not the one that this session
// knows: another program has written it, or a replica is damaged.
type ChangedError struct {
	Chunk geometry.ChunkIndex
	By    string // ByETag or ByChecksum
	Want  string
	Got   string // empty when the object is gone or no replica matches
}

// How we know that a chunk is not what was written.
const (
	ByETag     = "ETag"
	ByChecksum = "CRC-32C" // its bytes do not fit what is kept beside them
)

func (e *ChangedError) Error() string {
	return fmt.Sprintf("chunk %d (%s) is not what was written: %s %s expected, %s found",
		e.Chunk, ObjectName(e.Chunk), e.By, e.Want, cmp.Or(e.Got, "none"))
}

// SizeError says that an object does not have the volume's object size.
type SizeError struct {
	Chunk      geometry.ChunkIndex
	Size, Want int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("object %s has %d bytes, expected %d", ObjectName(e.Chunk), e.Size, e.Want)
}

// Read fills p with the bytes of chunk i from off. If the chunk is a hole, it
// returns hole and leaves p alone. After an error p must not be used again
// (store.Store.Get).
//
// If the ETag is known, only a copy with this ETag is taken. Otherwise the
// newest of all replicas is taken (docs/PROTOCOL.md, "Reading right"). The
// bytes of a whole chunk are also compared with a checksum (verify), since an
// object server sends a damaged file as it is.
func (v *Volume) Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error) {
	k, etag, err := v.know(ctx, i)
	if err != nil {
		return false, err
	}
	if k == Hole {
		return true, nil
	}
	whole := off == 0 && int64(len(p)) == v.geo.ObjectSize()
	o := store.GetOptions{Offset: off, IfMatch: etag, Newest: k == Unknown, Whole: whole}
	info, err := v.get(ctx, i, p, o)
	var changed *ChangedError
	switch {
	case err != nil && k == Known && v.readOnly &&
		(errors.Is(err, store.ErrPrecondition) || errors.Is(err, store.ErrNotFound)):
		v.table.set(i, Unknown, "")
		return v.Read(ctx, i, off, p)
	case errors.Is(err, store.ErrPrecondition):
		return false, &ChangedError{Chunk: i, By: ByETag, Want: string(etag)}
	case errors.Is(err, store.ErrNotFound):
		if k == Known {
			return false, &ChangedError{Chunk: i, By: ByETag, Want: string(etag)}
		}
		v.learn(i, Hole, "")
		return true, nil
	case errors.As(err, &changed):
		return false, err
	case err != nil:
		return false, fmt.Errorf("read chunk %d: %w", i, err)
	}
	if err := v.inspect(i, info); err != nil {
		return false, err
	}
	switch {
	case info.Size != v.geo.ObjectSize():
		return false, &SizeError{i, info.Size, v.geo.ObjectSize()}
	}
	if k == Unknown {
		v.learn(i, Known, info.ETag)
	}
	return false, nil
}

// Holds says whether chunk i in Swift is p, by the ETag of its object; a p of nil is
// a chunk of zeroes. It asks Swift, for the newest copy, only if nothing is known of
// the chunk.
func (v *Volume) Holds(ctx context.Context, i geometry.ChunkIndex, p []byte) (bool, error) {
	k, etag, err := v.know(ctx, i)
	if err != nil {
		return false, err
	}
	if k == Unknown {
		info, err := v.store.Head(ctx, ObjectName(i))
		switch {
		case errors.Is(err, store.ErrNotFound):
			k = Hole
		case err != nil:
			return false, fmt.Errorf("look at chunk %d: %w", i, err)
		case info.Elsewhere != "" || info.Size != v.geo.ObjectSize():
			return false, nil // a read has the error
		default:
			k, etag = Known, info.ETag
		}
		v.learn(i, k, etag)
	}
	switch {
	case k == Hole:
		return p == nil, nil
	case p == nil:
		return etag == v.zeroSum(), nil
	}
	return etag == sum(p), nil
}

// maxDamaged is how often a whole object is read if its bytes are wrong.
const maxDamaged = 3

// get reads from the object of chunk i, and verifies a whole one. If the bytes
// do not fit, it reads again: they may have been damaged on the way, or by one
// replica of several. At last it returns a *ChangedError. Its other errors are
// store.Store.Get's.
func (v *Volume) get(ctx context.Context, i geometry.ChunkIndex, p []byte, o store.GetOptions) (info store.ObjectInfo, err error) {
	for n := 1; ; n++ {
		info, err = v.store.Get(ctx, ObjectName(i), p, o)
		if err != nil || info.Elsewhere != "" || !o.Whole || info.Size != int64(len(p)) {
			return info, err
		}
		if err = verify(i, p, info); err == nil || n == maxDamaged {
			return info, err
		}
	}
}

// verify compares p, all bytes of chunk i, with the checksum that we keep with
// each object. If there is none, because swiftnbd 0.11 or another program has
// written the object, it compares them with the ETag, if that is an MD5.
func verify(i geometry.ChunkIndex, p []byte, info store.ObjectInfo) error {
	if info.Checksum != "" {
		if got := store.ChecksumOf(p); got != info.Checksum {
			return &ChangedError{Chunk: i, By: ByChecksum, Want: string(info.Checksum), Got: string(got)}
		}
	} else if len(info.ETag) == 32 {
		if got := sum(p); got != info.ETag {
			return &ChangedError{Chunk: i, By: ByETag, Want: string(info.ETag), Got: string(got)}
		}
	}
	return nil
}

// learn notes what a read showed, unless the chunk was set before: a write that
// is under way, or that failed and may still take effect, must not be
// forgotten. If another process may write to the volume, the last read counts.
func (v *Volume) learn(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	if v.readOnly {
		v.table.set(i, k, etag)
	} else {
		v.table.learn(i, k, etag)
	}
}

// markChanging notes that chunk i is about to change: until Swift has answered,
// its content there is not known. The map of an earlier session must have been
// read before. Otherwise it would later give an old answer for this chunk.
func (v *Volume) markChanging(i geometry.ChunkIndex) {
	v.changed.Store(true)
	v.table.set(i, Unknown, "")
}

// Write stores p, a whole chunk, as chunk i. It returns nil when Swift has
// answered 201 to exactly these bytes. After an error the chunk is Unknown.
func (v *Volume) Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	if int64(len(p)) != v.geo.ObjectSize() {
		return fmt.Errorf("write chunk %d: %d bytes, not %d", i, len(p), v.geo.ObjectSize())
	}
	_, before, err := v.know(ctx, i)
	if err != nil {
		return err
	}
	etag, err := v.hasher.sum(ctx, i, p, before)
	if err != nil {
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	defer v.hasher.done()
	v.markChanging(i)
	if err := v.store.Put(ctx, ObjectName(i), p, etag); err != nil {
		v.hasher.prefixes.forget(i)
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	v.table.set(i, Known, etag)
	return nil
}

// Probe finds out whether chunk i is a hole. It asks Swift only if this is not
// known. hole is true only with proof. A chunk that a listing names counts as
// data, which is always safe.
func (v *Volume) Probe(ctx context.Context, i geometry.ChunkIndex) (hole bool, err error) {
	k, _, err := v.know(ctx, i)
	if err != nil || k != Unknown {
		return k == Hole, err
	}
	if listed, err := v.Listed(ctx, i); err != nil || listed {
		return false, err
	}
	info, err := v.store.Head(ctx, ObjectName(i))
	if errors.Is(err, store.ErrNotFound) {
		v.learn(i, Hole, "")
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at chunk %d: %w", i, err)
	}
	if v.inspect(i, info) != nil {
		return false, nil // counts as data: a read will return the error
	}
	v.learn(i, Known, info.ETag)
	return false, nil
}

// Listed says whether the container's listing names chunk i. The listing is
// read once, at the first call. Listings are late, so false is no proof of a
// hole. A Known chunk counts as listed, and a Hole as not listed, even if the
// listing says something else.
func (v *Volume) Listed(ctx context.Context, i geometry.ChunkIndex) (bool, error) {
	k, _, err := v.know(ctx, i)
	if err != nil || k != Unknown {
		return k == Known, err
	}
	v.listing.Lock()
	defer v.listing.Unlock()
	if v.listed == nil {
		listed := make(bitmap)
		for page, err := range store.Pages(ctx, v.store, store.ListOptions{Prefix: Prefix}) {
			if err != nil {
				return false, fmt.Errorf("list objects: %w", err)
			}
			for _, o := range page {
				if j, ok := ParseObjectName(o.Name); ok {
					listed.set(j)
				}
			}
		}
		v.listed = listed
	}
	return v.listed.has(i), nil
}

// bitmap is a set of chunks, 64 to a word.
type bitmap map[geometry.ChunkIndex]uint64

func (b bitmap) set(i geometry.ChunkIndex)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) has(i geometry.ChunkIndex) bool { return b[i/64]>>(i%64)&1 != 0 }
