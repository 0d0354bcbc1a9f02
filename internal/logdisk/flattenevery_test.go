// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// flattenVerb is swiftnbd-ctl's flatten, as far as the requests for it are concerned. It
// returns the snapshots that need the parent still.
func flattenVerb(ctx context.Context, d *Disk, parent store.Store, name string) ([]string, error) {
	if err := d.Flatten(ctx, func(int64) {}); err != nil {
		return nil, err
	}
	base, snaps, err := d.Base(ctx)
	if err != nil || base == nil || len(snaps) > 0 {
		return snaps, err
	}
	if err := DropNotes(ctx, parent, layout.SameAccount, name); err != nil {
		return nil, err
	}
	return nil, d.DropBase(ctx)
}

// TestFlattenEveryRequest ends the process that flattens a clone at each of its
// requests, to either container, has what was under way arrive before, meanwhile or
// after, and flattens again. It also has each request fail and the process go on. The
// clone is always what it was, the parent stays protected for as long as the clone or
// its snapshot needs it, and no longer.
func TestFlattenEveryRequest(t *testing.T) {
	for _, what := range []string{"plain", "snapshot"} {
		t.Run(what, func(t *testing.T) {
			var n int64
			synctest.Test(t, func(t *testing.T) { n, _ = flattenEvery(t, what, 1<<40, "late") }) // it ends at none
			if n < 20 {
				t.Fatalf("%d requests: this test shows little", n)
			}
			needing := map[bool]int{}
			for k := int64(1); k <= n; k++ {
				for i, way := range []string{"without effect", "with effect", "late", "fails", "fails, arrives", "fails, arrives late"} {
					if *opsFlag == 0 && (int64(i)+k)%3 != 0 {
						continue // make check-crash has all of them
					}
					synctest.Test(t, func(t *testing.T) {
						_, needs := flattenEvery(t, what, k, way)
						needing[needs]++
					})
					if t.Failed() {
						t.Fatalf("request %d, %s", k, way)
					}
				}
			}
			t.Logf("%d requests; the parent is needed after the cut: %v", n, needing)
			if needing[true] == 0 || what == "plain" && needing[false] == 0 {
				t.Errorf("%v: this test shows little", needing)
			}
		})
	}
}

