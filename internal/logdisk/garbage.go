// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// deadObject is a data object without live blocks.
type deadObject struct {
	at   layout.Position
	size int64 // bytes
}

// garbage is an object that may be deleted after a moment.
type garbage struct {
	name  string
	after time.Time
	size  int64 // bytes; 0: not counted
}

// garbageSet is data objects that may be deleted after a moment.
type garbageSet struct {
	after time.Time
	of    *objectSet
}

// garbageList is what is to be deleted, in the order in which that may be done: by
// name roots, runs and the like, and after them sets of data objects. So a root is
// deleted before what only it needs, or with it.
type garbageList struct {
	list []garbage
	sets []garbageSet

	under     []garbage // what is being deleted
	underSets []garbageSet
}

// add puts it into the list.
func (l *garbageList) add(g garbage) {
	n := len(l.list)
	if n > 0 && g.after.Before(l.list[n-1].after) { // seldom
		n = sort.Search(n, func(i int) bool { return g.after.Before(l.list[i].after) })
	}
	l.list = slices.Insert(l.list, n, g)
}

// addSet puts a set into the list, which has it from then on.
func (l *garbageList) addSet(s garbageSet) {
	if s.of.len() == 0 {
		return
	}
	n := sort.Search(len(l.sets), func(i int) bool { return s.after.Before(l.sets[i].after) })
	l.sets = slices.Insert(l.sets, n, s)
}

// addObject puts a data object into the last set of the moment, or into a new one,
// and says whether it was not there.
func (l *garbageList) addObject(after time.Time, o deadObject) bool {
	for i := len(l.sets) - 1; i >= 0 && !l.sets[i].after.Before(after); i-- {
		if l.sets[i].after.Equal(after) {
			return l.sets[i].of.add(o.at, o.size)
		}
	}
	s := &objectSet{}
	s.add(o.at, o.size)
	l.addSet(garbageSet{after, s})
	return true
}

// has says whether a data object is to be deleted, or is being deleted.
func (l *garbageList) has(at layout.Position) bool {
	of := func(s garbageSet) bool { return s.of.has(at) }
	return slices.ContainsFunc(l.sets, of) || slices.ContainsFunc(l.underSets, of)
}

// take returns the names of some that may be deleted now. done comes after it.
func (l *garbageList) take(now time.Time) (names []string) {
	n := 0
	for n < min(len(l.list), deleteAtOnce) && !now.Before(l.list[n].after) {
		names = append(names, l.list[n].name)
		n++
	}
	l.under, l.list = l.list[:n:n], l.list[n:]
	for len(l.sets) > 0 && len(names) < deleteAtOnce && !now.Before(l.sets[0].after) {
		from := l.sets[0]
		under := garbageSet{from.after, &objectSet{}}
		for _, o := range from.of.take(deleteAtOnce - len(names)) {
			names = append(names, layout.LogName(o.at))
			under.of.add(o.at, o.size)
		}
		l.underSets = append(l.underSets, under)
		if from.of.len() == 0 {
			l.sets = l.sets[1:]
		}
	}
	return names
}

// done ends what take began, and returns how many bytes were deleted.
func (l *garbageList) done(deleted bool) (bytes int64) {
	for _, g := range l.under {
		if !deleted {
			l.add(g)
			continue
		}
		bytes += g.size
	}
	for _, s := range l.underSets {
		if deleted {
			bytes += s.of.bytes()
			continue
		}
		for at, size := range s.of.all() {
			l.addObject(s.after, deadObject{at, size})
		}
	}
	l.under, l.underSets = nil, nil
	return bytes
}

// postpone has what take began be taken again, but not before the moment: there may be
// an object among it that cannot be deleted, and others behind have their turn then.
// done comes after it.
func (l *garbageList) postpone(after time.Time) {
	for i := range l.under {
		l.under[i].after = after
	}
	for i := range l.underSets {
		l.underSets[i].after = after
	}
}

// names returns the names of those that have one here.
func (l *garbageList) names() map[string]bool {
	names := make(map[string]bool, len(l.list)+len(l.under))
	for _, some := range [][]garbage{l.list, l.under} {
		for _, g := range some {
			names[g.name] = true
		}
	}
	return names
}

// dead notes that nothing in the map needs the object, which is in Swift. A
// snapshot may need it. d.mu is held.
func (d *Disk) dead(at layout.Position) {
	d.recent.drop(at)
	o := deadObject{at, d.objects.remove(at).size}
	if d.keepDead(o) {
		return
	}
	if d.dying.add(o) {
		d.waste += int64(rowSize(o.size))
	}
}

// discard has an object deleted when its time has come. d.mu is held.
func (d *Disk) discard(g garbage) {
	d.garbage.add(g)
	d.waste += g.size
}

// unlist takes a name out of what is to be deleted, since it is to be written again. If
// it is being deleted, it waits for that.
func (d *Disk) unlist(ctx context.Context, name string) error {
	named := func(g garbage) bool { return g.name == name }
	for {
		d.mu.Lock()
		if i := slices.IndexFunc(d.garbage.list, named); i >= 0 {
			d.waste -= d.garbage.list[i].size
			d.garbage.list = slices.Delete(d.garbage.list, i, i+1)
		}
		under := slices.ContainsFunc(d.garbage.under, named)
		d.mu.Unlock()
		if !under {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// deleteGarbage deletes what no root has needed for long enough.
func (d *Disk) deleteGarbage(ctx context.Context) error {
	for {
		d.mu.Lock()
		names := d.garbage.take(time.Now())
		d.mu.Unlock()
		if len(names) == 0 {
			return nil
		}
		err := d.remove(ctx, names)
		d.mu.Lock()
		if err != nil {
			d.garbage.postpone(time.Now().Add(deleteAgain))
		}
		d.waste -= d.garbage.done(err == nil)
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("delete %d objects: %w", len(names), err)
		}
		d.stats.Deleted.Add(int64(len(names)))
	}
}
