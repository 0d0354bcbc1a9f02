// SPDX-License-Identifier: MIT

package blockmap

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// frame returns the value of the i-th block that is written at all: 1,000 of
// them are an object.
func frame(i uint64) Value {
	return Value{Kind: layout.Data, At: layout.Position{Epoch: 3, N: 1 + i/1000}, Place: uint32(i%1000) * layout.FrameSize}
}

const gib = 1 << 30 / 4096 // blocks

// TestMemory holds Bytes against what the Go heap says, and both against what
// a map of the kind may take.
func TestMemory(t *testing.T) {
	for _, c := range []struct {
		name   string
		fill   func(*Map)
		blocks uint64
		atMost int64
		long   bool
	}{
		{"4 GiB of single blocks in random order", func(m *Map) {
			for i, b := range rand.New(rand.NewPCG(1, 2)).Perm(4 * gib) {
				m.Set(uint64(b), 1, frame(uint64(i)), nil)
			}
		}, 4 * gib, 4 * gib * 9, false},
		{"4 GiB of single blocks, written three times over", func(m *Map) {
			for i := range uint64(3) {
				for j, b := range rand.New(rand.NewPCG(1, i)).Perm(4 * gib) {
					m.Set(uint64(b), 1, frame(i*4*gib+uint64(j)), nil)
				}
			}
		}, 4 * gib, 4 * gib * 9, true},
		{"every second block of 4 GiB", func(m *Map) {
			for i, b := range rand.New(rand.NewPCG(1, 2)).Perm(2 * gib) {
				m.Set(uint64(2*b), 1, frame(uint64(i)), nil)
			}
		}, 2 * gib, 2 * gib * 18, true},
		{"single blocks all over 10 TiB", func(m *Map) {
			r := rand.New(rand.NewPCG(1, 2))
			for i := range uint64(200_000) {
				m.Set(r.Uint64N(10<<10*gib), 1, frame(i), nil)
			}
		}, 0, 200_000 * 35, false},
		{"1 TiB in sequence, a thousand blocks at a time", func(m *Map) {
			for i := range uint64(1024 * gib / 1000) {
				m.Set(i*1000, 1000, frame(i*1000), nil)
			}
		}, 1024 * gib / 1000 * 1000, 1024 * gib / 1000 * 45, false},
		{"10 TiB, trimmed", func(m *Map) { m.Set(0, 10<<10*gib, Value{Kind: layout.Trimmed}, nil) }, 10 << 10 * gib, 2 << 10, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.long && testing.Short() {
				t.Skip("it takes long")
			}
			before := heap()
			m := New()
			c.fill(m)
			used, bytes := heap()-before, m.Bytes()
			t.Logf("%d blocks, %d extents: Bytes %d (%.2f a block, %.2f an extent), heap %d", m.Blocks(), m.Extents(), bytes,
				float64(bytes)/float64(m.Blocks()), float64(bytes)/float64(m.Extents()), used)
			if c.blocks != 0 && m.Blocks() != c.blocks {
				t.Errorf("%d blocks, expected %d", m.Blocks(), c.blocks)
			}
			if bytes > c.atMost {
				t.Errorf("Bytes says %d, expected at most %d", bytes, c.atMost)
			}
			if diff := used - bytes; used > 64<<10 && (diff > bytes/5 || -diff > bytes/5) {
				t.Errorf("Bytes says %d, the heap has grown by %d", bytes, used)
			}
			m.check(t)
			m.Remove(0, MaxBlocks, nil)
			if m.Bytes() > 4<<10 {
				t.Errorf("the empty map takes %d bytes", m.Bytes())
			}
			runtime.KeepAlive(m)
		})
	}
}

// TestSequential: an object that is written in one go, or block by block, is
// one extent.
func TestSequential(t *testing.T) {
	for _, first := range []uint64{0, 5 << 20, 12345} {
		m := New()
		for i := range uint64(1000) {
			m.Set(first+i, 1, frame(i), nil)
		}
		want := []Extent{{first, 1000, frame(0)}}
		if got := slices.Collect(m.All()); !slices.Equal(got, want) {
			t.Errorf("the map has %v, expected %v", got, want)
		}
		if m.Extents() > 2 {
			t.Errorf("it keeps %d extents", m.Extents())
		}
	}
}

