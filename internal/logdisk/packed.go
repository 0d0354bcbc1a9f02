// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"slices"
	"sort"

	"swiftnbd/internal/logdisk/layout"
)

// packed has the durable data objects in the order of their keys
// (layout.ObjectKey), 12 bytes for each and few more. A disk of 10 TiB has 2.6
// million. The rows have no pointers, so Go's garbage collector does not look
// at them.
//
// The rows are in pages. Each page knows how many of its rows are of which class
// for the collector, and the table knows the sums. So whoever asks for sums, or
// for the collector's next objects, does not walk the table.
//
// Invariants (packed.check in the tests asserts them):
//
//	keys grow from row to row and from page to page; no page is empty
//	a page's first key is its base, and all its keys are less than 2^32 above it
//	the sums, and the classes of each page, are those of the rows
//	a row is marked changed only in a page of the present generation
//
// A checkpoint reads the table as it was at one moment, without a lock: freeze. A
// page that changes after that is copied first.
type packed struct {
	pages []*page
	first []uint64 // the base of each page

	n     int
	bytes int64 // of the objects
	live  int64 // blocks
	used  int64 // bytes that these have, about
	// Of the objects that the collector may take:
	freeBytes, freeLive int64 // bytes; how many of them are live, about
	classes             [nClasses]int64

	gen    uint64 // of changes: one for each freeze
	frozen bool   // somebody reads pages as they were

	seal, gc int64 // Options.Seal and Options.GC
}

const (
	// pageRows is how many rows a page has, at most.
	pageRows = 512
	// fewRows is how many rows two pages have that become one.
	fewRows = pageRows / 2

	// The classes: objects with use below idleUse, by use in steps of 5 percent,
	// and then the small ones that are not mostly garbage, by use too.
	useStep  = 5
	nWasting = idleUse / useStep
	nSmall   = 100/useStep + 1
	nClasses = nWasting + nSmall
	noClass  = -1
)

type page struct {
	base    uint64
	rows    []row
	gen     uint64 // of the last change
	classes [nClasses]uint16
}

// row is an object.
type row struct {
	off  uint32 // of its key from the page's base
	size uint32 // bytes; 0: not known
	bits int32  // blocks that the map has of it, or more (see delta), above the density and the flags
}

const (
	rowChanged = 1 << iota // since the last freeze
	rowBad                 // it could not be read lately
	rowSeen                // its count was found to be too high
	rowFlags   = rowChanged | rowBad | rowSeen
	rowDensity = 3 // from this bit on: 7 of them
	rowShift   = 10
)

func (r row) live() int64      { return int64(r.bits >> rowShift) }
func (r row) has(f int32) bool { return r.bits&f != 0 }
func (r row) density() uint8   { return uint8(r.bits >> rowDensity & layout.MaxDensity) }

func (r *row) setDensity(d uint8) {
	r.bits = r.bits&^(layout.MaxDensity<<rowDensity) | int32(d)<<rowDensity
}

// used returns how many bytes the live blocks have, about.
func (r row) used() int64 { return min(weigh(r.live(), r.density()), int64(r.size)) }

func (r row) held() held { return held{int64(r.size), r.live(), r.density()} }

// add adds blocks to the count, which stays within what a row can have: an object
// has 2^20 blocks.
func (r *row) add(blocks int64) {
	const most = 1<<(31-rowShift) - 1
	n := min(max(r.live()+blocks, -most), most)
	r.bits = int32(n)<<rowShift | r.bits&(1<<rowShift-1)
}

// keyAt is the inverse of layout.ObjectKey.
func keyAt(key uint64) layout.Position {
	return layout.Position{Epoch: uint32(key >> 32), N: key & layout.MaxN}
}

// use returns how much of an object is live, percent.
func use(live, size int64, density uint8) int64 { return weigh(live, density) * 100 / size }

// class returns the collector's class of a row, or noClass. free says whether
// the collector may take it.
func (t *packed) class(r row) (class int, free bool) {
	size, live := int64(r.size), r.live()
	if size == 0 || live <= 0 || r.has(rowBad|rowSeen) {
		return noClass, false
	}
	switch u := use(live, size, r.density()); {
	case asFrames(size, r.density()) < t.seal/4 && u >= t.gc:
		return nWasting + int(min(u/useStep, nSmall-1)), true
	case u < idleUse:
		return int(u / useStep), true
	}
	return noClass, true
}

