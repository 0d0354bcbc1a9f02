// SPDX-License-Identifier: MIT

package blockmap

// change is one range of blocks that gets a new state.
type change struct {
	m         *Map
	first     uint64 // the range's first block, of the whole map
	id, place uint32 // its state
	tell      bool
	told      joiner
}

// change gives a range its new state. The caller has counted the new blocks
// in the table, and counts them in m.blocks.
func (m *Map) change(first, count uint64, id, place uint32, replaced func(Extent)) {
	for first+count > span(m.level) {
		m.grow()
	}
	c := change{m: m, first: first, id: id, place: place}
	if replaced != nil {
		c.tell = true
		c.told.yield = func(e Extent) bool { replaced(e); return true }
	}
	m.root = c.set(m.root, m.level, 0, first, first+count)
	if c.tell {
		c.told.end()
	}
}

// grow puts a level on top of the tree.
func (m *Map) grow() {
	m.level++
	if m.root == absent {
		return
	}
	n := &node{gen: m.gen, kids: new([fan]*node)}
	for k := range n.kids {
		n.kids[k] = absent
	}
	n.kids[0] = m.root
	n.count, n.mapped = m.root.count+fan-1, m.root.mapped
	m.bytes += n.size()
	m.root = m.settle(n, m.level)
}

// placeOf returns the new place of a block of the range, by its number in the
// whole map.
func (c *change) placeOf(block uint64) uint32 {
	return c.place + uint32(block-c.first)*strideOf(c.id)
}

// drop takes mapped blocks that are replaced off the counts.
func (c *change) drop(first, count uint64, id, place uint32) bool {
	if c.tell {
		c.told.add(Extent{first, count, c.m.sources.value(id, place)})
	}
	c.m.blocks -= count
	c.m.sources.release(id, count)
	return true
}

// dropStep is drop for blocks that may be absent.
func (c *change) dropStep(first, count uint64, id, place uint32) {
	if id != idAbsent {
		c.drop(first, count, id, place)
	}
}

// set gives the blocks [from, to) of the node, counted from its first block,
// base, their new state. It returns the node that takes n's place.
func (c *change) set(n *node, level int, base, from, to uint64) *node {
	whole := from == 0 && to == span(level)
	switch {
	case whole && c.id < idFirst:
		c.dropAll(n, level, base)
		return uniform(c.id)
	case whole && level <= topLeaf:
		c.dropAll(n, level, base)
		return c.m.build(level, []step{{id: c.id, place: c.placeOf(base)}})
	case n.kids != nil:
		return c.setKids(c.m.own(n), level, base, from, to)
	case n.cells != nil:
		return c.setCells(c.m.own(n), base, from, to)
	case n.isUniform() && n.steps[0].id == c.id:
		if n != absent {
			c.drop(base+from, to-from, c.id, 0)
		}
		return n
	case level > topLeaf:
		inner := &node{gen: c.m.gen, kids: new([fan]*node), count: fan * n.count, mapped: fan * n.mapped}
		for k := range inner.kids {
			inner.kids[k] = n
		}
		c.m.bytes += inner.size()
		return c.setKids(inner, level, base, from, to)
	}
	return c.setSteps(n, level, base, uint32(from), uint32(to))
}

// dropAll drops the blocks of a node that goes away, and its memory.
func (c *change) dropAll(n *node, level int, base uint64) {
	if n == absent {
		return
	}
	n.walk(level, base, 0, span(level), c.drop)
	c.m.bytes -= n.treeSize()
}

// treeSize is what the node and those below it take.
func (n *node) treeSize() int64 {
	size := n.size()
	if n.kids != nil {
		for _, kid := range n.kids {
			size += kid.treeSize()
		}
	}
	return size
}

// setKids is set for an inner node that may be changed.
func (c *change) setKids(n *node, level int, base, from, to uint64) *node {
	width := span(level - 1)
	for k := from >> log2(level-1); k < fan && k*width < to; k++ {
		at := k * width
		kid := n.kids[k]
		n.count -= kid.count
		n.mapped -= kid.mapped
		kid = c.set(kid, level-1, base+at, max(from, at)-at, min(to-at, width))
		n.count += kid.count
		n.mapped += kid.mapped
		n.kids[k] = kid
	}
	return c.m.settle(n, level)
}

