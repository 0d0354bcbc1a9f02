// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"swiftnbd/internal/geometry"
)

// resident returns how many bytes of the arena are in memory.
func resident(t *testing.T, a *arena) int64 {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var n int64
	for _, m := range a.maps {
		in := make([]byte, (len(m)+memPage-1)/memPage)
		if _, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for _, b := range in {
			n += int64(b&1) * memPage
		}
	}
	return n
}

// TestResident has clients read and write in their own ways, and looks at what
// the cache really has in memory: never more than its budget.
func TestResident(t *testing.T) {
	for _, size := range []int64{64 << 10, 1 << 20, 8 << 20} {
		seed := newSeed(t)
		geo, err := geometry.New(size, (256<<20)/size)
		if err != nil {
			t.Fatal(err)
		}
		v := newFakeVolume(t, size, seed)
		v.delay.Store(int64(time.Millisecond))
		full := make([]byte, size)
		noise(rand.New(rand.NewPCG(seed, 1)), full)
		for i := range geo.Objects() {
			v.objects[geometry.ChunkIndex(i)] = full
		}
		budget := max(16<<20, 8*size)
		c, err := New(v, geo, Options{Size: budget, Connections: 16, Queued: 32, Age: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		for name, work := range map[string]func(rng *rand.Rand, k int64) error{
			"sequential reads": func(_ *rand.Rand, k int64) error {
				p := make([]byte, 256<<10)
				for off := k * (geo.Size() / 16); off < (k+1)*(geo.Size()/16); off += int64(len(p)) {
					if err := c.Read(ctx, p, off); err != nil {
						return err
					}
				}
				return nil
			},
			"random reads": func(rng *rand.Rand, k int64) error {
				p := make([]byte, 16<<10)
				for range 300 {
					if err := c.Read(ctx, p, rng.Int64N(geo.Size()-int64(len(p)))); err != nil {
						return err
					}
				}
				return nil
			},
			"random writes": func(rng *rand.Rand, k int64) error {
				p := make([]byte, 4<<10)
				for n := range 100 {
					if err := c.Write(ctx, p, rng.Int64N(geo.Size()-int64(len(p)))); err != nil {
						return err
					}
					if n%50 == 49 {
						if err := c.Flush(ctx); err != nil {
							return err
						}
					}
				}
				return nil
			},
		} {
			var wg sync.WaitGroup
			var busy atomic.Int32
			for k := range int64(16) {
				busy.Add(1)
				wg.Add(1)
				go func() {
					defer wg.Done()
					defer busy.Add(-1)
					if err := work(rand.New(rand.NewPCG(seed, uint64(k))), k); err != nil {
						t.Error(err)
					}
				}()
			}
			var most int64
			for busy.Load() > 0 {
				most = max(most, resident(t, c.arena))
				time.Sleep(5 * time.Millisecond)
			}
			wg.Wait()
			// Slabs are not given back: one may be begun for the last frame.
			if most > budget+slabBytes {
				t.Errorf("objects of %d bytes, %s: %d KiB are in memory, of a budget of %d", size, name, most>>10, budget>>10)
			}
			t.Logf("objects of %d bytes, %s: %d KiB of %d", size, name, most>>10, budget>>10)
		}
		c.Close()
	}
}
