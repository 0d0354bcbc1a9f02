// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// TestPartsOfBlocks reads and writes ranges that begin and end within blocks, each of
// them as the first request to a disk whose map is not in memory: it is not known then
// what lies beside them.
func TestPartsOfBlocks(t *testing.T) {
	const blocks = 512
	for _, compress := range []bool{false, true} {
		v := newVolume(t, blocks*blockSize)
		v.o = Options{Cache: 8 << 20, Compress: compress}
		v.o.littleMap()
		session := func(f func(d *Disk) error) {
			t.Helper()
			d, err := v.open(t.Context(), v.box)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := errors.Join(f(d), d.Drain(t.Context()), d.Save(t.Context())); err != nil {
				t.Error(err)
			}
		}
		all := make([]byte, blocks*blockSize)
		session(func(d *Disk) error {
			for b := range uint64(blocks) {
				p := all[b*blockSize:][:blockSize]
				stamp(p, b, 3) // of which no part is like another
				if err := d.Write(t.Context(), p, int64(b)*blockSize); err != nil {
					return err
				}
			}
			return nil
		})
		for _, r := range [][2]int{{100, 512}, {4096, 100}, {8000, 200}, {12288, 4097}, {16383, 2}, {65535, 2}, {1<<20 - 1, 2}, {1, 1<<20 + 10}, {2<<20 - 1, 1}} {
			off, n := r[0], r[1]
			want := all[off : off+n]
			same := func(d *Disk, off int, want []byte) error {
				got := bytes.Repeat([]byte{0xee}, len(want))
				if err := d.Read(t.Context(), got, int64(off)); err != nil {
					return err
				}
				if !bytes.Equal(got, want) {
					return fmt.Errorf("compressed: %t: %d bytes at %d are wrong", compress, len(want), off)
				}
				return nil
			}
			session(func(d *Disk) error { return same(d, off, want) })
			session(func(d *Disk) error {
				for i := range want {
					want[i] ^= 0xff
				}
				return d.Write(t.Context(), want, int64(off))
			})
			lo, hi := off/blockSize*blockSize, (off+n+blockSize-1)/blockSize*blockSize
			session(func(d *Disk) error { return same(d, lo, all[lo:hi]) })
		}
	}
}
