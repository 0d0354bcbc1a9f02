// SPDX-License-Identifier: MIT

package volume

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
)

// TestSummer sums chunks of all kinds of sizes by many goroutines, whose PUTs
// take a moment, with more and fewer at once than are left to gather.
func TestSummer(t *testing.T) {
	for _, enough := range []int{0, 1, 5, 20} {
		for _, workers := range []int{1, 4, 23, 60} {
			s := summer{enough: enough}
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
						got, err := s.sum(t.Context(), geometry.ChunkIndex(w), p)
						if err != nil || got != store.ETag(hex.EncodeToString(want[:])) {
							t.Errorf("enough=%d, workers=%d: %d bytes: %s, %v; want %x", enough, workers, len(p), got, err, want)
						}
						time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
						s.done()
					}
				}()
			}
			wg.Wait()
			if s.putting != 0 || len(s.gathered) != 0 || s.summing != 0 || s.vectors != nil {
				t.Errorf("enough=%d, workers=%d: at the end %d are put, %d gathered, %d summed, vectors=%v", enough, workers, s.putting, len(s.gathered), s.summing, s.vectors)
			}
		}
	}
}

// TestSummerGathers shows who waits and for what: nobody, while too few PUTs
// are under way; a full batch for nothing; the others until the store is about
// to run dry, or they are not wanted any more.
func TestSummerGathers(t *testing.T) {
	const enough = 3
	s := summer{enough: enough}
	p := make([]byte, 1000)
	come := func(ctx context.Context, n int) chan error {
		ended := make(chan error, n)
		for range n {
			go func() {
				_, err := s.sum(ctx, 0, p)
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
				t.Fatalf("%d of %d are summed, and the others wait", k, n)
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

	for range enough {
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
	rest := come(t.Context(), batch-5) // a batch: it is summed, whatever is under way
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

// TestSummerForgets sums one batch after the other while there is always
// something to put, and keeps nothing of them.
func TestSummerForgets(t *testing.T) {
	s := summer{enough: 1}
	if _, err := s.sum(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	batches := func(n int) (heap uint64) {
		p := make([]byte, 200)
		for range n {
			var wg sync.WaitGroup
			for range batch {
				wg.Go(func() {
					if _, err := s.sum(t.Context(), 0, p); err != nil {
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
		var s prefixSums
		p := make([]byte, size)
		_, _ = stuff.Read(p)
		first := 0 // the first byte that is new
		for n := range 50 {
			want := md5.Sum(p)
			got, saved := s.sum(7, p)
			if got != store.ETag(hex.EncodeToString(want[:])) {
				t.Fatalf("%d bytes, changed from %d on: %s, want %x", size, first, got, want)
			}
			least := first - size/prefixPlaces
			if size < prefixMin || n == 0 {
				least = 0
			}
			if saved < least || saved > first {
				t.Errorf("%d bytes, changed from %d on: %d were not summed anew", size, first, saved)
			}
			if size == 0 {
				break
			}
			first = r.IntN(size)
			p[first]++
			p[first+r.IntN(size-first)]++
		}
	}
}

// TestPrefixSumsForget sums more chunks than are remembered.
func TestPrefixSumsForget(t *testing.T) {
	var s prefixSums
	p := make([]byte, prefixMin)
	const hot = 1000
	for i := range geometry.ChunkIndex(3 * prefixChunks) {
		for _, j := range []geometry.ChunkIndex{i, hot} {
			_, saved := s.sum(j, p)
			if again := j == hot && i > 0; (saved > 0) != again {
				t.Fatalf("chunk %d after %d others: %d bytes were not summed anew", j, i, saved)
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
			var s prefixSums
			b.SetBytes(int64(len(p)))
			i := geometry.ChunkIndex(0)
			for b.Loop() {
				p[len(p)/2]++
				s.sum(i, p)
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
