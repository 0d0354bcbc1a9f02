// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// TestCloneOfGoing has the snapshot deleted while a clone of it is made, at each
// step of either: one of the two is refused, or the snapshot is there still.
func TestCloneOfGoing(t *testing.T) {
	for k := range 12 {
		f, m, _ := aFamily(t, 64)
		d, err := m.open(t.Context(), m.box)
		if err != nil {
			t.Fatal(err)
		}
		// The deletion runs whole before request k of the clone.
		gate := faulty.NewGate(m.box)
		var deleted error
		done := false
		gate.SetDriver(func(op faulty.Op) faulty.Fault {
			if op.N == int64(k) && !done {
				done = true
				deleted = d.DeleteSnapshot(t.Context(), "s", false)
			}
			return faulty.Fault{}
		})
		c := f.container(t, m.o)
		p, err := FindParent(t.Context(), gate, "s", m.o)
		if err == nil {
			child := &Child{Parent: p, Notes: gate, Base: gate, ParentURL: layout.SameAccount, ParentName: m.name, URL: layout.SameAccount, Name: c.name, Store: c.box}
			_, _, err = child.Clone(t.Context(), m.o)
			if err != nil {
				err = errors.Join(err, child.Forget(t.Context()))
			}
		}
		if done && (err == nil) == (deleted == nil) {
			t.Errorf("before request %d: the clone: %v; the deletion: %v", k, err, deleted)
		}
		if !done && err != nil {
			t.Error(err)
		}
		d.Close()
	}
}

// TestCloneWhileDeleting is TestCloneOfGoing the other way round: the clone is
// made whole before a request of the deletion.
func TestCloneWhileDeleting(t *testing.T) {
	saw := map[bool]int{}
	for k := range 12 {
		f, m, _ := aFamily(t, 64)
		gate := faulty.NewGate(m.box)
		m.o.Brief = true
		d, err := m.open(t.Context(), gate)
		if err != nil {
			t.Fatal(err)
		}
		first := gate.Ops() + 1 + int64(k)
		var cloned error
		done := false
		gate.SetDriver(func(op faulty.Op) faulty.Fault {
			if op.N == first && !done {
				done = true
				_, cloned = f.tryClone(t, m, "s")
			}
			return faulty.Fault{}
		})
		err = d.DeleteSnapshot(t.Context(), "s", false)
		if done {
			saw[cloned == nil]++
			if (err == nil) == (cloned == nil) {
				t.Errorf("before request %d: the clone: %v; the deletion: %v", k, cloned, err)
			}
		}
		d.Close()
	}
	if saw[true] == 0 || saw[false] == 0 {
		t.Errorf("%v: this test shows little", saw)
	}
}

// TestCloneLateRoot has the first root of a run that was interrupted arrive when
// the clone was made of another snapshot.
func TestCloneLateRoot(t *testing.T) {
	const blocks = 64
	f, m, s := aFamily(t, blocks)
	d, err := m.open(t.Context(), m.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Snapshot(t.Context(), "s2"); err != nil {
		t.Fatal(err)
	}
	s.h.snaps["s2"] = s.h.ops
	c := f.container(t, m.o)
	line := newWire(c.box)
	line.holdAt = 1
	child := func(snap string, st store.Store) (*Child, error) {
		p, err := FindParent(t.Context(), m.box, snap, m.o)
		if err != nil {
			return nil, err
		}
		child := &Child{Parent: p, Notes: m.box, Base: m.box, ParentURL: layout.SameAccount, ParentName: m.name, URL: layout.SameAccount, Name: c.name, Store: st, Again: true}
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer stop()
		_, _, err = child.Clone(ctx, m.o)
		return child, err
	}
	if _, err := child("s", line); err == nil {
		t.Fatal("the root is under way, and it is done")
	}
	time.Sleep(1100 * time.Millisecond) // the clock goes on
	second, err := child("s2", c.box)
	if err != nil {
		t.Fatal(err)
	}
	held := line.take(newRand(t))
	if len(held) != 1 {
		t.Fatalf("%d requests are under way", len(held))
	}
	held[0]()
	c.uuid, c.h = second.UUID, s.h
	cd, err := c.open(t.Context(), c.box)
	if err != nil {
		t.Fatal(err)
	}
	defer cd.Close()
	s.same(cd)
}

// TestVerifyDeadByLog: the log after the newest root, or a change whose count no
// merge has told, is what makes an object that a snapshot needs dead.
func TestVerifyDeadByLog(t *testing.T) {
	for _, blind := range []bool{false, true} {
		const blocks = 4096
		v := newVolume(t, blocks*blockSize)
		v.o = Options{Brief: true, Cache: 8 << 20, Seal: 64 * layout.FrameSize}
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, blockSize)
		write := func(n uint64) {
			t.Helper()
			for i := range n { // in no order: the map is long
				b := i * 1031 % blocks
				stamp(p, b, i)
				if err := d.Write(t.Context(), p, int64(b)*blockSize); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		write(1000)
		if err := d.Snapshot(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
		if blind {
			d.Close()
			v.o.littleMap()
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
		}
		write(1000)
		if blind {
			if err := d.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			high := 0
			for at, o := range d.objects.all() {
				if at.Epoch == 1 && o.live > 0 {
					high++
				}
			}
			if high == 0 {
				t.Error("no count is too high: this test shows little")
			}
		}
		d.Close()
		r, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Timeout: time.Second, Horizon: time.Nanosecond}, VerifyOptions{})
		if err != nil || len(r.Damage) > 0 {
			t.Errorf("blind %t: %+v, %v", blind, r, err)
		}
	}
}

// hasBase says whether the disk has one now. A checkpoint may take it away.
func hasBase(d *Disk) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.base != nil
}

