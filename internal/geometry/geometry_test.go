// SPDX-License-Identifier: MIT

package geometry_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"swiftnbd/internal/geometry"
)

func TestNew(t *testing.T) {
	for _, tc := range []struct {
		objectSize, objects int64
		fault               string // a part of the error; empty: it is a disk
	}{
		{1, 1, ""},
		{1000, 3, ""},
		{1 << 20, 1 << 43 / (1 << 20), ""},
		{geometry.MaxObjectSize, math.MaxInt64 / geometry.MaxObjectSize, ""},
		{1, math.MaxInt64, ""},
		{0, 1, "at least 1 byte"},
		{-5, 1, "at least 1 byte"},
		{geometry.MaxObjectSize + 1, 1, "at most"},
		{1, 0, "at least 1"},
		{1, -1, "at least 1"},
		{2, math.MaxInt64/2 + 1, "larger than 2^63-1"},
		{geometry.MaxObjectSize, math.MaxInt64, "larger than 2^63-1"},
	} {
		g, err := geometry.New(tc.objectSize, tc.objects)
		switch {
		case tc.fault != "":
			if err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("%d objects of %d: %v, want %q", tc.objects, tc.objectSize, err, tc.fault)
			}
		case err != nil:
			t.Errorf("%d objects of %d: %v", tc.objects, tc.objectSize, err)
		case g.Objects() != tc.objects || g.ObjectSize() != tc.objectSize || g.Size() != tc.objectSize*tc.objects:
			t.Errorf("%d objects of %d: %d, %d, %d bytes", tc.objects, tc.objectSize, g.Objects(), g.ObjectSize(), g.Size())
		}
	}
}

func TestContains(t *testing.T) {
	g, err := geometry.New(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		off, n int64
		want   bool
	}{
		{0, 0, true}, {0, 3000, true}, {3000, 0, true}, {2999, 1, true},
		{0, 3001, false}, {3000, 1, false}, {3001, 0, false}, {-1, 1, false}, {1, -1, false},
		{1, math.MaxInt64, false}, {math.MaxInt64, math.MaxInt64, false},
	} {
		if got := g.Contains(tc.off, tc.n); got != tc.want {
			t.Errorf("Contains(%d, %d) = %t", tc.off, tc.n, got)
		}
	}
}

// TestPieces: the pieces of any request are the request, byte by byte, and
// Count counts them.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		g, err := geometry.New(1+rng.Int64N(50), 1+rng.Int64N(20))
		if err != nil {
			t.Fatal(err)
		}
		off := rng.Int64N(g.Size() + 1)
		n := rng.Int64N(g.Size() - off + 1)
		var done, count int64
		for p := range g.Pieces(off, n) {
			if p.Buf != done || p.In.Len < 1 || p.In.Off < 0 || p.In.End() > g.ObjectSize() {
				t.Fatalf("%d bytes at %d, chunks of %d: piece %+v after %d bytes", n, off, g.ObjectSize(), p, done)
			}
			if at := g.Offset(p.Chunk) + p.In.Off; at != off+done {
				t.Fatalf("%d bytes at %d, chunks of %d: piece %+v is at %d", n, off, g.ObjectSize(), p, at)
			}
			if i, in := g.ChunkOf(off + done); i != p.Chunk || in != p.In.Off {
				t.Fatalf("byte %d is in chunk %d at %d, and its piece is %+v", off+done, i, in, p)
			}
			if whole := p.In.Len == g.ObjectSize(); p.Whole(g.ObjectSize()) != whole {
				t.Fatalf("piece %+v of %d: Whole is %t", p, g.ObjectSize(), !whole)
			}
			done += p.In.Len
			count++
		}
		if done != n || count != g.Count(off, n) {
			t.Fatalf("%d bytes at %d, chunks of %d: %d bytes in %d pieces; Count is %d", n, off, g.ObjectSize(), done, count, g.Count(off, n))
		}
	}
}
