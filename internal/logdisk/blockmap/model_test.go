// SPDX-License-Identifier: MIT

package blockmap

import (
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

var seedFlag = flag.Uint64("seed", 0, "of the model tests; 0 takes a new one")

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// plain is the model of a map: each block by itself.
type plain map[uint64]Value

// area is a few thousand blocks, somewhere on the disk.
type area struct{ first, count uint64 }

// areas are where a tree has its seams: the first blocks, and both sides of
// borders between nodes of several levels.
var areas = []area{
	{0, 3 * leafBlocks},
	{span(1) - 1500, 3000},
	{span(topLeaf) - 700, 1400},
	{span(topLeaf+1) - 2*leafBlocks, 4 * leafBlocks},
	{2684354560 - 2500, 2500}, // the end of 10 TiB
}

// trial is a map and its model.
type trial struct {
	t     *testing.T
	r     *rand.Rand
	m     *Map
	want  plain
	areas []area
	mean  uint64 // blocks of a usual change
	n     uint64 // of the object that is written now
	place uint32 // its end
	shots []shot
	forms map[string]int
}

type shot struct {
	m       *Map
	want    plain
	extents int
	bytes   int64
}

// newValue returns where count blocks that are written now go: to the end of
// the newest object, most often.
func (tr *trial) newValue(count uint64) Value {
	v := Value{Kind: layout.Data, At: layout.Position{Epoch: 7, N: tr.n}, Place: tr.place}
	tr.place += uint32(count * layout.FrameSize)
	if tr.place > 1000*layout.FrameSize {
		tr.n++
		tr.place = 0
	}
	switch tr.r.IntN(32) {
	case 0:
		v.Kind = layout.Zeroes
	case 1, 2:
		v.Kind = layout.Trimmed
	case 3:
		v.Kind = layout.Zstd
	case 4: // an object that may have been forgotten
		v.At = layout.Position{Epoch: uint32(1 + tr.r.IntN(7)), N: 1 + tr.r.Uint64N(tr.n)}
	}
	return v
}

func (tr *trial) newRange() (first, count uint64) {
	a := tr.areas[tr.r.IntN(len(tr.areas))]
	switch tr.r.IntN(4096) {
	case 0:
		count = a.count
	case 1, 2, 3:
		count = 1 + tr.r.Uint64N(a.count)
	default:
		count = 1 + tr.r.Uint64N(2*tr.mean)
	}
	count = min(count, a.count)
	return a.first + tr.r.Uint64N(a.count-count+1), count
}

// lost returns a function to hand to Set and Remove, and one to call after it:
// it checks that what was told is exactly what the model had.
func (tr *trial) lost(first, count uint64) (told func(Extent), check func()) {
	var had []Extent
	for b := first; b < first+count; b++ {
		v, ok := tr.want[b]
		if !ok {
			continue
		}
		if k := len(had); k > 0 && had[k-1].First+had[k-1].Count == b && had[k-1].From(had[k-1].Count) == v {
			had[k-1].Count++
			continue
		}
		had = append(had, Extent{b, 1, v})
	}
	var got []Extent
	return func(e Extent) { got = append(got, e) }, func() {
		if !slices.Equal(got, had) {
			tr.t.Fatalf("a change of %d blocks from %d replaced %v; it told %v", count, first, had, got)
		}
	}
}

func (tr *trial) run(ops int) {
	for op := range ops {
		first, count := tr.newRange()
		switch k := tr.r.IntN(100); {
		case k < 60:
			tr.set(first, count)
		case k < 65:
			tr.remove(first, count)
		case k < 75:
			tr.replace(first, count)
		default:
			tr.lookup(first, count)
		}
		if op%20000 == 0 {
			tr.verify()
		}
		if op%7000 == 0 {
			tr.shots = append(tr.shots, shot{tr.m.Snapshot(), maps.Clone(tr.want), tr.m.Extents(), tr.m.root.treeSize()})
			if len(tr.shots) > 3 {
				tr.verifyShot(tr.shots[0])
				tr.shots = tr.shots[1:]
			}
		}
	}
	tr.verify()
	for _, s := range tr.shots {
		tr.verifyShot(s)
	}
}

func (tr *trial) set(first, count uint64) {
	v := tr.newValue(count)
	if tr.r.IntN(4) == 0 {
		tr.m.Set(first, count, v, nil)
	} else {
		told, check := tr.lost(first, count)
		tr.m.Set(first, count, v, told)
		check()
	}
	for i := range count {
		tr.want[first+i] = v.clean().From(i)
	}
}

func (tr *trial) remove(first, count uint64) {
	if tr.r.IntN(4) == 0 {
		tr.m.Remove(first, count, nil)
	} else {
		told, check := tr.lost(first, count)
		tr.m.Remove(first, count, told)
		check()
	}
	for i := range count {
		delete(tr.want, first+i)
	}
}

// replace moves blocks as the collector does. Some of them have been written
// since, or never were where it thinks.
func (tr *trial) replace(first, count uint64) {
	old := tr.want[first+tr.r.Uint64N(count)]
	if tr.r.IntN(2) == 0 {
		old = tr.want[first]
	}
	switch tr.r.IntN(10) {
	case 0:
		old.Place += layout.FrameSize
	case 1:
		old.At.N++
	case 2:
		old.At.Epoch++
	case 3:
		old.Kind = layout.Kind(tr.r.IntN(4))
	}
	v := tr.newValue(count)
	var n uint64
	for i := range count {
		if have, ok := tr.want[first+i]; ok && have == old.clean().From(i) {
			tr.want[first+i] = v.clean().From(i)
			n++
		}
	}
	if got := tr.m.Replace(first, count, old, v); got != n {
		tr.t.Fatalf("Replace of %d blocks from %d changed %d, expected %d", count, first, got, n)
	}
}

func (tr *trial) lookup(first, count uint64) {
	next := first
	for e := range tr.m.Lookup(first, count) {
		if e.First < next || e.Count == 0 || e.First+e.Count > first+count {
			tr.t.Fatalf("a lookup of %d blocks from %d yielded %v", count, first, e)
		}
		for ; next < e.First; next++ {
			if v, ok := tr.want[next]; ok {
				tr.t.Fatalf("block %d is %v, and a lookup has a gap there", next, v)
			}
		}
		for i := range e.Count {
			if v, ok := tr.want[next]; !ok || v != e.From(i) {
				tr.t.Fatalf("block %d is %v (%v), and a lookup yielded %v", next, v, ok, e)
			}
			next++
		}
	}
	for ; next < first+count; next++ {
		if v, ok := tr.want[next]; ok {
			tr.t.Fatalf("block %d is %v, and a lookup ended before", next, v)
		}
	}
	v, ok := tr.m.Get(first)
	if want, has := tr.want[first]; ok != has || v != want {
		tr.t.Fatalf("block %d is %v (%v), Get returned %v (%v)", first, want, has, v, ok)
	}
}

// verify compares the whole map, and checks its invariants.
func (tr *trial) verify() {
	tr.t.Helper()
	tr.m.check(tr.t)
	tr.compare(tr.m, tr.want)
	tr.m.root.census(tr.forms)
}

func (tr *trial) compare(m *Map, want plain) {
	tr.t.Helper()
	if m.Blocks() != uint64(len(want)) {
		tr.t.Fatalf("the map has %d blocks, expected %d", m.Blocks(), len(want))
	}
	var last Extent
	extents, n := 0, 0
	for e := range m.All() {
		if extents > 0 && (e.First < last.First+last.Count || e.First == last.First+last.Count && last.From(last.Count) == e.Value) {
			tr.t.Fatalf("All yielded %v after %v", e, last)
		}
		for i := range e.Count {
			if v, ok := want[e.First+i]; !ok || v != e.From(i) {
				tr.t.Fatalf("block %d is %v (%v), All yielded %v", e.First+i, v, ok, e)
			}
			n++
		}
		last = e
		extents++
	}
	if n != len(want) {
		tr.t.Fatalf("All yielded %d blocks, expected %d", n, len(want))
	}
	if m.Extents() < extents {
		tr.t.Fatalf("the map keeps %d extents, All yielded %d", m.Extents(), extents)
	}
}

func (tr *trial) verifyShot(s shot) {
	tr.t.Helper()
	s.m.check(tr.t)
	tr.compare(s.m, s.want)
	if s.m.Extents() != s.extents || s.m.root.treeSize() != s.bytes {
		tr.t.Fatal("a snapshot has changed its form")
	}
}

// census counts the nodes of each form.
func (n *node) census(forms map[string]int) {
	switch {
	case n.isUniform():
		forms["uniform"]++
	case n.cells != nil:
		forms["dense"]++
	case n.kids != nil:
		forms["inner"]++
		for _, kid := range n.kids {
			kid.census(forms)
		}
	default:
		forms["sparse"]++
	}
}

// TestModel applies random operations to a map and to a plain Go map.
func TestModel(t *testing.T) {
	r := newRand(t)
	for _, c := range []struct {
		name  string
		areas []area
		mean  uint64
		ops   int
	}{
		{"blocks", areas, 1, 900_000},
		{"beginning", areas[:1], 1, 400_000},
		{"runs", areas, 8, 200_000},
		{"long runs", areas, 100, 20_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &trial{t: t, r: r, m: New(), want: plain{}, areas: c.areas, mean: c.mean, n: 1, forms: map[string]int{}}
			if !testing.Short() {
				c.ops *= 4
			}
			tr.run(c.ops)
			t.Log(tr.forms)
			if c.name == "blocks" {
				for _, form := range []string{"uniform", "sparse", "dense", "inner"} {
					if tr.forms[form] == 0 {
						t.Errorf("no %s node was there at any check", form)
					}
				}
			}
			// The map ends empty, and with it the table.
			tr.m.Remove(0, MaxBlocks, nil)
			tr.want = plain{}
			tr.verify()
			if tr.m.root != absent || len(tr.m.sources.pages) != 0 || tr.m.Bytes() > 4<<10 {
				t.Errorf("an empty map takes %d bytes", tr.m.Bytes())
			}
		})
	}
}

