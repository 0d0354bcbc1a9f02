// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// randomShape gives a disk that was opened briefly another form, or makes or
// deletes a snapshot of it. It returns how many changes of the form are known to be
// done. The disk had so many blocks at the beginning.
func randomShape(t *testing.T, rng *rand.Rand, v *opener, d *Disk, h *past, blocks uint64, flushed *uint64, gate *faulty.Store) int {
	t.Helper()
	if rng.IntN(4) == 0 {
		_ = randomSnapshot(t, rng, v, d, h, blocks, flushed, gate)
		return 0
	}
	if names := h.snaps.names(); len(names) > 0 && rng.IntN(2) == 0 {
		name := names[rng.IntN(len(names))]
		h.revert(h.snaps[name], blocks)
		if err := d.Revert(t.Context(), name); err != nil {
			if !gate.Crashed() {
				t.Fatal(err)
			}
			return 0
		}
		*flushed = h.ops
		return 1
	}
	was := h.size(h.ops, blocks)
	to := blocks/2 + rng.Uint64N(blocks)
	size := int64(to) * blockSize
	force := rng.IntN(2) == 0
	if n, from := h.data(to, was); n > 0 && !force {
		err := d.Resize(t.Context(), size, false)
		var beyond *BeyondError
		switch {
		case gate.Crashed() && !errors.As(err, &beyond):
		case !errors.As(err, &beyond) || *beyond != (BeyondError{int64(n) * blockSize, int64(from) * blockSize}):
			t.Fatalf("%d blocks of data from %d on lie behind the end: %v", n, from, err)
		default:
			*flushed = h.ops
		}
		return 0
	}
	h.resize(to, blocks)
	if err := d.Resize(t.Context(), size, force); err != nil {
		if !gate.Crashed() {
			t.Fatal(err)
		}
		return 0
	}
	*flushed = h.ops
	return 1
}

// zeroAndSnapshot makes a snapshot of which the newest object of the log has
// nothing but zeroes: it is dead when it is durable, and the snapshot knows it.
func zeroAndSnapshot(t *testing.T, rng *rand.Rand, v *opener, d *Disk, h *past, blocks uint64, flushed *uint64, gate *faulty.Store) {
	t.Helper()
	if err := d.Flush(t.Context()); err != nil {
		return
	}
	*flushed = h.ops
	count := rng.Uint64N(h.size(h.ops, blocks)) + 1
	h.ops++
	h.note(0, count, h.ops, true)
	if err := d.Trim(t.Context(), 0, int64(count)*blockSize); err == nil {
		randomSnapshot(t, rng, v, d, h, blocks, flushed, gate)
	}
}

// shaping is one of the verbs that change a disk's form, for a disk that has data
// in all of its blocks but some, and a snapshot.
type shaping struct {
	name string
	do   func(ctx context.Context, d *Disk) error
	note func(s *script, snaps snapshots) // in the history
}

func shapings() []shaping {
	size := func(name string, blocks uint64) shaping {
		return shaping{
			name, func(ctx context.Context, d *Disk) error { return d.Resize(ctx, int64(blocks)*blockSize, true) },
			func(s *script, _ snapshots) { s.h.resize(blocks, s.blocks) },
		}
	}
	back := func(name string) shaping {
		return shaping{
			"revert to " + name, func(ctx context.Context, d *Disk) error { return d.Revert(ctx, name) },
			func(s *script, snaps snapshots) { s.h.revert(snaps[name], s.blocks) },
		}
	}
	// Done again, they may find that they are done.
	unless := func(done, err error) error {
		if errors.Is(err, done) {
			return nil
		}
		return err
	}
	return []shaping{
		size("grow", 100), size("shrink", 20), back("a"), back("b"),
		{
			"snapshot", func(ctx context.Context, d *Disk) error { return unless(ErrSnapshotThere, d.Snapshot(ctx, "new")) },
			func(s *script, snaps snapshots) { snaps["new"] = s.h.ops },
		}, {
			"delete a", func(ctx context.Context, d *Disk) error {
				return unless(ErrNoSnapshot, d.DeleteSnapshot(ctx, "a", false))
			},
			func(_ *script, snaps snapshots) { delete(snaps, "a") },
		},
	}
}

