// SPDX-License-Identifier: MIT

// Package geometry is the arithmetic of the disk: which chunk holds a byte, and
// how a request is divided into chunks. It is pure: it has no I/O and no state.
//
// A disk of Objects chunks of ObjectSize bytes each has Objects*ObjectSize bytes.
// Every chunk has the full size: the format of swiftnbd 0.11 has no shorter last
// chunk. ObjectSize need not be a power of two.
package geometry

import (
	"fmt"
	"iter"
	"math"
)

// ChunkIndex numbers a chunk of the disk, from 0.
type ChunkIndex int64

// ByteRange is the half-open run of bytes [Off, Off+Len). Len is never
// negative; an empty range has Len 0.
type ByteRange struct {
	Off, Len int64
}

// End returns the offset behind the last byte.
func (r ByteRange) End() int64 { return r.Off + r.Len }

// Geometry is the shape of one disk. Make it with New; the zero value is no
// valid disk.
type Geometry struct {
	objectSize int64 // bytes a chunk, > 0
	objects    int64 // chunks, > 0
}

// MaxObjectSize is the size of the largest chunk. Swift's default limit for one
// object is larger (max_file_size in swift.conf, 5 GiB + 2), but a chunk is
// held in memory as a whole.
const MaxObjectSize = 1 << 30

// New returns the geometry of objects chunks of objectSize bytes. The whole
// must fit NBD's signed 64-bit size.
func New(objectSize, objects int64) (Geometry, error) {
	switch {
	case objectSize < 1:
		return Geometry{}, fmt.Errorf("object size %d: must be at least 1 byte", objectSize)
	case objectSize > MaxObjectSize:
		return Geometry{}, fmt.Errorf("object size %d: must be at most %d bytes", objectSize, MaxObjectSize)
	case objects < 1:
		return Geometry{}, fmt.Errorf("%d objects: must be at least 1", objects)
	case objects > math.MaxInt64/objectSize:
		return Geometry{}, fmt.Errorf("%d objects of %d bytes: the disk would be larger than 2^63-1 bytes", objects, objectSize)
	}
	return Geometry{objectSize: objectSize, objects: objects}, nil
}

// ObjectSize returns the bytes of a chunk.
func (g Geometry) ObjectSize() int64 { return g.objectSize }

// Objects returns the number of chunks.
func (g Geometry) Objects() int64 { return g.objects }

// Size returns the bytes of the disk.
func (g Geometry) Size() int64 { return g.objectSize * g.objects }

// Contains says whether the whole range [off, off+n) lies on the disk. An
// empty range at the very end does.
func (g Geometry) Contains(off, n int64) bool {
	return off >= 0 && n >= 0 && off <= g.Size() && n <= g.Size()-off
}

// ChunkOf returns the chunk that holds the byte at off, and the byte's offset
// in it. off must lie on the disk.
func (g Geometry) ChunkOf(off int64) (ChunkIndex, int64) {
	return ChunkIndex(off / g.objectSize), off % g.objectSize
}

// Offset returns the disk offset of the first byte of chunk i.
func (g Geometry) Offset(i ChunkIndex) int64 { return int64(i) * g.objectSize }

// Piece is the part of a request that falls into one chunk.
type Piece struct {
	Chunk ChunkIndex
	In    ByteRange // where in the chunk
	Buf   int64     // where in the request: bytes [Buf, Buf+In.Len)
}

// Whole says whether the piece covers its chunk of objectSize bytes entirely.
func (p Piece) Whole(objectSize int64) bool { return p.In.Off == 0 && p.In.Len == objectSize }

// Pieces yields the request [off, off+n) chunk by chunk, in ascending order.
// The request must lie on the disk (Contains).
func (g Geometry) Pieces(off, n int64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		for done := int64(0); done < n; {
			i, in := g.ChunkOf(off + done)
			l := min(g.objectSize-in, n-done)
			if !yield(Piece{Chunk: i, In: ByteRange{in, l}, Buf: done}) {
				return
			}
			done += l
		}
	}
}

// Count returns how many chunks the request [off, off+n) touches.
func (g Geometry) Count(off, n int64) int64 {
	if n == 0 {
		return 0
	}
	return (off+n-1)/g.objectSize - off/g.objectSize + 1
}
