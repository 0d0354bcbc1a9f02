// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// longListing is a store whose listing of data objects has many that are not there.
type longListing struct {
	store.Store
	epoch   uint32
	objects uint64
	page    func() // called for each page of them
}

func (l *longListing) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	if o.Prefix != layout.LogPrefix || o.EndMarker < layout.LogName(layout.Position{Epoch: l.epoch + 1}) {
		return l.Store.List(ctx, o)
	}
	l.page()
	from := uint64(1)
	if at, ok := layout.ParseLogName(o.Marker); ok {
		from = at.N + 1
	}
	var page []store.ObjectInfo
	for n := from; n <= l.objects && len(page) < 10_000; n++ {
		page = append(page, store.ObjectInfo{Name: layout.LogName(layout.Position{Epoch: l.epoch, N: n}), Size: 100})
	}
	return page, nil
}

// manyObjects is how many data objects the following tests have: those of a disk of 10
// TiB if -ops is given.
func manyObjects() int {
	if *opsFlag > 0 {
		return 10 << 40 / (4 << 20)
	}
	return 50_000
}

// TestDeleteLargeSnapshot deletes a snapshot that alone has all the objects of a disk of
// 10 TiB (without -ops fewer): they are handed over as a whole and not one by one, all
// of them are deleted then, and after the snapshot's root.
func TestDeleteLargeSnapshot(t *testing.T) {
	n := manyObjects()
	ctx := t.Context()
	box := mem.New()
	if _, err := box.CreateContainer(ctx, nil); err != nil {
		t.Fatal(err)
	}
	u := layout.NewUUID()
	hint, err := Setup(ctx, box, u, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	deleted := map[string]bool{}
	d, err := Open(ctx, Options{Store: box, UUID: u, Root: hint, Epoch: 3, GC: 70, Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Snapshot(ctx, "large"); err != nil {
		t.Fatal(err)
	}
	snapshot := layout.RootName(d.pins.list[0].Root)
	d.mu.Lock()
	for i := range n {
		d.pins.kept.Objects = append(d.pins.kept.Objects, layout.KeptObject{At: layout.Position{Epoch: 1, N: uint64(i + 1)}, Size: 100, Last: d.rootAt})
	}
	d.mu.Unlock()
	if err := d.Save(ctx); err != nil {
		t.Fatal(err)
	}
	before := heap()
	if err := d.DeleteSnapshot(ctx, "large", true); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	if len(d.garbage.list) > 20 || len(d.garbage.sets) != 1 || d.garbage.sets[0].of.len() != n || len(d.pins.kept.Objects) != 0 {
		t.Errorf("%d objects and %d sets are garbage, %d objects are kept", len(d.garbage.list), len(d.garbage.sets), len(d.pins.kept.Objects))
	}
	d.mu.Unlock()
	d.checkSums(t)
	if more := heap() - before; more > int64(n)*20+1<<20 {
		t.Errorf("%d objects that wait for being deleted take %d bytes", n, more)
	}
	later := time.Now().Add(2 * horizon)
	for {
		names := d.garbage.take(later)
		if len(names) == 0 {
			break
		}
		if len(names) > deleteAtOnce {
			t.Fatalf("%d are deleted at once", len(names))
		}
		for _, name := range names {
			if deleted[name] {
				t.Fatalf("%s is deleted twice", name)
			}
			if _, ok := layout.ParseLogName(name); ok && !deleted[snapshot] {
				t.Fatalf("%s is deleted before the snapshot's root", name)
			}
			deleted[name] = true
		}
		d.waste -= d.garbage.done(true)
	}
	if len(deleted) < n || d.waste != 0 {
		t.Errorf("%d of %d were deleted, %d bytes are left", len(deleted), n, d.waste)
	}
}

// TestSweepLarge looks for strays in a container with all the objects of a disk of 10
// TiB that nothing names (without -ops fewer), in two looks: Disk.mu is not held for
// more than some names, each is garbage once, and what the map or a snapshot needs
// is not.
func TestSweepLarge(t *testing.T) {
	n := uint64(manyObjects())
	ctx := t.Context()
	box := mem.New()
	if _, err := box.CreateContainer(ctx, nil); err != nil {
		t.Fatal(err)
	}
	u := layout.NewUUID()
	hint, err := Setup(ctx, box, u, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	long := &longListing{Store: box, epoch: 1, objects: n}
	d, err := Open(ctx, Options{Store: long, UUID: u, Root: hint, Epoch: 3, GC: 70, Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// A client changes what is needed while pages are read.
	live, dying := uint64(0), uint64(0)
	long.page = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, k := range []uint64{live + 1, n - live} { // before and after what was looked at
			if at := (layout.Position{Epoch: 1, N: k}); !d.garbage.has(at) && !d.dying.has(at) {
				d.objects.add(at, held{size: 100, live: 1})
				d.count(at, -1)
				dying++
			}
		}
		live++
	}
	for k := n / 3; k < n/3+2000; k++ {
		d.objects.add(layout.Position{Epoch: 1, N: k}, held{size: 100, live: 1})
	}
	before := heap()
	for range 2 {
		if err := d.sweep(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if d.swept == 0 || d.swept > 1000 {
		t.Errorf("%d names are looked at in one hold of the lock", d.swept)
	}
	d.checkSums(t)
	if more := heap() - before; more > int64(n)*20+1<<20 {
		t.Errorf("%d strays take %d bytes", n, more)
	}
	names := map[string]bool{}
	for {
		some := d.garbage.take(time.Now().Add(2 * horizon))
		if len(some) == 0 {
			break
		}
		for _, name := range some {
			if names[name] {
				t.Fatalf("%s is garbage twice", name)
			}
			at, ok := layout.ParseLogName(name)
			if !ok { // the first root
				continue
			}
			if at.N >= n/3 && at.N < n/3+2000 || d.dying.has(at) {
				t.Fatalf("%s is garbage, and is needed or dies", name)
			}
			names[name] = true
		}
		d.waste -= d.garbage.done(true)
	}
	if want := int(n) - 2000 - int(dying); len(names) != want || dying == 0 {
		t.Errorf("%d are garbage, want %d; %d die", len(names), want, dying)
	}
}

// TestDying has checkpoints that fail, and objects that die meanwhile.
func TestDying(t *testing.T) {
	var l dyingObjects
	n := uint64(0)
	die := func(some int) {
		for range some {
			n++
			l.add(deadObject{layout.Position{Epoch: 1, N: n}, 1})
		}
	}
	for range 100 { // all fail
		die(10)
		l.close()
	}
	if len(l.sets) != 1 || l.len() != 1000 {
		t.Errorf("%d sets of %d objects", len(l.sets), l.len())
	}
	k := l.close()
	die(7)
	got := 0
	for _, s := range l.take(k) {
		got += s.len()
	}
	if got != 1000 || l.len() != 7 || !l.has(layout.Position{Epoch: 1, N: n}) || l.has(layout.Position{Epoch: 1, N: 1}) {
		t.Errorf("%d were taken, %d are left", got, l.len())
	}
	die(3) // into the open one
	if len(l.sets) != 1 || l.add(deadObject{layout.Position{Epoch: 1, N: n}, 1}) {
		t.Errorf("%d sets", len(l.sets))
	}
}
