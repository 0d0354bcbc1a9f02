// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// TestHasher sums chunks of all kinds of sizes by many goroutines, whose PUTs
// take a moment, with more and fewer at once than are left to gather.
func TestHasher(t *testing.T) {
	for _, busyPuts := range []int{0, 1, 5, 20} {
		for _, workers := range []int{1, 4, 23, 60} {
			s := hasher{busyPuts: busyPuts}
			var wg sync.WaitGroup
			for w := range workers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					r := rand.New(rand.NewPCG(uint64(w), 0))
					stuff := rand.NewChaCha8([32]byte{byte(w)})
					for range 20 {
						p := make([]byte, r.IntN(100_000))
						_, _ = stuff.Read(p)
						want := md5.Sum(p)
						got, err := s.sum(t.Context(), geometry.ChunkIndex(w), p, "")
						if err != nil || got != store.ETag(hex.EncodeToString(want[:])) {
							t.Errorf("busyPuts=%d, workers=%d: %d bytes: %s, %v; want %x", busyPuts, workers, len(p), got, err, want)
						}
						time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
						s.done()
					}
				}()
			}
			wg.Wait()
			if s.putting != 0 || len(s.gathered) != 0 || s.hashing != 0 || s.vectors != nil {
				t.Errorf("busyPuts=%d, workers=%d: at the end %d are put, %d gathered, %d hashed, vectors=%v", busyPuts, workers, s.putting, len(s.gathered), s.hashing, s.vectors)
			}
		}
	}
}

// TestHasherGathers shows who waits and for what: nobody, while too few PUTs
// are under way; a full batch for nothing; the others until the store is about
// to run dry, or they are not wanted any more.
func TestHasherGathers(t *testing.T) {
	const busyPuts = 3
	s := hasher{busyPuts: busyPuts}
	p := make([]byte, 1000)
	come := func(ctx context.Context, n int) chan error {
		ended := make(chan error, n)
		for range n {
			go func() {
				_, err := s.sum(ctx, 0, p, "")
				ended <- err
			}()
		}
		return ended
	}
	all := func(ended chan error, n int) {
		t.Helper()
		for k := range n {
			select {
			case err := <-ended:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%d of %d are hashed, and the others wait", k, n)
			}
		}
	}
	gather := func(n int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			s.mu.Lock()
			have := len(s.gathered)
			s.mu.Unlock()
			if have == n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d have gathered, want %d", have, n)
			}
		}
	}

	for range busyPuts {
		all(come(t.Context(), 1), 1) // one after the other, as of flushes: nobody waits
	}
	few := come(t.Context(), 5)
	gather(5)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := come(ctx, 2)
	gather(7)
	why := errors.New("not wanted")
	cancel(why)
	for range 2 {
		if err := <-gone; !errors.Is(err, why) {
			t.Errorf("who was not wanted any more got %v", err)
		}
	}
	gather(5)
	rest := come(t.Context(), batch-5) // a batch: it is hashed, whatever is under way
	all(few, 5)
	all(rest, batch-5)
	last := come(t.Context(), 2)
	gather(2)
	for range batch {
		s.done()
	}
	gather(2) // still as many under way as keep the store busy
	s.done()
	all(last, 2)
}

