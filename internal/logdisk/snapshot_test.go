// SPDX-License-Identifier: MIT

package logdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// snapshots is what a test knows of the snapshots of a disk.
type snapshots map[string]uint64 // after which operation

// names returns their names, in order.
func (s snapshots) names() (names []string) {
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// check reads the snapshot, and holds every block against what it was.
func (s snapshots) check(t testing.TB, v *opener, st store.Store, name string, h *past, blocks uint64) {
	t.Helper()
	o := v.o
	o.Store, o.UUID, o.Epoch, o.Snapshot, o.Newest = st, v.uuid, 0, name, v.epoch
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open snapshot %s: %v", name, err)
	}
	defer d.Close()
	blocks = h.size(s[name], blocks)
	if d.Size() != int64(blocks)*blockSize {
		t.Fatalf("snapshot %s has %d bytes, and %d blocks were on the disk", name, d.Size(), blocks)
	}
	p, want := make([]byte, blocks*blockSize), make([]byte, blockSize)
	if err := d.Read(t.Context(), p, 0); err != nil {
		t.Fatalf("read snapshot %s: %v", name, err)
	}
	for b := range blocks {
		h.at(b, s[name], want)
		if string(p[b*blockSize:][:blockSize]) != string(want) {
			got := p[b*blockSize:][:blockSize]
			t.Fatalf("snapshot %s: block %d has (%d, %d), after operation %d it was (%d, %d)", name, b, binary.LittleEndian.Uint64(got),
				binary.LittleEndian.Uint64(got[8:]), s[name], binary.LittleEndian.Uint64(want), binary.LittleEndian.Uint64(want[8:]))
		}
	}
}

// settle holds the snapshots that the disk has against those that were made. It
// may not be known of the last one whether it was made or deleted:
// that is h.doubt.
func (h *past) settle(t testing.TB, d *Disk) {
	t.Helper()
	d.mu.RLock()
	pins := slices.Clone(d.root.Pins)
	d.mu.RUnlock()
	have := map[string]bool{}
	for _, p := range pins {
		have[p.Name] = true
		if _, ok := h.snaps[p.Name]; !ok {
			t.Fatalf("snapshot %s is there, and nobody has made it", p.Name)
		}
	}
	for name := range h.snaps {
		if !have[name] && name != h.doubt {
			t.Fatalf("snapshot %s is gone", name)
		}
	}
	if h.doubt != "" && !have[h.doubt] {
		delete(h.snaps, h.doubt)
	}
	h.doubt = ""
}

// randomSnapshot makes a snapshot, deletes one or reads one, and says whether the
// disk goes on after it.
func randomSnapshot(t *testing.T, rng *rand.Rand, v *opener, d *Disk, h *past, blocks uint64, flushed *uint64, gate *faulty.Store) bool {
	t.Helper()
	names := h.snaps.names()
	crashed := func(err error) bool {
		if err != nil && !gate.Crashed() {
			t.Fatal(err)
		}
		return err != nil
	}
	k := rng.IntN(3)
	switch {
	case len(names) < 5 && k == 0 || len(names) == 0:
		name := fmt.Sprint("after ", h.ops)
		if _, ok := h.snaps[name]; ok {
			return true
		}
		h.snaps[name], h.doubt = h.ops, name
		if crashed(d.Snapshot(t.Context(), name)) {
			return false
		}
		h.doubt = ""
		*flushed = h.ops
	case k == 1:
		name := names[rng.IntN(len(names))]
		if h.clones[name] > 0 {
			err := d.DeleteSnapshot(t.Context(), name, false)
			if !errors.As(err, new(*ChildrenError)) && !gate.Crashed() {
				t.Fatalf("snapshot %s has clones, and deleting it ends with %v", name, err)
			}
			return err == nil || !gate.Crashed()
		}
		h.doubt = name
		if crashed(d.DeleteSnapshot(t.Context(), name, false)) {
			return false
		}
		delete(h.snaps, name)
		h.doubt = ""
	default:
		h.snaps.check(t, v, v.box, names[rng.IntN(len(names))], h, blocks)
	}
	return true
}

