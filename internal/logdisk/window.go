// SPDX-License-Identifier: MIT

package logdisk

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// window is what the map has of the data objects whose keys are from lo to before hi:
// as many objects as fit into limit bytes, and one at least. The map is read once to
// fill it. When it becomes too large, hi becomes less, and what lies behind it is
// dropped.
//
// It does not have the blocks, but where in their objects they are: a bit for each
// frame, and about 2 bytes for each compressed record. So an object's records tell
// which blocks the map is to have there. That it has these, and no others, a sum over
// all blocks tells, with an error of 2^-64.
type window struct {
	lo, hi uint64
	limit  int64
	bytes  int64
	seed   uint64
	rows   map[uint64]*mappedObject
	size   func(layout.Position) int64 // of an object; 0: not known
}

// mappedObject is what the map has of an object.
type mappedObject struct {
	live    int64  // blocks
	counted int64  // blocks of the runs, as the table of objects counts them
	saved   bool   // the runs alone have blocks of it
	sum     uint64 // of marks of the live ones
	frames  bitSet // of the live ones: by their places, in frames
	packed  *recordBlocks
}

// rowBytes is the memory of a row without what its fields refer to.
const rowBytes = 104

func newWindow(lo uint64, limit int64, size func(layout.Position) int64) *window {
	return &window{lo: lo, hi: lastKey, limit: limit, seed: rand.Uint64(), rows: map[uint64]*mappedObject{}, size: size}
}

// get returns the row of an object; nil: the map has nothing of it.
func (w *window) get(at layout.Position) *mappedObject { return w.rows[layout.ObjectKey(at)] }

// row is get for an object of the window: it makes the row. It returns nil if the object
// lies outside.
func (w *window) row(at layout.Position) *mappedObject {
	key := layout.ObjectKey(at)
	if key < w.lo || key >= w.hi {
		return nil
	}
	m := w.rows[key]
	if m == nil {
		m = &mappedObject{}
		w.rows[key] = m
		w.bytes += rowBytes
	}
	return m
}

// saved notes what the runs have.
func (w *window) saved(e layout.Entry) {
	if !stored(e.Kind) {
		return
	}
	if m := w.row(e.At); m != nil {
		m.saved = true
		m.counted += int64(e.Count)
		w.shrink()
	}
}

// covered notes blocks that newer ones cover, and that the table counts still.
func (w *window) covered(at layout.Position, blocks int64) {
	if m := w.row(at); m != nil {
		m.counted += blocks
		w.shrink()
	}
}

// add notes blocks that the map has in an object.
func (w *window) add(e blockmap.Extent) {
	m := w.row(e.At)
	if m == nil {
		return
	}
	before := m.bytes()
	m.live += int64(e.Count)
	for i := range e.Count {
		m.sum += w.mark(e.First+i, e.From(i))
	}
	if e.Kind == layout.Data {
		first := uint64(e.Place) / layout.FrameSize
		if m.frames == nil {
			m.frames.grow(uint64(w.size(e.At))/layout.FrameSize, first+e.Count)
		}
		m.frames.grow(first+e.Count, 2*uint64(len(m.frames))*64)
		for i := range e.Count {
			m.frames.set(first + i)
		}
	} else {
		if m.packed == nil {
			m.packed = &recordBlocks{}
		}
		for i := range uint32(e.Count) {
			m.packed.add(uint64(e.Place)<<4 | uint64(e.Skip+i))
		}
	}
	w.bytes += m.bytes() - before
	w.shrink()
}

func (m *mappedObject) bytes() int64 {
	n := int64(cap(m.frames)) * 8
	if m.packed != nil {
		n += 64 + int64(cap(m.packed.sorted)) + int64(cap(m.packed.fresh))*8
	}
	return n
}

// shrink drops the last objects when the window is too large.
func (w *window) shrink() {
	if w.bytes <= w.limit || len(w.rows) < 2 {
		return
	}
	keys := slices.Sorted(maps.Keys(w.rows))
	for i := len(keys) - 1; i > 0 && w.bytes > w.limit/8*7; i-- {
		m := w.rows[keys[i]]
		w.bytes -= rowBytes + m.bytes()
		delete(w.rows, keys[i])
		w.hi = keys[i]
	}
}

