// SPDX-License-Identifier: MIT

package logdisk

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/faulty"
)

// stamped is a write by one of several writers.
type stamped struct {
	block      uint64
	start, end int64 // when it began and was acknowledged, by a clock that counts; end is MaxInt64 if it was not
}

// TestConcurrent has several writers, with blocks of their own and shared ones,
// flush and crash at random. If a write is there after that, or a flush was
// acknowledged, then every write is there that was acknowledged before it began.
func TestConcurrent(t *testing.T) {
	const (
		blocks  = 512
		writers = 6
		shared  = 32 // the first blocks are everybody's
	)
	sessions := 400
	if testing.Short() {
		sessions = 30
	}
	if *opsFlag > 0 {
		sessions = max(10, *opsFlag/500)
	}
	rng := newRand(t)
	v := newVolume(t, blocks*blockSize)
	v.o = Options{
		Seal: 8 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 20,
		Age: time.Millisecond, Pause: time.Millisecond, Timeout: time.Second,
		GC: 70, Every: time.Millisecond, Idle: 3 * time.Millisecond, Horizon: time.Nanosecond,
	}
	var (
		clock   atomic.Int64
		number  atomic.Uint64
		known   = map[uint64]stamped{0: {}} // by number; 0 is what was never written
		total   int
		crashes int
		kept    int // writes that had to be there
	)
	all := make([]byte, blocks*blockSize)
	usual := v.o
	for i := range sessions {
		if v.o = usual; i%2 == 1 {
			v.o.littleMap()
		}
		gate := faulty.NewGate(v.box)
		d, err := v.open(t.Context(), gate)
		if err != nil {
			t.Fatal(err)
		}
		gate.CrashAt(gate.Ops()+1+rng.Int64N(150), rng.IntN(2) == 0)
		var (
			mu      sync.Mutex
			writes  = map[uint64]stamped{}
			flushed int64 // when the last acknowledged flush began
			wg      sync.WaitGroup
		)
		for k := range writers {
			seed := rng.Uint64()
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(k)))
				p := make([]byte, 4*blockSize)
				for range 400 {
					if rng.IntN(12) == 0 {
						start := clock.Add(1)
						if d.Flush(t.Context()) != nil {
							return
						}
						mu.Lock()
						flushed = max(flushed, start)
						mu.Unlock()
						continue
					}
					own := uint64(blocks-shared) / writers
					first, n := shared+uint64(k)*own+rng.Uint64N(own-3), 1+rng.Uint64N(4)
					if rng.IntN(3) == 0 {
						first, n = rng.Uint64N(shared), 1
					}
					numbers := make([]uint64, n)
					for i := range n {
						numbers[i] = number.Add(1)
						stamp(p[i*blockSize:][:blockSize], first+i, numbers[i])
					}
					start := clock.Add(1)
					err := d.Write(t.Context(), p[:n*blockSize], int64(first)*blockSize)
					end := clock.Add(1)
					if err != nil {
						end = math.MaxInt64
					}
					mu.Lock()
					for i, number := range numbers {
						writes[number] = stamped{first + uint64(i), start, end}
					}
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		d.checkSums(t)
		if gate.Crashed() {
			crashes++
		}
		d.Close()
		total += len(writes)
		for number, w := range writes {
			known[number] = w
		}
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		if err := d.Read(t.Context(), all, 0); err != nil {
			t.Fatal(err)
		}
		d.Close()
		has := make([]stamped, blocks)
		limit := flushed
		for b := range uint64(blocks) {
			n := binary.LittleEndian.Uint64(all[b*blockSize+8:])
			w, ok := known[n]
			if !ok || n > 0 && w.block != b {
				t.Fatalf("block %d has number %d, which is none of its own", b, n)
			}
			has[b] = w
			limit = max(limit, w.start)
		}
		for number, w := range writes {
			if w.end >= limit {
				continue
			}
			kept++
			if has[w.block].end < w.start {
				t.Fatalf("write %d of block %d, acknowledged at %d, is missing: a write that began at %d is there, or a flush that did so was acknowledged",
					number, w.block, w.end, limit)
			}
		}
		// What is there now is the past of the next.
		known = map[uint64]stamped{0: {}}
		for b := range uint64(blocks) {
			if n := binary.LittleEndian.Uint64(all[b*blockSize+8:]); n > 0 {
				known[n] = stamped{block: b}
			}
		}
	}
	t.Logf("%d sessions, %d crashes, %d writes, of which %d had to be there", sessions, crashes, total, kept)
	if crashes < sessions/2 || kept == 0 || kept == total {
		t.Error("this test shows little")
	}
}
