// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"fmt"
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
	name  string          // or empty
	at    layout.Position // of the data object that it is, if it has no name here
	after time.Time
	size  int64 // bytes; 0: not counted
}

// garbageList is what is to be deleted, in the order in which that may be done.
type garbageList struct {
	list  []garbage
	under []garbage // what is being deleted
}

// add puts it into the list.
func (l *garbageList) add(g garbage) {
	n := len(l.list)
	if n > 0 && g.after.Before(l.list[n-1].after) { // seldom
		n = sort.Search(n, func(i int) bool { return g.after.Before(l.list[i].after) })
	}
	l.list = append(l.list, g)
	copy(l.list[n+1:], l.list[n:])
	l.list[n] = g
}

// take returns the names of some that may be deleted now. done comes after it.
func (l *garbageList) take(now time.Time) (names []string) {
	n := 0
	for n < min(len(l.list), deleteAtOnce) && !now.Before(l.list[n].after) {
		names = append(names, l.list[n].String())
		n++
	}
	l.under, l.list = l.list[:n:n], l.list[n:]
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
	l.under = nil
	return bytes
}

func (g garbage) String() string {
	if g.name == "" {
		return layout.LogName(g.at)
	}
	return g.name
}

// names returns the names of all.
func (l *garbageList) names() map[string]bool {
	names := make(map[string]bool, len(l.list)+len(l.under))
	for _, some := range [][]garbage{l.list, l.under} {
		for _, g := range some {
			names[g.String()] = true
		}
	}
	return names
}

// dead notes that nothing in the map needs the object, which is in Swift. A
// snapshot may need it. d.mu is held.
func (d *Disk) dead(at layout.Position) {
	o := deadObject{at, d.objects.remove(at).size}
	if d.keepDead(o) {
		return
	}
	d.dying = append(d.dying, o)
	d.waste += o.size
}

// discard has an object deleted when its time has come. d.mu is held.
func (d *Disk) discard(g garbage) {
	d.garbage.add(g)
	d.waste += g.size
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
		d.waste -= d.garbage.done(err == nil)
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("delete %d objects: %w", len(names), err)
		}
		d.stats.Deleted.Add(int64(len(names)))
	}
}