// mark is what a block at its place adds to its object's sum.
func (w *window) mark(block uint64, v blockmap.Value) uint64 {
	return mix(mix(block+w.seed) + (uint64(v.Place)<<32 | uint64(v.Bytes)<<8 | uint64(v.Skip)<<4 | uint64(v.Kind)))
}

// mix is the end of SplitMix64: each bit of h changes about half of the result's.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// agrees says whether all blocks that the map has in an object are in its records.
func (w *window) agrees(at layout.Position, records []layout.Record) bool {
	m := w.get(at)
	if m == nil {
		return true
	}
	var n int64
	var sum uint64
	packed := m.packed.all()
	for _, r := range records {
		if !stored(r.Kind) {
			continue
		}
		e := extentOfRecord(at, r)
		for i := range e.Count {
			value := e.From(i)
			if r.Kind == layout.Data {
				if !m.frames.has(uint64(value.Place) / layout.FrameSize) {
					continue
				}
			} else if _, ok := slices.BinarySearch(packed, uint64(value.Place)<<4|uint64(value.Skip)); !ok {
				continue
			}
			n++
			sum += w.mark(e.First+i, value)
		}
	}
	return n == m.live && sum == m.sum
}

// bitSet has a bit for each number.
type bitSet []uint64

// grow makes room for so many numbers at least, and for more if it has to grow.
func (s *bitSet) grow(n, more uint64) {
	if n <= uint64(len(*s))*64 && *s != nil {
		return
	}
	t := make(bitSet, (max(n, more)+63)/64)
	copy(t, *s)
	*s = t
}

func (s bitSet) set(i uint64) { s[i/64] |= 1 << (i % 64) }

func (s bitSet) has(i uint64) bool { return i/64 < uint64(len(s)) && s[i/64]>>(i%64)&1 != 0 }

// recordBlocks is a set of blocks of compressed records. A block's number is the
// record's place in the object, shifted by 4 bits, and its number in the record. The set
// takes about 2 bytes for each record, and 1 for each further block of one.
//
// Numbers in sorted are kept as differences to the one before, as unsigned varints:
//
//	1 to 15              the same record, so many blocks further
//	16 + 2(d-1)          the first block of the record that begins d bytes further
//	17 + 2(d-1), block   another block of that record
type recordBlocks struct {
	sorted []byte
	n      int      // in sorted
	fresh  []uint64 // not in sorted yet; some may be there
}

// freshBlocks is how many fresh blocks there are, at least, before they are sorted in.
const freshBlocks = 32

func (s *recordBlocks) add(block uint64) {
	if len(s.fresh) == cap(s.fresh) && len(s.fresh) >= max(freshBlocks, s.n/16) {
		s.fresh = append(s.fresh, block)
		all := s.all()
		s.sorted, s.n = slices.Clone(appendBlocks(make([]byte, 0, 3*len(all)), all)), len(all)
		s.fresh = make([]uint64, 0, max(freshBlocks, s.n/16))
		return
	}
	s.fresh = append(s.fresh, block)
}

// all returns the blocks, in order. A nil set has none.
func (s *recordBlocks) all() []uint64 {
	if s == nil {
		return nil
	}
	all := make([]uint64, 0, s.n+len(s.fresh))
	place, block := ^uint64(0), uint64(0)
	for b := s.sorted; len(b) > 0; {
		d, n := binary.Uvarint(b)
		b = b[n:]
		switch {
		case d < 16:
			block += d
		case d%2 == 0:
			place, block = place+(d-16)/2+1, 0
		default:
			place, block = place+(d-17)/2+1, uint64(b[0])
			b = b[1:]
		}
		all = append(all, place<<4|block)
	}
	all = append(all, s.fresh...)
	slices.Sort(all)
	return slices.Compact(all)
}

// appendBlocks appends what recordBlocks.sorted has of the blocks, which are in order.
func appendBlocks(b []byte, blocks []uint64) []byte {
	place, block := ^uint64(0), uint64(0)
	for _, next := range blocks {
		p, k := next>>4, next&15
		switch {
		case p == place:
			b = binary.AppendUvarint(b, k-block)
		case k == 0:
			b = binary.AppendUvarint(b, 16+2*(p-place-1))
		default:
			b = append(binary.AppendUvarint(b, 17+2*(p-place-1)), byte(k))
		}
		place, block = p, k
	}
	return b
}
