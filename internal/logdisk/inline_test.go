// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// inlineOptions are for disks whose requests are counted: nothing goes on behind the
// test, and roots have in themselves what they may.
func inlineOptions() Options {
	o := smallOptions()
	o.Brief, o.Checkpoint, o.Age, o.Idle = true, 1<<20, time.Hour, time.Nanosecond
	o.tableLimit, o.keptLimit = layout.MaxTable, layout.MaxKeptMore
	return o
}

// newest parses the newest root in the container, and holds its table against its map.
func newest(t testing.TB, d *Disk, s store.Store) layout.Root {
	t.Helper()
	d.mu.RLock()
	at := d.rootAt
	d.mu.RUnlock()
	root, err := layout.ParseRoot(get(t, s, layout.RootName(at)))
	if err != nil {
		t.Fatal(err)
	}
	live(t, s, root)
	if some := root.Table != nil || root.KeptMore != nil; some != slices.Contains(root.Requires, layout.FeatureInline) {
		t.Errorf("root %v has a table of %d bytes and a list of %d, and requires %q", at, len(root.Table), len(root.KeptMore), root.Requires)
	}
	return root
}

// sound has the whole disk verified.
func (v *opener) sound(t testing.TB) *Report {
	t.Helper()
	r, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Timeout: time.Second}, VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Damage) > 0 || !r.Judged {
		t.Errorf("verified: %+v", r)
	}
	return r
}

// again closes the disk and opens it, and has the table of objects and what pins need
// compared.
func (v *opener) again(t testing.TB, d *Disk, s store.Store) *Disk {
	t.Helper()
	if err := d.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	objects, kept := maps.Collect(d.objects.all()), d.pins.kept
	d.Close()
	d, err := v.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if got := maps.Collect(d.objects.all()); !maps.Equal(got, objects) {
		t.Errorf("opened again it has %d objects, and it had %d, or others", len(got), len(objects))
	}
	if !slices.Equal(d.pins.kept.Objects, kept.Objects) || !slices.Equal(d.pins.kept.Runs, kept.Runs) {
		t.Errorf("opened again it keeps %d objects and %d runs, and it kept %d and %d, or others", len(d.pins.kept.Objects), len(d.pins.kept.Runs), len(kept.Objects), len(kept.Runs))
	}
	d.checkSums(t)
	return d
}

// TestSnapshotRequests: a snapshot costs what a flush costs and two PUTs, on a disk
// that nobody writes to, and on one whose objects die, are collected and are kept for
// other snapshots, and whose runs are merged.
func TestSnapshotRequests(t *testing.T) {
	const blocks = 256
	rng := newRand(t)
	v := newClosing(t, blocks*blockSize)
	v.o = inlineOptions()
	w := newWire(v.box)
	s := newScript(t, blocks)
	do := doer(t)
	d, err := v.open(t.Context(), w)
	do(err)
	snapshot := func(name string, flush int) { // flush: objects of the log; 0: not known, as some were full before
		t.Helper()
		w.mu.Lock()
		clear(w.kinds)
		w.mu.Unlock()
		do(d.Snapshot(t.Context(), name))
		s.flushed = s.h.ops
		w.mu.Lock()
		got := maps.Clone(w.kinds)
		w.mu.Unlock()
		if flush > 0 && got["PUT swiftnbd/log"] != flush {
			t.Errorf("%s: %d objects of the log, want %d", name, got["PUT swiftnbd/log"], flush)
		}
		delete(got, "PUT swiftnbd/log")
		want := map[string]int{"PUT swiftnbd/run": 1, "PUT swiftnbd/root": 1}
		for kind := range got {
			if !strings.HasPrefix(kind, "PUT") { // the hint
				want[kind] = 1
			}
		}
		if !maps.Equal(got, want) || len(got) > 3 {
			t.Errorf("%s: requests %v, want %v", name, got, want)
		}
	}
	do(s.write(d, 7))
	snapshot("quiet", 1)
	merged, dead, moved := 0, 0, int64(0)
	for round := range 40 {
		var list []uint64
		for range 1 + rng.IntN(40) {
			list = append(list, rng.Uint64N(blocks))
		}
		if round%4 == 3 { // all of an object dies
			for b := range uint64(64) {
				list = append(list, b)
			}
		}
		do(s.write(d, list...))
		if rng.IntN(2) == 0 {
			do(s.flush(d))
			do(s.write(d, rng.Uint64N(blocks)))
		}
		if _, err := d.collectOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		do(d.mergeRuns(t.Context()))
		if d.merged != nil {
			merged++
		}
		snapshot(fmt.Sprint("busy ", round), 0)
		root := newest(t, d, v.box)
		if root.Table == nil || len(root.Runs.Objects) > 0 || !root.Kept.IsZero() {
			t.Fatalf("root %v has a table of %d bytes, %d runs of objects, and the list %v", root.Name, len(root.Table), len(root.Runs.Objects), root.Kept)
		}
		dead = max(dead, len(d.pins.kept.Objects))
		if round%10 == 9 {
			moved += d.Stats().Moved.Load()
			d = v.again(t, d, w)
			s.same(d)
		}
	}
	if runs := len(d.pins.kept.Runs); merged < 5 || dead < 20 || runs < 5 || moved == 0 {
		t.Errorf("%d merges, %d objects and %d runs are kept, %d blocks were moved: this test shows little", merged, dead, runs, moved)
	}
	s.same(d)
	v.sound(t)
}