// TestHasherForgets sums one batch after the other while there is always
// something to put, and keeps nothing of them.
func TestHasherForgets(t *testing.T) {
	s := hasher{busyPuts: 1}
	if _, err := s.sum(t.Context(), 0, nil, ""); err != nil {
		t.Fatal(err)
	}
	batches := func(n int) (heap uint64) {
		p := make([]byte, 200)
		for range n {
			var wg sync.WaitGroup
			for range batch {
				wg.Go(func() {
					if _, err := s.sum(t.Context(), 0, p, ""); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for range batch {
				s.done()
			}
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := batches(10)
	if after := batches(1000); after > before+1<<20 {
		t.Errorf("after 1000 batches there are %d bytes more on the heap", after-before)
	}
}

// TestPrefixSums changes chunks here and there, sums them again, and looks at
// how much of them that took.
func TestPrefixSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	stuff := rand.NewChaCha8([32]byte{})
	for _, size := range []int{0, 1, prefixMin - 1, prefixMin, prefixMin + 1, 1 << 20, 1<<20 + 17} {
		var s prefixHashes
		p := make([]byte, size)
		_, _ = stuff.Read(p)
		first := 0 // the first byte that is new
		for n := range 50 {
			want := md5.Sum(p)
			got, saved := s.sum(7, p, "")
			if got != store.ETag(hex.EncodeToString(want[:])) {
				t.Fatalf("%d bytes, changed from %d on: %s, want %x", size, first, got, want)
			}
			least := first - size/prefixPlaces
			if size < prefixMin || n == 0 {
				least = 0
			}
			if saved < least || saved > first {
				t.Errorf("%d bytes, changed from %d on: %d were not hashed anew", size, first, saved)
			}
			if size == 0 {
				break
			}
			first = r.IntN(size)
			if step := size / prefixPlaces; size >= prefixMin && n%3 > 0 {
				first = first / step * step // the first byte of a piece, or its last
				if n%3 == 2 {
					first += min(step, size-first) - 1
				}
			}
			p[first]++
			p[first+r.IntN(size-first)]++
		}
	}
}

// TestPrefixSumsWrong has the hash of what has not changed be wrong: the ETag of
// the object as it is in Swift is not believed, and with any other Swift refuses
// the bytes, and the next attempt is right.
func TestPrefixSumsWrong(t *testing.T) {
	m := mem.New()
	if err := volume.Create(t.Context(), m, mustGeometry(t, prefixMin, 10)); err != nil {
		t.Fatal(err)
	}
	v, warning := Open(t.Context(), m, read(t, m), false)
	if warning != nil {
		t.Fatal(warning)
	}
	p := make([]byte, prefixMin)
	_, _ = rand.NewChaCha8([32]byte{}).Read(p)
	step := len(p) / prefixPlaces
	lie := func(k int) { // about piece k, as it is now
		at := v.hasher.prefixes.of[3].Value.(*chunkHashes).places
		at[k].piece = maphash.Bytes(prefixSeed, p[k*step:(k+1)*step])
	}
	put := func() error { return v.Write(t.Context(), 3, p) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	p[5*step]++
	lie(5)
	if err := put(); err != nil {
		t.Errorf("with the ETag that the object had: %v", err)
	}
	p[7*step]++
	p[9*step]++
	if err := put(); err != nil { // is remembered again
		t.Error(err)
	}
	p[7*step]++
	lie(7)
	p[9*step]++
	if err := put(); err == nil {
		t.Error("the wrong ETag was not refused")
	}
	if err := put(); err != nil {
		t.Errorf("after it was refused: %v", err)
	}
	got := make([]byte, len(p))
	if _, err := v.Read(t.Context(), 3, 0, got); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the bytes are not what was written last: %v", err)
	}
}

// TestPrefixSumsForget sums more chunks than are remembered.
func TestPrefixSumsForget(t *testing.T) {
	var s prefixHashes
	p := make([]byte, prefixMin)
	const hot = 1000
	for i := range geometry.ChunkIndex(3 * prefixChunks) {
		for _, j := range []geometry.ChunkIndex{i, hot} {
			_, saved := s.sum(j, p, "")
			if again := j == hot && i > 0; (saved > 0) != again {
				t.Fatalf("chunk %d after %d others: %d bytes were not hashed anew", j, i, saved)
			}
		}
	}
	if len(s.of) != prefixChunks || s.order.Len() != prefixChunks {
		t.Errorf("%d chunks are remembered, %d in order; want %d", len(s.of), s.order.Len(), prefixChunks)
	}
}

// BenchmarkPrefixSums sums a chunk whose one half is new, or that was never seen.
func BenchmarkPrefixSums(b *testing.B) {
	p := make([]byte, 1<<20)
	for name, step := range map[string]geometry.ChunkIndex{"half": 0, "first": 1} {
		b.Run(name, func(b *testing.B) {
			var s prefixHashes
			b.SetBytes(int64(len(p)))
			i := geometry.ChunkIndex(0)
			for b.Loop() {
				p[len(p)/2]++
				s.sum(i, p, "")
				i += step
			}
		})
	}
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			sum(p)
		}
	})
}