// settle returns what takes the place of an inner node: itself, or a leaf if
// there is little below it.
func (m *Map) settle(n *node, level int) *node {
	if level <= topLeaf {
		if n.count > mergeSteps {
			return n
		}
		m.bytes -= n.treeSize()
		return m.build(level, n.appendSteps(make([]step, 0, mergeSteps), level, 0))
	}
	for _, kid := range n.kids {
		if !kid.isUniform() || kid != n.kids[0] {
			return n
		}
	}
	m.bytes -= n.size()
	return n.kids[0]
}

// setCells is set for a dense node that may be changed.
func (c *change) setCells(n *node, base, from, to uint64) *node {
	if to == from+1 {
		c.dropStep(base+from, 1, n.cells[from].id, n.cells[from].place)
	} else {
		n.walk(0, base, from, to, c.drop)
	}
	count, mapped := n.begins(from, to)
	for i := from; i < to; i++ {
		n.cells[i] = cell{c.id, c.placeOf(base + i)}
	}
	newCount, newMapped := n.begins(from, to)
	n.count += newCount - count
	n.mapped += newMapped - mapped
	if n.count >= sparseFrom {
		return n
	}
	c.m.bytes -= n.size()
	return c.m.build(0, n.appendSteps(make([]step, 0, sparseFrom), 0, 0))
}

// begins counts the runs of a dense node that begin within [from, to], and
// those of them that are mapped.
func (n *node) begins(from, to uint64) (count, mapped int) {
	for i := from; i <= min(to, leafBlocks-1); i++ {
		at := n.cells[i]
		if i > 0 {
			last := n.cells[i-1]
			if last.id == at.id && last.place+strideOf(last.id) == at.place {
				continue
			}
		}
		count++
		if at.id != idAbsent {
			mapped++
		}
	}
	return count, mapped
}

// setSteps is set for a sparse node, or a uniform one of a level up to
// topLeaf.
func (c *change) setSteps(n *node, level int, base uint64, from, to uint32) *node {
	i := find(n.steps, from)
	j := i
	for end32(n.steps, j, level) < to {
		j++
	}
	now := step{from, c.id, c.placeOf(base + uint64(from))}
	for k := i; k <= j; k++ {
		s := n.steps[k]
		at, end := max(s.off, from), min(end32(n.steps, k, level), to)
		c.dropStep(base+uint64(at), uint64(end-at), s.id, s.at(at))
	}
	if i == j && n.steps[i].goesOn(now) {
		return n
	}

	// Steps i to j give way to at most three: what is left of i, the new one,
	// and what is left of j.
	var room [3]step
	in := room[:0]
	lo, hi := i, j+1
	before := i - 1
	if s := n.steps[i]; s.off < from {
		in = append(in, s)
	} else if before >= 0 && n.steps[before].goesOn(now) {
		lo = before
		in = append(in, n.steps[before])
	}
	in = appendStep(in, now)
	if end := end32(n.steps, j, level); end > to {
		s := n.steps[j]
		in = appendStep(in, step{to, s.id, s.at(to)})
	} else if hi < len(n.steps) && in[len(in)-1].goesOn(n.steps[hi]) {
		hi++
	}

	size := len(n.steps) - (hi - lo) + len(in)
	if size == 1 && in[0].id < idFirst {
		c.m.bytes -= n.size()
		return uniform(in[0].id)
	}
	mapped := n.mapped - countMapped(n.steps[lo:hi]) + countMapped(in)
	old := n.size()
	if n.gen != c.m.gen || size > cap(n.steps) || cap(n.steps) > 2*size+8 {
		// An eighth more than is needed now: growing step by step then copies
		// each step a few times only.
		steps := append(roomFor(size+size/8), n.steps[:lo]...)
		steps = append(append(steps, in...), n.steps[hi:]...)
		n = &node{gen: c.m.gen, steps: steps}
	} else {
		tail := n.steps[hi:]
		n.steps = n.steps[:max(size, len(n.steps))]
		copy(n.steps[lo+len(in):], tail)
		copy(n.steps[lo:], in)
		n.steps = n.steps[:size]
	}
	n.count, n.mapped = size, mapped
	c.m.bytes += n.size() - old

	limit := maxSteps
	if level == 0 {
		limit = denseFrom
	}
	if size > limit {
		c.m.bytes -= n.size()
		return c.m.build(level, n.steps)
	}
	return n
}
