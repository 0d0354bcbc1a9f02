// SPDX-License-Identifier: MIT

package volume

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

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

	table *table

	listOnce sync.Mutex // guards listed; held while the listing is read
	listed   map[geometry.ChunkIndex]bool
}

// New returns the volume that meta describes, in s's container. With readOnly
// another writer may be at work on it: a chunk that has changed behind our
// back is read again, not refused.
func New(s store.Store, meta Meta, readOnly bool) *Volume {
	initial := Unknown
	if meta.Blank {
		initial = Hole
	}
	return &Volume{store: s, geo: meta.Geometry, readOnly: readOnly, table: newTable(initial)}
}

// Geometry returns the shape of the disk.
func (v *Volume) Geometry() geometry.Geometry { return v.geo }

// Knowledge says what is known of chunk i without asking Swift.
func (v *Volume) Knowledge(i geometry.ChunkIndex) Knowledge {
	k, _ := v.table.get(i)
	return k
}

// ChangedError is a chunk whose object is not the one that this session knows:
// somebody else wrote it, or a replica is damaged.
type ChangedError struct {
	Chunk geometry.ChunkIndex
	Want  store.ETag
	Got   store.ETag // empty when the object is gone or no replica matches
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("chunk %d (%s) is not what was written: ETag %s expected, %s found",
		e.Chunk, ObjectName(e.Chunk), e.Want, orNone(e.Got))
}

func orNone(e store.ETag) string {
	if e == "" {
		return "none"
	}
	return string(e)
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
// also held against the ETag, since an object server sends a damaged file as
// it is.
func (v *Volume) Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error) {
	k, etag := v.table.get(i)
	if k == Hole {
		return true, nil
	}
	o := store.GetOptions{Offset: off, IfMatch: etag, Newest: k == Unknown}
	info, err := v.store.Get(ctx, ObjectName(i), p, o)
	switch {
	case err != nil && k == Known && v.readOnly &&
		(errors.Is(err, store.ErrPrecondition) || errors.Is(err, store.ErrNotFound)):
		v.table.set(i, Unknown, "")
		return v.Read(ctx, i, off, p)
	case errors.Is(err, store.ErrPrecondition):
		return false, &ChangedError{Chunk: i, Want: etag}
	case errors.Is(err, store.ErrNotFound):
		if k == Known {
			return false, &ChangedError{Chunk: i, Want: etag}
		}
		v.learn(i, Hole, "")
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read chunk %d: %w", i, err)
	case info.Size != v.geo.ObjectSize():
		return false, &SizeError{i, info.Size, v.geo.ObjectSize()}
	}
	if off == 0 && int64(len(p)) == v.geo.ObjectSize() && len(info.ETag) == 32 {
		if got := sum(p); got != info.ETag {
			return false, &ChangedError{Chunk: i, Want: info.ETag, Got: got}
		}
	}
	if k == Unknown {
		v.learn(i, Known, info.ETag)
	}
	return false, nil
}

// learn notes what a read showed, unless a write has been noted meanwhile: the
// caller may read and write one chunk at once.
func (v *Volume) learn(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	if !v.readOnly {
		if now, _ := v.table.get(i); now != Unknown {
			return
		}
	}
	v.table.set(i, k, etag)
}

// Write stores p, a whole chunk, as chunk i. It returns nil when Swift has
// answered 201 to exactly these bytes. After an error the chunk is Unknown.
func (v *Volume) Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	if int64(len(p)) != v.geo.ObjectSize() {
		return fmt.Errorf("write chunk %d: %d bytes, not %d", i, len(p), v.geo.ObjectSize())
	}
	etag := sum(p)
	v.table.set(i, Unknown, "")
	if err := v.store.Put(ctx, ObjectName(i), p, etag); err != nil {
		return fmt.Errorf("write chunk %d: %w", i, err)
	}
	v.table.set(i, Known, etag)
	return nil
}

// Delete makes chunk i a hole. A chunk that is known to be one costs no
// request. After an error the chunk is Unknown.
func (v *Volume) Delete(ctx context.Context, i geometry.ChunkIndex) error {
	if k, _ := v.table.get(i); k == Hole {
		return nil
	}
	v.table.set(i, Unknown, "")
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
	switch k, _ := v.table.get(i); k {
	case Hole:
		return true, nil
	case Known:
		return false, nil
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
// names chunk i. Listings are late: false is no proof of a hole.
func (v *Volume) Listed(ctx context.Context, i geometry.ChunkIndex) (bool, error) {
	v.listOnce.Lock()
	defer v.listOnce.Unlock()
	if v.listed == nil {
		listed := make(map[geometry.ChunkIndex]bool)
		marker := ""
		for {
			page, err := v.store.List(ctx, store.ListOptions{Prefix: Prefix, Marker: marker})
			if err != nil {
				return false, fmt.Errorf("list objects: %w", err)
			}
			if len(page) == 0 {
				break
			}
			for _, o := range page {
				if j, ok := ParseObjectName(o.Name); ok {
					listed[j] = true
				}
			}
			marker = page[len(page)-1].Name
		}
		v.listed = listed
	}
	return v.listed[i], nil
}

func sum(p []byte) store.ETag {
	s := md5.Sum(p)
	return store.ETag(hex.EncodeToString(s[:]))
}
