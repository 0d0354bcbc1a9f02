// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// logged is a disk that keeps by itself what is dirty.
type logged struct {
	geo   geometry.Geometry
	delay func() time.Duration

	mu   sync.Mutex // guards all below
	data []byte
}

func (l *logged) Hole(i geometry.ChunkIndex) bool { return l.Holes(i, 1) == 1 }

func (l *logged) Holes(i geometry.ChunkIndex, n int64) (holes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := l.geo.ObjectSize()
	for holes < n && len(bytes.Trim(l.data[(int64(i)+holes)*size:][:size], "\x00")) == 0 {
		holes++
	}
	return holes
}

func (*logged) Partly(error) bool { return true }

// Beside says at random that all may be read, or only what is needed.
func (l *logged) Beside(_ geometry.ChunkIndex, r, wide geometry.ByteRange) geometry.ByteRange {
	if rand.IntN(2) == 0 {
		return r
	}
	return wide
}

// Read has the bytes as they were at some moment of it.
func (l *logged) Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (bool, error) {
	time.Sleep(l.delay())
	l.mu.Lock()
	copy(p, l.data[l.geo.Offset(i)+off:])
	l.mu.Unlock()
	room := p[len(p):cap(p)]
	if size := l.geo.ObjectSize(); int64(len(p)) == size && size > smallFrame && len(room) < Room {
		return false, fmt.Errorf("chunk %d has room for %d bytes", i, len(room))
	}
	for k := range room {
		room[k] = 0xff // it is nobody's
	}
	time.Sleep(l.delay()) // and answers later
	return false, nil
}

func (l *logged) keep(p []byte, off int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	copy(l.data[off:], p)
}

func (l *logged) zero(off, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.data[off : off+n])
}

// TestThrough has clients write through a small cache over a slow disk, zero
// behind its back and read. Each has sectors of its own in every block, and
// blocks of its own. It must read what it wrote, from the cache and from the disk.
func TestThrough(t *testing.T) {
	const (
		size    = 256 << 10 // of a chunk
		chunks  = 64
		align   = 4096
		sector  = 512
		clients = 4
	)
	ops := 600
	if *opsFlag > 0 {
		ops = *opsFlag
	}
	seed := newSeed(t)
	geo, err := geometry.New(size, chunks)
	if err != nil {
		t.Fatal(err)
	}
	l := &logged{geo: geo, data: make([]byte, size*chunks)}
	l.delay = func() time.Duration { return time.Duration(rand.IntN(300)) * time.Microsecond }
	c, err := NewReader(l, geo, Options{Size: MinSize(size) + size, Connections: 4, Check: true, Log: noPanics(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// mine says whose a byte is: the first half of the disk is everybody's,
	// sector by sector, the other has a quarter for each.
	const half = size * chunks / 2
	mine := func(k, off int64) bool {
		if off < half {
			return off/sector%clients == k
		}
		return (off-half)/(half/clients) == k
	}
	want := make([]byte, size*chunks) // each client knows its own bytes
	var forgets [clients]int
	var wg sync.WaitGroup
	for k := range int64(clients) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(k)))
			for range ops {
				off := rng.Int64N(size * chunks)
				n := min(1+rng.Int64N(40_000), size*chunks-off)
				switch rng.IntN(5) {
				case 0, 1: // write a run of its own
					if off < half {
						off = off/(sector*clients)*(sector*clients) + k*sector + rng.Int64N(sector)
						n = 1 + rng.Int64N(sector-off%sector)
					} else {
						lo := half + k*(half/clients)
						off = lo + rng.Int64N(half/clients)
						n = min(n, lo+half/clients-off)
						if rng.IntN(2) == 0 { // whole blocks
							off, n = off/align*align, (n+align-1)/align*align
							n = min(n, lo+half/clients-off)
						}
					}
					p := make([]byte, n)
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
					copy(want[off:], p)
					if err := c.Through(t.Context(), p, off, align, l.keep); err != nil {
						t.Error(err)
						return
					}
				case 2: // make blocks of its own zero
					lo := half + k*(half/clients)
					off = lo + rng.Int64N(half/clients)/align*align
					n = min((n+align-1)/align*align, lo+half/clients-off)
					clear(want[off : off+n])
					c.Advise(off, n) // a fetch is under way meanwhile
					time.Sleep(l.delay())
					l.zero(off, n)
					c.Forget(off, n)
					forgets[k]++
					p := make([]byte, n)
					if err := c.Read(t.Context(), p, off); err != nil || len(bytes.Trim(p, "\x00")) > 0 {
						t.Errorf("client %d: %d bytes at %d are not zero: %v", k, n, off, err)
						return
					}
				default:
					if rng.IntN(4) == 0 {
						off = half + k*(half/clients) + rng.Int64N(half/clients-40_000)
						n = min(n, 40_000)
					}
					p := make([]byte, n)
					if err := c.Read(t.Context(), p, off); err != nil {
						t.Error(err)
						return
					}
					for i := range p {
						if at := off + int64(i); mine(k, at) && p[i] != want[at] {
							t.Errorf("client %d: byte %d is %#x, want %#x", k, at, p[i], want[at])
							return
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if !bytes.Equal(l.data, want) {
		t.Error("the disk has other bytes than were written")
	}
	p := make([]byte, len(want))
	for off := int64(0); off < int64(len(p)); off += size {
		if err := c.Read(t.Context(), p[off:off+size], off); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(p, want) {
		t.Error("the cache reads other bytes than were written")
	}
	s := c.Stats()
	t.Logf("%d evicted, %d hits, %d misses, %d zeroed", s.Evicted.Load(), s.Hits.Load(), s.Misses.Load(), forgets[0])
	if s.Evicted.Load() < 100 || s.Hits.Load() == 0 || forgets[0] == 0 {
		t.Error("this test shows little")
	}
}