// TestGoingNoteStays has an earlier deletion leave its note that the snapshot goes, which
// the sweep then finds, or has it fail, and a sweep come after. While that note is
// needed, it is not deleted: otherwise a clone of a snapshot that goes could be made.
func TestGoingNoteStays(t *testing.T) {
	clean := func(d *Disk) {
		t.Helper()
		if err := errors.Join(d.sweep(t.Context()), d.deleteGarbage(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("left", func(t *testing.T) {
		f, m, _ := aFamily(t, 64)
		p, err := FindParent(t.Context(), m.box, "s", m.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := putGone(t.Context(), m.box, p.Pin.Root); err != nil {
			t.Fatal(err)
		}
		gate := faulty.NewGate(m.box)
		m.o.Brief = true
		d, err := m.open(t.Context(), gate)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		done := false
		gate.SetDriver(func(op faulty.Op) faulty.Fault {
			if !done && op.Kind == store.OpPut && strings.HasPrefix(op.Name, layout.RootPrefix) {
				done = true
				if err := d.deleteGarbage(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := f.tryClone(t, m, "s"); !errors.Is(err, ErrGoing) {
					t.Errorf("a clone of a snapshot that goes: %v", err)
				}
			}
			return faulty.Fault{}
		})
		if err := d.DeleteSnapshot(t.Context(), "s", false); err != nil || !done {
			t.Errorf("%v, tried %v", err, done)
		}
	})
	t.Run("failed", func(t *testing.T) {
		f, m, _ := aFamily(t, 64)
		gate := faulty.NewGate(m.box)
		m.o.Brief = true
		d, err := m.open(t.Context(), gate)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		gate.SetDriver(noRoot)
		if err := d.DeleteSnapshot(t.Context(), "s", false); !errors.Is(err, store.ErrNoSpace) {
			t.Fatal(err)
		}
		gate.SetDriver(nil)
		clean(d)
		if _, err := f.tryClone(t, m, "s"); !errors.Is(err, ErrGoing) {
			t.Errorf("a clone of a snapshot of which the root without it is still to be sent: %v", err)
		}
		if err := d.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.mu.RLock()
		there := findPin(d.root.Pins, "s")
		d.mu.RUnlock()
		if there != nil {
			t.Error("the deletion was not made up for: this test shows nothing")
		}
		clean(d)
	})
	t.Run("again", func(t *testing.T) {
		f, m, _ := aFamily(t, 64)
		gate := faulty.NewGate(m.box)
		m.o.Brief = true
		d, err := m.open(t.Context(), gate)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p, err := FindParent(t.Context(), m.box, "s", m.o)
		if err != nil {
			t.Fatal(err)
		}
		gate.SetDriver(noRoot)
		if err := d.DeleteSnapshot(t.Context(), "s", false); !errors.Is(err, store.ErrNoSpace) {
			t.Fatal(err)
		}
		gate.SetDriver(nil)
		// Somebody is about to make a clone, and has not looked whether the snapshot goes.
		note := (&Child{Parent: p, URL: layout.SameAccount, Name: "slow"}).note()
		if err := m.box.Put(t.Context(), note, []byte("x"), ""); err != nil {
			t.Fatal(err)
		}
		err = d.DeleteSnapshot(t.Context(), "s", false)
		if err := m.box.Delete(t.Context(), note); err != nil {
			t.Fatal(err)
		}
		_, cloned := f.tryClone(t, m, "s")
		if err := d.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.mu.RLock()
		there := findPin(d.root.Pins, "s") != nil
		d.mu.RUnlock()
		if (cloned == nil) != there {
			t.Errorf("deleted once more: %v; a clone: %v; the snapshot is there: %t", err, cloned, there)
		}
	})
}

// noRoot is a driver that refuses roots.
func noRoot(op faulty.Op) faulty.Fault {
	if op.Kind == store.OpPut && strings.HasPrefix(op.Name, layout.RootPrefix) {
		return faulty.Fault{Err: store.ErrNoSpace}
	}
	return faulty.Fault{}
}