// TestEveryRequestOfAShape ends a process at each request of a verb that changes a
// disk's form, has what was under way arrive before, meanwhile or after, and
// repeats the verb. The disk has the old form or the new one, never another.
func TestEveryRequestOfAShape(t *testing.T) {
	for _, what := range shapings() {
		for i, how := range []string{"", "paged", "compressed"} {
			name := what.name
			if how != "" {
				name += ", " + how
			}
			every := []int64{3, 6, 7}[i]
			if what.name == "delete a" { // most of its requests ask for notes of clones
				every *= 3
			}
			t.Run(name, func(t *testing.T) {
				var n int64
				synctest.Test(t, func(t *testing.T) { n = everyShape(t, what, 1<<40, "late", how) }) // it ends at none
				if n < 2 {                                                                           // a root, and the metadata
					t.Fatalf("%d requests: this test shows little", n)
				}
				for k := int64(1); k <= n; k++ {
					for i, way := range []string{"without effect", "with effect", "late", "fails", "fails, arrives", "fails, arrives late"} {
						if *opsFlag == 0 && (int64(i)+k)%every != 0 {
							continue // make check-crash has all of them
						}
						synctest.Test(t, func(t *testing.T) { everyShape(t, what, k, way, how) })
						if t.Failed() {
							t.Fatalf("request %d, %s", k, way)
						}
					}
				}
				t.Logf("%d requests", n)
			})
		}
	}
}

// everyShape returns how many requests the verb has made.
func everyShape(t *testing.T, what shaping, k int64, way, how string) (requests int64) {
	const blocks = 64
	rng := rand.New(rand.NewPCG(uint64(k), 1))
	v := (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, blocks*blockSize)
	v.o = smallOptions()
	v.o.Every = 5 * time.Minute
	if how == "paged" {
		v.o.littleMap()
	}
	v.o.Compress = how == "compressed"
	w := newWitness(t, v.box, horizon)
	s := newScript(t, blocks)
	snaps := snapshots{}
	do := doer(t)
	brief := func(st store.Store) (*Disk, error) {
		v.o.Brief = true
		defer func() { v.o.Brief = false }()
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		return v.open(ctx, st)
	}
	within := func(d *Disk, do func(context.Context, *Disk) error) error {
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		return do(ctx, d)
	}
	snapshot := func(d *Disk, name string) {
		do(d.Snapshot(t.Context(), name))
		s.flushed, snaps[name] = s.h.ops, s.h.ops
	}
	// A holder that writes, makes snapshots, collects, and ends badly.
	first := newWire(w)
	d, err := v.open(t.Context(), first)
	do(err)
	do(s.write(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 30, 31, 32, 33, 50, 51, 52, 53))
	do(s.flush(d))
	snapshot(d, "a")
	do(d.Save(t.Context()))
	d.Close()
	d, err = brief(first)
	do(err)
	s.h.resize(72, blocks)
	do(d.Resize(t.Context(), 72*blockSize, false))
	s.flushed = s.h.ops
	do(d.Save(t.Context()))
	d.Close()
	d, err = v.open(t.Context(), first)
	do(err)
	do(s.write(d, 2, 3, 8, 30, 31, 40, 41, 60, 61, 71))
	do(s.zero(d, 9, 2))
	do(s.flush(d))
	time.Sleep(15 * time.Minute)
	snapshot(d, "b")
	do(s.write(d, 1, 12, 32, 33, 50, 63, 62))
	do(s.save(d))
	do(s.write(d, 4, 51, 20))
	do(s.flush(d))
	first.die()
	d.Close()

	// The one that is ended at request k of the verb.
	line := newWire(w)
	gate := faulty.NewGate(line)
	d, err = brief(gate)
	do(err)
	s.check(d)
	from := gate.Ops()
	switch way {
	case "late":
		line.mu.Lock()
		line.holdAt = line.n + k
		line.mu.Unlock()
	case "fails", "fails, arrives", "fails, arrives late":
		failAt(gate, rng, from+k, way, 10)
	default:
		gate.CrashAt(from+k, way == "with effect")
	}
	what.note(s, snaps)
	if err := within(d, what.do); err == nil {
		s.flushed = s.h.ops
	} else if !errors.As(err, new(*store.TransportError)) && !errors.Is(err, faulty.ErrCrashed) && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	_ = within(d, func(ctx context.Context, d *Disk) error { return d.Drain(ctx) })
	_ = within(d, func(ctx context.Context, d *Disk) error { return d.Save(ctx) })
	requests = gate.Ops() - from
	line.die()
	d.Close()
	synctest.Wait()
	some, rest := line.arrivals(rng)
	some()

	// It is done again.
	d, err = brief(w)
	do(err)
	some()
	s.check(d)
	what.note(s, snaps)
	do(within(d, what.do))
	s.flushed = s.h.ops
	if _, written := d.Copies(); what.name != "grow" && what.name != "snapshot" && slices.Contains(written, false) {
		t.Error("the disk is taken for one of its snapshots")
	}
	d.Close()
	some()
	for name := range snaps {
		snaps.check(t, v, w, name, s.h, blocks)
	}

	// It grows: what was cut off does not come back.
	d, err = brief(w)
	do(err)
	some()
	s.check(d)
	s.same(d)
	s.h.resize(90, blocks)
	do(d.Resize(t.Context(), 90*blockSize, true))
	s.flushed = s.h.ops
	do(d.Save(t.Context()))
	d.Close()

	// And the last, who sees all that was under way, collects and deletes.
	if rng.IntN(2) == 0 {
		rest()
	}
	d, err = v.open(t.Context(), w)
	do(err)
	rest()
	s.check(d)
	s.same(d)
	do(s.write(d, 3, 4, 62, 80))
	snapshot(d, "c")
	do(s.write(d, 5, 62, 81))
	do(s.flush(d))
	time.Sleep(26 * time.Hour)
	s.same(d)
	time.Sleep(time.Hour) // what was read is put in order, and what that replaced is deleted
	for name := range snaps {
		snaps.check(t, v, w, name, s.h, blocks)
	}
	atRest(t, d, v.box)
	do(d.Save(t.Context()))
	md, err := v.box.Metadata(t.Context())
	do(err)
	d.Close()
	r, err := Verify(t.Context(), Options{Store: w, UUID: v.uuid, Root: md.Items[volume.KeyRoot], Newest: v.epoch, Timeout: time.Second, Horizon: horizon}, VerifyOptions{})
	do(err)
	if len(r.Damage) > 0 || !r.Judged || r.Strays.Count > 0 || r.Size != 90*blockSize || md.Items[volume.KeySize] != "368640" {
		t.Errorf("%+v; the container has %v", r, md.Items)
	}
	// Without its snapshots it needs no more than it has.
	d, err = v.open(t.Context(), w)
	do(err)
	for name := range snaps {
		do(d.DeleteSnapshot(t.Context(), name, false))
	}
	time.Sleep(26 * time.Hour)
	s.same(d)
	atRest(t, d, v.box)
	return requests
}

