// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of the model test; 0 takes one from the clock")
	opsFlag  = flag.Int("ops", 3000, "operations of each run of the model test")
)

func newSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	return seed
}

// fakeVolume is a backend in memory. It fails as it is told to, and reports
// two writes of one chunk at once.
type fakeVolume struct {
	t    testing.TB
	size int64

	fail  atomic.Int32 // requests in a thousand that fail, half of them after they took effect
	delay atomic.Int64 // ns a request takes

	refuse atomic.Bool // every write and delete fails, reads do not

	// hook, when not nil, is told of a "read" that has its bytes, and of a
	// write or delete "before" and "after" it took effect.
	hook func(stage string, i geometry.ChunkIndex)

	mu      sync.Mutex
	objects map[geometry.ChunkIndex][]byte
	busy    map[geometry.ChunkIndex]bool
	unknown map[geometry.ChunkIndex]bool // not known to be a hole or not
	known   map[geometry.ChunkIndex]bool // learned by reading or writing
	blank   bool
	reads   int
	writes  int
	deletes int
	rng     *rand.Rand
}

func newFakeVolume(t testing.TB, size int64, seed uint64) *fakeVolume {
	return &fakeVolume{t: t, size: size,
		objects: map[geometry.ChunkIndex][]byte{}, busy: map[geometry.ChunkIndex]bool{},
		unknown: map[geometry.ChunkIndex]bool{}, known: map[geometry.ChunkIndex]bool{}, rng: rand.New(rand.NewPCG(seed, 1))}
}

var errInjected = errors.New("injected failure")

// act decides a request's fate: 0 succeeds, 1 fails before, 2 after its effect.
func (v *fakeVolume) act(ctx context.Context) int {
	v.mu.Lock()
	slow := v.rng.IntN(20) == 0
	v.mu.Unlock()
	if d := v.delay.Load(); d > 0 && slow {
		select {
		case <-time.After(time.Duration(d)):
		case <-ctx.Done():
			return 1
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rng.IntN(1000) < int(v.fail.Load()) {
		return 1 + v.rng.IntN(2)
	}
	return 0
}

func (v *fakeVolume) Hole(i geometry.ChunkIndex) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.objects[i] == nil && !v.unknown[i] && (v.blank || v.known[i])
}

// Holes counts what Hole says.
func (v *fakeVolume) Holes(i geometry.ChunkIndex, n int64) (holes int64) {
	for holes < n && v.Hole(i+geometry.ChunkIndex(holes)) {
		holes++
	}
	return holes
}

func (v *fakeVolume) told(stage string, i geometry.ChunkIndex) {
	if v.hook != nil {
		v.hook(stage, i)
	}
}

func (v *fakeVolume) Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (bool, error) {
	defer v.told("read", i)
	fate := v.act(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reads++
	if fate > 0 {
		return false, errInjected
	}
	o := v.objects[i]
	if o == nil {
		delete(v.unknown, i)
		v.known[i] = true
		return true, nil
	}
	copy(p, o[off:])
	return false, nil
}

func (v *fakeVolume) change(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	v.told("before", i)
	defer v.told("after", i)
	v.mu.Lock()
	if v.busy[i] {
		v.t.Errorf("two writes of chunk %d at once", i)
	}
	v.busy[i] = true
	v.unknown[i] = true
	if p == nil {
		v.deletes++
	} else {
		v.writes++
	}
	v.mu.Unlock()
	before := bytes.Clone(p)
	fate := v.act(ctx)
	if v.refuse.Load() {
		fate = 1
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy[i] = false
	if !bytes.Equal(before, p) {
		v.t.Errorf("chunk %d changed while it was being uploaded", i)
	}
	if fate != 1 {
		if p == nil {
			delete(v.objects, i)
		} else {
			v.objects[i] = before
		}
	}
	if fate != 0 {
		return errInjected
	}
	delete(v.unknown, i)
	v.known[i] = true
	return nil
}

func (v *fakeVolume) Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	if int64(len(p)) != v.size {
		v.t.Errorf("chunk %d: write of %d bytes", i, len(p))
	}
	return v.change(ctx, i, p)
}

func (v *fakeVolume) Delete(ctx context.Context, i geometry.ChunkIndex) error {
	return v.change(ctx, i, nil)
}

func (v *fakeVolume) Probe(ctx context.Context, i geometry.ChunkIndex) (bool, error) {
	if v.act(ctx) > 0 {
		return false, errInjected
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.objects[i] == nil && !v.unknown[i], nil
}

// Listed knows every object: trims must then read as zeroes.
func (v *fakeVolume) Listed(context.Context, geometry.ChunkIndex) (bool, error) { return true, nil }

// at reads the volume's bytes as Swift holds them.
func (v *fakeVolume) at(geo geometry.Geometry, off, n int64) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]byte, n)
	for p := range geo.Pieces(off, n) {
		if o := v.objects[p.Chunk]; o != nil {
			copy(out[p.Buf:p.Buf+p.In.Len], o[p.In.Off:])
		}
	}
	return out
}

