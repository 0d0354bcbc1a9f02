// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"maps"
	"math/bits"
	"slices"

	"swiftnbd/internal/logdisk/layout"
)

// positions is a set of positions of data objects. The numbers of an epoch follow one
// another, so most of it are bits: a few megabytes for ten million objects. A page has
// the 65,536 keys that differ in their last 16 bits only.
//
//	few    a sorted list, 2 bytes for each
//	bits   8 KiB; when the list would be as long
type positions struct {
	pages map[uint64]*positionPage // by the key's other bits
	last  *positionPage            // that was asked for; nil: none was
	at    uint64                   // its key there
}

type positionPage struct {
	few  []uint16
	bits bitSet // nil: they are in few
}

const (
	positionBits = 16
	mostFew      = 4096
)

// page returns the page of a key, or nil.
func (s *positions) page(key uint64) *positionPage {
	if at := key >> positionBits; s.last == nil || s.at != at {
		p := s.pages[at]
		if p == nil {
			return nil
		}
		s.last, s.at = p, at
	}
	return s.last
}

// add puts an object into the set.
func (s *positions) add(at layout.Position) {
	key := layout.ObjectKey(at)
	p := s.page(key)
	if p == nil {
		if s.pages == nil {
			s.pages = map[uint64]*positionPage{}
		}
		p = &positionPage{}
		s.pages[key>>positionBits] = p
	}
	p.add(uint16(key))
}

func (p *positionPage) add(k uint16) {
	if p.bits == nil {
		i, ok := slices.BinarySearch(p.few, k)
		if ok {
			return
		}
		if len(p.few) < mostFew {
			p.few = slices.Insert(p.few, i, k)
			return
		}
		p.bits.grow(1<<positionBits, 0)
		for _, k := range p.few {
			p.bits.set(uint64(k))
		}
		p.few = nil
	}
	p.bits.set(uint64(k))
}

func (s *positions) has(at layout.Position) bool {
	key := layout.ObjectKey(at)
	p := s.page(key)
	if p == nil {
		return false
	}
	k := uint16(key)
	if p.bits != nil {
		return p.bits.has(uint64(k))
	}
	_, ok := slices.BinarySearch(p.few, k)
	return ok
}

// len returns how many there are.
func (s *positions) len() (n int) {
	for _, p := range s.pages {
		n += len(p.few)
		for _, w := range p.bits {
			n += bits.OnesCount64(w)
		}
	}
	return n
}

// from yields those whose keys are from lo to before end, in order.
func (s *positions) from(lo, end uint64) iter.Seq[layout.Position] {
	return func(yield func(layout.Position) bool) {
		for _, at := range slices.Sorted(maps.Keys(s.pages)) {
			base := at << positionBits
			if base >= end || base+1<<positionBits-1 < lo {
				continue
			}
			for k := range s.pages[at].all() {
				if key := base + uint64(k); key >= lo && key < end && !yield(keyAt(key)) {
					return
				}
			}
		}
	}
}

// all yields the keys of a page, in order.
func (p *positionPage) all() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for _, k := range p.few {
			if !yield(k) {
				return
			}
		}
		for i, w := range p.bits {
			for ; w != 0; w &= w - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}
