// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// delta is what changes the map that lies under it.
//
// An object's count of live blocks is how many entries of the map name it. An
// entry that a newer one covers is taken off the count, once: by whoever finds
// out. Who writes a block without a look at what lies under it leaves that to
// others. So a delta has two halves, which share no block:
//
//	known  what lies under it is off the counts, or there is nothing
//	blind  the newest entry under it is counted still
//
// A run keeps the halves apart too (layout.Entry.Blind). Of two entries of a
// block that become one, the lower one is taken off the counts if the upper one
// is blind, and the upper one becomes what the lower one was: blind towards what
// lies under both.
type delta struct{ known, blind *blockmap.Map }

func newDelta() *delta { return &delta{blockmap.New(), blockmap.New()} }

func (d *delta) empty() bool { return d.known.Blocks() == 0 && d.blind.Blocks() == 0 }

// bytes is the memory that it takes.
func (d *delta) bytes() int64 { return d.known.Bytes() + d.blind.Bytes() }

// put lays an extent over the delta, and calls replaced, which may be nil, for
// what it covers there. known is about the blocks that the delta did not have.
func (d *delta) put(e blockmap.Extent, known bool, replaced func(blockmap.Extent)) {
	own, other := d.known, d.blind
	if !known {
		own, other = other, own
	}
	var room [8]blockmap.Extent
	there := room[:0]
	for f := range other.Lookup(e.First, e.Count) {
		there = append(there, f)
	}
	set := func(m *blockmap.Map, first, end uint64) {
		p := part(e, first, end)
		m.Set(p.First, p.Count, p.Value, replaced)
	}
	at := e.First
	for _, f := range there {
		set(own, at, f.First)
		at = f.First + f.Count
		set(other, f.First, at)
	}
	set(own, at, e.First+e.Count)
}

// over lays a newer delta over this one, which changes.
func (d *delta) over(newer *delta, covered func(blockmap.Extent)) {
	for e := range newer.known.All() {
		d.put(e, true, nil)
	}
	for e := range newer.blind.All() {
		d.put(e, false, covered)
	}
}

// all yields the entries of a run that has the delta, in order.
func (d *delta) all() iter.Seq[layout.Entry] {
	return func(yield func(layout.Entry) bool) {
		next, stop := iter.Pull(d.blind.All())
		defer stop()
		b, ok := next()
		for e := range d.known.All() {
			for ok && b.First < e.First {
				if !yield(entryOf(b, true)) {
					return
				}
				b, ok = next()
			}
			if !yield(entryOf(e, false)) {
				return
			}
		}
		for ok && yield(entryOf(b, true)) {
			b, ok = next()
		}
	}
}

func entryOf(e blockmap.Extent, blind bool) layout.Entry {
	return layout.Entry{First: e.First, Count: e.Count, Kind: e.Kind, At: e.At, Place: e.Place, Bytes: e.Bytes, Skip: e.Skip, Blind: blind}
}

func extentOf(e layout.Entry) blockmap.Extent {
	return blockmap.Extent{First: e.First, Count: e.Count, Value: blockmap.Value{Kind: e.Kind, At: e.At, Place: e.Place, Bytes: e.Bytes, Skip: e.Skip}}
}

// extentOfRecord returns what a record of the object says of its blocks.
func extentOfRecord(at layout.Position, r layout.Record) blockmap.Extent {
	e := blockmap.Extent{First: r.First, Count: uint64(r.Count), Value: blockmap.Value{Kind: r.Kind, At: at, Place: r.Place}}
	if r.Kind == layout.Zstd {
		e.Bytes = r.Bytes
	}
	return e
}

// stored says whether blocks of the kind have bytes in a data object.
func stored(k layout.Kind) bool { return k == layout.Data || k == layout.Zstd }

// placeEnd returns where the bytes end that an extent has in its object, or those of
// the record that it is in.
func placeEnd(e blockmap.Extent) int64 {
	if e.Kind == layout.Zstd {
		return int64(e.Place) + int64(e.Bytes)
	}
	return int64(e.Place) + int64(e.Count)*layout.FrameSize
}

// part cuts an extent to the blocks [first, end), which lie in it.
func part(e blockmap.Extent, first, end uint64) blockmap.Extent {
	e.Value = e.From(first - e.First)
	e.First, e.Count = first, end-first
	return e
}

// clip cuts an extent to what lies in [first, end); its Count may become 0.
func clip(e blockmap.Extent, first, end uint64) blockmap.Extent {
	lo, hi := max(first, e.First), min(end, e.First+e.Count)
	if lo >= hi {
		return blockmap.Extent{}
	}
	return part(e, lo, hi)
}
