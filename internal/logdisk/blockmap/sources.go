// SPDX-License-Identifier: MIT

package blockmap

import (
	"fmt"
	"math"
	"math/bits"
	"unsafe"

	"swiftnbd/internal/logdisk/layout"
)

// A source is an object, and the kind in which blocks are in it. Steps and
// cells name it by a number, its id. The first ids stand for no object. An id
// with the bit idWhole is of a kind that is read whole: its source is one record
// of an object, and a step has the number of its first block within the record.
const (
	idAbsent  = 0
	idZeroes  = 1
	idTrimmed = 2
	idFirst   = 3 // the first that is a source's
	idWhole   = 1 << 31
)

const (
	kindBits = 3
	// maxBytes is more than the bytes of any record that is read whole.
	maxBytes = 1 << (32 - kindBits)
)

// strideOf is Value.stride by id.
func strideOf(id uint32) uint32 {
	switch {
	case id < idFirst:
		return 0
	case id >= idWhole:
		return 1
	}
	return layout.FrameSize
}

type source struct {
	e, n  uint32
	place uint32 // of a record that is read whole, otherwise 0
	form  uint32 // the kind, and above it the bytes of such a record
}

func (s source) kind() layout.Kind { return layout.Kind(s.form & (1<<kindBits - 1)) }

const pageSources = 256

// slot returns the page of a source's id, and its place there.
func slot(id uint32) (page, i uint32) {
	k := id&^idWhole - idFirst
	return k / pageSources, k % pageSources
}

// sourcePage has the sources of 256 ids. A page of a former generation
// belongs to a snapshot too, and is copied before a change.
type sourcePage struct {
	gen uint64
	at  [pageSources]source
}

// sourceCounts belongs to a page, and no snapshot has it.
type sourceCounts struct {
	blocks [pageSources]uint32
	used   int // ids of the page that are in use
}

// sources is the table of the objects that the map refers to. An object enters
// with its first block and leaves with its last. The lowest free id is used
// first, so that the last pages become empty and go. The zero value is empty.
type sources struct {
	pages  []*sourcePage // nil where no id is in use
	counts []*sourceCounts
	room   int // no page before this one has a free id
	gen    uint64
	live   int // sources in the table

	// index finds ids by source: open addressing with linear probing, 0 where
	// it is empty. Its length is a power of two.
	index []uint32
}

func (t *sources) snapshot() sources {
	s := sources{pages: append([]*sourcePage(nil), t.pages...)}
	t.gen++
	return s
}

func (t *sources) bytes() int64 {
	n := int64(cap(t.pages)+cap(t.counts))*int64(unsafe.Sizeof(uintptr(0))) + int64(cap(t.index))*4
	for _, p := range t.pages {
		if p != nil {
			n += int64(unsafe.Sizeof(*p))
		}
	}
	for _, c := range t.counts {
		if c != nil {
			n += int64(unsafe.Sizeof(*c))
		}
	}
	return n
}

// value returns what a step or a cell says.
func (t *sources) value(id, place uint32) Value {
	switch id {
	case idZeroes:
		return Value{Kind: layout.Zeroes}
	case idTrimmed:
		return Value{Kind: layout.Trimmed}
	}
	s := t.at(id)
	v := Value{Kind: s.kind(), At: layout.Position{Epoch: s.e, N: uint64(s.n)}, Place: place}
	if v.Kind != layout.Data {
		v.Place, v.Bytes, v.Skip = s.place, s.form>>kindBits, place
	}
	return v
}

func (t *sources) at(id uint32) *source {
	page, i := slot(id)
	return &t.pages[page].at[i]
}

// take adds count blocks to the source of v, which enters the table if it is
// not there, and returns its id.
func (t *sources) take(v Value, count uint64) uint32 {
	switch v.Kind {
	case layout.Zeroes:
		return idZeroes
	case layout.Trimmed:
		return idTrimmed
	}
	s := source{e: v.At.Epoch, n: uint32(v.At.N), form: uint32(v.Kind)}
	if v.Kind != layout.Data {
		s.place, s.form = v.Place, s.form|v.Bytes<<kindBits
	}
	if 4*(t.live+1) > 3*len(t.index) {
		t.reindex(max(16, 2*len(t.index)))
	}
	i := t.probe(s)
	id := t.index[i]
	if id == 0 {
		id = t.enter(s)
		t.index[i] = id
	}
	page, at := slot(id)
	blocks := &t.counts[page].blocks[at]
	if uint64(*blocks)+count > math.MaxUint32 {
		panic(fmt.Sprintf("blockmap: more blocks refer to %v than can be in an object", v.At))
	}
	*blocks += uint32(count)
	if v.Kind != layout.Data {
		id |= idWhole
	}
	return id
}

