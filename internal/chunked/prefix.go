// SPDX-License-Identifier: MIT

package chunked

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

// prefixHashes hashes chunks. For the chunks that it has hashed last, it
// remembers MD5's state at a number of places. If a client writes a little of a
// chunk and flushes, again and again, the chunk is hashed only from its first
// new byte on. This takes half of the time on average.
//
// Another hash finds out what has not changed. It is 15 times as fast, and has
// 64 bits and a secret key. If it were ever wrong, the ETag would be wrong, and
// Swift would refuse the bytes. Then everything about the chunk is forgotten.
// Only one wrong ETag could pass for a success: that of the object as it was
// before. So this one is not believed.
//
// The zero value is ready.
type prefixHashes struct {
	mu    sync.Mutex // guards all below; not held while anything is hashed
	of    map[geometry.ChunkIndex]*list.Element
	order list.List // of *chunkHashes, the latest first
}

const (
	prefixMin    = 256 << 10 // for smaller chunks, MD5 takes almost nothing of a PUT's time
	prefixPlaces = 16        // of one chunk
	prefixChunks = 64        // remembered at once; each takes 3 KiB
)

// chunkHashes are the remembered places of one chunk.
type chunkHashes struct {
	index  geometry.ChunkIndex
	places []prefixHash // in order, each step bytes after the one before
}

// prefixHash is MD5's state at one place.
type prefixHash struct {
	piece uint64 // hash of the bytes between the place before and this one
	state hash.Cloner
}

var prefixSeed = maphash.MakeSeed()

// sum returns the ETag of p, chunk i, and how many of its bytes it did not have
// to hash. The chunk's object has the ETag before, or "".
func (s *prefixHashes) sum(i geometry.ChunkIndex, p []byte, before store.ETag) (etag store.ETag, saved int) {
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
		places = append(places, prefixHash{pieces[k], cloned(state)})
	}
	_, _ = state.Write(p[prefixPlaces*step:])
	etag = store.ETag(hex.EncodeToString(state.Sum(nil)))
	if same > 0 && etag == before {
		return sum(p), 0
	}
	s.put(i, places)
	return etag, same * step
}

// cloned returns a copy of h. h is an MD5, which can always be copied.
func cloned(h hash.Cloner) hash.Cloner {
	c, err := h.Clone()
	if err != nil {
		panic(err)
	}
	return c
}

// forget forgets chunk i, whose ETag Swift may have refused.
func (s *prefixHashes) forget(i geometry.ChunkIndex) { s.take(i) }

// take returns what is remembered of chunk i, and forgets it.
func (s *prefixHashes) take(i geometry.ChunkIndex) []prefixHash {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.of[i]
	if e == nil {
		return nil
	}
	delete(s.of, i)
	return s.order.Remove(e).(*chunkHashes).places
}

// put remembers the places of chunk i. If there are too many chunks, it forgets
// the oldest.
func (s *prefixHashes) put(i geometry.ChunkIndex, places []prefixHash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[geometry.ChunkIndex]*list.Element)
	}
	if e := s.of[i]; e != nil {
		s.order.Remove(e)
	}
	s.of[i] = s.order.PushFront(&chunkHashes{i, places})
	if s.order.Len() > prefixChunks {
		delete(s.of, s.order.Remove(s.order.Back()).(*chunkHashes).index)
	}
}
