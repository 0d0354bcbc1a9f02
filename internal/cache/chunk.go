// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"container/list"
	"fmt"
	"sync"
	"sync/atomic"

	"swiftnbd/internal/geometry"
)

// The states of a chunk
//
// A chunk's content is read from the top down: the bytes in valid are in
// frame; what lies below them is said by rest.
//
//	rest        the bytes that are not in valid are …
//	restSwift   in Swift; a read fetches them
//	restZero    zeroes
//	restFrozen  in up.frame (nil: zeroes), which is being uploaded
//
// and what Swift lacks of it by dirty, zeroed and up:
//
//	state      dirty     zeroed   up       how it is left
//	clean      empty     false    nil      write, zero -> dirty; evicted -> dead
//	dirty      or:some   or:true  nil      upload begins -> filling
//	filling    or:some   or:true  !frozen  the rest was fetched -> frozen
//	uploading  any       any      frozen   Swift answered -> clean or dirty
//
// A write during an upload goes into a new frame above the frozen one, and is
// merged into it when the upload has ended. zeroed says that the whole chunk
// was made zero and that Swift may still hold an object.
//
// Invariants (check): valid lies within the frame's touched pages; dirty lies
// within valid; rest is restFrozen only while an upload is frozen; zeroed only
// with restZero; a dead chunk has nothing.

type rest uint8

const (
	restSwift rest = iota
	restZero
	restFrozen
)

type chunk struct {
	index geometry.ChunkIndex

	freq    atomic.Int32 // policy: uses since it was queued, at most maxFreq
	lastEnd atomic.Int64 // policy: where the last read ended
	ahead   atomic.Bool  // readahead: a reader who comes here wants more
	fresh   atomic.Int64 // readahead: bytes that were fetched and nobody has come for yet
	freshAt atomic.Int64 // readahead: when that fetch began, Unix ns

	// pins are the reads that wait for a fetch and have not copied yet what
	// it brought. One is added while mu is held; whoever takes the last
	// one away calls settle.
	pins atomic.Int32

	// Guarded by policy.mu.
	elem   *list.Element
	bytes  int64
	inMain int

	// Guarded by Cache.dirty.mu.
	dirtyElem *list.Element
	queue     *list.List
	since     int64 // when it became dirty, Cache.now

	mu      sync.RWMutex // guards all below; never held across I/O
	dead    bool         // no longer in the cache: look it up again
	frame   *frame
	valid   rangeSet
	rest    rest
	dirty   rangeSet
	zeroed  bool
	gen     uint64 // counts changes of the content
	synced  uint64 // Swift holds the content of this gen, or of a newer one
	up      *upload
	fetches []*fetch
}

// upload is one write of a chunk to Swift, from the first look at what it
// lacks until Swift's answer.
type upload struct {
	slot   chan struct{} // Cache.slots or .queue: where it has a place
	gen    uint64        // the content that it carries; valid once frozen
	frozen bool          // the content is fixed
	frame  *frame        // the whole chunk, immutable while frozen; nil: zeroes
	done   chan struct{} // closed at the end
	err    error         // valid after done
}

// fetch is one read of a chunk from Swift, which all share who want part of r.
type fetch struct {
	r        geometry.ByteRange
	reserved int64 // bytes of the budget that it brings
	done     chan struct{}
	err      error // valid after done
}

// fetching returns a fetch under way that brings some of r, or nil. mu is held.
func (ch *chunk) fetching(r geometry.ByteRange) *fetch {
	for _, f := range ch.fetches {
		if f.r.Off < r.End() && r.Off < f.r.End() {
			return f
		}
	}
	return nil
}

// isDirty says whether Swift lacks something that no running upload carries.
// mu is held.
func (ch *chunk) isDirty() bool { return len(ch.dirty) > 0 || ch.zeroed }

// allDirty says whether Swift lacks all of the chunk, of size bytes. mu is held.
func (ch *chunk) allDirty(size int64) bool { return len(ch.dirty) == 1 && ch.dirty[0].Len == size }

// idle says whether the chunk may be evicted. mu is held.
func (ch *chunk) idle() bool {
	return !ch.dead && !ch.isDirty() && ch.up == nil && len(ch.fetches) == 0 && ch.pins.Load() == 0
}

