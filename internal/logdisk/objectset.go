// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"

	"swiftnbd/internal/logdisk/layout"
)

// objectSet has data objects and their sizes, in order. Each takes 12 bytes and few
// more. It is handed over as a whole: a snapshot may have millions of objects that
// nothing else needs, and nobody moves them one by one while Disk.mu is held.
type objectSet struct{ rows packed }

// add puts an object into the set, and says whether it was not there.
func (s *objectSet) add(at layout.Position, size int64) bool {
	if s.has(at) {
		return false
	}
	s.rows.insert(at, row{size: rowSize(size)})
	return true
}

func (s *objectSet) has(at layout.Position) bool {
	_, ok := s.rows.get(at)
	return ok
}

func (s *objectSet) len() int { return s.rows.n }

// bytes is how large the objects are, together.
func (s *objectSet) bytes() int64 { return s.rows.bytes }

// all yields the objects and their sizes, in order.
func (s *objectSet) all() iter.Seq2[layout.Position, int64] {
	return func(yield func(layout.Position, int64) bool) {
		for at, r := range s.rows.all() {
			if !yield(at, int64(r.size)) {
				return
			}
		}
	}
}

// take takes the first n objects out of the set, or all.
func (s *objectSet) take(n int) (some []deadObject) {
	for at, size := range s.all() {
		if len(some) == n {
			break
		}
		some = append(some, deadObject{at, size})
	}
	for _, o := range some {
		s.rows.remove(o.at)
	}
	return some
}

// join adds the objects of another set.
func (s *objectSet) join(other *objectSet) {
	for at, size := range other.all() {
		s.add(at, size)
	}
}

// dyingObjects are the data objects without live blocks that the newest root may
// name. A checkpoint closes the sets that there are, and takes them when its root is
// in Swift.
type dyingObjects struct {
	sets   []*objectSet // none is empty
	closed int          // so many take no more objects
}

func (l *dyingObjects) add(o deadObject) (added bool) {
	if l.closed == len(l.sets) {
		l.sets = append(l.sets, &objectSet{})
	}
	return l.sets[len(l.sets)-1].add(o.at, o.size)
}

// close ends the sets that there are, and returns how many. Nobody else has closed
// sets then: Disk.saving is held. After checkpoints that failed, small ones become one.
func (l *dyingObjects) close() int {
	for n := len(l.sets); n > 1 && l.sets[n-1].len()+l.sets[n-2].len() <= rowsAtOnce; n-- {
		l.sets[n-2].join(l.sets[n-1])
		l.sets = l.sets[: n-1 : n-1]
	}
	l.closed = len(l.sets)
	return l.closed
}

// take returns the first n sets, which are closed.
func (l *dyingObjects) take(n int) (sets []*objectSet) {
	sets, l.sets, l.closed = l.sets[:n:n], l.sets[n:], 0
	return sets
}

func (l *dyingObjects) len() (n int) {
	for _, s := range l.sets {
		n += s.len()
	}
	return n
}

func (l *dyingObjects) has(at layout.Position) bool {
	for _, s := range l.sets {
		if s.has(at) {
			return true
		}
	}
	return false
}
