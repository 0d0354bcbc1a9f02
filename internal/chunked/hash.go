// SPDX-License-Identifier: MIT

package chunked

import (
	"context"
	"slices"
	"sync"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/etag"
)

// sum returns p's ETag.
func sum(p []byte) store.ETag { return etag.Sum(p) }

// hasher computes the MD5 of chunks on their way to Swift. Sixteen together, in
// the processor's vector units, cost a third of what they cost one by one.
// Eight together cost half, and with fewer nothing is gained. So while busyPuts
// PUTs are under way and keep Swift busy, later chunks gather. A chunk that
// comes alone, for example for a flush, does not wait.
//
// The zero value sums each chunk for itself.
type hasher struct {
	busyPuts int // PUTs that keep Swift busy, with some in reserve
	prefixes prefixHashes

	mu       sync.Mutex // guards all below
	gathered []*pendingHash
	putting  int           // chunks that are being hashed or were hashed, with a PUT that has not ended
	hashing  int           // of these, the chunks in the batch that is being hashed; 0: no batch is
	vectors  *etag.Vectors // exists from the first batch until no chunk is being put
}

// pendingHash is one chunk that waits for its hash.
type pendingHash struct {
	p     []byte
	etag  store.ETag    // valid after ready; empty: the waiting goroutine hashes the chunk itself
	ready chan struct{} // closed when the chunk's turn has come
}

const (
	batch    = etag.Batch
	batchMin = etag.BatchMin
)

// BatchQueue is how many Writes beyond the store's connections keep the batches
// full: one batch gathers while the store puts another.
const BatchQueue = 2 * batch

// sum returns the ETag of p, chunk i, whose object has the ETag before, or "".
// The caller calls done when the PUT has ended, or will not be made. After an
// error, which is ctx's, it does not call done.
func (s *hasher) sum(ctx context.Context, i geometry.ChunkIndex, p []byte, before store.ETag) (store.ETag, error) {
	if s.busyPuts == 0 {
		etag, _ := s.prefixes.sum(i, p, before)
		return etag, nil
	}
	one := &pendingHash{p: p, ready: make(chan struct{})}
	s.mu.Lock()
	s.gathered = append(s.gathered, one)
	s.beginLocked()
	s.mu.Unlock()
	select {
	case <-one.ready:
	case <-ctx.Done():
		if s.leave(one) {
			return "", context.Cause(ctx)
		}
		<-one.ready
	}
	etag := one.etag
	if etag == "" {
		etag, _ = s.prefixes.sum(i, p, before)
	}
	return etag, nil
}

// leave removes a chunk that is not being hashed yet, and says whether it did.
func (s *hasher) leave(one *pendingHash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.gathered, one)
	if i >= 0 {
		s.gathered = slices.Delete(s.gathered, i, i+1)
	}
	return i >= 0
}

// done notes that a PUT has ended.
func (s *hasher) done() {
	if s.busyPuts == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putting--
	s.beginLocked()
	if s.putting == 0 && s.vectors != nil {
		s.vectors.Close()
		s.vectors = nil
	}
}

// beginLocked begins to hash the gathered chunks if it is time.
func (s *hasher) beginLocked() {
	n := min(len(s.gathered), batch)
	ready := s.putting - s.hashing
	switch {
	case n == 0:
		return
	case s.hashing > 0:
		// The vector units are in use. Do not wait for them while Swift has
		// little to do.
		if n >= batchMin || ready >= s.busyPuts/2 {
			return
		}
	case n < batch && ready >= s.busyPuts:
		return
	}
	now := slices.Clone(s.gathered[:n])
	s.gathered = slices.Delete(s.gathered, 0, n)
	s.putting += n
	if n < batchMin {
		for _, one := range now {
			close(one.ready) // each goroutine hashes its own chunk
		}
		return
	}
	s.hashing = n
	if s.vectors == nil {
		s.vectors = etag.NewVectors()
	}
	v := s.vectors
	go func() {
		all := make([][]byte, len(now))
		for i, one := range now {
			all[i] = one.p
		}
		tags := v.Sum(all)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hashing = 0
		for i, one := range now {
			one.etag = tags[i]
			close(one.ready)
		}
		s.beginLocked()
	}()
}
