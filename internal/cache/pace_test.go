// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/geometry"
)

// slowable is a store far away that may become slower: an answer takes its
// latency, and all bytes come and go through one line.
type slowable struct {
	far
	slower atomic.Int64 // times
}

func (s *slowable) request(n int64) {
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	s.bytes.Add(n)
	times := time.Duration(s.slower.Load())
	time.Sleep(s.latency * times)
	s.line.Lock()
	s.free = time.Now().Add(max(0, time.Until(s.free)) + times*time.Duration(n*int64(time.Second)/s.rate))
	at := s.free
	s.line.Unlock()
	time.Sleep(time.Until(at))
}

func (s *slowable) Read(_ context.Context, _ geometry.ChunkIndex, _ int64, p []byte) (bool, error) {
	s.request(int64(len(p)))
	return false, nil
}

func (s *slowable) Write(_ context.Context, _ geometry.ChunkIndex, p []byte) error {
	s.request(int64(len(p)))
	return nil
}

func (s *slowable) Delete(context.Context, geometry.ChunkIndex) error {
	s.request(0)
	return nil
}

// TestPace has 16 writers write blocks of 4 KiB all over a disk of 64 GiB
// without end, while somebody flushes every now and then. Each flush takes
// hardly longer than it may, whatever the size of objects is, and the writers
// go on: none of their writes takes longer than its place in the line does.
// Then Swift becomes ten times slower, and faster again. The clock is
// synctest's.
func TestPace(t *testing.T) {
	for _, tc := range []struct {
		object, size, rate int64
	}{
		{64 << 10, 64 << 20, 100 << 20},
		{1 << 20, 64 << 20, 200 << 20},
		{1 << 20, 512 << 20, 200 << 20},
		{1 << 20, 64 << 20, 2 << 30},
		{4 << 20, 128 << 20, 400 << 20},
	} {
		t.Run(fmt.Sprintf("%dK objects, cache %dM, %dM/s", tc.object>>10, tc.size>>20, tc.rate>>20), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runPace(t, tc.object, tc.size, tc.rate) })
		})
	}
}

func runPace(t *testing.T, object, size, rate int64) {
	const conns, depth, target = 16, 16, 2 * time.Second
	geo, err := geometry.New(object, (64<<30)/object)
	if err != nil {
		t.Fatal(err)
	}
	s := &slowable{far: far{latency: 20 * time.Millisecond, rate: rate, slots: make(chan struct{}, conns)}}
	s.slower.Store(1)
	c, err := New(s, geo, Options{Size: size, Connections: conns, FlushTime: target, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// What one chunk takes of Swift's time while it is busy.
	share := func(times int64) time.Duration {
		bytes := time.Duration(2 * object * int64(time.Second) / rate)
		return time.Duration(times) * max(bytes, 2*s.latency/conns)
	}
	start := time.Now()
	var wg sync.WaitGroup
	var stop atomic.Bool
	type written struct {
		ended time.Duration
		took  time.Duration
	}
	var mu sync.Mutex // guards writes
	var writes [depth][]written
	for k := range depth {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(k)))
			p := make([]byte, 4096)
			p[0] = 1
			for !stop.Load() {
				begun := time.Now()
				if err := c.Write(t.Context(), p, rng.Int64N(geo.Size()/4096)*4096); err != nil {
					t.Error(err)
				}
				mu.Lock()
				writes[k] = append(writes[k], written{time.Since(start), time.Since(begun)})
				mu.Unlock()
			}
		})
	}
	// flushes flushes now and then for some time, and returns how long the
	// longest took.
	flushes := func(some time.Duration) (longest time.Duration) {
		for end := time.Now().Add(some); time.Now().Before(end); time.Sleep(700 * time.Millisecond) {
			begun := time.Now()
			if err := c.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			longest = max(longest, time.Since(begun))
		}
		return longest
	}
	// in returns the longest write and how many ended in this time.
	in := func(from, to time.Duration) (longest time.Duration, n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, ws := range writes {
			for _, w := range ws {
				if w.ended >= from && w.ended < to {
					n++
					longest = max(longest, w.took)
				}
			}
		}
		return longest, n
	}
	check := func(what string, times int64, begun time.Duration, flush, most time.Duration) {
		t.Helper()
		end := time.Since(start)
		longest, n := in(begun, end)
		least := int((end - begun) / share(times) / 2)
		// Those before it in the line, at half of Swift's speed, and what is
		// under way.
		patience := partRest + (2*depth+2*conns)*share(times)
		t.Logf("%s: the longest flush took %v, the longest write %v of %v; %d writes, of %d", what, flush, longest, patience, n, 2*least)
		if flush > most+3*conns*share(times)/2+2*s.latency*time.Duration(times) { // and what is under way
			t.Errorf("%s: a flush took %v, and may take %v", what, flush, most)
		}
		if longest > patience {
			t.Errorf("%s: a write took %v, and may take %v", what, longest, patience)
		}
		if n < least*9/10 {
			t.Errorf("%s: %d writes in %v, and Swift takes %d chunks", what, n, end-begun, 2*least)
		}
	}
	const sec = time.Second
	check("at first", 1, 0, flushes(20*sec), target)
	begun := time.Since(start)
	s.slower.Store(10)
	check("ten times slower", 10, begun, flushes(10*sec), 10*target)
	time.Sleep(30 * sec)
	begun = time.Since(start)
	check("as slow for long", 10, begun, flushes(30*sec), target)
	s.slower.Store(1)
	flushes(5 * sec) // what was begun slowly
	begun = time.Since(start)
	check("fast again", 1, begun, flushes(10*sec), target)
	stop.Store(true)
	wg.Wait()
}

