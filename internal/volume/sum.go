// SPDX-License-Identifier: MIT

package volume

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"slices"
	"sync"

	md5simd "github.com/minio/md5-simd"

	"swiftnbd/internal/store"
)

// sum returns p's ETag, at about 1.1 ms of CPU a MiB.
func sum(p []byte) store.ETag {
	s := md5.Sum(p)
	return store.ETag(hex.EncodeToString(s[:]))
}

// summer sums chunks on their way to Swift. Sixteen together, in the processor's
// vector units, cost a third of what they cost one by one, eight a half, and
// fewer no less. So, as long as enough PUTs are under way to keep Swift busy,
// those that come later are left to gather. Who comes alone, such as a flush,
// does not wait.
//
// The zero value sums each chunk for itself.
type summer struct {
	enough int // PUTs that keep Swift busy, with some in reserve

	mu       sync.Mutex // guards all below
	gathered []*summand
	putting  int            // chunks that are being or have been summed, and whose PUT has not ended
	busy     bool           // a batch is being summed
	vectors  md5simd.Server // from the first batch until there is nothing to put; 1.5 MiB
}

// summand is one chunk.
type summand struct {
	p     []byte
	etag  store.ETag    // valid after ready; empty: it is not summed here
	ready chan struct{} // closed when it is its turn
}

const (
	batch    = 16 // the most that are summed together
	batchMin = batch / 2
)

// Gathered is how many more Writes at once than the store makes fill batches
// all the time: one batch that gathers, and one that the store works off.
const Gathered = 2 * batch

// sum returns p's ETag. The caller calls done when the PUT has ended, or will
// not be made; not after an error, which is ctx's.
func (s *summer) sum(ctx context.Context, p []byte) (store.ETag, error) {
	if s.enough == 0 {
		return sum(p), nil
	}
	one := &summand{p: p, ready: make(chan struct{})}
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
	if one.etag == "" {
		return sum(p), nil
	}
	return one.etag, nil
}

// leave takes back what is not being summed yet, and says whether it was so.
func (s *summer) leave(one *summand) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.gathered, one)
	if i >= 0 {
		s.gathered = slices.Delete(s.gathered, i, i+1)
	}
	return i >= 0
}

// done notes that a PUT has ended.
func (s *summer) done() {
	if s.enough == 0 {
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

// beginLocked begins to sum what has gathered, where it is time.
func (s *summer) beginLocked() {
	n := min(len(s.gathered), batch)
	if s.busy || n == 0 || (n < batch && s.putting >= s.enough) {
		return
	}
	now := slices.Clone(s.gathered[:n])
	s.gathered = slices.Delete(s.gathered, 0, n)
	s.putting += n
	if n < batchMin {
		for _, one := range now {
			close(one.ready) // each sums its own
		}
		return
	}
	s.busy = true
	if s.vectors == nil {
		s.vectors = md5simd.NewServer()
	}
	vectors := s.vectors
	go func() {
		sumTogether(vectors, now)
		for _, one := range now {
			close(one.ready)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy = false
		s.beginLocked()
	}()
}

// sumTogether sums at most batch chunks.
func sumTogether(vectors md5simd.Server, all []*summand) {
	var wg sync.WaitGroup
	for _, one := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h := vectors.NewHash()
			defer h.Close()
			_, _ = h.Write(one.p) // as of every hash.Hash: no error
			one.etag = store.ETag(hex.EncodeToString(h.Sum(nil)))
		}()
	}
	wg.Wait()
}
