// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"math/rand/v2"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/volume"
)

// TestPreferredBlock: within nbdkit's bounds, and a power of two, which it
// insists upon.
func TestPreferredBlock(t *testing.T) {
	for size, want := range map[int64]uint32{
		1: 512, 511: 512, 512: 512, 1000: 512, 1024: 1024, 65536: 65536, 100_000: 65536,
		1 << 20: 1 << 20, 32 << 20: 32 << 20, 1<<25 + 1: 32 << 20, geometry.MaxObjectSize: 32 << 20,
	} {
		if got := preferredBlock(size); got != want {
			t.Errorf("objects of %d: %d, want %d", size, got, want)
		}
	}
}

func TestDescription(t *testing.T) {
	for _, tc := range []struct {
		objectSize, objects int64
		readOnly            bool
		want                string
	}{
		{1 << 20, 1 << 10, false, "1 GiB in objects of 1 MiB"},
		{64 << 10, 3, true, "192 KiB in objects of 64 KiB, read-only"},
		{1000, 3, false, "3000 bytes in objects of 1000 bytes"},
		{1 << 30, 1 << 20, false, "1024 TiB in objects of 1 GiB"},
	} {
		g, err := geometry.New(tc.objectSize, tc.objects)
		if err != nil {
			t.Fatal(err)
		}
		meta := volume.Meta{Version: volume.Version1, Size: g.Size(), Geometry: g}
		if got := description(meta, tc.readOnly); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	if got := description(volume.Meta{Version: volume.Version2, Size: 3 << 30}, true); got != "3 GiB in version 2 of the format, read-only" {
		t.Errorf("of version 2: %q", got)
	}
}

// patchwork is a device of which each byte is a hole or not. A call tells so many extents at
// most, as a device may.
type patchwork struct {
	holes  []bool
	most   int
	looked int64 // bytes that were asked for
	fails  int64 // a call from here on fails; 0: none
}

func (l *patchwork) Preferred() int64 { return 4 }

var errPatchwork = errors.New("no answer from Swift")

func (l *patchwork) Extents(off, n int64, emit func(off, n int64, hole bool) bool) error {
	l.looked += n
	if l.fails > 0 && off >= l.fails {
		return errPatchwork
	}
	told := 0
	for at := off; at < off+n && told < l.most; told++ {
		to := at + 1
		for to < off+n && l.holes[to] == l.holes[at] {
			to++
		}
		if !emit(at, to-at, l.holes[at]) {
			return nil
		}
		at = to
	}
	return nil
}

// TestOneExtent: where one extent is asked for, it is told whole, and the extents behind
// it are not looked at; otherwise all that the device tells is told.
func TestOneExtent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		l := &patchwork{holes: make([]bool, 40_000), most: 1 + r.IntN(50)}
		longest := 1 + r.IntN(20_000)
		for at, hole := 0, false; at < len(l.holes); hole = !hole {
			for range 1 + r.IntN(longest) {
				if at < len(l.holes) {
					l.holes[at] = hole
					at++
				}
			}
		}
		off := r.Int64N(int64(len(l.holes)))
		n := 1 + r.Int64N(int64(len(l.holes))-off)
		run := int64(1) // the length of the first extent
		for run < n && l.holes[off+run] == l.holes[off] {
			run++
		}
		for _, one := range []bool{true, false} {
			at, first := off, int64(0)
			l.looked = 0
			err := tellExtents(l, off, n, one, func(o, length int64, hole bool) error {
				if o != at || length < 1 || hole != l.holes[o] || hole != l.holes[o+length-1] {
					t.Fatalf("%d bytes at %d, hole %t, after %d", length, o, hole, at)
				}
				if at = o + length; hole == l.holes[off] && at <= off+run {
					first = at - off
				}
				return nil
			})
			if err != nil || first != run || one && at != off+run {
				t.Fatalf("one %t: the first of %d bytes at %d is %d, and all are %d, %v; want %d", one, n, off, first, at-off, err, run)
			}
			if most := max(oneExtent*l.Preferred(), 8*run); one && l.looked > most {
				t.Fatalf("%d bytes are looked at for an extent of %d", l.looked, run)
			}
		}
	}

	l := &patchwork{holes: make([]bool, 40_000), most: 50, fails: 1}
	if err := tellExtents(l, 1, 100, true, func(int64, int64, bool) error { return nil }); !errors.Is(err, errPatchwork) {
		t.Errorf("nothing can be told, and the error is %v", err)
	}
	l.fails = oneExtent * l.Preferred()
	told := int64(0)
	if err := tellExtents(l, 0, 40_000, true, func(_, n int64, _ bool) error { told += n; return nil }); err != nil || told != oneExtent*l.Preferred() {
		t.Errorf("what is known is %d bytes, and %d are told, %v", oneExtent*l.Preferred(), told, err)
	}
	bad := errors.New("no memory")
	if err := tellExtents(l, 0, 100, true, func(int64, int64, bool) error { return bad }); err != bad {
		t.Errorf("the error is %v", err)
	}
}