// TestTable: objects of which nothing is left leave the table.
func TestTable(t *testing.T) {
	m := New()
	const objects = 100_000
	m.Set(0, 100, Value{Kind: layout.Data, At: layout.Position{Epoch: 1, N: 1}}, nil)
	for n := uint64(2); n < objects; n++ {
		m.Set(50+n%7*100, 100, Value{Kind: layout.Data, At: layout.Position{Epoch: 1, N: n}}, nil)
	}
	m.check(t)
	if m.sources.live > 9 || m.Bytes() > 32<<10 {
		t.Errorf("%d objects are left in the table, and the map takes %d bytes", m.sources.live, m.Bytes())
	}
	// Many at once, which go in the order in which they came.
	for n := range uint64(objects) {
		m.Set(n, 1, Value{Kind: layout.Data, At: layout.Position{Epoch: 2, N: n}}, nil)
	}
	if m.sources.live != objects {
		t.Errorf("%d objects are in the table, expected %d", m.sources.live, objects)
	}
	m.check(t)
	for n := range uint64(objects) {
		m.Set(n, 1, Value{Kind: layout.Zeroes}, nil)
	}
	m.check(t)
	if m.sources.live != 0 || m.Bytes() > 4<<10 {
		t.Errorf("%d objects are left in the table, and the map takes %d bytes", m.sources.live, m.Bytes())
	}
}

// TestSnapshotKeepsItsObjects: what leaves the map's table, and the numbers
// that are given again, change nothing in a snapshot.
func TestSnapshotKeepsItsObjects(t *testing.T) {
	m := New()
	for i := range uint64(5000) {
		m.Set(i, 1, Value{Kind: layout.Data, At: layout.Position{Epoch: 1, N: i}}, nil)
	}
	s := m.Snapshot()
	m.Remove(0, 5000, nil)
	for i := range uint64(5000) {
		m.Set(i, 1, Value{Kind: layout.Data, At: layout.Position{Epoch: 2, N: i}}, nil)
	}
	for i := range uint64(5000) {
		if v, ok := s.Get(i); !ok || v.At != (layout.Position{Epoch: 1, N: i}) {
			t.Fatalf("block %d of the snapshot is %v (%v)", i, v, ok)
		}
	}
	if s.Snapshot() != s {
		t.Error("a snapshot of a snapshot is another map")
	}
}

// TestReaders reads a map and its snapshot from several goroutines at once. It
// is for the race detector.
func TestReaders(t *testing.T) {
	m := New()
	var mu sync.RWMutex
	r := rand.New(rand.NewPCG(1, 1))
	fill := func(n uint64) {
		for i := range n {
			m.Set(r.Uint64N(1<<14), 1, frame(r.Uint64N(1<<14)+i), nil)
		}
	}
	fill(1 << 15)
	for range 20 {
		s := m.Snapshot()
		blocks, extents := s.Blocks(), len(slices.Collect(s.All()))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				mu.RLock()
				defer mu.RUnlock()
				n := uint64(0)
				for e := range m.Lookup(0, 1<<14) {
					n += e.Count
				}
				if n != m.Blocks() || m.Bytes() == 0 {
					t.Errorf("a reader found %d blocks of %d", n, m.Blocks())
				}
			})
			wg.Go(func() {
				n := uint64(0)
				all := slices.Collect(s.All())
				for _, e := range all {
					n += e.Count
				}
				if n != blocks || len(all) != extents {
					t.Errorf("a snapshot has %d blocks, had %d", n, blocks)
				}
			})
		}
		wg.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			fill(1000)
		})
		wg.Wait()
	}
}

