// SPDX-License-Identifier: MIT

// Package blockmap is the map of a version 2 volume in memory: for each block
// of the disk, where its newest bytes are. docs/FORMAT-V2.md ("The map") says
// what the map means. This package does no I/O.
//
// # Form
//
// The map is a tree over the block numbers. A node of level 0 covers 1,024
// blocks (4 MiB of disk), and each level above covers 16 times as many. A node
// has one of four forms:
//
//	uniform  all its blocks are absent, or zeroes, or trimmed. These three
//	         nodes exist once and take no memory
//	sparse   a sorted list of steps. A step begins at a block, and holds up to
//	         the next step; 12 bytes each
//	dense    one cell for each block; 8 bytes each. Level 0 only
//	inner    16 nodes of the level below
//
//	from     to       when
//	uniform  sparse   a part of it changes, up to level topLeaf
//	uniform  inner    a part of it changes, above level topLeaf
//	sparse   dense    level 0, more than denseFrom steps
//	dense    sparse   fewer than sparseFrom steps
//	sparse   inner    above level 0, more than maxSteps steps
//	inner    sparse   up to level topLeaf, at most mergeSteps steps below it
//	any      uniform  all its blocks have the same state without a place
//
// Each limit differs from the one for the way back, so a map at a limit does
// not change its form with every write. check_test.go has the invariants.
//
// A step and a cell name an object by a small number. The table of sources
// says which object it is, and counts the blocks that refer to it.
//
// # Snapshots
//
// Each node carries the generation in which it was made. Snapshot ends the
// generation. A node of an ended generation is never changed again: the map
// copies it before the first change. The table's pages work the same way.
package blockmap

import (
	"fmt"
	"iter"

	"swiftnbd/internal/logdisk/layout"
)

// Value says where a run of blocks is. Block i of a run of kind Data has its
// frame at Place + i*layout.FrameSize in the object At. Of the kinds that are read
// whole (compressed), Place and Bytes say where the bytes of the record are, and
// block i is the record's block Skip + i. Zeroes and Trimmed have no place: the map
// clears all but their Kind, and of Data it clears Bytes and Skip.
type Value struct {
	Kind  layout.Kind
	At    layout.Position
	Place uint32
	Bytes uint32 // less than maxBytes
	Skip  uint32
}

// Extent is a run of blocks in one state. Blocks that the map does not have
// are in no extent.
type Extent struct {
	First, Count uint64
	Value
}

// MaxBlocks bounds the block numbers that a map can hold.
const MaxBlocks = 1 << 62

// Map holds extents by block. It is not safe for concurrent use, except that
// any number of goroutines may call the methods that do not change it
// (Lookup, Get, All, Bytes, Blocks, Extents) while none calls another.
type Map struct {
	root   *node
	level  int    // of root
	gen    uint64 // of the nodes that may be changed in place
	frozen bool   // a snapshot

	blocks  uint64 // mapped ones
	bytes   int64  // of the tree's nodes
	sources sources
}

// New returns a map that has no block.
func New() *Map {
	return &Map{root: absent, gen: 1}
}

// Set gives the blocks [first, first+count) the value v. For each extent that
// was there it calls replaced, which may be nil, in order, cut to the range;
// it must not use the map. Extents whose value v repeats are told as well.
//
// A range beyond MaxBlocks, a run of frames that no object can hold, and a
// position above layout.MaxN are faults of the caller. Set panics.
func (m *Map) Set(first, count uint64, v Value, replaced func(Extent)) {
	m.mustChange(first, count)
	if count == 0 {
		return
	}
	v = v.clean()
	if v.placed() && (count > layout.MaxObjectSize || uint64(v.step())+count*v.stride() > layout.MaxObjectSize) {
		panic(fmt.Sprintf("blockmap: %d blocks from place %d do not fit in an object", count, v.Place))
	}
	if v.At.N > layout.MaxN {
		panic(fmt.Sprintf("blockmap: no object has the position %v", v.At))
	}
	if v.Bytes >= maxBytes {
		panic(fmt.Sprintf("blockmap: no record has %d bytes", v.Bytes))
	}
	id := m.sources.take(v, count)
	m.change(first, count, id, v.step(), replaced)
	m.blocks += count
}

// Remove makes the blocks [first, first+count) absent. It calls replaced as
// Set does.
func (m *Map) Remove(first, count uint64, replaced func(Extent)) {
	m.mustChange(first, count)
	if first >= span(m.level) || count == 0 {
		return
	}
	m.change(first, min(count, span(m.level)-first), idAbsent, 0, replaced)
}

