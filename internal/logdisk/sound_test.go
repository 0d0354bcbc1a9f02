// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"fmt"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestSoundBesideDamaged has one frame of an object be damaged. Each block beside it is
// read, and partly written, as if it were alone in its object: what would be fetched with
// it does not count.
func TestSoundBesideDamaged(t *testing.T) {
	const blocks, bad = 24, 5
	v := newClosing(t, blocks*blockSize)
	do := doer(t)
	d, err := v.open(t.Context(), v.box)
	do(err)
	want := make([]byte, blocks*blockSize)
	for i := range want {
		want[i] = byte(i/blockSize + 1)
	}
	do(d.Write(t.Context(), want, 0))
	do(d.Flush(t.Context()))
	name := layout.LogName(d.Durable())
	data := get(t, v.box, name)
	data[bad*layout.FrameSize+100] ^= 1
	put(t, v.box, name, data)

	same := func(first, n int64) error {
		t.Helper()
		p := make([]byte, n)
		if err := d.Read(t.Context(), p, first); err != nil {
			return err
		}
		if !bytes.Equal(p, want[first:first+n]) {
			return fmt.Errorf("%d bytes at %d are others", n, first)
		}
		return nil
	}
	for i := range int64(blocks) {
		d.cache.Forget(0, d.Size())
		if i == bad {
			if err := same(i*blockSize, blockSize); err == nil {
				t.Error("the damaged block is read")
			}
			if err := d.Write(t.Context(), []byte{1}, i*blockSize+7); err == nil {
				t.Error("a part of the damaged block is written: nobody knows the rest")
			}
			continue
		}
		if err := same(i*blockSize+512, 512); err != nil {
			t.Errorf("a sector of block %d: %v", i, err)
		}
		d.cache.Forget(0, d.Size())
		if err := d.Write(t.Context(), []byte{0xee}, i*blockSize+7); err != nil {
			t.Errorf("a byte of block %d: %v", i, err)
		}
		want[i*blockSize+7] = 0xee
	}
	do(d.Flush(t.Context()))
	d.cache.Forget(0, d.Size())
	if err := same(0, bad*blockSize); err != nil {
		t.Error(err)
	}
	if err := same((bad+1)*blockSize, (blocks-bad-1)*blockSize); err != nil {
		t.Error(err)
	}
}