// TestResizeAlone: what is refused, and how little it takes.
func TestResizeAlone(t *testing.T) {
	v := newVolume(t, 1<<30)
	open := func(brief bool) *Disk {
		t.Helper()
		v.o.Brief = brief
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := open(false)
	if err := d.Write(t.Context(), make([]byte, 3*blockSize), 7*blockSize); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(t.Context(), 1<<20, true); !errors.Is(err, errServed) {
		t.Errorf("of a disk that is served: %v", err)
	}
	if err := errors.Join(d.Drain(t.Context()), d.Save(t.Context())); err != nil {
		t.Fatal(err)
	}
	d.Close()
	line := newWire(v.box)
	v.o.Brief = true
	d, err := v.open(t.Context(), line)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	before := line.requests()
	for size, want := range map[int64]string{
		0: "whole blocks", -4096: "whole blocks", 4095: "whole blocks", 4097: "whole blocks",
		math.MaxInt64: "too large", MaxSize + 4096: "too large", 8 * blockSize: "8192 bytes of data are behind the new end, from byte 32768",
	} {
		if err := d.Resize(t.Context(), size, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if n := line.requests(); n != before || d.Size() != 1<<30 {
		t.Errorf("%d requests, the disk has %d bytes", n-before, d.Size())
	}
	for _, size := range []int64{10 << 40, MaxSize, 10 * blockSize} {
		before := line.requests()
		if err := d.Resize(t.Context(), size, false); err != nil {
			t.Fatal(err)
		}
		if n := line.requests() - before; n != 2 || d.Size() != size { // a root, and the metadata
			t.Errorf("to %d bytes: %d requests, it has %d", size, n, d.Size())
		}
		other := open(true)
		if other.Size() != size {
			t.Errorf("opened, it has %d bytes, and not %d", other.Size(), size)
		}
		if err := other.Read(t.Context(), make([]byte, blockSize), size-blockSize); err != nil {
			t.Error(err)
		}
		d.Close()
		d = other
		line = newWire(v.box)
		d.store = line
	}
}