// release takes count blocks off a source. It leaves the table with its last.
func (t *sources) release(id uint32, count uint64) {
	if id < idFirst {
		return
	}
	page, i := slot(id)
	blocks := &t.counts[page].blocks[i]
	*blocks -= uint32(count)
	if *blocks == 0 {
		t.leave(id)
	}
}

// enter gives a source the lowest free id.
func (t *sources) enter(s source) uint32 {
	p := t.room
	for p < len(t.pages) && t.pages[p] != nil && t.counts[p].used == pageSources {
		p++
	}
	t.room = p
	if p == len(t.pages) || t.pages[p] == nil {
		t.addPage(p)
	}
	page, counts := t.pages[p], t.counts[p]
	if page.gen != t.gen {
		c := *page
		c.gen = t.gen
		page = &c
		t.pages[p] = page
	}
	i := 0
	for counts.blocks[i] != 0 {
		i++
	}
	page.at[i] = s
	counts.used++
	t.live++
	return uint32(p*pageSources+i) + idFirst
}

// addPage makes page p, which is one after the last or nil.
func (t *sources) addPage(p int) {
	if p == len(t.pages) {
		t.pages = append(t.pages, nil)
		t.counts = append(t.counts, nil)
	}
	t.pages[p], t.counts[p] = &sourcePage{gen: t.gen}, &sourceCounts{}
}

// leave frees an id, of which no block is left.
func (t *sources) leave(id uint32) {
	page, _ := slot(id)
	p := int(page)
	t.unindex(*t.at(id))
	t.live--
	t.room = min(t.room, p)
	if t.counts[p].used--; t.counts[p].used == 0 {
		t.pages[p], t.counts[p] = nil, nil
		for len(t.pages) > 0 && t.pages[len(t.pages)-1] == nil {
			t.pages, t.counts = t.pages[:len(t.pages)-1], t.counts[:len(t.counts)-1]
		}
		if cap(t.pages) > 4*len(t.pages)+16 {
			t.pages = append([]*sourcePage(nil), t.pages...)
			t.counts = append([]*sourceCounts(nil), t.counts...)
		}
	}
	if len(t.index) > 16 && 8*t.live < len(t.index) {
		t.reindex(len(t.index) / 4)
	}
}

// hash returns where in the index a source belongs.
func (t *sources) hash(s source) uint32 {
	hi, lo := bits.Mul64((uint64(s.e)<<32|uint64(s.n))^0x9e3779b97f4a7c15, (uint64(s.place)<<32|uint64(s.form))^0xd6e8feb86659fd93)
	h := (hi ^ lo) * 0xff51afd7ed558ccd
	return uint32(h>>32) & uint32(len(t.index)-1)
}

// probe returns the place in the index where s is, or where it would be put.
func (t *sources) probe(s source) uint32 {
	i := t.hash(s)
	for {
		id := t.index[i]
		if id == 0 || *t.at(id) == s {
			return i
		}
		i = (i + 1) & uint32(len(t.index)-1)
	}
}

// unindex takes s out, and moves what comes after it so that a probe still
// finds it.
func (t *sources) unindex(s source) {
	mask := uint32(len(t.index) - 1)
	hole := t.probe(s)
	for i := hole; ; {
		i = (i + 1) & mask
		id := t.index[i]
		if id == 0 {
			break
		}
		want := t.hash(*t.at(id))
		if (i-want)&mask >= (i-hole)&mask {
			t.index[hole] = id
			hole = i
		}
	}
	t.index[hole] = 0
}

func (t *sources) reindex(size int) {
	old := t.index
	t.index = make([]uint32, size)
	for _, id := range old {
		if id != 0 {
			t.index[t.probe(*t.at(id))] = id
		}
	}
}