// TestTableInRoot has checkpoints after each other whose table is in the root until it
// is too long, and is a run then, with answers that fail, sessions for which all of it is
// too long as it was before roots had it, and reverts.
func TestTableInRoot(t *testing.T) {
	const blocks = 512
	rng := newRand(t)
	v := newClosing(t, blocks*blockSize)
	v.o = inlineOptions()
	witness := newWitness(t, v.box, 0)
	failing := 0 // how PUTs of roots fail: 1: Swift has it, 2: it has not
	failed := 0
	st := store.Store(rootPuts{witness, &failing})
	s := newScript(t, blocks)
	do := doer(t)
	var d *Disk
	open := func(limit int) {
		t.Helper()
		v.o.tableLimit, v.o.keptLimit = limit, limit
		if d == nil {
			var err error
			d, err = v.open(t.Context(), st)
			do(err)
			return
		}
		d = v.again(t, d, st)
	}
	inRoot, spilled, lists, without := 0, 0, 0, 0
	taken := 0
	for session := range 8 {
		limit := []int{600, 1, 250, layout.MaxTable}[session%4]
		open(limit)
		for range 25 {
			runs := len(d.root.Runs.Objects)
			var list []uint64
			for range 1 + rng.IntN(12) {
				list = append(list, rng.Uint64N(blocks)/(1+rng.Uint64N(8)))
			}
			do(s.write(d, list...))
			if rng.IntN(3) == 0 {
				do(s.flush(d))
				_, err := d.collectOnce(t.Context())
				do(err)
				do(d.mergeRuns(t.Context()))
			}
			switch rng.IntN(12) {
			case 0, 1, 2:
				do(d.Snapshot(t.Context(), fmt.Sprint("s", taken)))
				s.flushed = s.h.ops
				taken++
			case 3:
				if n := len(d.root.Pins); n > 0 {
					do(d.DeleteSnapshot(t.Context(), d.root.Pins[rng.IntN(n)].Name, true))
				}
			case 4, 5:
				do(s.flush(d))
				failing = 1 + rng.IntN(2)
				err := d.Save(t.Context())
				if sent := d.sent; err == nil || sent == nil {
					t.Fatalf("a root cannot be written, and: %v; sent is %v", err, sent)
				}
				failing = 0
				failed++
			default:
				do(s.flush(d))
				do(d.Save(t.Context()))
			}
			if d.sent != nil {
				if rng.IntN(2) == 0 {
					do(s.write(d, rng.Uint64N(blocks)))
					do(s.flush(d))
				}
				do(d.Save(t.Context()))
			}
			root := newest(t, d, v.box)
			if len(root.Table) > limit || len(root.KeptMore) > limit {
				t.Fatalf("root %v has a table of %d bytes and a list of %d, and the limit is %d", root.Name, len(root.Table), len(root.KeptMore), limit)
			}
			if root.Table != nil {
				inRoot++
			}
			if len(root.Runs.Objects) > runs {
				spilled++
			}
			if !root.Kept.IsZero() && root.KeptMore != nil {
				lists++
			}
			if root.Table == nil && root.KeptMore == nil {
				without++
			}
		}
		s.same(d)
		v.sound(t)
	}
	t.Logf("%d roots had a table, %d times it went into a run, %d roots had a list and more, %d nothing; %d could not be written at once; %d snapshots",
		inRoot, spilled, lists, without, failed, taken)
	if inRoot < 40 || spilled < 15 || lists < 5 || without < 15 || failed < 5 || taken < 15 {
		t.Error("this test shows little")
	}
	// To a snapshot of each kind of root and back, the table of the snapshot's root is
	// in the new one.
	table := 0
	for _, p := range slices.Clone(d.root.Pins) {
		pinned, err := layout.ParseRoot(get(t, v.box, layout.RootName(p.Root)))
		do(err)
		do(d.Revert(t.Context(), p.Name))
		root := newest(t, d, v.box)
		if (root.Table != nil) != (pinned.Table != nil) || !slices.Equal(root.Runs.Objects, pinned.Runs.Objects) {
			t.Errorf("reverted to %s: a table of %d bytes and runs %v, and the snapshot had %d and %v", p.Name, len(root.Table), root.Runs.Objects, len(pinned.Table), pinned.Runs.Objects)
		}
		if root.Table != nil {
			table++
		}
		v.sound(t)
		d = v.again(t, d, st)
		p := make([]byte, blockSize)
		do(d.Write(t.Context(), p, 0))
		do(d.Flush(t.Context()))
		do(d.Save(t.Context()))
		newest(t, d, v.box)
	}
	if table < 5 {
		t.Errorf("%d snapshots with a table in their roots: this test shows little", table)
	}
	v.sound(t)
}

