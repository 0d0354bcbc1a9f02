// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/etag"
	"swiftnbd/internal/store/mem"
)

// TestRewind has an object of the log be lost for good: the first, one in the middle,
// the last, and the root of the last holder's epoch. The disk opens only for who gives
// up what was written from there on, and is then what it was at that moment, for ever:
// also when the object comes back, and when what was after it is deleted.
func TestRewind(t *testing.T) {
	const flushes = 8
	for k := range uint64(2 * (flushes + 1)) { // 0 and 1: the root
		lost, listed := k/2, k%2 > 0
		synctest.Test(t, func(t *testing.T) {
			v := (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, 64*blockSize)
			v.o.Timeout, v.o.Checkpoint, v.o.GC = 5*time.Second, 1000, 70
			do := doer(t)
			// An earlier holder has block 9, so that the lost root is not the first.
			d, err := v.open(t.Context(), v.box)
			do(err)
			do(d.Write(t.Context(), bytes.Repeat([]byte{100}, blockSize), 9*blockSize))
			do(d.Flush(t.Context()))
			d.Close()
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
			for n := range flushes {
				do(d.Write(t.Context(), bytes.Repeat([]byte{byte(n + 1)}, blockSize), int64(n%3)*blockSize))
				do(d.Flush(t.Context()))
			}
			v.o.Durable = d.Durable()
			at := layout.Position{Epoch: v.epoch, N: lost}
			d.Close()
			synctest.Wait()

			name, says := layout.LogName(at), layout.LogName(at)
			if lost == 0 {
				at.N = 1
				if name, says = layout.RootName(at), layout.RootName(at); !listed {
					says += ", or one after it,"
				}
			}
			info, err := v.box.Head(t.Context(), name)
			do(err)
			data := make([]byte, info.Size)
			_, err = v.box.Get(t.Context(), name, data, store.GetOptions{})
			do(err)
			var box store.Store = v.box
			if listed { // its servers have lost it, and the container's have not heard of it
				f := &forgetful{Store: box, away: map[string]bool{name: true}}
				f.until.Store(time.Now().AddDate(1, 0, 0).UnixNano())
				box = f
			} else {
				do(v.box.Delete(t.Context(), name))
			}

			var away *AwayError
			if _, err := v.open(t.Context(), box); !errors.As(err, &away) || away.Name != says {
				t.Fatalf("without object %d it opens: %v", lost, err)
			}
			asked := 0
			ask := func(answer bool) *Rewind {
				return &Rewind{Wait: time.Second, Ask: func(e *AwayError, later int) bool {
					asked++
					if want := flushes - int(lost); e.Name != says || later != want && lost > 0 {
						t.Errorf("asked of %s and %d objects after it, want %s and %d", e.Name, later, says, want)
					}
					return answer
				}}
			}
			v.o.Rewind = ask(false)
			if _, err := v.open(t.Context(), box); !errors.As(err, &away) || asked != 1 {
				t.Fatalf("asked %d times, and answered with no, it opens: %v", asked, err)
			}
			v.o.Rewind = ask(true)
			if d, err = v.open(t.Context(), box); err != nil || asked != 2 {
				t.Fatalf("asked %d times, and answered with yes: %v", asked, err)
			}
			same := func(what string) {
				t.Helper()
				for block := range 10 {
					want := byte(0)
					for n := range int(lost) - 1 {
						if n%3 == block {
							want = byte(n + 1)
						}
					}
					if block == 9 {
						want = 100
					}
					p := make([]byte, blockSize)
					if err := d.Read(t.Context(), p, int64(block)*blockSize); err != nil || p[0] != want || p[blockSize-1] != want {
						t.Errorf("%s, without object %d: block %d has %d, want %d: %v", what, lost, block, p[0], want, err)
					}
				}
			}
			same("rewound")
			do(d.Save(t.Context()))
			d.Close()

			do(v.box.Put(t.Context(), name, data, etag.Sum(data))) // it comes back
			v.o.Rewind, v.o.Durable, v.o.Horizon = nil, d.Durable(), time.Millisecond
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
			same("when it has come back")
			time.Sleep(3 * time.Hour) // what is garbage is deleted
			same("after a while")
			do(d.Save(t.Context()))
			d.Close()
			synctest.Wait()
			if r := sound(t, v); r.Strays.Count > 0 {
				t.Errorf("without object %d: left behind: %+v", lost, r.Strays)
			}
		})
	}
}