// account adds a row of the page to the sums, or takes it off.
func (t *packed) account(p *page, r row, sign int64) {
	t.bytes += sign * int64(r.size)
	t.live += sign * r.live()
	t.used += sign * r.used()
	class, free := t.class(r)
	if free {
		t.freeBytes += sign * int64(r.size)
		t.freeLive += sign * weigh(r.live(), r.density())
	}
	if class != noClass {
		t.classes[class] += sign
		p.classes[class] += uint16(sign)
	}
}

// pageOf returns the page that has the key, if one has it; -1: it is before all.
func pageOf(first []uint64, key uint64) int {
	if n := len(first); n > 0 && first[n-1] <= key { // they come in order
		return n - 1
	}
	return sort.Search(len(first), func(i int) bool { return first[i] > key }) - 1
}

// within returns the place of a key in the page, and whether it is there.
func (p *page) within(key uint64) (j int, ok bool) {
	off := key - p.base
	if off >= 1<<32 {
		return len(p.rows), false
	}
	if n := len(p.rows); n == 0 || p.rows[n-1].off < uint32(off) {
		return n, false
	}
	j = sort.Search(len(p.rows), func(j int) bool { return p.rows[j].off >= uint32(off) })
	return j, j < len(p.rows) && p.rows[j].off == uint32(off)
}

func (t *packed) find(at layout.Position) (i, j int, ok bool) {
	key := layout.ObjectKey(at)
	if i = pageOf(t.first, key); i < 0 {
		return 0, 0, false
	}
	j, ok = t.pages[i].within(key)
	return i, j, ok
}

func (t *packed) get(at layout.Position) (r row, ok bool) {
	i, j, ok := t.find(at)
	if !ok {
		return row{}, false
	}
	return t.pages[i].rows[j], true
}

// own makes a page ready to be changed.
func (t *packed) own(p *page) {
	if p.gen == t.gen {
		return
	}
	if t.frozen {
		p.rows = append(make([]row, 0, cap(p.rows)), p.rows...)
	}
	for j := range p.rows {
		p.rows[j].bits &^= rowChanged
	}
	p.gen = t.gen
}

// change has f change a row, and returns what became of it; false: there is none.
func (t *packed) change(at layout.Position, f func(*row)) (r row, ok bool) {
	i, j, ok := t.find(at)
	if !ok {
		return row{}, false
	}
	p := t.pages[i]
	t.own(p)
	t.account(p, p.rows[j], -1)
	f(&p.rows[j])
	t.account(p, p.rows[j], 1)
	return p.rows[j], true
}

// insert adds an object that is not there.
func (t *packed) insert(at layout.Position, r row) {
	key := layout.ObjectKey(at)
	i := max(0, pageOf(t.first, key))
	full := func() bool { return len(t.pages[i].rows) == pageRows }
	switch {
	case i == len(t.pages) || key < t.first[i] && (full() || !t.pages[i].reaches(key)):
		t.newPage(i, key, nil)
	case !t.pages[i].reaches(key):
		i++
		t.newPage(i, key, nil)
	case full():
		// Numbers come in order, so what comes next comes behind this one.
		p := t.pages[i]
		t.own(p)
		if j, _ := p.within(key); j < pageRows {
			rest := slices.Clone(p.rows[j:])
			p.rows = p.rows[:j]
			p.recount(t)
			t.newPage(i+1, p.base, rest)
		} else {
			i++
			t.newPage(i, key, nil)
		}
	}
	p := t.pages[i]
	t.own(p)
	if key < p.base {
		by := uint32(p.base - key)
		for j := range p.rows {
			p.rows[j].off += by
		}
		p.base, t.first[i] = key, key
	}
	j, _ := p.within(key)
	r.off = uint32(key - p.base)
	if len(p.rows) == cap(p.rows) {
		p.fit(min(pageRows, max(16, 2*len(p.rows))))
	}
	p.rows = slices.Insert(p.rows, j, r)
	t.n++
	t.account(p, r, 1)
}

// reaches says whether the page can have the key beside its own.
func (p *page) reaches(key uint64) bool {
	if key < p.base {
		last := p.base + uint64(p.rows[len(p.rows)-1].off)
		return last-key < 1<<32
	}
	return key-p.base < 1<<32
}

