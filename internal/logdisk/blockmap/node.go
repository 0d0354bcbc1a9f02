// SPDX-License-Identifier: MIT

package blockmap

import (
	"slices"
	"unsafe"
)

const (
	leafBits   = 10
	leafBlocks = 1 << leafBits // blocks of a node of level 0
	fanBits    = 4
	fan        = 1 << fanBits // nodes below an inner one

	// topLeaf is the highest level of a sparse node: its blocks' numbers fit
	// in 32 bits.
	topLeaf = 5

	maxSteps   = 512
	mergeSteps = 128
	denseFrom  = 640 // as many steps take nearly what the cells take
	sparseFrom = 320
)

// span returns the number of blocks that a node of the level covers, and log2
// the power of two that it is.
func span(level int) uint64 { return 1 << (log2(level) & 63) }
func log2(level int) uint   { return uint(leafBits + fanBits*level) }

// node is a part of the tree. The package's comment has its forms and when
// they change.
type node struct {
	gen   uint64            // the map's generation that may change it
	steps []step            // sparse and uniform
	cells *[leafBlocks]cell // dense
	kids  *[fan]*node       // inner

	count  int // steps here and below; in a dense node, as many as it would have
	mapped int // those of them that are not absent
}

// step is the state of the blocks from off, counted from the node's first, up
// to the next step. The first step of a node has off 0.
type step struct{ off, id, place uint32 }

// cell is the state of one block.
type cell struct{ id, place uint32 }

// What nodes take in memory.
const (
	mapSize   = int64(unsafe.Sizeof(Map{}))
	nodeSize  = int64(unsafe.Sizeof(node{}))
	stepSize  = int64(unsafe.Sizeof(step{}))
	cellsSize = int64(unsafe.Sizeof([leafBlocks]cell{}))
	kidsSize  = int64(unsafe.Sizeof([fan]*node{}))
)

// The uniform nodes. No map has generation 0, so none changes them.
var (
	absent  = &node{steps: []step{{id: idAbsent}}, count: 1}
	zeroes  = &node{steps: []step{{id: idZeroes}}, count: 1, mapped: 1}
	trimmed = &node{steps: []step{{id: idTrimmed}}, count: 1, mapped: 1}
)

func uniform(id uint32) *node {
	switch id {
	case idAbsent:
		return absent
	case idZeroes:
		return zeroes
	}
	return trimmed
}

func (n *node) isUniform() bool { return n.gen == 0 }

// size is what the node itself takes, without those below.
func (n *node) size() int64 {
	switch {
	case n.isUniform():
		return 0
	case n.kids != nil:
		return nodeSize + kidsSize
	case n.cells != nil:
		return nodeSize + cellsSize
	}
	return nodeSize + int64(cap(n.steps))*stepSize
}

// own returns n if the map may change it, or else a copy that it may change.
func (m *Map) own(n *node) *node {
	if n.gen == m.gen {
		return n
	}
	c := *n
	c.gen = m.gen
	switch {
	case n.kids != nil:
		kids := *n.kids
		c.kids = &kids
	case n.cells != nil:
		cells := *n.cells
		c.cells = &cells
	default:
		c.steps = append(roomFor(len(n.steps)), n.steps...)
	}
	m.bytes += c.size() - n.size()
	return &c
}

// roomFor returns an empty list with room for n steps, or a few more where
// the allocator has none of that size.
func roomFor(n int) []step { return slices.Grow([]step(nil), n) }

// build makes a node of canonical steps. It copies them.
func (m *Map) build(level int, steps []step) *node {
	if len(steps) == 1 && steps[0].id < idFirst {
		return uniform(steps[0].id)
	}
	n := &node{gen: m.gen}
	switch {
	case level == 0 && len(steps) > denseFrom:
		n.cells = new([leafBlocks]cell)
		n.count = len(steps)
		for i, s := range steps {
			if s.id != idAbsent {
				n.mapped++
			}
			for off := s.off; off < end32(steps, i, 0); off++ {
				n.cells[off] = cell{s.id, s.at(off)}
			}
		}
	case level > 0 && len(steps) > maxSteps:
		n.kids = new([fan]*node)
		var part []step
		i, width := 0, uint32(span(level-1))
		for k := range n.kids {
			from := uint32(k) * width
			part = part[:0]
			for {
				s := steps[i]
				off := max(s.off, from)
				part = append(part, step{off - from, s.id, s.at(off)})
				if i+1 == len(steps) || steps[i+1].off > from+width-1 {
					break
				}
				i++
			}
			if i+1 < len(steps) && steps[i+1].off == from+width {
				i++
			}
			kid := m.build(level-1, part)
			n.kids[k] = kid
			n.count += kid.count
			n.mapped += kid.mapped
		}
	default:
		n.steps = append(roomFor(len(steps)), steps...)
		n.count, n.mapped = len(steps), countMapped(steps)
	}
	m.bytes += n.size()
	return n
}