// TestFillHoles has writers write most of each chunk of a disk whose chunks
// turn out to be holes only when they are to be completed. What a fetch brings
// back then must not go to the writers, or what is dirty in part takes all of
// the memory, and nothing can be completed any more.
func TestFillHoles(t *testing.T) {
	const size, writers = 1 << 20, 8
	geo, err := geometry.New(size, 400)
	if err != nil {
		t.Fatal(err)
	}
	v := newFakeVolume(t, size, newSeed(t))
	v.delay.Store(int64(50 * time.Microsecond))
	c, err := New(v, geo, Options{Size: 6 << 20, Connections: 4, Queued: 3, Age: time.Millisecond, Patience: time.Hour, Pause: time.Millisecond, Check: true, Log: noPanics(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	within(t, "a write to a chunk that is a hole", func() {
		var wg sync.WaitGroup
		var next atomic.Int64
		for k := range writers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(k)))
				p := make([]byte, 900<<10)
				for i := next.Add(1) - 1; i < geo.Objects(); i = next.Add(1) - 1 {
					p[0] = 1
					n := int64(4096 + rng.IntN(len(p)-4096))
					if err := c.Write(context.Background(), p[:n], i*size+4096); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := c.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if n := c.budget.filling.Load(); n != 0 {
		t.Errorf("%d bytes are counted as filling when nothing is uploaded", n)
	}
}

// TestReserve has writers change chunks at random in the smallest cache that is
// allowed. A chunk that was completed with memory of the reserve may be dirty
// again at once, and keeps it: it has to be uploaded although other uploads wait
// for memory, or nothing could be completed any more.
func TestReserve(t *testing.T) {
	const size, writers = 1 << 20, 8
	geo, err := geometry.New(size, 16)
	if err != nil {
		t.Fatal(err)
	}
	v := newFakeVolume(t, size, newSeed(t))
	v.delay.Store(int64(50 * time.Microsecond))
	c, err := New(v, geo, Options{Size: 4<<20 + 4*overhead, Connections: 4, Queued: 3, Age: time.Millisecond, Patience: time.Hour, Pause: time.Millisecond, Check: true, Log: noPanics(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	within(t, "a write", func() {
		var wg sync.WaitGroup
		for k := range writers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(k)))
				p := make([]byte, size)
				p[0] = 1
				for range 1000 {
					i := rng.Int64N(geo.Objects()) * size
					var err error
					switch rng.IntN(8) {
					case 0:
						err = c.Zero(ctx, i, size)
					case 1:
						err = c.Write(ctx, p, i)
					default:
						n := 4096 + rng.Int64N(size-8192)
						err = c.Write(ctx, p[:n], i+4096)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := c.Flush(ctx); err != nil {
			t.Error(err)
		}
	})
	if n := c.budget.filling.Load(); n != 0 {
		t.Errorf("%d bytes are counted as filling when nothing is uploaded", n)
	}
}