// rootPuts is a container in which PUTs of roots fail.
type rootPuts struct {
	store.Store
	how *int
}

func (p rootPuts) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	if *p.how == 0 || !strings.HasPrefix(name, layout.RootPrefix) {
		return p.Store.Put(ctx, name, data, etag)
	}
	if *p.how == 1 {
		if err := p.Store.Put(ctx, name, data, etag); err != nil {
			return err
		}
	}
	return errors.New("no answer")
}

// TestTableAtLimit: a table that is too long goes into a run, and the next root has in
// itself only what has changed since.
func TestTableAtLimit(t *testing.T) {
	const blocks = 64
	v := newClosing(t, blocks*blockSize)
	v.o = inlineOptions()
	d, err := v.open(t.Context(), v.box)
	do := doer(t)
	do(err)
	s := newScript(t, blocks)
	do(s.write(d, 1, 2, 3))
	do(s.flush(d))
	do(d.Save(t.Context()))
	// Objects enough to fill a table, of which no run knows.
	n := uint64(0)
	add := func(objects int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for range objects {
			n++
			at := layout.Position{Epoch: 0, N: n}
			d.objects.add(at, held{size: 4 << 20, live: 500})
			d.objects.count(at, 1)
		}
	}
	save := func() layout.Root {
		t.Helper()
		do(s.write(d, 1))
		do(s.flush(d))
		do(d.Save(t.Context()))
		root, err := layout.ParseRoot(get(t, v.box, layout.RootName(d.rootAt)))
		do(err)
		got, err := v.tableOf(t, root)
		do(err)
		if want := maps.Collect(d.objects.all()); !maps.Equal(got, want) {
			t.Fatalf("root %v: its table has %d objects, and the disk %d", root.Name, len(got), len(want))
		}
		return root
	}
	// As long as no run has objects, what is gone takes no room.
	root := save()
	add(1000)
	more := save()
	d.mu.Lock()
	for k := range uint64(1000) {
		d.objects.remove(layout.Position{Epoch: 0, N: 1 + k})
	}
	d.mu.Unlock()
	if less := save(); len(more.Table) < 8000 || len(less.Table) > len(root.Table)+50 {
		t.Errorf("the table in the root has %d bytes, with 1000 objects more %d, and without them %d", len(root.Table), len(more.Table), len(less.Table))
	}
	for len(root.Runs.Objects) == 0 {
		before := len(root.Table)
		add(1000)
		if root = save(); len(root.Runs.Objects) == 0 && len(root.Table) < before+3000 || n > 20_000 {
			t.Fatalf("after %d objects the table in the root has %d bytes, and it had %d", n, len(root.Table), before)
		}
	}
	if root.Table != nil || n < 5000 {
		t.Errorf("a run of %d objects, and beside it %d bytes", n, len(root.Table))
	}
	add(10)
	if root = save(); len(root.Runs.Objects) != 1 || len(root.Table) == 0 || len(root.Table) > 500 {
		t.Errorf("after 10 more objects: %d runs and %d bytes", len(root.Runs.Objects), len(root.Table))
	}
	run := root.Runs.Objects[0]
	// What is gone is removed by the root's own table.
	d.mu.Lock()
	for k := range uint64(100) {
		d.objects.remove(layout.Position{Epoch: 0, N: 1001 + 7*k})
	}
	d.mu.Unlock()
	if root = save(); len(root.Runs.Objects) != 1 || root.Runs.Objects[0] != run || len(root.Table) < 300 {
		t.Errorf("after 100 objects are gone: %v and %d bytes", root.Runs.Objects, len(root.Table))
	}
	save()
	// One run more, and the next time one for all.
	add(9000)
	if root = save(); len(root.Runs.Objects) != 2 || root.Table != nil {
		t.Errorf("after 9000 more: %d runs and %d bytes", len(root.Runs.Objects), len(root.Table))
	}
	add(9000)
	if root = save(); len(root.Runs.Objects) != 1 || root.Table != nil || root.Runs.Objects[0] == run {
		t.Errorf("after 9000 more: %d runs and %d bytes", len(root.Runs.Objects), len(root.Table))
	}
}