// Replace gives those blocks of [first, first+count) the value v that are
// exactly where old says: of kind Data, block first+i is in the object old.At
// at old.Place + i*layout.FrameSize. A block of v follows v.Place the same way. It
// returns how many blocks it changed.
func (m *Map) Replace(first, count uint64, old, v Value) (n uint64) {
	m.mustChange(first, count)
	old, v = old.clean(), v.clean()
	var room [16]Extent
	hits := room[:0]
	for e := range m.Lookup(first, count) {
		// The places of e's blocks and those that are asked for go up by the
		// same steps: either all of e's blocks match, or none does.
		if e.Value == old.From(e.First-first) {
			hits = append(hits, e)
		}
	}
	for _, e := range hits {
		m.Set(e.First, e.Count, v.From(e.First-first), nil)
		n += e.Count
	}
	return n
}

// Get returns the value of one block, and whether the map has it.
func (m *Map) Get(block uint64) (Value, bool) {
	if block >= span(m.level) {
		return Value{}, false
	}
	id, place := m.root.get(m.level, block)
	if id == idAbsent {
		return Value{}, false
	}
	return m.sources.value(id, place), true
}

// Lookup yields the extents of [first, first+count) in order, cut to the
// range. Neighbours of which one continues the other are one extent. The map
// must not change meanwhile.
func (m *Map) Lookup(first, count uint64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) { m.lookup(first, count, yield) }
}

// All yields all extents, as Lookup does.
func (m *Map) All() iter.Seq[Extent] { return m.Lookup(0, MaxBlocks) }

func (m *Map) lookup(first, count uint64, yield func(Extent) bool) {
	all := span(m.level)
	if first >= all || count == 0 {
		return
	}
	if count == 1 {
		if v, ok := m.Get(first); ok {
			yield(Extent{first, 1, v})
		}
		return
	}
	j := joiner{yield: yield}
	if m.root.walk(m.level, 0, first, first+min(count, all-first), func(first, count uint64, id, place uint32) bool {
		return j.add(Extent{first, count, m.sources.value(id, place)})
	}) {
		j.end()
	}
}

// Blocks returns the number of mapped blocks.
func (m *Map) Blocks() uint64 { return m.blocks }

// Extents returns the number of extents as the map keeps them. An extent that
// crosses from one node of the tree to another counts in each.
func (m *Map) Extents() int { return m.root.mapped }

// Bytes returns the memory that the map takes. What a map shares with its
// snapshots is counted in each.
func (m *Map) Bytes() int64 { return mapSize + m.bytes + m.sources.bytes() }

// Snapshot returns the map as it is now. The snapshot never changes: Set,
// Replace and Remove panic on it. It may be read without the lock of the map
// that it was made from. It takes the time to copy a pointer for each 256
// objects. Both share their nodes until the map changes them.
func (m *Map) Snapshot() *Map {
	if m.frozen {
		return m
	}
	s := *m
	s.frozen = true
	s.sources = m.sources.snapshot()
	m.gen++
	return &s
}

func (m *Map) mustChange(first, count uint64) {
	if m.frozen {
		panic("blockmap: change of a snapshot")
	}
	if first > MaxBlocks || count > MaxBlocks-first {
		panic(fmt.Sprintf("blockmap: %d blocks from %d are beyond the end", count, first))
	}
}

func (v Value) clean() Value {
	switch {
	case !v.placed():
		return Value{Kind: v.Kind}
	case v.Kind == layout.Data:
		v.Bytes, v.Skip = 0, 0
	}
	return v
}

func (v Value) placed() bool { return v.Kind != layout.Zeroes && v.Kind != layout.Trimmed }

// step is what a step or a cell has of the value: what differs from one of its
// blocks to the next.
func (v Value) step() uint32 {
	if v.Kind == layout.Data {
		return v.Place
	}
	return v.Skip
}

// stride is how far apart the steps of neighbours are.
func (v Value) stride() uint64 {
	switch {
	case !v.placed():
		return 0
	case v.Kind == layout.Data:
		return layout.FrameSize
	}
	return 1
}

// From returns the value of the block that is n blocks after v's.
func (v Value) From(n uint64) Value {
	if v.Kind == layout.Data {
		v.Place += uint32(n * layout.FrameSize)
	} else if v.placed() {
		v.Skip += uint32(n)
	}
	return v
}

// joiner yields extents, and joins those of which one continues the other.
type joiner struct {
	yield func(Extent) bool
	last  Extent // not yielded yet, if Count is not 0
}

func (j *joiner) add(e Extent) bool {
	l := &j.last
	if l.Count > 0 {
		if l.First+l.Count == e.First && l.From(l.Count) == e.Value {
			l.Count += e.Count
			return true
		}
		if !j.yield(*l) {
			return false
		}
	}
	*l = e
	return true
}

func (j *joiner) end() {
	if j.last.Count > 0 {
		j.yield(j.last)
	}
}
