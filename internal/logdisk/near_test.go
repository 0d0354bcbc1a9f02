// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestNewerOfClone follows a clone whose runs have the names of its parent's: each
// disk counts its runs from 1. The moment before is not kept.
func TestNewerOfClone(t *testing.T) {
	const blocks = 512
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f := newFamily()
	parent := f.disk(t, blocks*blockSize, Options{Cache: 8 << 20, Connections: 8})
	d, err := parent.open(t.Context(), parent.box)
	do(err)
	s := newScript(t, blocks)
	s.h = parent.h
	var all []uint64
	for b := range uint64(blocks) {
		all = append(all, b)
	}
	do(errors.Join(s.write(d, all...), d.Snapshot(t.Context(), "s")))
	parent.h.snaps["s"] = parent.h.ops
	runs := map[layout.Position]bool{}
	for _, r := range d.tree {
		runs[r.at] = true
	}
	d.Close()

	c := f.clone(t, parent, "s")
	cs := newScript(t, blocks)
	cs.h = c.h
	change := func(blocks ...uint64) {
		t.Helper()
		d, err := c.open(t.Context(), c.box)
		do(err)
		do(errors.Join(cs.write(d, blocks...), d.Drain(t.Context()), d.Save(t.Context())))
		d.Close()
	}
	o := c.o
	o.Store, o.UUID, o.Timeout = c.box, c.uuid, c.o.Timeout
	change(3)
	o.Newest = c.epoch
	cur, err := Open(t.Context(), o)
	do(err)
	same := false
	for _, r := range cur.tree {
		same = same || runs[r.at]
	}
	if !same {
		t.Fatalf("no run of the clone has the name of one of its parent's: this test shows nothing")
	}
	change(500)
	o.Newest = c.epoch
	next, err := OpenNewer(t.Context(), o, cur)
	do(err)
	if next == nil {
		t.Fatal("there is no newer moment")
	}
	if next.o.near != nil {
		t.Error("it holds the moment before in memory")
	}
	cs.same(next)
	next.Close()
	cur.Close()
}

// TestRoomWhileAsked: what is asked for and not lent yet is not given back.
func TestRoomWhileAsked(t *testing.T) {
	r := room{own: 100, want: 1000}
	if !r.borrow(50, 100) || r.borrow(60, 100) {
		t.Fatal("the bound of what is borrowed does not hold")
	}
	if n, ok := r.idle(10); n != 0 || !ok {
		t.Errorf("%d bytes are given back that were never lent", n)
	}
	r.lent(50, false)
	if r.borrowed != 0 || r.asked != 0 {
		t.Errorf("%d bytes borrowed, %d asked for", r.borrowed, r.asked)
	}
	r.try(1) // what comes alone may be larger
	if r.borrow(50, 100); r.try(120) {
		t.Error("what is not lent yet is used")
	}
	r.lent(50, true)
	if !r.try(120) {
		t.Error("what is lent is not used")
	}
	r.release(121)
	if n, _ := r.idle(10); n != 50 || r.borrowed != 0 {
		t.Errorf("%d bytes are given back", n)
	}
}

// TestNewerReadsWhatIsNew: who follows a log reads each of its objects once, and not
// again for each moment. The moments are right, also behind a root.
func TestNewerReadsWhatIsNew(t *testing.T) {
	const blocks, flushes, rounds = 512, 40, 4
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v := newVolume(t, blocks*blockSize)
	v.o = Options{Cache: 8 << 20, Connections: 8}
	w, err := v.open(t.Context(), v.box)
	do(err)
	defer w.Close()
	c := &countedLog{Store: v.box}
	s := newScript(t, blocks)
	o := v.o
	o.Store, o.UUID, o.Newest = c, v.uuid, v.epoch
	cur, err := Open(t.Context(), o)
	do(err)
	for round := range rounds {
		if round == rounds-1 { // the log after it is another one
			do(w.Save(t.Context()))
		}
		for i := range uint64(flushes) {
			do(errors.Join(s.write(w, (uint64(round)*flushes+i)%blocks), w.Flush(t.Context())))
		}
		c.gets.Store(0)
		next, err := OpenNewer(t.Context(), o, cur)
		do(err)
		cur.Close()
		if cur = next; cur == nil {
			t.Fatal("there is no newer moment")
		}
		if n := c.gets.Load(); n < flushes || n > flushes+flushes/2 {
			t.Errorf("round %d: %d reads of the log for %d objects that are new", round, n, flushes)
		}
		s.same(cur)
	}
	cur.Close()
}
