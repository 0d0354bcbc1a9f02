// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// check holds the table against its invariants.
func (t *packed) check() error {
	var sums packed
	sums.seal, sums.gc = t.seal, t.gc
	last := int64(-1)
	for i, p := range t.pages {
		if len(p.rows) == 0 || len(p.rows) > pageRows || p.base != t.first[i] || p.rows[0].off != 0 || p.gen > t.gen {
			return fmt.Errorf("page %d: %d rows from %#x, by the index %#x; generation %d of %d", i, len(p.rows), p.base, t.first[i], p.gen, t.gen)
		}
		q := page{base: p.base}
		for j, r := range p.rows {
			key := int64(p.base + uint64(r.off))
			if key <= last {
				return fmt.Errorf("page %d: row %d has key %#x after %#x", i, j, key, last)
			}
			last = key
			sums.account(&q, r, 1)
			sums.n++
		}
		if q.classes != p.classes {
			return fmt.Errorf("page %d: classes %v, and they are %v", i, p.classes, q.classes)
		}
	}
	if len(t.first) != len(t.pages) || sums.n != t.n || sums.bytes != t.bytes || sums.live != t.live || sums.freeBytes != t.freeBytes ||
		sums.freeLive != t.freeLive || sums.used != t.used || sums.classes != t.classes {
		return fmt.Errorf("%d pages, %d rows, %d bytes, %d blocks; to take: %d bytes, %d blocks, %v; the rows have %d, %d, %d; %d, %d, %v", len(t.first),
			t.n, t.bytes, t.live, t.freeBytes, t.freeLive, t.classes, sums.n, sums.bytes, sums.live, sums.freeBytes, sums.freeLive, sums.classes)
	}
	return nil
}

// checkSums holds what the disk keeps up to date about its objects against all of
// them.
func (d *Disk) checkSums(t testing.TB) {
	t.Helper()
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.objects.durable.check(); err != nil {
		t.Fatalf("the table of objects: %v", err)
	}
	var live, waste int64
	for at, o := range d.objects.writing {
		live += o.live
		if o.at != at || o.kept {
			t.Fatalf("object %v, durable %t, is being written as %v", o.at, o.kept, at)
		}
		if _, ok := d.objects.durable.get(at); ok {
			t.Fatalf("object %v is being written, and is in the table", at)
		}
	}
	if live != d.objects.writingLive {
		t.Fatalf("objects that are being written have %d blocks, and are said to have %d", live, d.objects.writingLive)
	}
	for i, s := range d.dying.sets {
		if waste += s.bytes(); s.len() == 0 || d.dying.closed > len(d.dying.sets) {
			t.Fatalf("set %d of those that die has %d objects, and %d of %d sets are closed", i, s.len(), d.dying.closed, len(d.dying.sets))
		}
	}
	for _, some := range [][]garbageSet{d.garbage.sets, d.garbage.underSets} {
		for i, s := range some {
			waste += s.of.bytes()
			if err := s.of.rows.check(); err != nil {
				t.Fatalf("a set of garbage: %v", err)
			}
			if i > 0 && s.after.Before(some[i-1].after) {
				t.Fatalf("set %d of garbage may be deleted at %v, the one before it at %v", i, s.after, some[i-1].after)
			}
		}
	}
	for _, some := range [][]garbage{d.garbage.list, d.garbage.under} {
		for i, g := range some {
			waste += g.size
			if i > 0 && g.after.Before(some[i-1].after) {
				t.Fatalf("garbage %d may be deleted at %v, the one before it at %v", i, g.after, some[i-1].after)
			}
		}
	}
	if waste != d.waste {
		t.Fatalf("%d bytes are garbage, and are said to be %d", waste, d.waste)
	}
	bad := 0
	for at, r := range d.objects.durable.all() {
		if r.has(rowBad) {
			bad++
			if _, ok := d.objects.bad[at]; !ok {
				t.Fatalf("object %v could not be read, and nobody knows since when", at)
			}
		}
		if r.live() < 0 {
			t.Fatalf("object %v has %d live blocks", at, r.live())
		}
	}
	if bad != len(d.objects.bad) {
		t.Fatalf("%d objects could not be read, %d are noted", bad, len(d.objects.bad))
	}
}

