// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"slices"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// objects has the data objects of a disk: those of which the map has blocks, and
// those that this process is writing. Disk.mu guards it.
//
//	writing  sealed, and not durable: in memory as a whole
//	durable  a row of the table
//
// Its sums are kept up to date, so that nobody walks all of it while d.mu is held.
type objects struct {
	durable     packed
	writing     map[layout.Position]*object
	writingLive int64 // blocks of those

	gone  []uint64 // keys of those that were removed since the last freeze
	whole bool     // what the newest root has of the table is not known to be right

	bad  map[layout.Position]time.Time // rows with rowBad: since when
	seen []layout.Position             // rows with rowSeen
}

func newObjects(seal, gc int) objects {
	return objects{
		durable: packed{seal: int64(seal), gc: int64(gc)},
		writing: make(map[layout.Position]*object), bad: make(map[layout.Position]time.Time),
	}
}

// held is what is known of an object.
type held struct {
	size int64 // bytes in Swift; 0: not known
	live int64 // blocks of it that the map has, or more: see delta

	density uint8 // 0: its blocks are frames, or it is not known
}

func (t *objects) get(at layout.Position) (h held, ok bool) {
	if o := t.writing[at]; o != nil {
		return held{o.size, o.live, o.density}, true
	}
	r, ok := t.durable.get(at)
	return r.held(), ok
}

func (t *objects) has(at layout.Position) bool {
	_, ok := t.get(at)
	return ok
}

// len returns how many there are.
func (t *objects) len() int { return t.durable.n + len(t.writing) }

// live returns how many blocks they have.
func (t *objects) live() int64 { return t.durable.live + t.writingLive }

// all yields the objects, the durable ones in order. It walks all of them: it is
// for tests, and for who has the disk alone.
func (t *objects) all() iter.Seq2[layout.Position, held] {
	return func(yield func(layout.Position, held) bool) {
		for at, r := range t.durable.all() {
			if !yield(at, r.held()) {
				return
			}
		}
		for at, o := range t.writing {
			if !yield(at, held{o.size, o.live, o.density}) {
				return
			}
		}
	}
}

// write notes an object that was sealed.
func (t *objects) write(o *object) {
	t.writing[o.at] = o
	t.writingLive += o.live
}

// settle notes that an object which was being written is durable.
func (t *objects) settle(o *object) {
	delete(t.writing, o.at)
	t.writingLive -= o.live
	r := row{size: uint32(o.size)}
	if o.changed {
		r.bits = rowChanged
	}
	r.setDensity(o.density)
	r.add(o.live)
	t.durable.insert(o.at, r)
}

// add notes a durable object, or what is known of one that is there.
func (t *objects) add(at layout.Position, h held) {
	set := func(r *row) {
		r.size = rowSize(h.size)
		r.setDensity(h.density)
		r.add(h.live - r.live())
	}
	if _, ok := t.durable.change(at, set); !ok {
		var r row
		set(&r)
		t.durable.insert(at, r)
	}
}

// ensure notes a durable object of which nothing is known, unless it is there.
func (t *objects) ensure(at layout.Position) {
	if _, ok := t.durable.get(at); !ok {
		t.durable.insert(at, row{})
	}
}

// rowSize returns a size as a row has it. None is larger (layout.MaxObjectSize); of
// what somebody else has put in an object's place we need not know more.
func rowSize(size int64) uint32 { return uint32(min(max(size, 0), layout.MaxObjectSize)) }

// setSize notes how large a durable object is, if there is such an object.
func (t *objects) setSize(at layout.Position, size int64) {
	t.durable.change(at, func(r *row) { r.size = rowSize(size) })
}

// setDensity notes the density of a durable object.
func (t *objects) setDensity(at layout.Position, d uint8) {
	t.durable.change(at, func(r *row) { r.setDensity(d) })
}

// count adds blocks to an object's count of live ones, if there is such an object.
// dead says that it is durable and has none left.
func (t *objects) count(at layout.Position, blocks int64) (dead bool) {
	if o := t.writing[at]; o != nil {
		o.live += blocks
		o.changed = true
		t.writingLive += blocks
		return false
	}
	r, ok := t.durable.change(at, func(r *row) {
		r.add(blocks)
		r.bits |= rowChanged
	})
	return ok && r.live() == 0
}

// takeOff is count for blocks that the newest root's table lacks already.
func (t *objects) takeOff(at layout.Position, blocks int64) (dead bool) {
	r, ok := t.durable.change(at, func(r *row) { r.add(-blocks) })
	return ok && r.live() == 0
}

// remove takes a durable object out, and returns what it was.
func (t *objects) remove(at layout.Position) held {
	r, ok := t.durable.remove(at)
	if !ok {
		return held{}
	}
	if r.has(rowBad) {
		delete(t.bad, at)
	}
	t.gone = append(t.gone, layout.ObjectKey(at))
	return r.held()
}