// charged returns the bytes that the chunk's own frame counts. mu is held.
func (ch *chunk) charged() int64 {
	if ch.frame == nil {
		return 0
	}
	return ch.frame.charged
}

// copyOut copies the bytes r of the chunk into p. Where some of them are in
// Swift only, it copies nothing and returns the smallest range that holds
// those. mu is held, for reading at least.
func (ch *chunk) copyOut(p []byte, r geometry.ByteRange) (missing geometry.ByteRange) {
	if ch.valid.covers(r) {
		move(p, ch.frame.buf[r.Off:r.End()])
		return geometry.ByteRange{}
	}
	if ch.rest == restSwift {
		return ch.valid.gaps(r).hull()
	}
	var below []byte // nil: zeroes
	if ch.rest == restFrozen && ch.up.frame != nil {
		below = ch.up.frame.buf
	}
	if below != nil {
		move(p, below[r.Off:r.End()])
	} else {
		clear(p)
	}
	for i := ch.valid.after(r.Off + 1); i < len(ch.valid) && ch.valid[i].Off < r.End(); i++ {
		lo, hi := max(ch.valid[i].Off, r.Off), min(ch.valid[i].End(), r.End())
		copy(p[lo-r.Off:hi-r.Off], ch.frame.buf[lo:hi])
	}
	return geometry.ByteRange{}
}

// check panics when an invariant does not hold. mu is held. It is called in
// tests only (Options.Check).
func (ch *chunk) check(size int64) {
	fail := func(format string, args ...any) {
		panic(fmt.Sprintf("chunk %d: %s: %+v", ch.index, fmt.Sprintf(format, args...), ch.describe()))
	}
	whole := geometry.ByteRange{Len: size}
	for i, r := range ch.valid {
		if r.Len <= 0 || r.Off < 0 || r.End() > size {
			fail("valid run %d is %v", i, r)
		}
		if i > 0 && ch.valid[i-1].End() >= r.Off {
			fail("valid runs %d and %d touch", i-1, i)
		}
	}
	for _, r := range ch.dirty {
		if !ch.valid.covers(r) {
			fail("dirty %v is not valid", r)
		}
	}
	switch {
	case len(ch.valid) > 0 && ch.frame == nil:
		fail("valid without a frame")
	case ch.rest == restFrozen && (ch.up == nil || !ch.up.frozen):
		fail("rest is frozen without an upload")
	case ch.zeroed && ch.rest != restZero:
		fail("zeroed, and rest is %d", ch.rest)
	case ch.dead && (ch.pins.Load() != 0 || ch.frame != nil || ch.up != nil || ch.isDirty() || len(ch.fetches) > 0):
		fail("dead and not empty")
	case ch.up == nil && ch.isDirty() != (ch.synced < ch.gen):
		fail("dirty is not what synced and gen say")
	case ch.synced > ch.gen:
		fail("synced %d is newer than gen %d", ch.synced, ch.gen)
	case len(ch.valid.gaps(whole)) == 0 && ch.frame == nil:
		fail("whole without a frame")
	}
}

func (ch *chunk) describe() string {
	return fmt.Sprintf("rest=%d valid=%v dirty=%v zeroed=%t gen=%d synced=%d up=%t dead=%t fetches=%d",
		ch.rest, ch.valid, ch.dirty, ch.zeroed, ch.gen, ch.synced, ch.up != nil, ch.dead, len(ch.fetches))
}

// move copies src to dst, which is as long. Go's copy of 1 MiB and more passes
// the processor's caches by, and whoever looks at the bytes next, which is at
// once here, takes longer than both together need to.
func move(dst, src []byte) {
	for len(src) > moveStep {
		copy(dst[:moveStep], src[:moveStep])
		dst, src = dst[moveStep:], src[moveStep:]
	}
	copy(dst, src)
}

const moveStep = 128 << 10

// isZero says whether b holds zeroes only.
func isZero(b []byte) bool {
	for len(b) >= len(zeroes) {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
		b = b[len(zeroes):]
	}
	return bytes.Equal(b, zeroes[:len(b)])
}

var zeroes [4096]byte