func countMapped(steps []step) (n int) {
	for _, s := range steps {
		if s.id != idAbsent {
			n++
		}
	}
	return n
}

// at returns the place of the block off, which is not before the step's own.
func (s step) at(off uint32) uint32 { return s.place + (off-s.off)*strideOf(s.id) }

// end32 returns where step i ends, in a node of a level up to topLeaf.
func end32(steps []step, i, level int) uint32 {
	if i+1 < len(steps) {
		return steps[i+1].off
	}
	return uint32(span(level))
}

// find returns the step that block off is in.
func find(steps []step, off uint32) int {
	lo, hi := 0, len(steps) // steps[lo].off <= off < steps[hi].off
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		if steps[mid].off <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// get returns the state of one block, counted from the node's first.
func (n *node) get(level int, block uint64) (id, place uint32) {
	for n.kids != nil {
		level--
		n = n.kids[block>>log2(level)]
		block &= span(level) - 1
	}
	switch {
	case n.cells != nil:
		c := n.cells[block]
		return c.id, c.place
	case len(n.steps) == 1 && n.steps[0].id < idFirst:
		return n.steps[0].id, 0
	}
	s := n.steps[find(n.steps, uint32(block))]
	return s.id, s.at(uint32(block))
}

// walk calls f for each run of mapped blocks of [from, to), which are counted
// from the node's first block, base. It ends early, with false, when f returns
// false.
func (n *node) walk(level int, base, from, to uint64, f func(first, count uint64, id, place uint32) bool) bool {
	switch {
	case n.isUniform():
		if n == absent {
			return true
		}
		return f(base+from, to-from, n.steps[0].id, 0)
	case n.kids != nil:
		width := span(level - 1)
		for k := from >> log2(level-1); k < fan && k*width < to; k++ {
			at := k * width
			if !n.kids[k].walk(level-1, base+at, max(from, at)-at, min(to-at, width), f) {
				return false
			}
		}
	case n.cells != nil:
		for from < to {
			c := n.cells[from]
			next := c
			i := from + 1
			for ; i < to; i++ {
				next.place += strideOf(c.id)
				if n.cells[i] != next {
					break
				}
			}
			if c.id != idAbsent && !f(base+from, i-from, c.id, c.place) {
				return false
			}
			from = i
		}
	default:
		for i := find(n.steps, uint32(from)); from < to; i++ {
			end := min(to, uint64(end32(n.steps, i, level)))
			s := n.steps[i]
			if s.id != idAbsent && !f(base+from, end-from, s.id, s.at(uint32(from))) {
				return false
			}
			from = end
		}
	}
	return true
}

// appendSteps appends the node's contents as steps, moved up by off blocks.
// The result is canonical if steps was. The level is at most topLeaf.
func (n *node) appendSteps(steps []step, level int, off uint32) []step {
	switch {
	case n.kids != nil:
		for k, kid := range n.kids {
			steps = kid.appendSteps(steps, level-1, off+uint32(k)*uint32(span(level-1)))
		}
	case n.cells != nil:
		for i, c := range n.cells {
			steps = appendStep(steps, step{off + uint32(i), c.id, c.place})
		}
	default:
		for _, s := range n.steps {
			s.off += off
			steps = appendStep(steps, s)
		}
	}
	return steps
}

// appendStep appends s, unless it only goes on with what the last one says.
func appendStep(steps []step, s step) []step {
	if k := len(steps); k > 0 && steps[k-1].goesOn(s) {
		return steps
	}
	return append(steps, s)
}

// goesOn tells whether next, which is not before s, says what s says anyway.
func (s step) goesOn(next step) bool { return s.id == next.id && s.at(next.off) == next.place }
