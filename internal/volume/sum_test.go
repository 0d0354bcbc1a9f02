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
						got, err := s.sum(t.Context(), p)
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
				_, err := s.sum(ctx, p)
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
	if _, err := s.sum(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	batches := func(n int) (heap uint64) {
		p := make([]byte, 200)
		for range n {
			var wg sync.WaitGroup
			for range batch {
				wg.Go(func() {
					if _, err := s.sum(t.Context(), p); err != nil {
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