// TestTableEmpty: a disk that has no data any more has a table all the same. Without
// one its objects would be counted by its map.
func TestTableEmpty(t *testing.T) {
	v := newClosing(t, 64*blockSize)
	v.o = inlineOptions()
	d, err := v.open(t.Context(), v.box)
	do := doer(t)
	do(err)
	s := newScript(t, 64)
	for _, snapshot := range []bool{false, true} {
		do(s.write(d, 1, 2, 3, 4, 5, 6, 7, 8))
		if snapshot {
			do(d.Snapshot(t.Context(), "full"))
		} else {
			do(s.flush(d))
			do(d.Save(t.Context()))
		}
		if root := newest(t, d, v.box); len(root.Table) < 70 || len(root.Runs.Objects) > 0 {
			t.Fatalf("written: a table of %d bytes, %d runs", len(root.Table), len(root.Runs.Objects))
		}
		do(s.zero(d, 0, 64))
		do(s.flush(d))
		do(d.Save(t.Context()))
		root := newest(t, d, v.box)
		if root.Table == nil || len(root.Table) > 64 || len(root.Runs.Blocks) == 0 {
			t.Errorf("trimmed: a table of %d bytes, %d runs of blocks", len(root.Table), len(root.Runs.Blocks))
		}
		if got, err := v.tableOf(t, root); err != nil || len(got) > 0 {
			t.Errorf("its table has %v, %v", got, err)
		}
		d = v.again(t, d, v.box)
		s.same(d)
		v.sound(t)
	}
	if len(d.pins.kept.Objects) == 0 {
		t.Error("nothing is kept for the snapshot")
	}
}

