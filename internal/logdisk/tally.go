// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"math"
	"slices"
	"sort"

	"swiftnbd/internal/logdisk/layout"
)

// tally counts blocks by data object: what a merge takes off the counts. It takes
// about 9 bytes for each object, has no pointers in its pages, and is in the order
// of positions. A nil one is empty.
type tally struct {
	first []uint64 // the base of each page
	pages [][]tallied
}

type tallied struct {
	off    uint32 // of the key from the page's base
	blocks uint32
}

// add adds blocks to those of the object.
func (t *tally) add(at layout.Position, blocks int64) {
	key := layout.ObjectKey(at)
	i := pageOf(t.first, key)
	if i < 0 || key-t.first[i] >= 1<<32 {
		i++
		t.first = slices.Insert(t.first, i, key)
		t.pages = slices.Insert(t.pages, i, nil)
	}
	p, off := t.pages[i], uint32(key-t.first[i])
	j := sort.Search(len(p), func(j int) bool { return p[j].off >= off })
	if j < len(p) && p[j].off == off {
		p[j].blocks = uint32(min(int64(p[j].blocks)+blocks, math.MaxUint32))
		return
	}
	if len(p) == pageRows {
		half := len(p) / 2
		if j == len(p) { // they come in order
			half = j
		}
		base := t.first[i] + uint64(off)
		if half < len(p) {
			base = t.first[i] + uint64(p[half].off)
		}
		rest := slices.Clone(p[half:])
		for k := range rest {
			rest[k].off -= uint32(base - t.first[i])
		}
		t.first = slices.Insert(t.first, i+1, base)
		t.pages = slices.Insert(t.pages, i+1, rest)
		t.pages[i] = slices.Clip(p[:half:half])
		if half < len(p) {
			t.pages[i] = slices.Clone(p[:half])
		}
		if key >= base {
			i++
		}
		p, off = t.pages[i], uint32(key-t.first[i])
		j = sort.Search(len(p), func(j int) bool { return p[j].off >= off })
	}
	if len(p) == cap(p) {
		p = append(make([]tallied, 0, min(pageRows, len(p)+max(8, len(p)/8))), p...)
	}
	t.pages[i] = slices.Insert(p, j, tallied{off, uint32(min(blocks, math.MaxUint32))})
}

// all yields the objects and their blocks, in order.
func (t *tally) all() iter.Seq2[layout.Position, int64] {
	return func(yield func(layout.Position, int64) bool) {
		if t == nil {
			return
		}
		for i, p := range t.pages {
			for _, e := range p {
				if !yield(keyAt(t.first[i]+uint64(e.off)), int64(e.blocks)) {
					return
				}
			}
		}
	}
}

// cursor goes through a tally in order.
type cursor struct {
	t    *tally
	i, j int
}

// next returns the key of the next object; false: there is none.
func (c *cursor) next() (key uint64, ok bool) {
	if c.t == nil || c.i == len(c.t.pages) {
		return 0, false
	}
	return c.t.first[c.i] + uint64(c.t.pages[c.i][c.j].off), true
}

func (c *cursor) advance() {
	if c.j++; c.j == len(c.t.pages[c.i]) {
		c.i, c.j = c.i+1, 0
	}
}

// take goes on to the key and returns its blocks, 0 if it has none. The keys must
// be asked for in order.
func (c *cursor) take(key uint64) int64 {
	for k, ok := c.next(); ok && k <= key; k, ok = c.next() {
		blocks := c.t.pages[c.i][c.j].blocks
		c.advance()
		if k == key {
			return int64(blocks)
		}
	}
	return 0
}
