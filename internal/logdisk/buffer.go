// SPDX-License-Identifier: MIT

package logdisk

import (
	"slices"
	"sync"
	"syscall"
)

// The frames of a full object lie outside of Go's heap, as the cache's do: with
// them the heap would grow by its slack, too. Pages come with the first touch. A
// buffer that is used again keeps them, since a first touch costs more than
// filling the page.
//
// The address space of a buffer is never given back, but used again: the pages go.
// So whoever still looks at a buffer that is not theirs any more reads wrong
// bytes, which the checksums find, and nothing worse happens.
var mapped = struct {
	mu   sync.Mutex // guards all below
	all  map[*byte]struct{}
	cold map[int][][]byte // without pages, by capacity
}{all: map[*byte]struct{}{}, cold: map[int][][]byte{}}

const (
	// leastMapped is how large a buffer is, at least, to lie outside of the heap.
	leastMapped = 1 << 20
	// tailRoom is what a buffer has behind the frames, bytes: for the records of
	// most objects.
	tailRoom = 64 << 10
)

// newBuffer returns an empty buffer of size bytes.
func newBuffer(size int) []byte {
	if size < leastMapped {
		return make([]byte, 0, size)
	}
	mapped.mu.Lock()
	defer mapped.mu.Unlock()
	if cold := mapped.cold[size]; len(cold) > 0 {
		mapped.cold[size] = cold[:len(cold)-1]
		return cold[len(cold)-1]
	}
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return make([]byte, 0, size)
	}
	mapped.all[&b[0]] = struct{}{}
	return b[:0]
}

// freeBuffer gives the memory of a buffer back that nobody uses any more.
func freeBuffer(b []byte) {
	if cap(b) < leastMapped {
		return
	}
	b = b[:cap(b)]
	mapped.mu.Lock()
	defer mapped.mu.Unlock()
	if _, ok := mapped.all[&b[0]]; !ok {
		return // the heap's
	}
	// This cannot fail on a private mapping of our own.
	_ = syscall.Madvise(b, syscall.MADV_DONTNEED)
	mapped.cold[cap(b)] = append(mapped.cold[cap(b)], b[:0])
}

// spare keeps the buffers of objects that are durable for the next ones. Disk.mu
// guards it.
type spare struct{ free [][]byte }

// fewSpare is how many are kept usually. In a long stream of writes several objects
// that were hashed together are durable at once. Then as many are kept as the
// stream may fill: the memory is what it may use anyway.
const fewSpare = 2

// mostSpare returns how many may be kept.
func (d *Disk) mostSpare() int { return max(fewSpare, int(d.room.left()/int64(d.o.Seal))) }

// take returns an empty buffer of size bytes. full says that all of it will be
// used: the others get one without pages.
func (s *spare) take(size int, full bool) []byte {
	n := len(s.free)
	if n == 0 || cap(s.free[n-1]) < size || !full {
		return newBuffer(size)
	}
	b := s.free[n-1]
	s.free = s.free[:n-1]
	return b
}

// give takes a buffer back that nobody reads any more. If it was full, and not
// more than most are spare, it is kept. Otherwise it is returned: the caller gives
// it to freeBuffer.
func (s *spare) give(b []byte, seal, most int) []byte {
	if cap(b) < seal || len(b) < seal/2 || len(s.free) >= most {
		return b
	}
	s.free = append(s.free, b[:0])
	return nil
}

// trim returns all but n buffers, which the caller gives to freeBuffer.
func (s *spare) trim(n int) (old [][]byte) {
	if n < len(s.free) {
		old = slices.Clone(s.free[n:])
		s.free = s.free[:n]
	}
	return old
}

// freeBuffers gives the memory of all buffers back, when the disk has ended.
func (d *Disk) freeBuffers() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.spareBufs.trim(0) {
		freeBuffer(b)
	}
	for _, o := range d.objects.writing {
		freeBuffer(o.buf)
		o.buf = nil
	}
	if d.open != nil {
		freeBuffer(d.open.buf)
		d.open.buf = nil
	}
}
