// SPDX-License-Identifier: MIT

package volume

import (
	"encoding/hex"
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

// table keeps what is known of each chunk. Pages are made when the first of
// their chunks becomes known, so that a large volume costs what is used of it:
// 17 bytes a chunk in pages of 1,024 chunks.
type table struct {
	initial Knowledge // of chunks that were never set: Unknown, or Hole on a blank volume

	mu    sync.RWMutex // guards pages and their content; never held across I/O
	pages map[geometry.ChunkIndex]*page
}

const pageChunks = 1024

type page struct {
	state [pageChunks]Knowledge
	sum   [pageChunks][16]byte
}

func newTable(initial Knowledge) *table {
	return &table{initial: initial, pages: make(map[geometry.ChunkIndex]*page)}
}

func (t *table) get(i geometry.ChunkIndex) (Knowledge, store.ETag) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.pages[i/pageChunks]
	if p == nil {
		return t.initial, ""
	}
	k := p.state[i%pageChunks]
	if k != Known {
		return k, ""
	}
	return Known, store.ETag(hex.EncodeToString(p.sum[i%pageChunks][:]))
}

// set notes k, and with Known the ETag. An ETag that is no MD5 (a large
// object's, say) is not kept: the chunk stays Unknown.
func (t *table) set(i geometry.ChunkIndex, k Knowledge, etag store.ETag) {
	var sum [16]byte
	if k == Known {
		if n, err := hex.Decode(sum[:], []byte(etag)); err != nil || n != len(sum) || len(etag) != 32 {
			k = Unknown
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pages[i/pageChunks]
	if p == nil {
		if k == t.initial {
			return
		}
		p = new(page)
		if t.initial != Unknown {
			for j := range p.state {
				p.state[j] = t.initial
			}
		}
		t.pages[i/pageChunks] = p
	}
	p.state[i%pageChunks], p.sum[i%pageChunks] = k, sum
}
