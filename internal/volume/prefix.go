// SPDX-License-Identifier: MIT

package volume

import (
	"container/list"
	"crypto/md5"
	"encoding/hex"
	"hash"
	"hash/maphash"
	"sync"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// prefixSums sums chunks, and remembers of those that it has summed last how
// far MD5 was at a number of places. A chunk that is uploaded again and again,
// because a client writes a little of it and flushes, is then summed from the
// first of its bytes that are new, which takes half of the time in the mean.
//
// What has not changed is told by another hash, which is 15 times as fast, of 64
// bits and with a secret key. Should it ever be wrong, the ETag would be wrong,
// and Swift would refuse the bytes; nothing is remembered of a chunk then. The
// one wrong ETag that might be taken for a success is that of the object as it
// was before, so that one is not believed.
//
// The zero value is ready.
type prefixSums struct {
	mu    sync.Mutex // guards all below; not held while anything is summed
	of    map[geometry.ChunkIndex]*list.Element
	order list.List // of *chunkSums, the latest first
}

const (
	prefixMin    = 256 << 10 // below, MD5 takes next to nothing of a PUT's time
	prefixPlaces = 16        // of one chunk
	prefixChunks = 64        // remembered at once; each takes 3 KiB
)

// chunkSums is what is remembered of one chunk.
type chunkSums struct {
	index  geometry.ChunkIndex
	places []prefixSum // in order, each step bytes after the one before
}

// prefixSum is how far MD5 was at one place.
type prefixSum struct {
	piece uint64 // hash of the bytes between the place before and this one
	state hash.Cloner
}

var prefixSeed = maphash.MakeSeed()

// sum returns the ETag of p, chunk i, and how many of its bytes were not summed
// anew. The chunk's object has the ETag before, or "".
func (s *prefixSums) sum(i geometry.ChunkIndex, p []byte, before store.ETag) (etag store.ETag, saved int) {
	state, ok := md5.New().(hash.Cloner)
	if len(p) < prefixMin || !ok {
		return sum(p), 0
	}
	step := len(p) / prefixPlaces
	places := s.take(i)
	pieces := make([]uint64, prefixPlaces)
	same := 0
	for k := range pieces {
		pieces[k] = maphash.Bytes(prefixSeed, p[k*step:(k+1)*step])
		if same == k && k < len(places) && places[k].piece == pieces[k] {
			same++
		}
	}
	places = places[:same]
	if same > 0 {
		state = cloned(places[same-1].state)
	}
	for k := same; k < prefixPlaces; k++ {
		_, _ = state.Write(p[k*step : (k+1)*step]) // as of every hash.Hash: no error
		places = append(places, prefixSum{pieces[k], cloned(state)})
	}
	_, _ = state.Write(p[prefixPlaces*step:])
	etag = store.ETag(hex.EncodeToString(state.Sum(nil)))
	if same > 0 && etag == before {
		return sum(p), 0
	}
	s.put(i, places)
	return etag, same * step
}

// cloned returns a copy of h, which is MD5's and has always one to give.
func cloned(h hash.Cloner) hash.Cloner {
	c, err := h.Clone()
	if err != nil {
		panic(err)
	}
	return c
}

// forget forgets chunk i, whose ETag Swift may have refused.
func (s *prefixSums) forget(i geometry.ChunkIndex) { s.take(i) }

// take returns what is remembered of chunk i, and forgets it.
func (s *prefixSums) take(i geometry.ChunkIndex) []prefixSum {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.of[i]
	if e == nil {
		return nil
	}
	delete(s.of, i)
	return s.order.Remove(e).(*chunkSums).places
}

// put remembers the places of chunk i, and forgets what is older and too much.
func (s *prefixSums) put(i geometry.ChunkIndex, places []prefixSum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[geometry.ChunkIndex]*list.Element)
	}
	if e := s.of[i]; e != nil {
		s.order.Remove(e)
	}
	s.of[i] = s.order.PushFront(&chunkSums{i, places})
	if s.order.Len() > prefixChunks {
		delete(s.of, s.order.Remove(s.order.Back()).(*chunkSums).index)
	}
}
