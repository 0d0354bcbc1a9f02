// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// TestZeroBesidePart writes a part of a block while the block is made zero. The
// order of the two is anybody's guess, but the old bytes must be gone after both.
func TestZeroBesidePart(t *testing.T) {
	v := newVolume(t, 1<<20)
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	old := bytes.Repeat([]byte{0xaa}, blockSize)
	part := bytes.Repeat([]byte{0x55}, 512)
	got := make([]byte, blockSize)
	rounds := 20_000
	if testing.Short() {
		rounds = 4000
	}
	for i := range rounds {
		if err := d.Write(t.Context(), old, 4*blockSize); err != nil {
			t.Fatal(err)
		}
		var (
			wg    sync.WaitGroup
			start = make(chan struct{})
			errs  [2]error
		)
		wg.Go(func() { <-start; errs[0] = d.Write(t.Context(), part, 4*blockSize+1024) })
		wg.Go(func() {
			<-start
			if i%2 == 0 {
				errs[1] = d.Zero(t.Context(), 3*blockSize, 5*blockSize)
			} else {
				errs[1] = d.Trim(t.Context(), 4*blockSize, blockSize)
			}
		})
		close(start)
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		if err := d.Read(t.Context(), got, 4*blockSize); err != nil {
			t.Fatal(err)
		}
		if n := bytes.IndexByte(got, 0xaa); n >= 0 {
			t.Fatalf("round %d: byte %d is as it was before both", i, n)
		}
	}
}

// TestZeroBesideZero makes blocks zero which another request is making zero just then:
// the log has their zeroes already, and the cache has them as they were.
func TestZeroBesideZero(t *testing.T) {
	for _, r := range [][2]int64{{4 * blockSize, blockSize}, {3 * blockSize, 3 * blockSize}, {4*blockSize + 512, 512}, {3*blockSize + 512, blockSize}} {
		v := newClosing(t, 1<<20)
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Write(t.Context(), bytes.Repeat([]byte{0xaa}, 8*blockSize), 0); err != nil {
			t.Fatal(err)
		}
		z := d.keepZero(2, 4, 6*blockSize, layout.Zeroes, 0)
		got := make([]byte, r[1])
		if err := errors.Join(d.Zero(t.Context(), r[0], r[1]), d.Read(t.Context(), got, r[0])); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, make([]byte, r[1])) {
			t.Errorf("%d bytes at %d are as they were", r[1], r[0])
		}
		d.cache.Forget(2*blockSize, 4*blockSize)
		d.zeroed(z)
	}
}

// heldGets has reads wait as long as hold is open.
type heldGets struct {
	store.Store
	hold atomic.Pointer[chan struct{}] // nil: they do not wait
}

func (s *heldGets) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if hold := s.hold.Load(); hold != nil {
		<-*hold
	}
	return s.Store.Get(ctx, name, p, o)
}

// TestZeroEndGrows makes the end of a disk zero that ends within a block, as one that
// was of version 1 may. While its first block is read, the disk grows, and the rest of
// the last one is written.
func TestZeroEndGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 2*blockSize + 1000
		v := newClosing(t, size)
		old := bytes.Repeat([]byte{0xaa}, size)
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int64{{0, blockSize}, {blockSize, size - blockSize}} { // in an object each
			if err := errors.Join(d.Write(t.Context(), old[:r[1]], r[0]), d.Drain(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Close()
		slow := &heldGets{Store: v.box}
		if d, err = v.open(t.Context(), slow); err != nil {
			t.Fatal(err)
		}
		if err := d.Read(t.Context(), make([]byte, 1000), 2*blockSize); err != nil {
			t.Fatal(err)
		}
		hold := make(chan struct{})
		slow.hold.Store(&hold)
		zeroed := make(chan error)
		go func() { zeroed <- d.Zero(t.Context(), 100, size-100) }()
		synctest.Wait()
		select {
		case <-zeroed:
			t.Fatal("the first block was not read")
		default:
		}
		written := bytes.Repeat([]byte{0x55}, blockSize-1000)
		if err := errors.Join(d.Grow(t.Context(), 8*blockSize), d.Write(t.Context(), written, size)); err != nil {
			t.Fatal(err)
		}
		close(hold)
		if err := <-zeroed; err != nil {
			t.Fatal(err)
		}
		if err := d.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Close()
		if d, err = v.open(t.Context(), v.box); err != nil { // nothing is cached
			t.Fatal(err)
		}
		got := make([]byte, 3*blockSize)
		if err := d.Read(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		want := slices.Concat(old[:100], make([]byte, size-100), written)
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
			}
		}
	})
}