// TestModel runs random operations of several workers against a byte slice.
// The workers own interleaved stripes of the disk, so that they meet in every
// chunk, and each knows what its own bytes must be: after each flush also in
// the volume, whatever failed before.
func TestModel(t *testing.T) {
	for _, tc := range []struct {
		objectSize, objects, cache int64
		workers                    int
		fail                       int32
		stripe                     int64
		blank                      bool
	}{
		{objectSize: 1000, objects: 40, cache: 8 << 10, workers: 1, stripe: 40000},
		{objectSize: 1000, objects: 40, cache: 40 << 10, workers: 4, fail: 50, stripe: 77, blank: true},
		{objectSize: 64 << 10, objects: 64, cache: 512 << 10, workers: 4, fail: 20, stripe: 4096},
		{objectSize: 65537, objects: 50, cache: 600 << 10, workers: 3, stripe: 3000},
		{objectSize: 256 << 10, objects: 40, cache: 2 << 20, workers: 6, fail: 30, stripe: 4096, blank: true},
		{objectSize: 1 << 20, objects: 24, cache: 6 << 20, workers: 8, fail: 10, stripe: 12345},
		{objectSize: 1 << 20, objects: 16, cache: 64 << 20, workers: 2, stripe: 1 << 19, blank: true},
		// Stripes of whole chunks and more, which others read and fetch.
		{objectSize: 1000, objects: 60, cache: 16 << 10, workers: 4, stripe: 4500, blank: true},
		{objectSize: 64 << 10, objects: 40, cache: 1 << 20, workers: 4, fail: 20, stripe: 150000},
		{objectSize: 256 << 10, objects: 30, cache: 3 << 20, workers: 4, fail: 20, stripe: 600000, blank: true},
	} {
		t.Run(fmt.Sprintf("%dx%d,cache=%d,workers=%d,fail=%d", tc.objectSize, tc.objects, tc.cache, tc.workers, tc.fail), func(t *testing.T) {
			t.Parallel()
			seed := newSeed(t)
			geo, err := geometry.New(tc.objectSize, tc.objects)
			if err != nil {
				t.Fatal(err)
			}
			v := newFakeVolume(t, tc.objectSize, seed)
			v.blank = tc.blank
			v.fail.Store(tc.fail)
			if tc.workers > 1 { // else there is nobody whose turn it could be meanwhile
				v.delay.Store(int64(50 * time.Microsecond))
			}
			c, err := New(v, geo, Options{Size: tc.cache, Connections: 4, Queued: 3, Age: 10 * time.Millisecond, Patience: time.Hour, Pause: time.Millisecond, Check: true, Log: noPanics(t)})
			if err != nil {
				t.Fatal(err)
			}
			m := &model{t: t, c: c, v: v, geo: geo, want: make([]byte, geo.Size())}
			ctx := context.Background()
			var wg sync.WaitGroup
			for w := range tc.workers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					rng := rand.New(rand.NewPCG(seed, uint64(w)+10))
					for k := 0; k < ops()/tc.workers && !t.Failed(); k++ {
						m.step(ctx, rng, w, tc.workers, tc.stripe)
					}
				}()
			}
			wg.Wait()
			v.fail.Store(0)
			if err := c.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, geo.Size())
			if err := c.Read(ctx, got, 0); err != nil {
				t.Fatal(err)
			}
			m.compare("at the end, cache", got, 0)
			m.compare("at the end, volume", v.at(geo, 0, geo.Size()), 0)
			if n, chunks := c.Dirty(); n != 0 || chunks != 0 {
				t.Errorf("%d bytes in %d chunks are dirty after the last flush", n, chunks)
			}
			c.reclaim(1<<62, false)
			if n := c.Used(); n != 0 {
				t.Errorf("%d bytes are counted when nothing is left", n)
			}
			if owed := c.pace.cost(); owed != 0 || c.pace.chunks.Load() != 0 || c.pace.granted.Load() != 0 || c.pace.tickets.Load() != 0 || c.budget.filling.Load() != 0 || c.budget.frozen.Load() != 0 {
				t.Errorf("%v in %d chunks is owed when nothing is dirty, %d tickets", owed, c.pace.chunks.Load(), c.pace.tickets.Load())
			}
			c.Close()
		})
	}
}

