// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// Use is how the log's bytes are used.
type Use struct {
	Objects int64 // data objects that the map needs
	Bytes   int64 // of them, as far as they are durable
	Live    int64 // bytes of the disk that have data
	Used    int64 // bytes of the objects that these have, about where they are compressed
	Garbage int64 // bytes of objects that wait for being deleted
	Log     int64 // data objects after the newest root
	Map     int64 // bytes of memory that the map takes
}

// Use returns how the log's bytes are used. It takes no longer on a large disk.
func (d *Disk) Use() Use {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return Use{
		Objects: int64(d.objects.len()), Bytes: d.objects.durable.bytes, Live: d.objects.live() * layout.BlockSize,
		Used:    d.objects.durable.used + d.objects.writingLive*layout.FrameSize,
		Garbage: d.waste, Log: int64(d.durable - d.savedN), Map: d.mapBytes(),
	}
}

// rowsAtOnce is how many rows of the table of objects are looked at, about, before
// Disk.mu is given back for a moment.
const rowsAtOnce = 8192

// victim is an object that the collector takes on.
type victim struct {
	at   layout.Position
	size int64
	live int64 // blocks
	use  int64 // percent
}

// choice is the collector's choice while it is being made. The table is looked
// through by class, the smallest use first, and in it in order, some rows at a
// time: others may change it between.
type choice struct {
	wasting, small bool // of which objects

	step int    // of use
	key  uint64 // from where on
	over bool   // all was looked at, or enough was found

	full   int64 // blocks that fill an object
	taken  map[layout.Position]bool
	group  []victim
	room   int64 // blocks, that the group has
	groups [][]victim
	limit  int // of groups

	most int // rows looked at without a pause
}

// victims returns what to collect next: groups of objects, each as much as fills
// one new object.
func (d *Disk) victims() [][]victim {
	c := d.choose()
	for !c.over {
		d.mu.RLock()
		found := d.objects.durable.pick(c, rowsAtOnce)
		d.mu.RUnlock()
		c.take(found)
	}
	c.close()
	return c.groups
}

// choose says by the sums what is to be collected. Most of the time it is nothing.
func (d *Disk) choose() *choice {
	idle := d.idle()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.objects.heal(time.Now())
	t := &d.objects.durable
	bytes, live := t.freeBytes, t.freeLive
	small := int64(0)
	for _, n := range t.classes[nWasting:] {
		small += n
	}
	full := int64(d.o.Seal / layout.FrameSize)
	c := &choice{full: full, room: full, limit: collectGroups, taken: map[layout.Position]bool{}}
	if d.regions.missing > 0 {
		c.limit = pagedGroups
	}
	gc := int64(d.o.GC)
	if d.missed.any(time.Now(), d.o.Idle) {
		gc /= 2 // it would move what is about to be put in order
	}
	c.wasting = idle || bytes-live > collectLeast && live*100 < bytes*gc
	c.small = small >= manySmall || idle && small > 1
	c.over = !c.wasting && !c.small
	d.ways.atLeast(d.ways.needed(bytes, live, small, d.o.GC))
	return c
}

// pick returns some of the objects of the choice, in its order. It looks at so
// many rows, and at the rest of a page.
func (t *packed) pick(c *choice, rows int) (found []victim) {
	looked := 0
	defer func() { c.most = max(c.most, looked) }()
	for ; c.step < nSmall; c.step, c.key = c.step+1, 0 {
		wasting, small := noClass, noClass
		n := int64(0)
		if c.wasting && c.step < nWasting {
			wasting = c.step
			n += t.classes[wasting]
		}
		if c.small {
			small = nWasting + c.step
			n += t.classes[small]
		}
		if n == 0 {
			continue
		}
		for i := max(0, pageOf(t.first, c.key)); i < len(t.pages); i++ {
			p := t.pages[i]
			if looked >= rows {
				c.key = max(c.key, p.base)
				return found
			}
			looked++
			if (wasting == noClass || p.classes[wasting] == 0) && (small == noClass || p.classes[small] == 0) {
				continue
			}
			looked += len(p.rows)
			for _, r := range p.rows {
				key := p.base + uint64(r.off)
				class, _ := t.class(r)
				if class == noClass || class != wasting && class != small || key < c.key {
					continue
				}
				size, live := int64(r.size), r.live()
				found = append(found, victim{keyAt(key), size, live, use(live, size, r.density())})
			}
		}
	}
	c.over = true
	return found
}

// take puts objects into groups, as far as it is not enough yet.
func (c *choice) take(found []victim) {
	for _, v := range found {
		if c.taken[v.at] { // its use has changed meanwhile
			continue
		}
		if c.room -= v.live; c.room < 0 && len(c.group) > 0 {
			c.close()
			c.room -= v.live
		}
		if len(c.groups) == c.limit {
			c.over = true
			return
		}
		c.taken[v.at] = true
		c.group = append(c.group, v)
	}
}

// close ends the group. An object that is nearly all live is not worth it alone.
func (c *choice) close() {
	if n := len(c.group); (n > 1 || n == 1 && c.group[0].use < idleUse) && len(c.groups) < c.limit {
		c.groups = append(c.groups, c.group)
	}
	c.group, c.room = nil, c.full
}

// paged says whether a part of the map is not in memory.
func (d *Disk) paged() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.regions.missing > 0
}

const (
	// pagedGroups is collectGroups of a disk whose map is not in memory as a whole, and
	// batchFrames of how many frames, about, the objects are that are looked up in it
	// together. Their records take some 20 MiB of memory while that is done.
	pagedGroups = 64
	batchFrames = 128 << 10
)

// batches yields the groups that are looked up in the map together: some if it is paged,
// and otherwise one.
func batches(groups [][]victim, paged bool) iter.Seq[[][]victim] {
	return func(yield func([][]victim) bool) {
		for len(groups) > 0 {
			n, frames := 0, int64(0)
			for n < len(groups) && (n == 0 || paged && frames < batchFrames) {
				for _, v := range groups[n] {
					frames += v.size / layout.FrameSize
				}
				n++
			}
			if !yield(groups[:n]) {
				return
			}
			groups = groups[n:]
		}
	}
}
