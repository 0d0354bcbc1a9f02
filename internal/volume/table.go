// SPDX-License-Identifier: MIT

package volume

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
	// Unknown: nothing; only the newest copy of all replicas can tell.
	Unknown Knowledge = iota
	// Hole: there is no object, the chunk reads as zeroes. Learned from a
	// 404 of a newest read, or made by our own DELETE.
	Hole
	// Known: the object's ETag is known, so that stale replicas can be
	// told (If-Match).
	Known
)

// table keeps what this session knows of each chunk, or took over from an
// earlier one. Pages are made when the first of their chunks becomes known, so
// that a large volume costs what is used of it: 17 bytes a chunk in pages of
// 1,024 chunks.
type table struct {
	mu    sync.RWMutex // guards all below; never held across I/O
	pages map[geometry.ChunkIndex]*page
	dirty map[int64]bool // shards of the map in which something was set
}

const pageChunks = 1024

type page struct {
	state [pageChunks]Knowledge
	sum   [pageChunks][16]byte
}

// In a page a chunk has two more states: nothing was ever said of it, or an
// earlier session's map said Unknown. A read may then learn more. Unknown is
// what a write under way, or one that failed, has left: no read may hide it.
const (
	unset    Knowledge = 0
	unknown  Knowledge = 3
	recalled Knowledge = 4
)

func newTable() *table {
	return &table{pages: make(map[geometry.ChunkIndex]*page), dirty: make(map[int64]bool)}
}

// get returns what is known of chunk i; ok is false when nothing was ever said
// of it.
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

// set notes k, and with Known the ETag. An ETag that is no MD5 (a large
// object's, say) is not kept: the chunk is Unknown.
func (t *table) set(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(i, k, etag)
}

// learn is set for a chunk of which this session has said nothing, and an
// earlier one nothing of use.
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

// load sets the chunks from first on, of which nothing was said yet, to what an
// earlier session knew of them.
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

// shard copies n chunks from first on; those of which nothing was said are
// initial.
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

// touched returns the shards in which something was set.
func (t *table) touched() []int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Sorted(maps.Keys(t.dirty))
}
