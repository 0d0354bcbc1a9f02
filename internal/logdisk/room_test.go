// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// TestBorrow fills all that may be written and not durable while every PUT takes
// its time. It is more than Tail if Swift is known to take it within FlushTime,
// the cache has that much less, and has it back when all is in Swift.
func TestBorrow(t *testing.T) {
	const (
		blocks = 32 // of an object
		object = blocks * layout.FrameSize
		put    = 10 * time.Second
	)
	for _, tc := range []struct {
		name        string
		tail        int64 // objects
		cache       int64
		flushTime   time.Duration
		want        int64 // objects that Swift takes; 0: it is not known
		fill, lends int64 // objects
	}{
		{"as much again", 16, 32 << 20, -1, 0, 32, 16},
		{"half of the cache", 80, leastLender, -1, 0, 80 + leastLender/2/object, leastLender / 2 / object},
		{"a small cache", 16, leastLender - 1, -1, 0, 16, 0},
		{"not known", 16, 32 << 20, time.Minute, 0, 16, 0},
		{"a slower Swift", 16, 32 << 20, time.Minute, 19, 19, 3},
		{"a slow Swift", 16, 32 << 20, time.Minute, 5, 5, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newClosing(t, 1024*blocks*blockSize)
				v.o = Options{Seal: object, Tail: tc.tail * object, Cache: tc.cache, Age: time.Hour, FlushTime: tc.flushTime, Connections: 1000}
				d, err := v.open(t.Context(), &far{Store: v.box, takes: func() time.Duration { return put }})
				if err != nil {
					t.Fatal(err)
				}
				if tc.want > 0 {
					d.room.bound(tc.want * object)
				}
				p := slices.Repeat([]byte{7}, blocks*blockSize)
				// The cache is full of what is clean.
				for off := int64(0); off < 300*int64(len(p)); off += int64(len(p)) {
					if err := d.cache.Through(t.Context(), p, off, blockSize, func([]byte, int64) {}); err != nil {
						t.Fatal(err)
					}
				}
				full := d.cache.Used()
				var (
					wg   sync.WaitGroup
					mu   sync.Mutex
					done int64
				)
				for i := range tc.fill + 4 {
					wg.Go(func() {
						if err := d.Write(t.Context(), p, i*int64(len(p))); err != nil {
							t.Error(err)
						}
						mu.Lock()
						done++
						mu.Unlock()
					})
					synctest.Wait()
				}
				mu.Lock()
				if done != tc.fill {
					t.Errorf("%d objects were written while none was in Swift, want %d", done, tc.fill)
				}
				mu.Unlock()
				if got := d.Borrowed(); got != tc.lends*object {
					t.Errorf("%d bytes are borrowed, want %d objects' of %d", got, tc.lends, object)
				}
				if used := d.cache.Used(); used > tc.cache || used < d.Borrowed() {
					t.Errorf("the cache has %d bytes, with %d that it lends, of %d", used, d.Borrowed(), tc.cache)
				}
				if n := full - d.Borrowed() + 2<<20; d.cache.Borrow(n) {
					t.Errorf("the cache gives %d bytes beside the %d that it has lent, of %d", n, d.Borrowed(), tc.cache)
				}
				wg.Wait()
				if err := d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := d.Borrowed(); got != 0 {
					t.Errorf("%d bytes are borrowed, and all is in Swift", got)
				}
				if n := full - 2<<20; !d.cache.Borrow(n) {
					t.Errorf("the cache had %d bytes, and does not give %d", full, n)
				} else {
					d.cache.Return(n)
				}
			})
		})
	}
}

// TestBuffers takes buffers and gives them back: one that comes again after its
// memory was freed is empty.
func TestBuffers(t *testing.T) {
	const size = 2 << 20
	var s spare
	b := s.take(size, true)[:size]
	for i := range b {
		b[i] = 1
	}
	if s.give(b, size, 1) != nil {
		t.Error("the buffer of a full object is not kept")
	}
	if again := s.take(size, true)[:size]; &again[0] != &b[0] || again[size-1] != 1 {
		t.Error("a spare buffer is not used again as it is")
	}
	if s.give(b[:size/4], size, 1) == nil || s.give(b, size, 0) == nil || len(s.free) > 0 {
		t.Error("a buffer is kept that was not full, or one too many")
	}
	s.give(b, size, 1)
	if again := s.take(size, false); &again[:1][0] == &b[0] {
		t.Error("an object that does not become full has a full buffer's pages")
	}
	for _, b := range s.trim(0) {
		freeBuffer(b)
	}
	if len(s.free) != 0 {
		t.Error("buffers are left")
	}
	if again := newBuffer(size)[:size]; &again[0] != &b[0] || again[0] != 0 || again[size-1] != 0 {
		t.Error("a buffer's memory was not freed, or its address space was")
	} else {
		freeBuffer(again)
	}
	freeBuffer(make([]byte, 0, size)) // of the heap: nothing happens
	if again := newBuffer(size)[:size]; &again[0] != &b[0] {
		t.Error("a buffer of the heap came back")
	} else {
		freeBuffer(again)
	}
}

// TestSpareBuffers has half of a stream of objects become durable at once: their
// buffers are kept for the objects that the stream may fill beside the others, and
// no more than that. At the end few are left.
func TestSpareBuffers(t *testing.T) {
	const (
		blocks = 32 // of an object
		object = blocks * layout.FrameSize
		half   = 8 // objects
	)
	synctest.Test(t, func(t *testing.T) {
		v := newVolume(t, 64<<20)
		v.o = Options{Seal: object, Tail: 2 * half * object, Cache: 8 << 20, FlushTime: -1, Connections: 1000}
		var slow atomic.Bool
		d, err := v.open(t.Context(), &far{Store: v.box, takes: func() time.Duration {
			if slow.Load() {
				return time.Minute
			}
			return time.Second
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p := slices.Repeat([]byte{7}, blocks*blockSize)
		next := int64(0)
		write := func(objects int64) {
			for range objects {
				if err := d.Write(t.Context(), p, next); err != nil {
					t.Fatal(err)
				}
				next += int64(len(p))
			}
			synctest.Wait()
		}
		spare := func(when string, want int) {
			t.Helper()
			d.mu.Lock()
			defer d.mu.Unlock()
			if n := len(d.spareBufs.free); n != want {
				t.Errorf("%s: %d buffers are spare, want %d", when, n, want)
			}
		}
		write(half)
		slow.Store(true)
		write(half)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		spare("half of the objects are durable", half)
		write(half)
		spare("as many were written again", 0)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		spare("all is durable", fewSpare)
	})
}

// TestBuffersOfTheClosed: a disk that is closed holds no memory outside Go's heap,
// also with changes that are in no object yet.
func TestBuffersOfTheClosed(t *testing.T) {
	held := func() int {
		mapped.mu.Lock()
		defer mapped.mu.Unlock()
		n := len(mapped.all)
		for _, list := range mapped.cold {
			n -= len(list)
		}
		return n
	}
	before := held()
	v := newVolume(t, 64<<20)
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{1}, 1<<20)
	for i := range int64(30) {
		if err := d.Write(t.Context(), p, i<<20); err != nil {
			t.Fatal(err)
		}
	}
	if held() == before {
		t.Error("the disk holds none: this test shows nothing")
	}
	d.Close()
	if n := held() - before; n != 0 {
		t.Errorf("%d buffers are held by a disk that is closed", n)
	}
}