// memory returns how many bytes of memory the table takes, by the lengths of its
// pages.
func (t *packed) memory() int64 {
	n := int64(cap(t.pages)+cap(t.first)) * 8
	for _, p := range t.pages {
		n += 128 + int64(cap(p.rows))*12
	}
	return n
}

// oldVictims is the collector's choice by a walk of all objects and a sort: what
// victims is to find without.
func oldVictims(d *Disk) [][]victim {
	idle := d.idle()
	var (
		bytes, live int64
		list, small []victim
	)
	for at, r := range d.objects.durable.all() {
		if r.size == 0 || r.live() == 0 || r.has(rowBad|rowSeen) {
			continue
		}
		size := int64(r.size)
		bytes += size
		live += r.live() * layout.FrameSize
		v := victim{at, size, r.live(), r.live() * layout.FrameSize * 100 / size}
		switch {
		case size < int64(d.o.Seal)/4 && v.use >= int64(d.o.GC):
			small = append(small, v)
		case v.use < idleUse:
			list = append(list, v)
		}
	}
	wanted := idle || bytes-live > collectLeast && live*100 < bytes*int64(d.o.GC)
	if !wanted {
		list = nil
	}
	if len(small) >= manySmall || idle && len(small) > 1 {
		list = append(list, small...)
	}
	slices.SortFunc(list, func(a, b victim) int { return cmp.Or(cmp.Compare(a.use/5, b.use/5), a.at.Compare(b.at)) })
	var groups [][]victim
	full := int64(d.o.Seal / layout.FrameSize)
	limit := collectGroups
	if d.paged() {
		limit = pagedGroups
	}
	for len(list) > 0 && len(groups) < limit {
		var group []victim
		n := 0
		for room := full; n < len(list); n++ {
			if room -= list[n].live; room < 0 && n > 0 {
				break
			}
			group = append(group, list[n])
		}
		if n > 1 || list[0].use < idleUse {
			groups = append(groups, group)
		}
		list = list[n:]
	}
	return groups
}

// TestVictims compares the collector's choice with that of a walk of all objects, on
// disks of all kinds.
func TestVictims(t *testing.T) {
	rng := newRand(t)
	some, none, steps := 0, 0, 0
	for range 400 {
		o := Options{GC: 1 + rng.IntN(100), Seal: layout.FrameSize * (4 + rng.IntN(1024))}
		d := newDisk(o)
		if rng.IntN(2) == 0 {
			d.lastWrite.Store(time.Now().Add(time.Hour).UnixNano()) // not idle
		}
		full := rng.IntN(101) // percent of the objects that are as large as can be
		least := rng.Int64N(100)
		for i := range rng.IntN(3000) {
			blocks := int64(o.Seal / layout.FrameSize)
			if rng.IntN(100) >= full {
				blocks = 1 + rng.Int64N(blocks)
			}
			h := held{size: blocks*layout.FrameSize + 200 + 32*rng.Int64N(blocks), live: 1 + blocks*least/100}
			h.live = min(blocks, h.live+rng.Int64N(blocks-min(blocks, h.live)+1))
			at := layout.Position{Epoch: 1 + uint32(rng.IntN(3)), N: 2 + 2*uint64(i)}
			d.objects.add(at, h)
			switch rng.IntN(20) {
			case 0:
				d.objects.spoil(at, time.Now())
			case 1:
				d.objects.see(at)
			case 2:
				d.objects.setSize(at, 0)
			}
		}
		want, got := oldVictims(d), d.victims()
		// The same, a few rows at a time, while pages are split and joined.
		c := d.choose()
		for step := 0; !c.over; step++ {
			c.take(d.objects.durable.pick(c, 1+rng.IntN(40)))
			for range 20 {
				d.objects.add(layout.Position{Epoch: 1 + uint32(rng.IntN(3)), N: 1 + 2*rng.Uint64N(3000)}, held{})
			}
			if step%20 == 19 {
				for at, r := range maps.Collect(d.objects.durable.all()) {
					if at.N%2 == 1 && r.size == 0 {
						d.objects.remove(at)
					}
				}
			}
			steps++
		}
		c.close()
		if !slices.EqualFunc(want, c.groups, slices.Equal) {
			t.Fatalf("%+v, in steps: %d groups, want %d", o, len(c.groups), len(want))
		}
		if len(want) > 0 {
			some++
		} else {
			none++
		}
		if !slices.EqualFunc(want, got, slices.Equal) {
			t.Fatalf("%+v: %d groups, want %d:\n%v\n%v", o, len(got), len(want), got, want)
		}
		d.checkSums(t)
		d.cancel(ErrClosed)
	}
	t.Logf("something was to be collected %d times, and nothing %d times; %d steps", some, none, steps)
	if some < 50 || none < 10 || steps < 1000 {
		t.Error("this test shows little")
	}
}

