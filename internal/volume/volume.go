// SPDX-License-Identifier: MIT

package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// Volume is one disk in Swift, chunk by chunk. Its methods may be called by
// many goroutines, but the caller must not have two writes of one chunk
// (Write, Delete) in flight at once: Swift would keep either.
type Volume struct {
	store    store.Store
	geo      geometry.Geometry
	readOnly bool

	table   *table
	old     *chunkMap // an earlier session's map, or nil
	initial Knowledge // of chunks of which neither says anything
	changed atomic.Bool
	summer  summer

	listing sync.Mutex // guards listed; held while the listing is read
	listed  bitmap     // nil: not read yet
}

// Open returns the volume that meta describes, in s's container. With readOnly
// another writer may be at work on it: a chunk that has changed behind our
// back is read again, not refused. warning, when not nil, says why the map of
// the last session is not used; that costs speed and nothing else.
func Open(ctx context.Context, s store.Store, meta Meta, readOnly bool) (v *Volume, warning error) {
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

// Gather lets concurrent Writes be summed together, which is quicker: some of
// them wait while as many as the store makes at once are under way, and a few
// more. It is called before the first Write.
func (v *Volume) Gather(connections int) { v.summer.enough = connections + connections/4 }

// Changed says whether a chunk has been written or deleted, or that was tried.
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

// Geometry returns the shape of the disk.
func (v *Volume) Geometry() geometry.Geometry { return v.geo }

// Knowledge says what is known of chunk i without asking Swift.
func (v *Volume) Knowledge(i geometry.ChunkIndex) Knowledge {
	k, _, ok := v.table.get(i)
	if !ok && (v.old == nil || !v.old.has(i)) {
		return v.initial
	}
	return k
}

// ChangedError is a chunk whose object is not the one that this session knows:
// somebody else wrote it, or a replica is damaged.
type ChangedError struct {
	Chunk geometry.ChunkIndex
	By    string // what tells: ByETag or ByChecksum
	Want  string
	Got   string // empty when the object is gone or no replica matches
}

// What tells that a chunk is not what was written.
const (
	ByETag     = "ETag"
	ByChecksum = "CRC-32C" // its bytes do not fit what is kept beside them
)

func (e *ChangedError) Error() string {
	return fmt.Sprintf("chunk %d (%s) is not what was written: %s %s expected, %s found",
		e.Chunk, ObjectName(e.Chunk), e.By, e.Want, cmp.Or(e.Got, "none"))
}

// SizeError is an object that has not the volume's object size.
type SizeError struct {
	Chunk      geometry.ChunkIndex
	Size, Want int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("object %s has %d bytes, expected %d", ObjectName(e.Chunk), e.Size, e.Want)
}

// Read fills p with the bytes of chunk i from off. Where the chunk is a hole
// it says so and leaves p alone. After an error p must not be used again
// (store.Store.Get).
//
// With a known ETag only a copy with this ETag is taken; otherwise the newest
// of all replicas is (DESIGN.md "Reading right"). A whole chunk's bytes are
// also held against a checksum (verify), since an object server sends a damaged
// file as it is.
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
	case info.Size != v.geo.ObjectSize():
		return false, &SizeError{i, info.Size, v.geo.ObjectSize()}
	}
	if k == Unknown {
		v.learn(i, Known, info.ETag)
	}
	return false, nil
}

// maxDamaged is how often a whole object is read that is not what it should be.
const maxDamaged = 3

// get reads from the object of chunk i, and verifies a whole one. Where its
// bytes do not fit it is read again: they may have been damaged on the way, or
// by one replica of several. It ends with a *ChangedError then, or as
// store.Store.Get does.
func (v *Volume) get(ctx context.Context, i geometry.ChunkIndex, p []byte, o store.GetOptions) (info store.ObjectInfo, err error) {
	for n := 1; ; n++ {
		info, err = v.store.Get(ctx, ObjectName(i), p, o)
		if err != nil || !o.Whole || info.Size != int64(len(p)) {
			return info, err
		}
		if err = verify(i, p, info); err == nil || n == maxDamaged {
			return info, err
		}
	}
}

// verify holds p, all bytes of chunk i, against what the store says of them:
// the checksum that we keep with each object, or else, of one that swiftnbd
// 0.11 or somebody else wrote, the ETag, where it is an MD5.
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

// learn notes what a read showed, unless something was said of the chunk
// before: a write under way, or one that failed and may yet take effect, is not
// to be forgotten. Of a volume that somebody else writes the last read counts.
func (v *Volume) learn(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	if v.readOnly {
		v.table.set(i, k, etag)
	} else {
		v.table.learn(i, k, etag)
	}
}

// unsettle notes that chunk i is about to change: what is in Swift is not known
// until Swift has answered. The map of an earlier session must have been asked
// before, or it would answer for a chunk that is not what it was.
func (v *Volume) unsettle(i geometry.ChunkIndex) {
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
	etag, err := v.summer.sum(ctx, i, p, before)
	if err != nil {
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	defer v.summer.done()
	v.unsettle(i)
	if err := v.store.Put(ctx, ObjectName(i), p, etag); err != nil {
		v.summer.alone.forget(i)
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	v.table.set(i, Known, etag)
	return nil
}

// Delete makes chunk i a hole. A chunk that is known to be one costs no
// request. After an error the chunk is Unknown.
func (v *Volume) Delete(ctx context.Context, i geometry.ChunkIndex) error {
	if k, _, err := v.know(ctx, i); err != nil {
		return err
	} else if k == Hole {
		return nil
	}
	v.unsettle(i)
	if err := v.store.Delete(ctx, ObjectName(i)); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("delete chunk %d: %w", i, err)
	}
	v.table.set(i, Hole, "")
	return nil
}

// Probe finds out whether chunk i is a hole, asking Swift only where that is
// not known. hole is true only with proof; a chunk that a listing names counts
// as data, which is always safe to say.
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
	v.learn(i, Known, info.ETag)
	return false, nil
}

// Listed says whether the container's listing, read once when first asked,
// names chunk i. Listings are late: false is no proof of a hole. A chunk that
// is Known is listed, one that is a Hole is not, whatever the listing says.
func (v *Volume) Listed(ctx context.Context, i geometry.ChunkIndex) (bool, error) {
	k, _, err := v.know(ctx, i)
	if err != nil || k != Unknown {
		return k == Known, err
	}
	v.listing.Lock()
	defer v.listing.Unlock()
	if v.listed == nil {
		listed := make(bitmap)
		for marker := ""; ; {
			page, err := v.store.List(ctx, store.ListOptions{Prefix: Prefix, Marker: marker})
			if err != nil {
				return false, fmt.Errorf("list objects: %w", err)
			}
			if len(page) == 0 {
				break
			}
			for _, o := range page {
				if j, ok := ParseObjectName(o.Name); ok {
					listed.set(j)
				}
			}
			marker = page[len(page)-1].Name
		}
		v.listed = listed
	}
	return v.listed.has(i), nil
}

// bitmap is a set of chunks, 64 to a word.
type bitmap map[geometry.ChunkIndex]uint64

func (b bitmap) set(i geometry.ChunkIndex)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) has(i geometry.ChunkIndex) bool { return b[i/64]>>(i%64)&1 != 0 }