// newPage puts a page with the rows, which count from base and are in the sums,
// before page i.
func (t *packed) newPage(i int, base uint64, rows []row) {
	p := &page{base: base, rows: rows, gen: t.gen}
	if len(rows) > 0 {
		by := rows[0].off
		for j := range rows {
			rows[j].off -= by
		}
		p.base += uint64(by)
		p.recount(t)
	}
	t.pages = slices.Insert(t.pages, i, p)
	t.first = slices.Insert(t.first, i, p.base)
}

func (t *packed) dropPage(i int) {
	t.pages = slices.Delete(t.pages, i, i+1)
	t.first = slices.Delete(t.first, i, i+1)
}

// recount counts the classes of the page anew.
func (p *page) recount(t *packed) {
	p.classes = [nClasses]uint16{}
	for _, r := range p.rows {
		if class, _ := t.class(r); class != noClass {
			p.classes[class]++
		}
	}
}

// fit gives the page room for so many rows.
func (p *page) fit(n int) { p.rows = append(make([]row, 0, n), p.rows...) }

// remove takes an object out, and returns what it was; false: there is none.
func (t *packed) remove(at layout.Position) (r row, ok bool) {
	i, j, ok := t.find(at)
	if !ok {
		return row{}, false
	}
	p := t.pages[i]
	t.own(p)
	r = p.rows[j]
	t.account(p, r, -1)
	t.n--
	p.rows = slices.Delete(p.rows, j, j+1)
	if len(p.rows) == 0 {
		t.dropPage(i)
		return r, true
	}
	if by := p.rows[0].off; by > 0 {
		for j := range p.rows {
			p.rows[j].off -= by
		}
		p.base += uint64(by)
		t.first[i] = p.base
	}
	if n := len(p.rows); cap(p.rows) > 64 && n <= cap(p.rows)*3/4 {
		p.fit((n + 15) / 16 * 16)
	}
	if i > 0 && t.join(i-1) {
		return r, true
	}
	t.join(i)
	return r, true
}

// join makes one page of two that follow one another, if they have few rows.
func (t *packed) join(i int) bool {
	if i+1 >= len(t.pages) {
		return false
	}
	p, q := t.pages[i], t.pages[i+1]
	by := q.base - p.base
	if len(p.rows)+len(q.rows) > fewRows || by+uint64(q.rows[len(q.rows)-1].off) >= 1<<32 {
		return false
	}
	t.own(p)
	t.own(q)
	p.fit((len(p.rows) + len(q.rows) + 15) / 16 * 16)
	for _, r := range q.rows {
		r.off += uint32(by)
		p.rows = append(p.rows, r)
	}
	p.recount(t)
	t.dropPage(i + 1)
	return true
}

// all yields the objects in order. It is for a table that nobody changes.
func (t *packed) all() iter.Seq2[layout.Position, row] { return t.since(0) }

// since is all from a key on.
func (t *packed) since(key uint64) iter.Seq2[layout.Position, row] {
	return func(yield func(layout.Position, row) bool) {
		for i := max(0, pageOf(t.first, key)); i < len(t.pages); i++ {
			p, j := t.pages[i], 0
			if key > p.base {
				j, _ = p.within(key)
			}
			for _, r := range p.rows[j:] {
				if !yield(keyAt(p.base+uint64(r.off)), r) {
					return
				}
			}
		}
	}
}

// from returns the first object at the position or after it; false: there is none.
func (t *packed) from(at layout.Position) (layout.Position, bool) {
	for at := range t.since(layout.ObjectKey(at)) {
		return at, true
	}
	return layout.Position{}, false
}

// frozenPage is a page as it was at a moment.
type frozenPage struct {
	base    uint64
	rows    []row
	changed bool // some of the rows have rowChanged
}

// freeze returns the pages as they are now. Nobody changes their rows until thaw.
// After it no row counts as changed.
func (t *packed) freeze() []frozenPage {
	pages := make([]frozenPage, len(t.pages))
	for i, p := range t.pages {
		pages[i] = frozenPage{p.base, p.rows, p.gen == t.gen}
	}
	t.gen++
	t.frozen = true
	return pages
}

// thaw ends freeze.
func (t *packed) thaw() { t.frozen = false }