// TestRewindToSnapshot has the newest root be lost, and the roots before it be deleted
// long ago but for a snapshot's: the disk becomes what it was then, or at a later moment
// of which all is there, and nothing that it needs is deleted afterwards. Every other
// time the list of what snapshots need is an object, and was deleted, too.
func TestRewindToSnapshot(t *testing.T) {
	for k := range 8 {
		synctest.Test(t, func(t *testing.T) {
			v, s, d := written(t, 64)
			do := doer(t)
			if k%2 > 0 {
				d.Close()
				v.o.keptLimit = 1
				var err error
				d, err = v.open(t.Context(), v.box)
				do(err)
				s.check(d)
			}
			do(s.everything(d))
			do(d.Snapshot(t.Context(), "older"))
			for range k { // some runs are merged
				do(s.everything(d))
			}
			do(s.write(d, 1, 2, 3, 40))
			do(d.Snapshot(t.Context(), "a"))
			then := s.h.ops
			do(s.everything(d))
			d.Close()
			synctest.Wait()
			d, err := v.open(t.Context(), v.box)
			do(err)
			do(s.everything(d))
			do(d.Save(t.Context()))
			time.Sleep(time.Hour) // older roots are deleted
			newest := d.RootName()
			d.Close()
			synctest.Wait()

			f := &forgetful{Store: v.box, away: map[string]bool{layout.RootPrefix + newest: true}}
			f.until.Store(time.Now().AddDate(1, 0, 0).UnixNano())
			v.o.Root = newest
			if _, err := v.open(t.Context(), f); !errors.As(err, new(*AwayError)) {
				t.Fatalf("it opens: %v", err)
			}
			asked := 0
			v.o.Rewind = &Rewind{Wait: time.Second, Ask: func(*AwayError, int) bool { asked++; return true }}
			d, err = v.open(t.Context(), f)
			do(err)
			if asked == 0 {
				t.Error("nobody was asked")
			}
			v.o.Rewind = nil
			s.flushed = then
			s.check(d)
			if k%4 > 1 { // and from now on it opens as any other
				d.Close()
				d, err = v.open(t.Context(), f)
				do(err)
				s.check(d)
			}
			do(s.everything(d))
			do(d.Save(t.Context()))
			time.Sleep(3 * time.Hour)
			s.same(d)
			if pins := d.root.Pins; len(pins) == 0 || pins[0].Name != "older" {
				t.Errorf("its snapshots are %v", pins)
			}
			d.Close()
			synctest.Wait()
			sound(t, v)
			then2, err := Open(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Snapshot: "older"})
			do(err)
			p := make([]byte, 64*blockSize)
			_, err = then2.read(t.Context(), 0, p)
			do(err)
			then2.Close()
		})
	}
}

// TestRewindNotBelow has a clone rewound whose parent's root cannot be found: what is given
// up is the clone's own, and an older root of the parent is not read in that place.
func TestRewindNotBelow(t *testing.T) {
	const blocks = 64
	f, m, s := aFamily(t, blocks)
	d, err := m.open(t.Context(), m.box)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.write(d, 1, 2, 3), d.Snapshot(t.Context(), "s2")); err != nil {
		t.Fatal(err)
	}
	s.h.snaps["s2"] = s.h.ops
	d.Close()
	c := f.clone(t, m, "s2")
	p, err := FindParent(t.Context(), m.box, "s2", m.o)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.box.Delete(t.Context(), layout.RootName(p.Pin.Root)); err != nil {
		t.Fatal(err)
	}
	c.o.Rewind = &Rewind{Ask: func(lost *AwayError, _ int) bool {
		t.Errorf("asked for %s", lost.Name)
		return true
	}}
	if d, err = c.open(t.Context(), c.box); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Read(t.Context(), make([]byte, blockSize), blockSize); !errors.As(err, new(*BaseError)) {
		t.Errorf("the parent's block is read: %v", err)
	}
}
