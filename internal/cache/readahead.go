// SPDX-License-Identifier: MIT

package cache

import (
	"sync"
	"sync/atomic"

	"swiftnbd/internal/geometry"
)

// readahead finds sequential readers among all reads and fetches ahead of
// them. Streams are told apart by where they are expected next, so several
// connections may read several files, or one file in pieces.
type readahead struct {
	limit  int64        // bytes that may be ahead of all readers together; <= 0: none
	unread atomic.Int64 // bytes that are

	mu      sync.Mutex // guards streams
	streams [16]stream
	turn    int
}

// behind is how far behind the foremost request of a stream a late one may be,
// bytes, or 64 of its own length.
const behind = 4 << 20

type stream struct {
	start, next int64 // a read in [start, max(next, reach)] continues the stream
	reach       int64 // where the foremost read of it has ended; next is where the fetches have
	window      int64 // bytes ahead; 0: unused
	seen        int64 // bytes that were read of it, as far as they were told of
}

// arrived is told that n bytes of the chunk have been read, or that it is
// evicted. It says whether that is what the chunk was fetched ahead for.
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

// readAhead is told of a read that missed, or that reached what was fetched
// ahead. Where that continues a stream, it fetches the next of it, and says
// whether the reader reads so much that whole chunks are best for him.
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
	s.seen += n
	s.reach = max(s.reach, off+n)
	s.window = min(2*s.window, max(a.limit, granule))
	// Of many requests at once some come late: they are the same reader's.
	s.start = max(s.start, off-max(64*n, behind))
	from := max(s.next, off+n)
	room := max(a.limit-a.unread.Load(), 0) // beside what is ahead already, his and others'
	to := min(off+n+s.window, from+room, c.geo.Size())
	much = s.seen >= size/2
	if much || s.window >= size {
		to = min(roundUp(to, size), c.geo.Size())
		if from == off+n {
			from = off / size * size // with what is wanted now
		}
	}
	s.next = max(s.next, to)
	a.mu.Unlock()
	if to <= from {
		return much
	}
	if done := c.prefetch(from, to-from, true); done < to-from {
		// There was no memory: the next one tries again from there.
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