// tableOf reads the table that a root has, without what is gone.
func (v *opener) tableOf(t testing.TB, root layout.Root) (map[layout.Position]held, error) {
	t.Helper()
	d := newDisk(Options{Store: v.box, UUID: v.uuid})
	defer d.cancel(ErrClosed)
	err := d.readTable(t.Context(), root, "the root")
	return maps.Collect(d.objects.all()), err
}

// TestVerifyTableInRoot: a wrong count in a root's own table is found, in the newest
// root and in a snapshot's.
func TestVerifyTableInRoot(t *testing.T) {
	const blocks = 64
	v := newClosing(t, blocks*blockSize)
	v.o = inlineOptions()
	d, err := v.open(t.Context(), v.box)
	do := doer(t)
	do(err)
	s := newScript(t, blocks)
	do(s.write(d, 1, 2, 3, 4, 5, 6, 7, 8))
	do(d.Snapshot(t.Context(), "a"))
	pinned := d.rootAt
	do(s.write(d, 1, 2))
	do(s.flush(d))
	do(d.Save(t.Context()))
	newest := d.rootAt
	d.Close()
	v.sound(t)
	for _, at := range []layout.Position{pinned, newest} {
		for _, how := range []string{"and its runs of blocks", "lacks"} {
			good := get(t, v.box, layout.RootName(at))
			root, err := layout.ParseRoot(good)
			do(err)
			w := layout.NewRunWriter(v.uuid, layout.RunObjects, at)
			n := 0
			for e, err := range root.TableEntries() {
				do(err)
				if n++; n == 1 && how == "lacks" {
					continue
				} else if n == 1 {
					e.Live += layout.FrameSize
					e.Size += layout.FrameSize
				}
				do(w.AddObject(e))
			}
			root.Table = w.Bytes()
			bad, err := root.Marshal()
			do(err)
			put(t, v.box, layout.RootName(at), bad)
			r, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Timeout: time.Second}, VerifyOptions{})
			do(err)
			if len(r.Damage) != 1 || r.Damage[0].Object != layout.RootName(at) || !strings.Contains(r.Damage[0].Why, how) || r.Judged {
				t.Errorf("root %v, %s: %+v", at, how, r)
			}
			put(t, v.box, layout.RootName(at), good)
		}
	}
	v.sound(t)
}

// TestListInRoot: an object that is in the list that a root names, and in what it has
// in itself, too, is damage.
func TestListInRoot(t *testing.T) {
	v := newClosing(t, 64*blockSize)
	d := newDisk(Options{Store: v.box, UUID: v.uuid})
	defer d.cancel(ErrClosed)
	do := doer(t)
	named, own := layout.Position{Epoch: 3, N: 7}, layout.Position{Epoch: 3, N: 4}
	o := func(n uint64) layout.KeptObject {
		return layout.KeptObject{At: layout.Position{Epoch: 1, N: n}, Size: 100, Last: layout.Position{Epoch: 2, N: 1}}
	}
	b, err := layout.Kept{Objects: []layout.KeptObject{o(1), o(5)}, Runs: []layout.KeptObject{{At: o(9).At, Last: o(9).Last}}}.Marshal(v.uuid, named)
	do(err)
	put(t, v.box, layout.KeptName(named), b)
	root := layout.Root{Name: own, UUID: v.uuid, Kept: named}
	for _, n := range []uint64{3, 5} {
		root.KeptMore, err = layout.Kept{Objects: []layout.KeptObject{o(n), o(8)}}.Marshal(v.uuid, own)
		do(err)
		got, err := d.readKept(t.Context(), root)
		if n == 5 {
			if !errors.As(err, new(*layout.DamagedError)) {
				t.Errorf("object 5 is in both: %v, %v", got, err)
			}
			continue
		}
		if do(err); !slices.Equal(got.Objects, []layout.KeptObject{o(1), o(3), o(5), o(8)}) || len(got.Runs) != 1 {
			t.Errorf("both lists together are %v", got)
		}
	}
}
