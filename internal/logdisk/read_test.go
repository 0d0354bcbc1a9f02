// SPDX-License-Identifier: MIT

package logdisk

import (
	"math/rand/v2"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestSmallRead reads a block of a disk of which nothing is cached. It takes one
// request, however the disk was written. Where the blocks around it lie beside it
// they come with it, up to 64 KiB.
func TestSmallRead(t *testing.T) {
	const blocks = 4096
	for _, c := range []struct {
		name string
		next func(i int) uint64
		want int64 // bytes
	}{
		{"in order", func(i int) uint64 { return uint64(i) }, 16 * 4100},
		{"at random", func() func(int) uint64 {
			order := rand.New(rand.NewPCG(1, 2)).Perm(blocks)
			return func(i int) uint64 { return uint64(order[i]) }
		}(), 4 * 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVolume(t, blocks*blockSize)
			v.o.Seal = 1024 * layout.FrameSize // no object ends within 64 KiB of the disk
			d, err := v.open(t.Context(), v.box)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, blockSize)
			for i := range blocks {
				stamp(p, c.next(i), 1)
				if err := d.Write(t.Context(), p, int64(c.next(i))*blockSize); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.Close()
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for k := range 40 {
				block := uint64(k*97+5) % blocks
				gets, bytes := d.Stats().Gets.Load(), d.Stats().GetBytes.Load()
				if err := d.Read(t.Context(), p, int64(block)*blockSize); err != nil {
					t.Fatal(err)
				}
				want := make([]byte, blockSize)
				stamp(want, block, 1)
				if string(p) != string(want) {
					t.Fatalf("block %d is wrong", block)
				}
				gets, bytes = d.Stats().Gets.Load()-gets, d.Stats().GetBytes.Load()-bytes
				if gets > 1 || bytes > c.want {
					t.Errorf("block %d: %d requests, %d bytes; want 1 and at most %d", block, gets, bytes, c.want)
				}
				if c.name == "in order" && gets == 1 && bytes != c.want {
					t.Errorf("block %d: %d bytes came, want %d", block, bytes, c.want)
				}
			}
		})
	}
}