// noise fills b with bytes that are cheap, and not the same twice.
func noise(rng *rand.Rand, b []byte) {
	for done := 0; done < len(b); {
		done += copy(b[done:], pool[rng.IntN(len(pool)/2):])
	}
	for i := 0; i < len(b); i += 512 {
		b[i] = byte(rng.Uint32())
	}
}

var pool = func() []byte {
	b := make([]byte, 128<<10)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b) // never fails
	return b
}()

type model struct {
	t    *testing.T
	c    *Cache
	v    *fakeVolume
	geo  geometry.Geometry
	want []byte // each worker touches its own stripes only
}

func (m *model) compare(what string, got []byte, off int64) {
	if want := m.want[off : off+int64(len(got))]; !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				ci, in := m.geo.ChunkOf(off + int64(i))
				m.t.Errorf("%s: byte %d (chunk %d, %d) is %#x, want %#x", what, off+int64(i), ci, in, got[i], want[i])
				return
			}
		}
	}
}

// step does one operation on worker w's stripes: every workers-th one.
func (m *model) step(ctx context.Context, rng *rand.Rand, w, workers int, stripe int64) {
	n := (m.geo.Size() + stripe - 1) / stripe
	mine := (n - int64(w) + int64(workers) - 1) / int64(workers)
	if mine <= 0 {
		return
	}
	start := (rng.Int64N(mine)*int64(workers) + int64(w)) * stripe
	end := min(start+stripe, m.geo.Size())
	off := start + rng.Int64N(end-start)
	length := 1 + rng.Int64N(end-off)
	if rng.IntN(3) == 0 {
		off, length = start, end-start
	}
	if rng.IntN(20) > 0 {
		length = min(length, 3*m.geo.ObjectSize())
	}
	retry := func(f func() error) {
		for f() != nil { // injected: what was asked must still be possible
		}
	}
	switch k := rng.IntN(100); {
	case k < 40:
		b := make([]byte, length)
		if rng.IntN(10) > 0 {
			noise(rng, b)
		}
		retry(func() error { return m.c.Write(ctx, b, off) })
		copy(m.want[off:], b)
	case k < 85:
		b := make([]byte, length)
		retry(func() error { return m.c.Read(ctx, b, off) })
		m.compare("read", b, off)
	case k < 92:
		retry(func() error { return m.c.Zero(ctx, off, length) })
		clear(m.want[off : off+length])
	case k < 93:
		retry(func() error { return m.c.Trim(ctx, off, length) })
		clear(m.want[off : off+length])
	case k < 94:
		m.extents(ctx, off, length)
	case k < 95: // anybody's
		_ = m.c.Prefetch(ctx, rng.Int64N(m.geo.Size()-length+1), length)
		b := make([]byte, length)
		_ = m.c.Read(ctx, b, rng.Int64N(m.geo.Size()-length+1))
	case k < 97:
		retry(func() error { return m.c.FlushRange(ctx, off, length) })
		m.compare("flushed range", m.v.at(m.geo, off, length), off)
	default:
		retry(func() error { return m.c.Flush(ctx) })
		for s := int64(w) * stripe; s < m.geo.Size(); s += stripe * int64(workers) {
			e := min(s+stripe, m.geo.Size())
			m.compare("flushed", m.v.at(m.geo, s, e-s), s)
		}
	}
}

// extents holds every hole that the cache reports against what it must be.
func (m *model) extents(ctx context.Context, off, length int64) {
	at := off
	err := m.c.Extents(ctx, off, length, func(o, n int64, hole bool) bool {
		if o != at || n <= 0 {
			m.t.Errorf("extents of [%d,+%d): run at %d,+%d after %d", off, length, o, n, at)
			return false
		}
		at += n
		if hole && !isZero(m.want[o:o+n]) {
			m.t.Errorf("extents: [%d,+%d) is said to be a hole and holds data", o, n)
		}
		return true
	})
	if err == nil && at == off {
		m.t.Errorf("extents of [%d,+%d): no answer", off, length)
	}
}

// ops is how many operations a run of a model test has: a tenth with -short.
func ops() int {
	if testing.Short() {
		return *opsFlag / 10
	}
	return *opsFlag
}