func TestFaultsOfTheCaller(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		f()
	}
	m := New()
	m.Set(0, 0, frame(0), nil)
	m.Remove(1<<40, 1<<40, nil)
	panics("a range beyond the end", func() { m.Set(MaxBlocks, 1, Value{Kind: layout.Zeroes}, nil) })
	panics("a range whose end is no number", func() { m.Set(1<<63, 1<<63, Value{Kind: layout.Zeroes}, nil) })
	panics("more than an object holds", func() { m.Set(0, layout.MaxObjectSize/layout.FrameSize+1, frame(0), nil) })
	panics("frames beyond 4 GiB", func() {
		m.Set(0, 3, Value{Kind: layout.Data, Place: layout.MaxObjectSize - 3*layout.FrameSize + 1}, nil)
	})
	panics("a number that no object has", func() { m.Set(0, 1, Value{Kind: layout.Data, At: layout.Position{N: layout.MaxN + 1}}, nil) })
	panics("a change of a snapshot", func() { m.Snapshot().Set(0, 1, frame(0), nil) })
	panics("a change of a snapshot", func() { m.Snapshot().Replace(0, 1, frame(0), frame(1)) })
	m.check(t)
	if m.Blocks() != 0 || m.root != absent {
		t.Errorf("the map has %d blocks", m.Blocks())
	}
	m.Set(0, layout.MaxObjectSize/layout.FrameSize, frame(0), nil)
	if m.Set(0, 2, Value{Kind: layout.Data, Place: layout.MaxObjectSize - 2*layout.FrameSize}, nil); m.Blocks() != layout.MaxObjectSize/layout.FrameSize {
		t.Errorf("the map has %d blocks", m.Blocks())
	}
	m.check(t)
}

func BenchmarkSet(b *testing.B) {
	for _, size := range []uint64{4 * gib, 100 * gib} {
		b.Run(map[uint64]string{4 * gib: "random-4GiB", 100 * gib: "random-100GiB"}[size], func(b *testing.B) {
			m := New()
			r := rand.New(rand.NewPCG(1, 1))
			i := uint64(0)
			for b.Loop() {
				m.Set(r.Uint64N(size), 1, frame(i), nil)
				i++
			}
			b.ReportMetric(float64(m.Bytes())/float64(m.Blocks()), "B/block")
		})
	}
	b.Run("random-full-4GiB", func(b *testing.B) {
		m, r := fragmented()
		i := uint64(4 * gib)
		for b.Loop() {
			m.Set(r.Uint64N(4*gib), 1, frame(i), nil)
			i++
		}
	})
	b.Run("random-full-told", func(b *testing.B) {
		m, r := fragmented()
		i := uint64(4 * gib)
		for b.Loop() {
			m.Set(r.Uint64N(4*gib), 1, frame(i), func(Extent) {})
			i++
		}
	})
	b.Run("sequential", func(b *testing.B) {
		m := New()
		i := uint64(0)
		for b.Loop() {
			m.Set(i%(100*gib), 1, frame(i), nil)
			i++
		}
	})
	b.Run("sequential-1MiB", func(b *testing.B) {
		m := New()
		i := uint64(0)
		for b.Loop() {
			m.Set(i%(10<<10*gib), 250, frame(i), nil)
			i += 250
		}
	})
}

// fragmented returns a map of 4 GiB, written block by block in random order.
func fragmented() (*Map, *rand.Rand) {
	m := New()
	r := rand.New(rand.NewPCG(1, 1))
	for i, b := range r.Perm(4 * gib) {
		m.Set(uint64(b), 1, frame(uint64(i)), nil)
	}
	return m, r
}

func BenchmarkLookup(b *testing.B) {
	m, r := fragmented()
	for _, count := range []uint64{1, 32, 1024} {
		b.Run(map[uint64]string{1: "1", 32: "32", 1024: "1024"}[count], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for e := range m.Lookup(r.Uint64N(4*gib-count), count) {
					if e.Count == 0 {
						b.Fatal(e)
					}
				}
			}
		})
	}
}

// BenchmarkSnapshot is a snapshot, and a write in each of 1,024 leaves after it.
func BenchmarkSnapshot(b *testing.B) {
	m, _ := fragmented()
	i := uint64(4 * gib)
	for b.Loop() {
		m.Snapshot()
		for leaf := range uint64(1024) {
			m.Set(leaf*leafBlocks+i%leafBlocks, 1, frame(i), nil)
			i++
		}
	}
}
