// SPDX-License-Identifier: MIT

package cache

import (
	"math/bits"
	"sync"
	"syscall"

	"swiftnbd/internal/geometry"
)

// arena hands out frames, the memory of chunks. Frames are outside Go's heap,
// so the garbage collector's slack does not come on top of the budget. They are
// counted by the page: a frame of 8 MiB that holds one block of 4 KiB costs 4
// KiB.
//
// A frame of more than smallFrame bytes is reserved address space. Its pages
// come with the first touch, and go back to the system when the frame is freed.
// A few frames, the spare ones, keep their pages. The next chunk that is wanted
// whole takes one of them, because a page's first touch costs more than filling
// it. Smaller frames are cut from slabs, counted whole, and kept for reuse.
type arena struct {
	size     int64 // bytes of a frame
	pageSize int64 // the unit of counting, bytes
	room     int64 // bytes behind a frame, within its capacity, for what fills it
	spares   int   // how many frames may be spare

	mu    sync.Mutex // guards all below
	free  []*frame
	spare []*frame // free, with all their pages still there
	maps  [][]byte // all mappings, for destroy
}

const (
	memPage    = 4096
	smallFrame = 64 << 10
	slabBytes  = 1 << 20
	spareBytes = 16 << 20 // in spare frames at most
)

func newArena(size int64) *arena {
	a := &arena{size: size, pageSize: memPage}
	if size <= smallFrame {
		a.pageSize = size
	}
	return a
}

// setAside chooses how many frames are kept spare with a budget of n bytes, and
// returns the rest of the budget. It is less by the room behind as many frames as
// there can be: room is not counted when it is touched.
func (a *arena) setAside(n int64) int64 {
	if a.size > smallFrame {
		a.spares = int(min(spareBytes, n/8) / a.whole())
		n -= n / (a.whole() + a.room) * a.room
	}
	return n - int64(a.spares)*a.whole()
}

// frame is the memory of one chunk. Its owner knows which bytes are content.
type frame struct {
	buf     []byte
	touched []uint64 // a bit a page: counted
	charged int64    // bytes counted
}

// alloc returns a frame. Nothing of it is counted yet, and its bytes need not
// be zero. whole says that all of it will be touched at once.
func (a *arena) alloc(whole bool) (*frame, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.spare); n > 0 && (whole || len(a.free) == 0) {
		f := a.spare[n-1]
		a.spare = a.spare[:n-1]
		if !whole {
			f.discard()
		}
		return f, nil
	}
	if n := len(a.free); n > 0 {
		f := a.free[n-1]
		a.free = a.free[:n-1]
		return f, nil
	}
	pages := (a.size + a.pageSize - 1) / a.pageSize
	words := (pages + 63) / 64
	if a.size > smallFrame {
		mem, err := mapMemory(roundUp(a.size+a.room, memPage))
		if err != nil {
			return nil, err
		}
		a.maps = append(a.maps, mem)
		return &frame{buf: mem[: a.size : a.size+a.room], touched: make([]uint64, words)}, nil
	}
	stride := roundUp(a.size, 8)
	mem, err := mapMemory(roundUp(max(slabBytes, stride), memPage))
	if err != nil {
		return nil, err
	}
	a.maps = append(a.maps, mem)
	for off := int64(0); off+stride <= int64(len(mem)); off += stride {
		a.free = append(a.free, &frame{
			buf:     mem[off : off+a.size : off+a.size],
			touched: make([]uint64, words),
		})
	}
	f := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	return f, nil
}

// release takes the frame back. Nobody may use it any more. It returns the
// bytes that were counted for it.
func (a *arena) release(f *frame) int64 {
	n := f.charged
	clear(f.touched)
	f.charged = 0
	a.mu.Lock()
	keep := n == a.whole() && len(a.spare) < a.spares
	if keep {
		a.spare = append(a.spare, f)
	}
	a.mu.Unlock()
	if keep {
		return n
	}
	if a.size > smallFrame && n > 0 {
		f.discard()
	}
	a.mu.Lock()
	a.free = append(a.free, f)
	a.mu.Unlock()
	return n
}

// destroy gives all memory back. No frame may be used any more.
func (a *arena) destroy() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.maps {
		_ = syscall.Munmap(m) // fails only for what Mmap did not return
	}
	a.maps, a.free, a.spare = nil, nil, nil
}

// need returns the bytes that touching r would count anew.
func (a *arena) need(f *frame, r geometry.ByteRange) int64 {
	if r.Len == 0 {
		return 0
	}
	first, last := r.Off/a.pageSize, (r.End()-1)/a.pageSize
	if f == nil {
		return (last - first + 1) * a.pageSize
	}
	var n int64
	for p := first; p <= last; {
		word, bit := p/64, uint(p%64)
		run := min(64-int64(bit), last-p+1)
		mask := (^uint64(0) >> (64 - uint(run))) << bit
		n += int64(bits.OnesCount64(mask &^ f.touched[word]))
		p += run
	}
	return n * a.pageSize
}

// touch counts the pages of r and returns the bytes that it has added.
func (a *arena) touch(f *frame, r geometry.ByteRange) int64 {
	if r.Len == 0 {
		return 0
	}
	n := a.need(f, r)
	if n == 0 {
		return 0
	}
	first, last := r.Off/a.pageSize, (r.End()-1)/a.pageSize
	for p := first; p <= last; {
		word, bit := p/64, uint(p%64)
		run := min(64-int64(bit), last-p+1)
		f.touched[word] |= (^uint64(0) >> (64 - uint(run))) << bit
		p += run
	}
	f.charged += n
	return n
}

// whole returns the cost of a frame that is touched everywhere.
func (a *arena) whole() int64 {
	return (a.size + a.pageSize - 1) / a.pageSize * a.pageSize
}

func mapMemory(n int64) ([]byte, error) {
	return syscall.Mmap(-1, 0, int(n), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
}

// discard gives the frame's pages back to the system, with those of its room. The
// frame begins on a page.
func (f *frame) discard() {
	// This cannot fail on a private mapping of our own. If it did, the memory
	// would stay, and nothing worse.
	_ = syscall.Madvise(f.buf[:cap(f.buf)], syscall.MADV_DONTNEED)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
