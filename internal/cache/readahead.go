// SPDX-License-Identifier: MIT

package cache

import (
	"sync"
	"sync/atomic"

	"swiftnbd/internal/geometry"
)

// readahead finds sequential readers among all reads and fetches ahead of them.
// It recognises a stream by the place where its next read is expected. Several
// connections may therefore read several files, or one file in pieces.
type readahead struct {
	limit  int64        // bytes that may be ahead of all readers together; <= 0: none
	unread atomic.Int64 // bytes that are ahead now

	mu      sync.Mutex // guards streams
	streams [16]stream
	turn    int
}

// behind is how far a late request may be behind the foremost one of its
// stream, bytes. 64 times its own length is allowed too.
const behind = 4 << 20

type stream struct {
	start, next int64 // a read in [start, max(next, reach)] continues the stream
	reach       int64 // where the foremost read has ended; next is where the fetches have ended
	window      int64 // bytes ahead; 0: unused
	seen        int64 // bytes of it that were read, as far as readahead was called for them
}

// arrived notes that n bytes of the chunk have been read, or that the chunk is
// evicted. It says whether the chunk was fetched ahead for this read.
func (a *readahead) arrived(ch *chunk, n int64) bool {
	for {
		left := ch.fresh.Load()
		if left == 0 {
			return false
		}
		n = min(n, left)
		if ch.fresh.CompareAndSwap(left, left-n) {
			a.unread.Add(-n)
			return true
		}
	}
}

// readAhead is called for a read that missed, or that reached a chunk which was
// fetched ahead. If the read continues a stream, readAhead fetches the next
// part of it. much says that the reader reads enough to get whole chunks.
func (c *Cache) readAhead(off, n int64) (much bool) {
	a := &c.ahead
	if a.limit <= 0 {
		return false
	}
	size := c.geo.ObjectSize()
	slack := max(n, 256<<10) // how far requests in parallel may come out of order
	a.mu.Lock()
	var s *stream
	for i := range a.streams {
		t := &a.streams[i]
		if t.window > 0 && off >= t.start && off <= max(t.next, t.reach)+slack {
			s = t
			break
		}
	}
	if s == nil {
		a.streams[a.turn] = stream{start: off + n, next: off + n, reach: off + n, window: max(2*n, granule)}
		a.turn = (a.turn + 1) % len(a.streams)
		a.mu.Unlock()
		return false
	}
	// A read that lies near a stream and does not continue it may be one of a reader
	// that reads here and there. To read ahead of that one is a waste, and on a disk
	// that was written at random a large one: each block is a request.
	near := s.seen == 0 && off > s.reach
	s.seen += n
	s.reach = max(s.reach, off+n)
	if near {
		a.mu.Unlock()
		return false
	}
	s.window = min(2*s.window, max(a.limit, granule))
	// If a reader makes many requests at once, some of them come late.
	s.start = max(s.start, off-max(64*n, behind))
	from := max(s.next, off+n)
	room := max(a.limit-a.unread.Load(), 0) // beside the bytes that are ahead already, of all readers
	to := min(off+n+s.window, from+room, c.end.Load())
	much = s.seen >= size/2
	if much || s.window >= size {
		to = min(roundUp(to, size), c.end.Load())
		if from == off+n {
			from = off / size * size // from the chunk that is wanted now on
		}
	}
	s.next = max(s.next, to)
	a.mu.Unlock()
	if to <= from {
		return much
	}
	if done := c.prefetch(from, to-from, true); done < to-from {
		// There was no memory. The next read tries again from there.
		a.mu.Lock()
		if s.next == to {
			s.next = from + done
		}
		a.mu.Unlock()
		if to = from + done; done == 0 {
			return much
		}
	}
	// Half way there the reader asks for more.
	if ch := c.find(geometry.ChunkIndex((from + (to-from)/2) / size)); ch != nil {
		ch.ahead.Store(true)
	}
	return much
}
