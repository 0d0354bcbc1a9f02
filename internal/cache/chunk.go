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
// A chunk's content is read from the top down. The bytes in valid are in frame.
// rest says where the bytes below them are:
//
//	rest        the bytes that are not in valid are …
//	restSwift   in Swift; a read fetches them
//	restZero    zeroes
//	restFrozen  in up.frame (nil: zeroes), which is being uploaded
//
// dirty, zeroed and up say what Swift lacks of the chunk:
//
//	state      dirty     zeroed   up       how it is left
//	clean      empty     false    nil      write, zero -> dirty; evicted -> dead
//	dirty      or:some   or:true  nil      upload begins -> filling
//	filling    or:some   or:true  !frozen  the rest was fetched -> frozen
//	uploading  any       any      frozen   Swift answered -> clean or dirty
//
// A write during an upload goes into a new frame above the frozen one. When the
// upload has ended, the two are merged. zeroed says that the whole chunk was
// made zero and that Swift may still hold an object.
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
	ahead   atomic.Bool  // readahead: a reader that comes here wants more
	fresh   atomic.Int64 // readahead: bytes that were fetched and not read yet
	freshAt atomic.Int64 // readahead: when that fetch began, Unix ns

	// pins are the reads that wait for a fetch and have not copied its bytes
	// yet. A pin is added while mu is held. The read that takes the last pin
	// away calls release.
	pins atomic.Int32

	// Guarded by policy.mu.
	elem   *list.Element
	bytes  int64
	inMain int

	// Guarded by Cache.dirty.mu.
	dirtyElem *list.Element
	queue     *list.List
	since     int64 // when it was queued as dirty, Unix nanoseconds
	unsaved   int64 // since when some of it is dirty, failed uploads included
	begun     int64 // when its last upload began

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
	owes    debt // as pace has counted it
	// forgotten counts Forgets: a fetch that began before one brings nothing.
	forgotten uint64
}

// upload is one write of a chunk to Swift. It lasts from the first look at what
// the chunk lacks until Swift's answer.
type upload struct {
	slot    chan struct{} // Cache.slots or .queue: the one in which it has a place
	filling int64         // bytes that it took as writeback; some may have come back
	gen     uint64        // the content that it carries; valid once frozen
	frozen  bool          // the content is fixed
	frame   *frame        // the whole chunk, immutable while frozen; nil: zeroes
	lacked  rangeSet      // what Swift lacks of the frame; valid once frozen
	done    chan struct{} // closed at the end
	err     error         // valid after done
}

// charged returns the bytes that are counted for the frozen frame.
func (u *upload) charged() int64 {
	if u.frame == nil {
		return 0
	}
	return u.frame.charged
}

// fetch is one read of a chunk from Swift. All reads that need a part of r
// share it.
type fetch struct {
	r        geometry.ByteRange
	reserved int64  // bytes of the budget that it brings
	before   uint64 // the chunk's forgotten when it began
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

// debt returns what the chunk owes Swift. mu is held.
func (ch *chunk) debt(size int64) (d debt) {
	if ch.up != nil && ch.up.frozen {
		if ch.up.frame == nil {
			d[kindDelete]++
		} else {
			d[kindPut]++
		}
	}
	switch {
	case !ch.isDirty():
	case len(ch.valid) == 0:
		d[kindDelete]++ // zeroed
	default:
		d[kindPut]++
		if ch.rest == restSwift && !ch.valid.covers(geometry.ByteRange{Len: size}) {
			d[kindFetch]++
		}
	}
	return d
}

// idle says whether the chunk may be evicted. mu is held.
func (ch *chunk) idle() bool {
	return !ch.dead && !ch.isDirty() && ch.up == nil && len(ch.fetches) == 0 && ch.pins.Load() == 0
}

// copyOut copies the bytes r of the chunk into p. If some of them are in Swift
// only, it copies nothing and returns the smallest range that holds those. mu
// is held, for reading at least.
func (ch *chunk) copyOut(p []byte, r geometry.ByteRange) (missing geometry.ByteRange) {
	if ch.valid.covers(r) {
		copySteps(p, ch.frame.buf[r.Off:r.End()])
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
		copySteps(p, below[r.Off:r.End()])
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
	case ch.owes != ch.debt(size):
		fail("owes %v and not what was counted, %v", ch.debt(size), ch.owes)
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

// copySteps copies src to dst, which has the same length. Go's copy of 1 MiB
// and more goes past the processor's caches. Here the bytes are looked at right
// after the copy, and in one piece the two together take more than twice as
// long.
func copySteps(dst, src []byte) {
	for len(src) > copyStep {
		copy(dst[:copyStep], src[:copyStep])
		dst, src = dst[copyStep:], src[copyStep:]
	}
	copy(dst, src)
}

const copyStep = 128 << 10

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
