// SPDX-License-Identifier: MIT

package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// stamps is a disk of blocks, each of which holds the number of its last
// write. Each block belongs to one connection.
type stamps struct {
	size    int // bytes a block
	object  int // bytes a chunk; a block may lie in two
	mu      sync.Mutex
	written []uint64 // the highest number that was sent
	done    []uint64 // the highest that was acknowledged
	flushed []uint64 // the lowest that may be found
}

// fill writes stamp number n of block b into p: zeroes for every eighth.
func (s *stamps) fill(p []byte, b int, n uint64) {
	if n%8 == 0 {
		clear(p)
		return
	}
	for i := 0; i < len(p); i += 16 {
		binary.BigEndian.PutUint64(p[i:], uint64(b)<<16|uint64(i/16)&0xffff)
		binary.BigEndian.PutUint64(p[i+8:], n)
	}
}

// read returns which stamp p holds, between low and high. After a crash the two
// parts of a block that lies in two chunks may differ, since each chunk is
// written for itself: then it returns the lower one.
func (s *stamps) read(p []byte, b int, low, high uint64) (lowest uint64, err error) {
	lowest = high
	for from := 0; from < len(p); {
		at := b*s.size + from
		to := min(len(p), from+s.object-at%s.object)
		n, err := s.readPart(p, from, to, b, high)
		if err != nil {
			return 0, err
		}
		if n < low || n > high {
			return 0, fmt.Errorf("block %d holds stamp %d from byte %d on: %d was flushed, %d written last", b, n, from, low, high)
		}
		lowest, from = min(lowest, n), to
	}
	return lowest, nil
}

// readPart returns which stamp the bytes of p in one chunk hold.
func (s *stamps) readPart(p []byte, from, to, b int, high uint64) (uint64, error) {
	want := make([]byte, len(p))
	n := binary.BigEndian.Uint64(p[from+8:])
	if n == 0 { // zeroes: the newest that may be it
		n = high / 8 * 8
	}
	s.fill(want, b, n)
	for i := from; i < to; i++ {
		if p[i] != want[i] {
			return 0, fmt.Errorf("block %d is torn at byte %d: %x, and stamp %d there: %x", b, i, p[i&^15:i&^15+16], n, want[i&^15:i&^15+16])
		}
	}
	return n, nil
}

// work writes, flushes and reads blocks of connection k of n until the
// connection breaks. The error is one that should not have been.
func (s *stamps) work(c *client, rng *rand.Rand, k, n int) error {
	p := make([]byte, s.size)
	for {
		b := k + n*rng.IntN(len(s.written)/n)
		off := int64(b) * int64(s.size)
		var err error
		switch x := rng.IntN(20); {
		case x < 15:
			s.mu.Lock()
			s.written[b]++
			v := s.written[b]
			s.mu.Unlock()
			var flags uint16
			if x == 0 {
				flags = flagFUA
			}
			s.fill(p, b, v)
			if v%8 == 0 {
				_, err = c.do([]uint16{cmdZero, cmdWrite}[x%2], flags, off, s.size, zeroData(x%2 == 1, p))
			} else {
				_, err = c.do(cmdWrite, flags, off, s.size, p)
			}
			if err == nil {
				s.mu.Lock()
				s.done[b] = v
				if flags != 0 {
					s.flushed[b] = v
				}
				s.mu.Unlock()
			}
		case x < 18:
			var got []byte
			if got, err = c.do(cmdRead, 0, off, s.size, nil); err == nil {
				s.mu.Lock()
				v := s.done[b]
				s.mu.Unlock()
				if _, err := s.read(got, b, v, v); err != nil {
					return fmt.Errorf("read while it works: %w", err)
				}
			}
		default:
			s.mu.Lock()
			done := append([]uint64(nil), s.done...)
			s.mu.Unlock()
			if _, err = c.do(cmdFlush, 0, 0, 0, nil); err == nil {
				s.mu.Lock()
				for b, v := range done {
					s.flushed[b] = max(s.flushed[b], v)
				}
				s.mu.Unlock()
			}
		}
		var ne nbdError
		if errors.As(err, &ne) {
			return err
		}
		if err != nil {
			return nil // killed
		}
	}
}

func zeroData(send bool, p []byte) []byte {
	if send {
		return p
	}
	return nil
}

// check reads the disk after a crash and takes over what it finds.
func (s *stamps) check(t *testing.T, c *client) {
	t.Helper()
	bad := 0
	for b := range s.written {
		p, err := c.do(cmdRead, 0, int64(b)*int64(s.size), s.size, nil)
		if err != nil {
			t.Fatalf("block %d: %v", b, err)
		}
		v, err := s.read(p, b, s.flushed[b], s.written[b])
		if err != nil {
			if bad++; bad < 10 {
				t.Error(err)
			}
			continue
		}
		// What is there now is what a flush of the next round may find. A
		// stamp must not come again, so the numbers go on from the highest.
		s.flushed[b], s.done[b] = v, v
		if v != s.written[b] {
			// Write it anew, so that the lower one is not allowed later.
			s.written[b]++
			s.fill(p, b, s.written[b])
			if _, err := c.do(cmdWrite, flagFUA, int64(b)*int64(s.size), s.size, p); err != nil {
				t.Fatal(err)
			}
			s.flushed[b], s.done[b] = s.written[b], s.written[b]
		}
	}
	if bad > 0 {
		t.Fatalf("%d blocks are wrong", bad)
	}
}

// TestKill has connections write stamps, with and without FUA, zero and flush,
// until nbdkit is killed with SIGKILL; then another takes the lease over once it
// has run out, and each block must hold a stamp that is as new as what was
// flushed.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		objects, objectSize int64
		block               int
		clients             int
		params              []string
	}{
		{256, 64 << 10, 4096, 8, []string{"cache=2M", "writeback-age=0.2"}},
		{8, 1 << 20, 512, 4, []string{"cache=16M"}},
		{100, 100000, 1008, 6, []string{"cache=4M", "connections=3", "cache-mode=writethrough"}},
	} {
		t.Run(fmt.Sprintf("%dx%d", tc.objects, tc.objectSize), func(t *testing.T) {
			t.Parallel()
			rng := newRand(t)
			d := newDisk(t, tc.objects, tc.objectSize, tc.params...)
			blocks := int(tc.objects * tc.objectSize / int64(tc.block))
			blocks = min(blocks, 4096) / tc.clients * tc.clients
			s := &stamps{size: tc.block, object: int(tc.objectSize), written: make([]uint64, blocks), done: make([]uint64, blocks), flushed: make([]uint64, blocks)}
			serve := d.start
			for range *killsFlag {
				uri := serve()
				serve = d.takeOver
				s.check(t, mustDial(t, uri))
				d.killAtWork(uri, rng, tc.clients, s.work)
				if t.Failed() {
					return
				}
			}
			uri := serve()
			c := mustDial(t, uri)
			s.check(t, c)
			c.close() // nbdkit waits for its clients
			d.n.Stop(t)
			var flushed uint64
			for _, v := range s.flushed {
				flushed += v
			}
			t.Logf("%d stamps were flushed", flushed)
		})
	}
}
