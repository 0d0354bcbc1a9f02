// SPDX-License-Identifier: MIT

package blockmap

import (
	"fmt"
	"testing"
)

// check asserts the invariants of a map:
//
//   - the steps of a sparse node begin at 0, go up, and none goes on with what
//     the one before says. A sparse node is not uniform, and within its limit;
//   - a dense node is at level 0, an inner one above it, and each has about as
//     many steps as its form is for;
//   - a node's counts are those of its contents;
//   - states without a place have place 0;
//   - no node is of a later generation than the map;
//   - Blocks and Bytes are what a walk over the tree finds;
//   - the table has each source that the tree refers to, with the number of
//     its blocks, and no other; the index finds each.
func (m *Map) check(t testing.TB) {
	t.Helper()
	refs := map[uint32]uint64{}
	var blocks uint64
	m.root.walk(m.level, 0, 0, span(m.level), func(_, count uint64, id, _ uint32) bool {
		blocks += count
		if id >= idFirst {
			refs[id&^idWhole] += count
		}
		return true
	})
	if blocks != m.blocks {
		t.Fatalf("the tree has %d blocks, the map counts %d", blocks, m.blocks)
	}
	if err := m.root.check(m.level, m.gen); err != nil {
		t.Fatal(err)
	}
	if size := m.root.treeSize(); size != m.bytes {
		t.Fatalf("the tree takes %d bytes, the map counts %d", size, m.bytes)
	}
	s := &m.sources
	for id := range refs {
		if page, _ := slot(id); s.pages[page] == nil {
			t.Fatalf("source %d has no page", id)
		}
	}
	if m.frozen {
		return
	}
	if s.live != len(refs) {
		t.Fatalf("the table has %d sources, the tree %d", s.live, len(refs))
	}
	for p, counts := range s.counts {
		if (counts == nil) != (s.pages[p] == nil) {
			t.Fatalf("page %d has only one of its halves", p)
		}
		if counts == nil {
			continue
		}
		used := 0
		for i, n := range counts.blocks {
			id := uint32(p*pageSources+i) + idFirst
			if n > 0 {
				used++
			}
			if uint64(n) != refs[id] {
				t.Fatalf("source %d has %d blocks, the table counts %d", id, refs[id], n)
			}
			if n > 0 && s.index[s.probe(s.pages[p].at[i])] != id {
				t.Fatalf("source %d is not in the index", id)
			}
		}
		if used != counts.used {
			t.Fatalf("page %d has %d sources and counts %d", p, used, counts.used)
		}
		if used < pageSources && p < s.room {
			t.Fatalf("page %d has room, and is before page %d", p, s.room)
		}
	}
	if k := len(s.pages); k > 0 && s.pages[k-1] == nil {
		t.Fatalf("the last of %d pages is empty", k)
	}
	used := 0
	for _, id := range s.index {
		if id != 0 {
			used++
		}
	}
	if used != s.live {
		t.Fatalf("the index has %d sources of %d", used, s.live)
	}
}

func (n *node) check(level int, gen uint64) error {
	if n.isUniform() {
		if n != uniform(n.steps[0].id) || len(n.steps) != 1 {
			return fmt.Errorf("a node of level %d is an unknown uniform one", level)
		}
		return nil
	}
	if n.gen > gen {
		return fmt.Errorf("a node of level %d is of generation %d, after %d", level, n.gen, gen)
	}
	count, mapped := 0, 0
	switch {
	case n.kids != nil:
		if level == 0 || n.cells != nil || n.steps != nil {
			return fmt.Errorf("an inner node of level %d has other forms too", level)
		}
		same := true
		for k, kid := range n.kids {
			if err := kid.check(level-1, gen); err != nil {
				return fmt.Errorf("%d: %w", k, err)
			}
			count += kid.count
			mapped += kid.mapped
			same = same && kid == n.kids[0]
		}
		if level > topLeaf && same && n.kids[0].isUniform() {
			return fmt.Errorf("an inner node of level %d is uniform", level)
		}
		if level <= topLeaf && count <= mergeSteps {
			return fmt.Errorf("an inner node of level %d has %d steps", level, count)
		}
	case n.cells != nil:
		if level != 0 || n.steps != nil {
			return fmt.Errorf("a dense node at level %d", level)
		}
		steps := n.appendSteps(nil, 0, 0)
		count, mapped = len(steps), countMapped(steps)
		if count < sparseFrom {
			return fmt.Errorf("a dense node has %d steps", count)
		}
		for i, c := range n.cells {
			if c.id < idFirst && c.place != 0 {
				return fmt.Errorf("cell %d without an object has place %d", i, c.place)
			}
		}
	default:
		count, mapped = len(n.steps), countMapped(n.steps)
		if level > topLeaf || count == 0 || n.steps[0].off != 0 {
			return fmt.Errorf("a sparse node of level %d has %d steps", level, count)
		}
		if count > maxSteps && level > 0 || count > denseFrom || count == 1 && n.steps[0].id < idFirst {
			return fmt.Errorf("a sparse node of level %d has %d steps", level, count)
		}
		for i, s := range n.steps {
			if uint64(s.off) >= span(level) || i > 0 && (s.off <= n.steps[i-1].off || n.steps[i-1].goesOn(s)) {
				return fmt.Errorf("step %d of a sparse node of level %d is wrong: %v after %v", i, level, s, n.steps[i-1])
			}
			if s.id < idFirst && s.place != 0 {
				return fmt.Errorf("step %d without an object has place %d", i, s.place)
			}
		}
	}
	if n.count != count || n.mapped != mapped {
		return fmt.Errorf("a node of level %d counts %d steps, %d mapped; it has %d, %d", level, n.count, n.mapped, count, mapped)
	}
	return nil
}