// TestSnapshot makes snapshots of a disk that goes on being written and
// collected, reads them all, and deletes them: then nothing of them is left.
func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks = 64
		v := newClosing(t, blocks*blockSize)
		v.o = smallOptions()
		w := newWitness(t, v.box, horizon)
		s := newScript(t, blocks)
		taken := snapshots{}
		do := doer(t)
		for round := range 6 {
			d, err := v.open(t.Context(), w)
			do(err)
			s.check(d)
			do(s.everything(d))
			name := fmt.Sprintf("snap %d", round)
			do(d.Snapshot(t.Context(), name))
			s.flushed, taken[name] = s.h.ops, s.h.ops
			if err := d.Snapshot(t.Context(), name); !errors.Is(err, ErrSnapshotThere) {
				t.Errorf("once more: %v", err)
			}
			do(s.write(d, 3, 4, 5, 6, 7, uint64(round), 20, 21, 22))
			do(s.flush(d))
			time.Sleep(26 * time.Hour) // it has collected, deleted, looked for strays
			for name := range taken {
				taken.check(t, v, w, name, s.h, blocks)
			}
			s.same(d)
			if round%2 == 1 { // without a clean end
				do(s.save(d))
			}
			d.Close()
			r, err := Verify(t.Context(), Options{Store: w, UUID: v.uuid, Newest: v.epoch, Timeout: time.Second, Horizon: horizon}, VerifyOptions{})
			do(err)
			if len(r.Damage) > 0 || !r.Judged || r.Strays.Count > 0 {
				t.Errorf("round %d: verified: %+v", round, r)
			}
		}
		list, err := Snapshots(t.Context(), Options{Store: w, UUID: v.uuid, Newest: v.epoch})
		do(err)
		for i, snap := range list {
			if snap.Name != fmt.Sprintf("snap %d", i) || snap.Size != blocks*blockSize || snap.Bytes == 0 {
				t.Errorf("snapshot %d: %+v", i, snap)
			}
		}
		if len(list) != 6 {
			t.Errorf("%d snapshots", len(list))
		}
		d, err := v.open(t.Context(), w)
		do(err)
		s.check(d)
		if err := d.DeleteSnapshot(t.Context(), "none", false); !errors.Is(err, ErrNoSnapshot) {
			t.Errorf("delete one that is not there: %v", err)
		}
		for _, i := range []int{3, 0, 5, 1, 4, 2} {
			name := fmt.Sprintf("snap %d", i)
			do(d.DeleteSnapshot(t.Context(), name, false))
			delete(taken, name)
			time.Sleep(30 * time.Minute)
			for name := range taken {
				taken.check(t, v, w, name, s.h, blocks)
			}
		}
		time.Sleep(26 * time.Hour)
		s.same(d)
		atRest(t, d, v.box)
	})
}

// atRest fails unless the container has what the newest root, its snapshots and
// nothing else needs.
func atRest(t testing.TB, d *Disk, s store.Store) {
	t.Helper()
	d.checkSums(t)
	list, err := s.List(t.Context(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := wantedObjects(t, d, s)
	for _, o := range list {
		if !want[o.Name] {
			t.Errorf("%s is left, and nothing needs it", o.Name)
		}
		delete(want, o.Name)
	}
	for name := range want {
		t.Errorf("%s is not there", name)
	}
}

// wantedObjects returns the names of what the newest root and its snapshots need.
func wantedObjects(t testing.TB, d *Disk, s store.Store) map[string]bool {
	t.Helper()
	d.mu.RLock()
	defer d.mu.RUnlock()
	want := map[string]bool{layout.RootName(d.rootAt): true}
	for at := range d.objects.all() {
		want[layout.LogName(at)] = true
	}
	for _, at := range slices.Concat(d.root.Runs.Blocks, d.root.Runs.Objects) {
		want[layout.RunName(at)] = true
	}
	if !d.root.Kept.IsZero() {
		want[layout.KeptName(d.root.Kept)] = true
	}
	// What the collector or a merge was writing when a root was made counts as the
	// root's; what has died since the newest root is in the list of the next one.
	for _, o := range slices.Concat(d.pins.kept.Objects, d.pins.fresh) {
		want[layout.LogName(o.At)] = true
	}
	for _, o := range d.pins.kept.Runs {
		want[layout.RunName(o.At)] = true
	}
	for _, p := range d.root.Pins {
		want[layout.RootName(p.Root)] = true
		root, err := layout.ParseRoot(get(t, s, layout.RootName(p.Root)))
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range slices.Concat(root.Runs.Blocks, root.Runs.Objects) {
			want[layout.RunName(at)] = true
		}
		for name := range live(t, s, root) {
			want[name] = true
		}
	}
	return want
}
