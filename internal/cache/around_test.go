// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// held is a disk whose reads can be stopped.
type held struct {
	logged
	reads int
	stop  chan struct{} // a read that has its bytes tells it here; nil: none waits
	goOn  chan struct{} // and waits for this
}

func (*held) Partly(error) bool { return true }

func (h *held) Beside(_ geometry.ChunkIndex, r, _ geometry.ByteRange) geometry.ByteRange { return r }

func (h *held) Read(_ context.Context, i geometry.ChunkIndex, off int64, p []byte) (bool, error) {
	h.mu.Lock()
	copy(p, h.data[h.geo.Offset(i)+off:])
	h.reads++
	h.mu.Unlock()
	if h.stop != nil {
		h.stop <- struct{}{}
		<-h.goOn
	}
	return false, nil
}

// TestAround writes whole blocks while the cache is full: nothing is evicted for
// them, and they read as they were written, wherever they are.
func TestAround(t *testing.T) {
	const (
		size  = 256 << 10
		block = 4096
		last  = 31 // the last chunk
	)
	geo, err := geometry.New(size, last+1)
	if err != nil {
		t.Fatal(err)
	}
	filled := func(b byte) []byte { return bytes.Repeat([]byte{b}, block) }
	fill := func(t *testing.T, h *held, c *Cache) {
		for off := int64(0); c.budget.hasRoom(block); off += block {
			if err := c.Through(t.Context(), filled(7), off, block, h.keep); err != nil {
				t.Fatal(err)
			}
		}
	}
	// full returns a cache that is full: of the last chunk it has the first block,
	// and zeroes besides.
	full := func(t *testing.T) (*held, *Cache) {
		h := &held{logged: logged{geo: geo, data: slices.Repeat([]byte{7}, size*(last+1))}}
		clear(h.data[last*size:])
		c, err := NewReader(h, geo, Options{Size: MinSize(size) + size, Connections: 4, Check: true, Log: noPanics(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		p := make([]byte, size)
		if err := c.Through(t.Context(), filled(1), last*size, block, h.keep); err != nil {
			t.Fatal(err)
		}
		fill(t, h, c)
		if err := c.Read(t.Context(), p[:block], last*size); err != nil || h.reads > 0 {
			t.Fatalf("the last chunk was evicted, or is read wrong: %d reads, %v", h.reads, err)
		}
		return h, c
	}
	read := func(t *testing.T, c *Cache, off, n int64, want ...byte) {
		t.Helper()
		p := make([]byte, n)
		if err := c.Read(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
		for k, b := range want {
			if at := int64(k) * block; !bytes.Equal(p[at:at+block], filled(b)) {
				t.Errorf("block %d of those at %d is %d, want %d", k, off, p[at], b)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		off   int64
		write []byte // of one byte for each block
		from  int64  // what is read
		want  []byte
		reads int // of the disk that this takes, at most: the first may evict the chunk
	}{
		{"absent", (last - 1) * size, []byte{2, 3}, (last - 1) * size, []byte{2, 3, 7}, 1},
		{"there", 0, []byte{2, 3}, 0, []byte{2, 3, 7}, 0},
		{"zeroes", last*size + 2*block, []byte{2}, last * size, []byte{1, 0, 2, 0}, 2},
		{"part of it there", last * size, []byte{2, 3, 4}, last * size, []byte{2, 3, 4, 0}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, c := full(t)
			evicted, used := c.stats.Evicted.Load(), c.Used()
			var p []byte
			for _, b := range tc.write {
				p = append(p, filled(b)...)
			}
			if err := c.Through(t.Context(), p, tc.off, block, h.keep); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.data[tc.off:][:len(p)], p) {
				t.Error("the disk has other bytes than were written")
			}
			if c.stats.Evicted.Load() != evicted || c.Used() != used {
				t.Errorf("%d chunks were evicted for the write, and %d bytes used in place of %d", c.stats.Evicted.Load()-evicted, c.Used(), used)
			}
			read(t, c, tc.from, int64(len(tc.want))*block, tc.want...)
			if h.reads > tc.reads {
				t.Errorf("%d reads of the disk, want %d at most", h.reads, tc.reads)
			}
		})
	}
	t.Run("during a fetch", func(t *testing.T) {
		h, c := full(t)
		h.stop, h.goOn = make(chan struct{}), make(chan struct{})
		done := make(chan error)
		go func() { done <- c.Read(t.Context(), make([]byte, 4*block), (last-1)*size) }()
		<-h.stop // it has the old bytes
		h.stop = nil
		fill(t, h, c) // what was evicted for the read
		for _, k := range []int64{1, 9} {
			if err := c.Through(t.Context(), filled(2), (last-1)*size+k*block, block, h.keep); err != nil {
				t.Fatal(err)
			}
		}
		h.goOn <- struct{}{}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		read(t, c, (last-1)*size, 10*block, 7, 2, 7, 7, 7, 7, 7, 7, 7, 2)
	})
	t.Run("before a fetch", func(t *testing.T) {
		h, c := full(t)
		done := make(chan error)
		if err := c.Through(t.Context(), filled(2), (last-1)*size, block, func(p []byte, off int64) {
			go func() { done <- c.Read(t.Context(), make([]byte, block), off) }()
			time.Sleep(20 * time.Millisecond) // it would have the old bytes by then
			h.keep(p, off)
		}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		read(t, c, (last-1)*size, block, 2)
	})
}
