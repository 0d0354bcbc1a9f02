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

// far is a store far away: an answer takes its latency, no more requests than
// there are slots run at once, and all bytes come one after the other through
// one line.
type far struct {
	latency time.Duration
	rate    int64 // the line's, bytes a second
	slots   chan struct{}

	line sync.Mutex // guards free
	free time.Time  // when the line is

	bytes atomic.Int64
}

func (f *far) Read(_ context.Context, _ geometry.ChunkIndex, _ int64, p []byte) (bool, error) {
	f.slots <- struct{}{}
	defer func() { <-f.slots }()
	f.bytes.Add(int64(len(p)))
	time.Sleep(f.latency)
	f.line.Lock()
	f.free = time.Now().Add(max(0, time.Until(f.free)) + time.Duration(int64(len(p))*int64(time.Second)/f.rate))
	at := f.free
	f.line.Unlock()
	time.Sleep(time.Until(at))
	return false, nil
}

func (f *far) Hole(geometry.ChunkIndex) bool                             { return false }
func (f *far) Holes(geometry.ChunkIndex, int64) int64                    { return 0 }
func (f *far) Write(context.Context, geometry.ChunkIndex, []byte) error  { return nil }
func (f *far) Delete(context.Context, geometry.ChunkIndex) error         { return nil }
func (f *far) Probe(context.Context, geometry.ChunkIndex) (bool, error)  { return false, nil }
func (f *far) Listed(context.Context, geometry.ChunkIndex) (bool, error) { return true, nil }

// TestStream reads a disk from its beginning to its end with 1 MiB requests,
// some of them at once, from a store that is far away. The clock is synctest's:
// what is measured is how well the latency is hidden, whatever the machine is
// doing. Hardly anything may be fetched twice, and it may take this much longer
// than the store needs for all objects, as many at once as it takes.
func TestStream(t *testing.T) {
	const total = 512 << 20
	for _, tc := range []struct {
		object, size int64
		depth        int
		longer       float64
	}{
		{64 << 10, 64 << 20, 1, 1.1},
		{64 << 10, 64 << 20, 16, 1.1},
		{1 << 20, 64 << 20, 1, 1.3},
		{1 << 20, 64 << 20, 16, 1.1},
		{1 << 20, 32 << 20, 16, 1.5},
		{2 << 20, 64 << 20, 16, 1.7},
		{2 << 20, 64 << 20, 64, 1.5},
		{4 << 20, 128 << 20, 1, 1.5},
		{4 << 20, 128 << 20, 4, 1.5},
		{4 << 20, 128 << 20, 16, 1.4},
		{4 << 20, 128 << 20, 64, 1.2},
		{4 << 20, 512 << 20, 16, 1.1},
		{8 << 20, 256 << 20, 16, 1.2},
	} {
		// Which reader gets on how far is the scheduler's affair: on a busy
		// machine one may be left so far behind that what was fetched for him
		// is gone. The best of three runs tells what the cache makes of it.
		t.Run(fmt.Sprintf("%dK objects, cache %dM, depth %d", tc.object>>10, tc.size>>20, tc.depth), func(t *testing.T) {
			for left := 2; ; left-- {
				longer, bytes := readStream(t, total, tc.object, tc.size, tc.depth)
				bad := longer > tc.longer || bytes-total > total/8
				t.Logf("%.2f times what the store needs; %.3f times the bytes", longer, float64(bytes)/total)
				if !bad {
					return
				}
				if left == 0 {
					t.Fatalf("three times it took longer than %.2f times, or fetched more than an eighth twice", tc.longer)
				}
			}
		})
	}
}

// readStream reads a disk of total bytes. It returns how many times longer that
// took than the store needs, and how many bytes were fetched.
func readStream(t *testing.T, total, object, size int64, depth int) (longer float64, bytes int64) {
	const conns, n = 16, 1 << 20
	synctest.Test(t, func(t *testing.T) {
		geo, err := geometry.New(object, total/object)
		if err != nil {
			t.Fatal(err)
		}
		f := &far{latency: 20 * time.Millisecond, rate: 2 << 30, slots: make(chan struct{}, conns)}
		c, err := New(f, geo, Options{Size: size, Connections: conns, Check: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var next atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range depth {
			wg.Go(func() {
				p := make([]byte, n)
				for off := next.Add(n) - n; off < total; off = next.Add(n) - n {
					if err := c.Read(t.Context(), p, off); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		took := time.Since(start)
		seconds := func(bytes int64) time.Duration { return time.Duration(bytes * int64(time.Second) / f.rate) }
		rounds := (geo.Objects() + conns - 1) / conns
		least := max(f.latency+seconds(total), time.Duration(rounds)*(f.latency+seconds(object)))
		longer, bytes = took.Seconds()/least.Seconds(), f.bytes.Load()
	})
	return longer, bytes
}

// scattered is a disk whose blocks lie everywhere: each is a request.
type scattered struct{ *far }

func (scattered) Partly(error) bool { return true }

func (scattered) Beside(_ geometry.ChunkIndex, r, _ geometry.ByteRange) geometry.ByteRange { return r }

// TestRandomReads reads blocks of a scattered disk, each in another chunk: those that
// happen to lie behind each other are no reason to read ahead.
func TestRandomReads(t *testing.T) {
	const size, chunk, block, reads = 512 << 20, 64 << 10, 4 << 10, 2400
	synctest.Test(t, func(t *testing.T) {
		geo, err := geometry.New(chunk, size/chunk)
		if err != nil {
			t.Fatal(err)
		}
		f := &far{latency: time.Millisecond, rate: 2 << 30, slots: make(chan struct{}, 16)}
		c, err := NewReader(scattered{f}, geo, Options{Size: 64 << 20, Connections: 16, Check: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetEnd(size)
		places := rand.New(rand.NewPCG(1, 2)).Perm(size / chunk)[:reads]
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				p := make([]byte, block)
				for i := next.Add(1) - 1; i < reads; i = next.Add(1) - 1 {
					if err := c.Read(t.Context(), p, int64(places[i])*chunk+i%16*block); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Second)
		if n := f.bytes.Load() / block; n < reads || n > reads+reads/25 {
			t.Errorf("%d blocks were fetched for %d reads", n, reads)
		}
	})
}