// TestTable changes a table of objects at random, and holds it against a map, and
// what checkpoints write of it against what that was when they began.
func TestTable(t *testing.T) {
	rng := newRand(t)
	ops := 60_000
	if *opsFlag > 0 {
		ops = *opsFlag
	}
	type known struct {
		held
		changed bool
	}
	var (
		tab   = newObjects(DefaultSeal, 70)
		want  = map[layout.Position]known{}
		gone  = map[layout.Position]bool{}
		next  = map[uint32]uint64{}
		epoch = uint32(1)
		seen  struct{ frozen, failed, most int }
	)
	list := []layout.Position{}
	pick := func() layout.Position { return list[rng.IntN(len(list))] }
	forget := func(at layout.Position) {
		delete(want, at)
		i := slices.Index(list, at)
		list[i] = list[len(list)-1]
		list = list[:len(list)-1]
	}
	var (
		rows    *tableRows
		expect  map[layout.Position]int64 // what rows are to have
		shrinks bool
	)
	failed := false // the last checkpoint
	settle := func(written bool) {
		got := map[layout.Position]int64{}
		last := layout.Position{}
		for r := range rows.all() {
			if !last.Less(r.at) {
				t.Fatalf("row %v after %v", r.at, last)
			}
			got[r.at], last = max(r.live, 0), r.at
		}
		if !maps.Equal(got, expect) {
			t.Fatalf("a checkpoint writes %v, want %v", got, expect)
		}
		tab.thaw(written)
		rows, failed = nil, !written
		if failed {
			seen.failed++
		}
	}
	for op := range ops {
		if op%8000 == 0 {
			shrinks = rng.IntN(2) == 0
		}
		switch k := rng.IntN(100); {
		case k < 35 && !(shrinks && k > 8), len(list) == 0:
			if rng.IntN(500) == 0 {
				epoch += 1 + uint32(rng.IntN(3))
			}
			at := layout.Position{Epoch: epoch, N: 1 + next[epoch]}
			next[epoch] += 1 + rng.Uint64N(2)
			if rng.IntN(3) == 0 {
				at.N += layout.FirstCollected
			}
			if rng.IntN(50) == 0 { // out of order
				at = layout.Position{Epoch: 1 + uint32(rng.IntN(int(epoch)+3)), N: 1 + rng.Uint64N(layout.MaxN)}
			}
			if _, ok := want[at]; ok || gone[at] {
				continue
			}
			h := held{size: 200 + rng.Int64N(5<<20), live: rng.Int64N(1200)}
			tab.add(at, h)
			want[at] = known{held: h}
			list = append(list, at)
		case k < 50:
			at := pick()
			if dead, ok := tab.count(at, 3), tab.has(at); dead || !ok {
				t.Fatalf("%v: dead %t, there %t", at, dead, ok)
			}
			w := want[at]
			w.live, w.changed = w.live+3, true
			want[at] = w
		case k < 60:
			at := pick()
			w := want[at]
			by := 1 + rng.Int64N(max(w.live, 1))
			if w.live < by {
				continue
			}
			dead := tab.count(at, -by)
			w.live, w.changed = w.live-by, true
			want[at] = w
			if dead != (w.live == 0) {
				t.Fatalf("%v has %d blocks: dead is %t", at, w.live, dead)
			}
		case k < 85:
			at := pick()
			if h := tab.remove(at); h != want[at].held {
				t.Fatalf("removed %v: %v, want %v", at, h, want[at].held)
			}
			forget(at)
			gone[at] = true
		case k < 88 && rows == nil && rng.IntN(20) == 0:
			drops := &tally{}
			expect = map[layout.Position]int64{}
			whole := rng.IntN(4) == 0
			all := whole || failed
			for range rng.IntN(200) {
				drops.add(pick(), 1)
			}
			by := maps.Collect(drops.all())
			if !all {
				for at := range gone {
					expect[at] = 0
				}
			}
			for at, w := range want {
				live := max(w.live-by[at], 0)
				if all && live > 0 || !all && (w.changed || by[at] > 0) {
					expect[at] = live
				}
				w.changed = false
				want[at] = w
			}
			clear(gone)
			if rows = tab.freeze(drops); whole {
				rows.takeAll()
			}
			for at := range want {
				if h, ok := rows.get(at); !ok || h != want[at].held {
					t.Fatalf("frozen, %v is %v, want %v", at, h, want[at].held)
				}
				break
			}
			seen.frozen++
		case k < 90 && rows != nil:
			settle(rng.IntN(5) > 0)
		case k < 95:
			at := pick()
			if h, ok := tab.get(at); !ok || h != want[at].held {
				t.Fatalf("%v: %v, want %v", at, h, want[at].held)
			}
			at.N ^= 1 << rng.IntN(32)
			if _, ok := want[at]; ok != tab.has(at) {
				t.Fatalf("%v is there: %t, want %t", at, tab.has(at), ok)
			}
		default:
			at := pick()
			age := time.Duration(rng.Int64N(int64(2 * badFor)))
			tab.spoil(at, time.Now().Add(-age))
			tab.heal(time.Now())
			if r, _ := tab.durable.get(at); r.has(rowBad) != (age < badFor) && age.Round(time.Second) != badFor {
				t.Fatalf("%v could not be read %v ago, and is left alone: %t", at, age, r.has(rowBad))
			}
			if tab.see(pick()) && rng.IntN(2) == 0 {
				for _, at := range tab.seen {
					tab.unsee(at)
				}
				tab.seen = nil
			}
		}
		seen.most = max(seen.most, len(tab.durable.pages))
		if op%200 == 0 {
			if err := tab.durable.check(); err != nil {
				t.Fatalf("operation %d: %v", op, err)
			}
		}
	}
	all := map[layout.Position]held{}
	for at, w := range want {
		all[at] = w.held
	}
	if got := maps.Collect(tab.all()); !maps.Equal(got, all) {
		t.Errorf("the table has %d objects, want %d, or others", len(got), len(all))
	}
	epochs := map[uint32]bool{}
	for at := range want {
		epochs[at.Epoch] = true
	}
	if got := slices.Collect(tab.epochs()); len(got) != len(epochs) || !slices.IsSorted(got) {
		t.Errorf("epochs %v, want %v", got, epochs)
	}
	t.Logf("%d objects at the end; %d pages at most; %+v", len(want), seen.most, seen)
	if seen.frozen < 10 || seen.failed == 0 || seen.most < 5 {
		t.Error("this test shows little")
	}
}