// spoil has the collector leave an object alone for a while.
func (t *objects) spoil(at layout.Position, now time.Time) {
	if _, ok := t.durable.change(at, func(r *row) { r.bits |= rowBad }); ok {
		t.bad[at] = now
	}
}

// heal ends that for those of which it has been long enough.
func (t *objects) heal(now time.Time) {
	for at, since := range t.bad {
		if now.Sub(since) >= badFor {
			t.durable.change(at, func(r *row) { r.bits &^= rowBad })
			delete(t.bad, at)
		}
	}
}

// see notes that an object's count is too high, and says whether it may be so.
func (t *objects) see(at layout.Position) bool {
	r, ok := t.durable.get(at)
	if !ok || r.live() <= 0 || r.has(rowBad) {
		return false
	}
	if !r.has(rowSeen) {
		t.durable.change(at, func(r *row) { r.bits |= rowSeen })
		t.seen = append(t.seen, at)
	}
	return true
}

// unsee ends that for one object.
func (t *objects) unsee(at layout.Position) {
	t.durable.change(at, func(r *row) { r.bits &^= rowSeen })
}

// epochs yields the epochs that have objects, in order.
func (t *objects) epochs() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for at := range t.writing {
			if !yield(at.Epoch) {
				return
			}
			break // all are of ours
		}
		for at, ok := t.durable.from(layout.Position{}); ok && yield(at.Epoch) && at.Epoch+1 != 0; {
			at, ok = t.durable.from(layout.Position{Epoch: at.Epoch + 1})
		}
	}
}

// tableRows is what a checkpoint writes of the table of objects, as it was at one
// moment. It is read without a lock.
type tableRows struct {
	pages []frozenPage
	other []tableRow // of objects that were being written; if not whole, those that have changed are written
	gone  []uint64   // keys of those that are gone
	drops *tally     // to be taken off
	whole bool       // all is written, and not what has changed
}

// tableRow is what a checkpoint writes of an object.
type tableRow struct {
	at   layout.Position
	live int64   // blocks; 0: the object is not needed
	size int64   // bytes; 0: not known yet
	o    *object // that was being written, or nil

	density uint8
	changed bool // of other
}

// freeze returns what is to be written. thaw comes after it.
func (t *objects) freeze(drops *tally) *tableRows {
	rows := &tableRows{pages: t.durable.freeze(), drops: drops, whole: t.whole}
	for at, o := range t.writing {
		if o.live > 0 {
			rows.other = append(rows.other, tableRow{at: at, live: o.live, o: o, changed: o.changed})
		}
		o.changed = false
	}
	if !rows.whole {
		rows.gone = t.gone
	}
	t.gone, t.whole = nil, false
	return rows
}

// takeAll has all written, and not what has changed.
func (r *tableRows) takeAll() { r.whole, r.gone = true, nil }

// thaw ends freeze. If the rows were not written, the next ones are all.
func (t *objects) thaw(written bool) {
	t.durable.thaw()
	if !written {
		t.whole = true
	}
}

// all yields what is to be written, in order.
func (r *tableRows) all() iter.Seq[tableRow] {
	return func(yield func(tableRow) bool) {
		other := make([]tableRow, 0, len(r.other)+len(r.gone))
		for _, line := range r.other {
			if r.whole || line.changed {
				other = append(other, line)
			}
		}
		for _, key := range r.gone {
			other = append(other, tableRow{at: keyAt(key)})
		}
		slices.SortFunc(other, func(a, b tableRow) int { return a.at.Compare(b.at) })
		drops := cursor{t: r.drops}
		for _, p := range r.pages {
			last := p.base + uint64(p.rows[len(p.rows)-1].off)
			key, some := drops.next()
			some = some && key <= last
			if !r.whole && !p.changed && !some {
				continue
			}
			for _, e := range p.rows {
				key := p.base + uint64(e.off)
				blocks := drops.take(key)
				if !r.whole && blocks == 0 && !(p.changed && e.has(rowChanged)) {
					continue
				}
				line := tableRow{at: keyAt(key), live: e.live() - blocks, size: int64(e.size), density: e.density()}
				for len(other) > 0 && other[0].at.Less(line.at) {
					if !yield(other[0]) {
						return
					}
					other = other[1:]
				}
				if (line.live > 0 || !r.whole) && !yield(line) {
					return
				}
			}
		}
		for _, line := range other {
			if !yield(line) {
				return
			}
		}
	}
}

// get returns what an object's row is; false: it has none.
func (r *tableRows) get(at layout.Position) (h held, ok bool) {
	key := layout.ObjectKey(at)
	i, _ := slices.BinarySearchFunc(r.pages, key, func(p frozenPage, key uint64) int {
		if p.base > key {
			return 1
		}
		return -1
	})
	if i--; i < 0 {
		return held{}, false
	}
	p := page{base: r.pages[i].base, rows: r.pages[i].rows}
	j, ok := p.within(key)
	if !ok {
		return held{}, false
	}
	return p.rows[j].held(), true
}