// list is a model for ranges of any length: the extents in order, neighbours
// joined. It is as simple as it is slow.
type list []Extent

func (l list) cut(first, end uint64) (before, in, after list) {
	for _, e := range l {
		for _, part := range []struct {
			to        *list
			from, to1 uint64
		}{{&before, 0, first}, {&in, first, end}, {&after, end, MaxBlocks}} {
			from, to := max(e.First, part.from), min(e.First+e.Count, part.to1)
			if from < to {
				*part.to = append(*part.to, Extent{from, to - from, e.From(from - e.First)})
			}
		}
	}
	return before, in, after
}

func (l list) joined() (out list) {
	for _, e := range l {
		if k := len(out); k > 0 && out[k-1].First+out[k-1].Count == e.First && out[k-1].From(out[k-1].Count) == e.Value {
			out[k-1].Count += e.Count
			continue
		}
		out = append(out, e)
	}
	return out
}

// TestModelHuge changes ranges of all lengths, up to the whole of the largest
// map, and compares with the list.
func TestModelHuge(t *testing.T) {
	r := newRand(t)
	for range 30 {
		m := New()
		var want list
		size := span(r.IntN(14))
		var shots []*Map
		var wants []list
		for op := range 600 {
			count := min(1+r.Uint64()>>(r.IntN(62)+2), size)
			first := r.Uint64N(size - count + 1)
			switch r.IntN(3) {
			case 0: // an edge of a node
				first &^= span(r.IntN(8)) - 1
			case 1: // up to the end of one
				if end := (first + count) &^ (span(r.IntN(4)) - 1); end > first {
					count = end - first
				}
			}
			v := Value{Kind: []layout.Kind{layout.Zeroes, layout.Trimmed, layout.Zstd}[r.IntN(3)], At: layout.Position{Epoch: 1, N: r.Uint64N(20)}, Place: r.Uint32N(100)}
			if v.Kind == layout.Zstd {
				count = min(count, 16)
			}
			if r.IntN(2) == 0 {
				v.Kind = layout.Data
				count = min(count, 1+r.Uint64N(3000))
			}
			v = v.clean()
			before, in, after := want.cut(first, first+count)
			var told list
			tell := func(e Extent) { told = append(told, e) }
			switch r.IntN(6) {
			case 0:
				m.Remove(first, count, tell)
				want = append(before, after...)
			case 1:
				if len(in) == 0 {
					continue
				}
				// The first extent of the range, moved, if it is not one of
				// several in the same place.
				old := in[0]
				n := m.Replace(old.First, old.Count, old.Value, Value{Kind: layout.Trimmed})
				if n != old.Count {
					t.Fatalf("Replace changed %d blocks of %v", n, old)
				}
				want = append(before, Extent{old.First, old.Count, Value{Kind: layout.Trimmed}})
				want = append(append(want, in[1:]...), after...).joined()
				told = in
			default:
				m.Set(first, count, v, tell)
				want = append(append(before, Extent{first, count, v}), after...).joined()
			}
			if !slices.Equal(told, in.joined()) {
				t.Fatalf("op %d: %d blocks from %d replaced %v; told %v", op, count, first, in, told)
			}
			if got := slices.Collect(m.All()); !slices.Equal(got, want) {
				t.Fatalf("op %d: the map has %v, expected %v", op, got, want)
			}
			if got := slices.Collect(m.Lookup(first, count+1)); op%4 == 0 {
				_, in, _ := want.cut(first, first+count+1)
				if !slices.Equal(got, in) {
					t.Fatalf("op %d: Lookup yielded %v, expected %v", op, got, in)
				}
			}
			m.check(t)
			if op%100 == 50 {
				shots, wants = append(shots, m.Snapshot()), append(wants, slices.Clone(want))
			}
		}
		for i, s := range shots {
			if got := slices.Collect(s.All()); !slices.Equal(got, wants[i]) {
				t.Fatalf("snapshot %d has %v, expected %v", i, got, wants[i])
			}
		}
	}
}