// TestTally counts blocks in all orders.
func TestTally(t *testing.T) {
	rng := newRand(t)
	for range 60 {
		tl, want := &tally{}, map[layout.Position]int64{}
		var list []layout.Position
		for range rng.IntN(6000) {
			list = append(list, layout.Position{Epoch: 1 + uint32(rng.IntN(4)), N: 1 + rng.Uint64N(1<<rng.IntN(32))})
		}
		switch rng.IntN(3) {
		case 0:
			slices.SortFunc(list, layout.Position.Compare)
		case 1:
			slices.SortFunc(list, func(a, b layout.Position) int { return b.Compare(a) })
		}
		for _, at := range list {
			n := 1 + rng.Int64N(5)
			tl.add(at, n)
			want[at] += n
		}
		last := layout.Position{}
		got := map[layout.Position]int64{}
		c := cursor{t: tl}
		for at, n := range tl.all() {
			if !last.Less(at) {
				t.Fatalf("%v after %v", at, last)
			}
			got[at], last = n, at
			if rng.IntN(2) == 0 {
				if by := c.take(layout.ObjectKey(at)); by != n {
					t.Fatalf("%v: %d, want %d", at, by, n)
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("%d objects, want %d, or others", len(got), len(want))
		}
	}
}

// TestGarbage has garbage of which some may be deleted sooner than what came before
// it, and deletes that fail.
func TestGarbage(t *testing.T) {
	rng := newRand(t)
	d := newDisk(Options{})
	defer d.cancel(ErrClosed)
	left := map[string]int64{}
	now := time.Now()
	for i := range 5000 {
		g := garbage{after: now.Add(time.Duration(i) * time.Second), size: 1 + rng.Int64N(100)}
		if rng.IntN(10) == 0 {
			g.name = fmt.Sprint("run ", i)
			g.after = now.Add(time.Duration(rng.IntN(2*i+1)) * time.Second)
			d.discard(g)
			left[g.name] = g.size
			continue
		}
		at := layout.Position{Epoch: 1, N: uint64(i + 1)}
		if g.after = now.Add(time.Duration(i/100*100) * time.Second); !d.garbage.addObject(g.after, deadObject{at, g.size}) || d.garbage.addObject(g.after, deadObject{at, g.size}) {
			t.Fatalf("%v is not added once", at)
		}
		d.waste += g.size
		left[layout.LogName(at)] = g.size
	}
	d.checkSums(t)
	known := func() (n int) {
		for name := range left {
			if at, ok := layout.ParseLogName(name); ok && d.garbage.has(at) {
				n++
			}
		}
		return n + len(d.garbage.names())
	}
	if known() != len(left) {
		t.Errorf("%d are known, want %d", known(), len(left))
	}
	for hour := 0; hour < 4; now = now.Add(time.Hour) {
		hour++
		for {
			due := 0
			for _, g := range d.garbage.list {
				if !g.after.After(now) {
					due++
				}
			}
			for _, s := range d.garbage.sets {
				if !s.after.After(now) {
					due += s.of.len()
				}
			}
			names := d.garbage.take(now)
			if len(names) != min(due, deleteAtOnce) {
				t.Fatalf("%d are to be deleted, of %d that may be", len(names), due)
			}
			d.checkSums(t)
			if d.garbage.names()[""] || known() != len(left) {
				t.Fatalf("%d are known, want %d", known(), len(left))
			}
			if i := slices.IndexFunc(names, func(name string) bool { return strings.HasPrefix(name, layout.LogPrefix) }); i >= 0 &&
				slices.ContainsFunc(names[i:], func(name string) bool { return !strings.HasPrefix(name, layout.LogPrefix) }) {
				t.Fatal("a data object is deleted before what has a name")
			}
			deleted := rng.IntN(3) > 0
			for _, name := range names {
				if _, ok := left[name]; !ok {
					t.Fatalf("%s is deleted twice", name)
				}
				if deleted {
					delete(left, name)
				}
			}
			d.waste -= d.garbage.done(deleted)
			d.checkSums(t)
			if len(names) == 0 {
				break
			}
		}
	}
	if len(left) > 0 || d.waste != 0 {
		t.Errorf("%d are left, %d bytes", len(left), d.waste)
	}
}
