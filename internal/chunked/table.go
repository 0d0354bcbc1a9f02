// SPDX-License-Identifier: MIT

package chunked

import (
	"encoding/hex"
	"maps"
	"slices"
	"sync"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// Knowledge is what is known of a chunk in Swift.
type Knowledge uint8

const (
	// Unknown: nothing is known. Only the newest copy of all replicas can tell.
	Unknown Knowledge = iota
	// Hole: there is no object, and the chunk reads as zeroes. This comes from
	// a 404 of a read of the newest replica, or from our own DELETE.
	Hole
	// Known: the object's ETag is known, so If-Match finds out stale replicas.
	Known
)

// table has what this session knows of each chunk, or has taken over from an
// earlier one. A page is made when the first of its chunks becomes known. A
// large volume therefore costs memory only for its used part: 17 bytes for each
// chunk, in pages of 1,024 chunks.
type table struct {
	mu    sync.RWMutex // guards all below; never held across I/O
	pages map[geometry.ChunkIndex]*page
	dirty map[int64]bool // shards of the map that have changed
}

const pageChunks = 1024

type page struct {
	state [pageChunks]Knowledge
	sum   [pageChunks][16]byte
}

// In a page a chunk has two more states: it was never set, or an earlier
// session's map has it as Unknown. A read may learn more then. Plain Unknown
// comes from a write that is under way or has failed. No read may replace it.
const (
	unset    Knowledge = 0
	unknown  Knowledge = 3
	recalled Knowledge = 4
)

func newTable() *table {
	return &table{pages: make(map[geometry.ChunkIndex]*page), dirty: make(map[int64]bool)}
}

// get returns what is known of chunk i. ok is false if it was never set.
func (t *table) get(i geometry.ChunkIndex) (k Knowledge, etag store.ETag, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.pages[i/pageChunks]
	if p == nil {
		return Unknown, "", false
	}
	switch k := p.state[i%pageChunks]; k {
	case unset:
		return Unknown, "", false
	case Known:
		return Known, store.ETag(hex.EncodeToString(p.sum[i%pageChunks][:])), true
	case unknown, recalled:
		return Unknown, "", true
	default:
		return k, "", true
	}
}

// holes returns the first chunk from i on that is not known to be a hole, or
// end. All chunks from i to end are in one page. untold says whether chunks
// that were never set count as holes.
func (t *table) holes(i, end geometry.ChunkIndex, untold bool) geometry.ChunkIndex {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.pages[i/pageChunks]
	if p == nil {
		if untold {
			return end
		}
		return i
	}
	for ; i < end; i++ {
		if k := p.state[i%pageChunks]; k != Hole && (k != unset || !untold) {
			break
		}
	}
	return i
}

// set notes k, and with Known the ETag. If the ETag is no MD5, such as a large
// object's, the chunk becomes Unknown.
func (t *table) set(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(i, k, etag)
}

// learn is set, but only for a chunk that this session has not set and that an
// earlier session did not know.
func (t *table) learn(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pages[i/pageChunks]; p == nil || p.state[i%pageChunks] == unset || p.state[i%pageChunks] == recalled {
		t.setLocked(i, k, etag)
	}
}

func (t *table) setLocked(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	var sum [16]byte
	if k == Known {
		if n, err := hex.Decode(sum[:], []byte(etag)); err != nil || n != len(sum) || len(etag) != 32 {
			k = Unknown
		}
	}
	t.dirty[int64(i/shardChunks)] = true
	t.put(i, k, sum)
}

// put sets one chunk. mu is held.
func (t *table) put(i geometry.ChunkIndex, k Knowledge, sum [16]byte) {
	if k == Unknown {
		k = unknown
	}
	p := t.pages[i/pageChunks]
	if p == nil {
		p = new(page)
		t.pages[i/pageChunks] = p
	}
	p.state[i%pageChunks], p.sum[i%pageChunks] = k, sum
}

// load sets the chunks from first on that were not set yet to what an earlier
// session knew of them.
func (t *table) load(first geometry.ChunkIndex, s *shard) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for j := range s.state {
		i := first + geometry.ChunkIndex(j)
		if p := t.pages[i/pageChunks]; p == nil || p.state[i%pageChunks] == unset {
			k := s.state[j]
			if k == Unknown {
				k = recalled
			}
			t.put(i, k, s.sum[j])
		}
	}
}

// shard copies n chunks from first on. Chunks that were never set are initial.
func (t *table) shard(first geometry.ChunkIndex, n int, initial Knowledge) *shard {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := newShard(n)
	for j := range n {
		i := first + geometry.ChunkIndex(j)
		s.state[j] = initial
		if p := t.pages[i/pageChunks]; p != nil && p.state[i%pageChunks] != unset {
			s.state[j], s.sum[j] = p.state[i%pageChunks], p.sum[i%pageChunks]
			if s.state[j] == unknown || s.state[j] == recalled {
				s.state[j] = Unknown
			}
		}
	}
	return s
}

// touched returns the shards that have changed.
func (t *table) touched() []int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Sorted(maps.Keys(t.dirty))
}
