// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestFlattenWide flattens a clone of 10 TiB that has blocks here and there, and of which
// the parent has others: only these are looked at, for each is copied, and holes are
// passed over as a whole. add is told of all of the disk.
func TestFlattenWide(t *testing.T) {
	const size = 10<<40 + 512
	f := newFamily()
	do := doer(t)
	m := f.disk(t, size, Options{})
	d, err := m.open(t.Context(), m.box)
	do(err)
	both := []int64{1 << 40, 7<<40 + 3*ChunkSize/2}
	parents := append([]int64{0, 5 * ChunkSize, 5*ChunkSize + 7*blockSize, 6<<40 - blockSize, size / blockSize * blockSize}, both...)
	for _, off := range parents {
		do(d.Write(t.Context(), bytes.Repeat([]byte{1}, int(min(blockSize, size-off))), off))
	}
	do(d.Snapshot(t.Context(), "s"))
	d.Close()
	c := f.clone(t, m, "s")
	d, err = c.open(t.Context(), c.box)
	do(err)
	clones := append([]int64{2 << 40, 6 << 40}, both...)
	for _, off := range clones {
		do(d.Write(t.Context(), bytes.Repeat([]byte{2}, blockSize), off))
	}
	do(d.Zero(t.Context(), 3<<40, 1<<40))
	var told, calls atomic.Int64
	do(d.Flatten(t.Context(), func(n int64) { told.Add(n); calls.Add(1) }))
	if want := int64((size + blockSize - 1) / blockSize * blockSize); told.Load() != want {
		t.Errorf("told of %d bytes, want %d", told.Load(), want)
	}
	if n := int64(len(parents) + len(clones)); calls.Load() > 2*n+1 {
		t.Errorf("told %d times, for %d blocks", calls.Load(), n)
	}
	d.Close()
	do(m.box.Delete(t.Context(), layout.LogName(layout.Position{Epoch: 1, N: 1}))) // nobody needs it now
	d, err = c.open(t.Context(), c.box)
	do(err)
	defer d.Close()
	for _, off := range parents {
		p := make([]byte, min(blockSize, size-off))
		do(d.Read(t.Context(), p, off))
		want := byte(1)
		for _, o := range both {
			if o == off {
				want = 2
			}
		}
		if !bytes.Equal(p, bytes.Repeat([]byte{want}, len(p))) {
			t.Errorf("at %d it has %d, want %d", off, p[0], want)
		}
	}
}
