// SPDX-License-Identifier: MIT

package logdisk

import (
	"maps"
	"slices"
	"testing"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/mem"
)

// TestVerifyCurrent has the map of random runs and of a random log over them, and the
// counts of the objects, be the same as by setting one block after the other.
func TestVerifyCurrent(t *testing.T) {
	const blocks = 200
	rng := newRand(t)
	covered := 0
	for range 300 {
		box, u := mem.New(), layout.NewUUID()
		if _, err := box.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		random := func(first, end uint64) layout.Entry {
			e := layout.Entry{First: first + rng.Uint64N(end-first), Kind: layout.Kind(rng.IntN(4)), Blind: rng.IntN(2) == 0}
			e.Count = 1 + rng.Uint64N(min(end-e.First, layout.MaxCompressed))
			if stored(e.Kind) {
				e.At, e.Place = layout.Position{Epoch: 1, N: 1 + rng.Uint64N(20)}, rng.Uint32N(1<<20)
			}
			if e.Kind == layout.Zstd {
				e.Bytes = 100 + rng.Uint32N(1000)
			}
			return e
		}
		v := &verification{Disk: newDisk(Options{Store: box, UUID: u}), runs: nil, tail: blockmap.New()}
		defer v.cancel(ErrClosed)
		want := newDisk(Options{UUID: u})
		defer want.cancel(ErrClosed)
		counts := map[layout.Position]int64{}
		var names []layout.Position
		for n := range uint64(rng.IntN(6)) {
			at := layout.Position{Epoch: 1, N: n + 1}
			w := layout.NewRunWriter(u, layout.RunBlocks, at)
			for first := rng.Uint64N(blocks); first < blocks; {
				e := random(first, blocks)
				if err := w.Add(e); err != nil {
					t.Fatal(err)
				}
				first = e.End()
			}
			b := w.Bytes()
			put(t, box, layout.RunName(at), b)
			if err := want.loadRun(at, b, counts); err != nil {
				t.Fatal(err)
			}
			names = append(names, at)
		}
		tree, err := v.checkRuns(t.Context(), names, "the root", func(_ string, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
		v.setTree(tree)
		saved := slices.Collect(want.m.All())
		for range rng.IntN(12) {
			e := extentOf(random(0, blocks))
			want.m.Set(e.First, e.Count, e.Value, func(blockmap.Extent) { covered++ })
			v.tail.Set(e.First, e.Count, e.Value, nil)
		}
		got, below := blockmap.New(), blockmap.New()
		counted := map[layout.Position]int64{}
		var last uint64
		err = v.current(t.Context(), func(at layout.Position, n int64) { counted[at] += n }, func(e layout.Entry) {
			below.Set(e.First, e.Count, extentOf(e).Value, nil)
			if stored(e.Kind) {
				counted[e.At] += int64(e.Count)
			}
		}, func(e blockmap.Extent) bool {
			if e.Count == 0 || e.First < last {
				t.Fatalf("blocks %d to %d come after block %d", e.First, e.First+e.Count, last)
			}
			last = e.First + e.Count
			got.Set(e.First, e.Count, e.Value, nil)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if a, b := slices.Collect(got.All()), slices.Collect(want.m.All()); !slices.Equal(a, b) {
			t.Fatalf("the map is %v, want %v", a, b)
		}
		if a := slices.Collect(below.All()); !slices.Equal(a, saved) {
			t.Fatalf("the runs have %v, want %v", a, saved)
		}
		maps.DeleteFunc(counts, func(_ layout.Position, n int64) bool { return n == 0 })
		if !maps.Equal(counted, counts) {
			t.Fatalf("the counts are %v, want %v", counted, counts)
		}
	}
	if covered < 300 {
		t.Errorf("the log covered %d extents: this test shows little", covered)
	}
}
