// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"errors"
	"sync"
	"testing"
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