// flattenEvery returns how many requests the verb has made, and whether the clone
// needed its parent when it had ended.
func flattenEvery(t *testing.T, what string, k int64, way string) (requests int64, needs bool) {
	const blocks = 64
	rng := rand.New(rand.NewPCG(uint64(k), 1))
	do := doer(t)
	f := newFamily()
	o := smallOptions()
	o.Every = 5 * time.Minute
	compress := rng.IntN(4) // the parent, the clone, both or neither
	o.Compress = compress&1 != 0
	m := f.disk(t, blocks*blockSize, o)
	m.t, m.w = t, newWitness(t, m.box, horizon)
	above := &script{t: t, h: m.h, blocks: blocks}
	pd, err := m.open(t.Context(), m.w)
	do(err)
	var all []uint64
	for b := range uint64(blocks) {
		all = append(all, b)
	}
	do(above.write(pd, all[:40]...))
	do(above.zero(pd, 7, 3))
	do(pd.Snapshot(t.Context(), "s"))
	m.h.snaps["s"] = m.h.ops

	// The clone writes over some of it, and is closed or ends badly.
	c := f.clone(t, m, "s")
	c.t, c.o.Compress, c.w = t, compress&2 != 0, newWitness(t, c.box, horizon)
	s := &script{t: t, h: c.h, blocks: blocks, flushed: c.h.ops}
	first := newWire(c.w)
	d, err := c.open(t.Context(), first)
	do(err)
	do(s.write(d, 1, 2, 3, 11, 50, 51))
	do(s.zero(d, 20, 5))
	if what == "snapshot" {
		do(d.Snapshot(t.Context(), "before"))
		c.h.snaps["before"] = s.h.ops
	}
	do(s.write(d, 4, 52))
	do(s.flush(d))
	if rng.IntN(2) == 0 {
		first.die()
	}
	d.Close()

	// The one that is ended at request k of the verb.
	line := newWire(c.w)
	gate, up := faulty.NewGate(line), faulty.NewGate(line.to(m.w))
	brief := func(clone, parent store.Store) (*Disk, error) {
		o := c.o
		defer func() { c.o = o }()
		c.o.Brief = true
		c.o.Bases = func(context.Context, string, string) (store.Store, error) { return parent, nil }
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		return c.open(ctx, clone)
	}
	verb := func(d *Disk, parent store.Store) (snaps []string, err error) {
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		return flattenVerb(ctx, d, parent, c.name)
	}
	d, err = brief(gate, up)
	do(err)
	var n atomic.Int64
	faults := func(op faulty.Op) faulty.Fault {
		i := n.Add(1)
		switch {
		case way == "late" || i < k:
		case way == "without effect", way == "with effect":
			return faulty.Fault{Err: faulty.ErrCrashed, After: i == k && way == "with effect"}
		case i == k:
			fault := faulty.Fault{Err: faulty.Reset(op.Op), After: way == "fails, arrives"}
			if way == "fails, arrives late" {
				fault.Late = 1 + rng.Int64N(10)
			}
			return fault
		}
		return faulty.Fault{}
	}
	gate.SetDriver(faults)
	up.SetDriver(faults)
	if way == "late" {
		line.mu.Lock()
		line.holdAt = line.n + k
		line.mu.Unlock()
	}
	lost := time.AfterFunc(2*time.Minute, d.Close) // the lease is
	snaps, err := verb(d, up)
	lost.Stop()
	switch {
	case err == nil && (len(snaps) > 0) != (what == "snapshot"):
		t.Errorf("flattened, and these snapshots need the parent: %v", snaps)
	case err != nil && k > 1<<30, err != nil && !errors.As(err, new(*store.TransportError)) && !errors.Is(err, faulty.ErrCrashed) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrClosed):
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	_ = d.Drain(ctx)
	_ = d.Save(ctx)
	stop()
	requests = n.Load()
	line.die()
	d.Close()
	synctest.Wait()
	some, rest := line.arrivals(rng)
	some()
	// protected fails unless the parent's snapshot is as protected as the disk says.
	protected := func(d *Disk) (needed bool) {
		t.Helper()
		_, snaps, err := d.Base(t.Context())
		do(err)
		d.mu.RLock()
		needed = d.base != nil || len(snaps) > 0
		d.mu.RUnlock()
		var children *ChildrenError
		if !needed {
			return false
		}
		if err := pd.DeleteSnapshot(t.Context(), "s", false); !errors.As(err, &children) || len(children.Notes) != 1 || children.Notes[0].Container != c.name {
			t.Fatalf("the clone needs its parent, and the snapshot is deleted: %v", err)
		}
		return true
	}
	// The parent goes on, and collects.
	do(above.write(pd, all...))
	do(above.flush(pd))
	time.Sleep(time.Duration(rng.IntN(60)) * time.Minute)

	// It is done again, perhaps after a server has had the clone.
	if rng.IntN(2) == 0 {
		d, err = c.open(t.Context(), c.w)
		do(err)
		needs = protected(d)
		some()
		s.check(d)
		do(s.write(d, 5, 12, 53))
		do(s.flush(d))
		some()
		s.same(d)
		d.Close()
	}
	for again := 0; ; again++ {
		d, err = brief(c.w, m.w)
		do(err)
		some()
		s.check(d)
		needs = protected(d) || needs
		snaps, err = verb(d, m.w)
		if err != nil && !errors.Is(err, ErrNoClone) || errors.Is(err, ErrNoClone) && what == "snapshot" && again == 0 {
			t.Fatal(err)
		}
		some()
		protected(d)
		do(errors.Join(d.Drain(t.Context()), d.Save(t.Context())))
		if len(snaps) > 0 {
			if what != "snapshot" || again > 0 {
				t.Fatalf("these snapshots need the parent: %v", snaps)
			}
			c.h.snaps.check(t, c.opener, c.w, "before", c.h, blocks)
			do(d.DeleteSnapshot(t.Context(), "before", false))
		}
		s.same(d)
		d.Close()
		if len(snaps) == 0 {
			break
		}
	}

	// Nothing needs the parent now, whatever arrives, and nothing is left.
	do(pd.DeleteSnapshot(t.Context(), "s", false))
	f.away[m.name] = true
	if rng.IntN(2) == 0 {
		rest()
	}
	d, err = c.open(t.Context(), c.w)
	do(err)
	rest()
	s.check(d)
	time.Sleep(26 * time.Hour)
	s.same(d)
	time.Sleep(time.Hour) // what was read is put in order, and what that replaced is deleted
	if d.base != nil || d.root.Below != nil || len(d.root.Bases) > 0 {
		t.Errorf("flattened, its root has %+v", d.root)
	}
	atRest(t, d, c.box)
	d.Close()
	atRest(t, pd, m.box)
	pd.Close()
	return requests, needs
}
