// SPDX-License-Identifier: MIT

package cache

import (
	"sort"

	"swiftnbd/internal/geometry"
)

// rangeSet is a set of bytes of one chunk, kept as runs in ascending order
// that neither overlap nor touch. The zero value is empty.
type rangeSet []geometry.ByteRange

// after returns the index of the first run that ends at off or behind it.
func (s rangeSet) after(off int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].End() >= off })
}

// covers says whether every byte of r is in the set.
func (s rangeSet) covers(r geometry.ByteRange) bool {
	if r.Len == 0 {
		return true
	}
	i := s.after(r.Off + 1)
	return i < len(s) && s[i].Off <= r.Off && s[i].End() >= r.End()
}

// overlaps says whether some byte of r is in the set.
func (s rangeSet) overlaps(r geometry.ByteRange) bool {
	if r.Len == 0 {
		return false
	}
	i := s.after(r.Off + 1)
	return i < len(s) && s[i].Off < r.End()
}

// add puts r into the set.
func (s *rangeSet) add(r geometry.ByteRange) {
	if r.Len == 0 {
		return
	}
	old := *s
	i := old.after(r.Off) // the first run that touches r or lies behind it
	j := i
	lo, hi := r.Off, r.End()
	for j < len(old) && old[j].Off <= hi {
		lo, hi = min(lo, old[j].Off), max(hi, old[j].End())
		j++
	}
	merged := geometry.ByteRange{Off: lo, Len: hi - lo}
	if j == i {
		old = append(old, geometry.ByteRange{})
		copy(old[i+1:], old[i:])
		old[i] = merged
		*s = old
		return
	}
	old[i] = merged
	*s = append(old[:i+1], old[j:]...)
}

// remove takes r out of the set.
func (s *rangeSet) remove(r geometry.ByteRange) {
	if !s.overlaps(r) {
		return
	}
	var out rangeSet
	for _, v := range *s {
		if v.End() <= r.Off || v.Off >= r.End() {
			out = append(out, v)
			continue
		}
		if v.Off < r.Off {
			out = append(out, geometry.ByteRange{Off: v.Off, Len: r.Off - v.Off})
		}
		if v.End() > r.End() {
			out = append(out, geometry.ByteRange{Off: r.End(), Len: v.End() - r.End()})
		}
	}
	*s = out
}

// gaps returns the runs of r that are not in the set.
func (s rangeSet) gaps(r geometry.ByteRange) rangeSet {
	var out rangeSet
	off := r.Off
	for i := s.after(r.Off + 1); i < len(s) && s[i].Off < r.End(); i++ {
		if s[i].Off > off {
			out = append(out, geometry.ByteRange{Off: off, Len: s[i].Off - off})
		}
		off = s[i].End()
	}
	if off < r.End() {
		out = append(out, geometry.ByteRange{Off: off, Len: r.End() - off})
	}
	return out
}

// hull returns the smallest range that holds the set.
func (s rangeSet) hull() geometry.ByteRange {
	if len(s) == 0 {
		return geometry.ByteRange{}
	}
	return geometry.ByteRange{Off: s[0].Off, Len: s[len(s)-1].End() - s[0].Off}
}

// bytes returns how many bytes are in the set.
func (s rangeSet) bytes() int64 {
	var n int64
	for _, r := range s {
		n += r.Len
	}
	return n
}
