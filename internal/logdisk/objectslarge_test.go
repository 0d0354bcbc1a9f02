// SPDX-License-Identifier: MIT

package logdisk

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// largeTable fills the table of a disk with n objects of 4 MiB at random use, as the
// years leave them: of some epochs, clients' and the collector's.
func largeTable(d *Disk, rng *rand.Rand, n int) {
	at := layout.Position{Epoch: 1, N: 1}
	for i := range n {
		switch {
		case i%(n/7+1) == n/14:
			at.N = layout.FirstCollected
		case i%(n/7+1) == 0:
			at = layout.Position{Epoch: at.Epoch + 3, N: 1}
		default:
			at.N += 1 + rng.Uint64N(3)
		}
		d.objects.add(at, held{size: DefaultSeal + 40_000, live: 1 + rng.Int64N(1024)})
	}
}

// TestLargeTable has a table of objects as of a disk of 10 TiB (without -ops a
// smaller one): its memory is bounded, and so is what is looked at while Disk.mu is
// held by Use and by the collector's choice. A merge takes something off all counts,
// and a checkpoint writes the table, while clients change it.
func TestLargeTable(t *testing.T) {
	n := 40_000
	if *opsFlag > 0 {
		n = 10 << 40 / (4 << 20)
	}
	rng := newRand(t)
	before := heap()
	d := newDisk(Options{GC: 70})
	defer d.cancel(ErrClosed)
	d.lastWrite.Store(time.Now().UnixNano())
	largeTable(d, rng, n)
	table := heap() - before
	counted := d.objects.durable.memory()
	t.Logf("%d objects: %d bytes, by the heap %d", n, counted, table)
	if limit := int64(n)*14 + 256<<10; max(table, counted) > limit {
		t.Errorf("the table of %d objects takes %d bytes, by the heap %d: more than %d", n, counted, table, limit)
	}
	d.checkSums(t)

	c := d.choose()
	looks := 0
	for !c.over {
		c.take(d.objects.durable.pick(c, rowsAtOnce))
		looks++
	}
	c.close()
	t.Logf("the collector's choice: %d groups, in %d looks, with %d rows at most in one", len(c.groups), looks, c.most)
	if len(c.groups) != pagedGroups || c.most >= rowsAtOnce+pageRows+2 {
		t.Errorf("%d groups; %d rows were looked at at once", len(c.groups), c.most)
	}

	// A merge that takes a block off most of them.
	drops := &tally{}
	all := slices.Collect(maps.Keys(maps.Collect(d.objects.all())))
	before = heap()
	for _, at := range all {
		drops.add(at, 1)
	}
	merge := heap() - before
	t.Logf("what a merge takes off: %d bytes, %.1f for each", merge, float64(merge)/float64(n))
	if limit := int64(n)*11 + 256<<10; merge > limit {
		t.Errorf("what a merge takes off all objects takes %d bytes, more than %d", merge, limit)
	}

	// A checkpoint, and all change meanwhile.
	live := d.objects.live()
	before = heap()
	rows := d.objects.freeze(drops)
	rows.takeAll()
	for _, at := range all {
		d.objects.count(at, 1)
	}
	frozen := heap() - before
	runtime.KeepAlive(all)
	t.Logf("a checkpoint: %d bytes more, %.1f for each", frozen, float64(frozen)/float64(n))
	if limit := int64(n)*14 + 256<<10; frozen > limit {
		t.Errorf("a checkpoint keeps %d bytes more, which is more than %d", frozen, limit)
	}
	var got int64
	last := layout.Position{}
	for r := range rows.all() {
		if !last.Less(r.at) {
			t.Fatalf("row %v after %v", r.at, last)
		}
		got, last = got+r.live, r.at
	}
	d.objects.thaw(true)
	if got != live-int64(n) {
		t.Errorf("the rows have %d blocks, want %d", got, live-int64(n))
	}
	for _, at := range all[:n/2] { // the collector has looked at many
		d.objects.see(at)
	}
	free := d.objects.durable.freeLive / layout.FrameSize
	seen := d.objects.seen
	d.objects.seen = nil
	d.takeOff(drops, seen)
	if d.objects.live() != live {
		t.Errorf("%d blocks after the merge, want %d", d.objects.live(), live)
	}
	if got := d.objects.durable.freeLive / layout.FrameSize; free >= live || got != live {
		t.Errorf("the collector may take %d blocks after the merge, want %d; before it were %d", got, live, free)
	}
	d.checkSums(t)
}

// BenchmarkUse and BenchmarkVictims show how long they take with 2.6 million
// objects.
func BenchmarkUse(b *testing.B) {
	d := benchTable(b)
	for b.Loop() {
		d.Use()
	}
}

func BenchmarkVictims(b *testing.B) {
	d := benchTable(b)
	for b.Loop() {
		d.victims()
	}
}

// BenchmarkPick is the longest time for which the collector's choice has Disk.mu.
func BenchmarkPick(b *testing.B) {
	d := benchTable(b)
	for b.Loop() {
		d.objects.durable.pick(d.choose(), rowsAtOnce)
	}
}

// BenchmarkFreeze is for how long a checkpoint has it for the table.
func BenchmarkFreeze(b *testing.B) {
	d := benchTable(b)
	for b.Loop() {
		d.objects.freeze(nil).takeAll()
		d.objects.thaw(true)
	}
}

func benchTable(b *testing.B) *Disk {
	d := newDisk(Options{GC: 70})
	b.Cleanup(func() { d.cancel(ErrClosed) })
	d.lastWrite.Store(time.Now().Add(time.Hour).UnixNano())
	largeTable(d, rand.New(rand.NewPCG(1, 2)), 10<<40/(4<<20))
	return d
}
