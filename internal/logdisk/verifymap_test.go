// SPDX-License-Identifier: MIT

package logdisk

import (
	"maps"
	"slices"
	"testing"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
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

// TestVerifyDied: an object that the log after the root has covered, and that a snapshot
// knows, is not a stray, though no map has it.
func TestVerifyDied(t *testing.T) {
	at := layout.Position{Epoch: 1, N: 5}
	e := blockmap.Extent{First: 1, Count: 1, Value: blockmap.Value{Kind: layout.Data, At: at}}
	for _, c := range []struct {
		name        string
		saved, live bool
		root        layout.Position
		pins        []layout.Pin
		want        bool
	}{
		{"died", true, false, layout.Position{Epoch: 2, N: 3}, []layout.Pin{{Root: layout.Position{Epoch: 2, N: 1}}}, true},
		{"lives", true, true, layout.Position{Epoch: 2, N: 3}, []layout.Pin{{Root: layout.Position{Epoch: 2, N: 1}}}, false},
		{"dead before", false, false, layout.Position{Epoch: 2, N: 3}, []layout.Pin{{Root: layout.Position{Epoch: 2, N: 1}}}, false},
		{"no snapshot", true, false, layout.Position{Epoch: 2, N: 3}, nil, false},
		{"an older snapshot", true, false, layout.Position{Epoch: 2, N: 3}, []layout.Pin{{Root: layout.Position{Epoch: 1, N: 1}}}, false},
	} {
		v := &verification{Disk: newDisk(Options{})}
		defer v.cancel(ErrClosed)
		v.root.Pins, v.rootAt = c.pins, c.root
		w := newWindow(0, 1<<20, func(layout.Position) int64 { return 0 })
		if c.saved {
			w.saved(entryOf(e, false))
		} else {
			w.covered(at, 1)
		}
		if c.live {
			w.add(e)
		}
		none := func(layout.Position) bool { return false }
		if v.notNeeded(w, at, store.ObjectInfo{Size: 7}, none); (v.waiting.Count == 0) != c.want {
			t.Errorf("%s: %+v", c.name, v.waiting)
		}
	}
}
