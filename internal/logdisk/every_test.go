// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
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
)

// script changes a disk whose history is kept.
type script struct {
	t       testing.TB
	h       *past
	blocks  uint64
	flushed uint64
}

func newScript(t testing.TB, blocks uint64) *script {
	return &script{t: t, h: &past{changes: map[uint64][]change{}}, blocks: blocks}
}

// write stamps blocks, one operation each.
func (s *script) write(d *Disk, blocks ...uint64) error {
	p := make([]byte, blockSize)
	for _, b := range blocks {
		s.h.ops++
		stamp(p, b, s.h.ops)
		s.h.note(b, 1, s.h.ops, false)
		if err := d.Write(s.t.Context(), p, int64(b)*blockSize); err != nil {
			return err
		}
	}
	return nil
}

func (s *script) zero(d *Disk, first, count uint64) error {
	s.h.ops++
	s.h.note(first, count, s.h.ops, true)
	return d.Trim(s.t.Context(), int64(first)*blockSize, int64(count)*blockSize)
}

func (s *script) flush(d *Disk) error {
	ctx, stop := context.WithTimeout(s.t.Context(), time.Minute)
	defer stop()
	n := s.h.ops
	err := d.Flush(ctx)
	if err == nil {
		s.flushed = n
	}
	return err
}

func (s *script) save(d *Disk) error {
	ctx, stop := context.WithTimeout(s.t.Context(), time.Minute)
	defer stop()
	return d.Save(ctx)
}

// check takes the disk as it is for what it was at one moment, and goes on from
// there.
func (s *script) check(d *Disk) { s.t.Helper(); s.checkUnless(d, faulty.NewGate(nil)) }

// checkUnless is check, but when the gate has crashed nothing can be read.
func (s *script) checkUnless(d *Disk, gate *faulty.Store) {
	s.t.Helper()
	if op, ok := s.h.prefix(s.t, d, s.blocks, s.flushed, gate); ok {
		s.h.cut(op)
		s.flushed = op
	}
}

// same fails unless the disk is what it is to be after all operations, read from
// Swift and not from the cache.
func (s *script) same(d *Disk) {
	s.t.Helper()
	d.checkSums(s.t)
	blocks := s.h.size(s.h.ops, s.blocks)
	p, want := make([]byte, blocks*blockSize), make([]byte, blockSize)
	if n := d.Size(); n != int64(len(p)) {
		s.t.Fatalf("the disk has %d bytes, and is to have %d", n, len(p))
	}
	if _, err := d.read(s.t.Context(), 0, p); err != nil {
		s.t.Fatal(err)
	}
	for b := range blocks {
		s.h.at(b, s.h.ops, want)
		if string(p[b*blockSize:][:blockSize]) != string(want) {
			s.t.Fatalf("block %d is not what it was", b)
		}
	}
}

// everything does a little of all that a disk does: cuts beside each other,
// flushes, checkpoints, collecting, deleting.
func (s *script) everything(d *Disk) error {
	steps := []func() error{
		func() error { return s.write(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10) }, // some cuts
		func() error { return s.zero(d, 4, 2) },
		func() error { return s.flush(d) },
		func() error { return s.write(d, 1, 30, 2, 31, 8) },
		func() error { return s.flush(d) },
		func() error { return s.write(d, 11, 12, 9) },
		func() error { return s.save(d) }, // waits for what is sealed
		func() error { return s.write(d, 2, 3, 10, 40, 41) },
		func() error { return s.flush(d) },
		func() error { time.Sleep(25 * time.Second); return nil }, // the collector's time
		func() error { return s.write(d, 7, 11, 40) },
		func() error { return s.zero(d, 30, 2) },
		func() error { return s.flush(d) },
		func() error { return s.save(d) },
		func() error { time.Sleep(11 * time.Minute); return nil }, // what is garbage is deleted
		func() error { return s.write(d, 50, 51, 52, 53, 54, 55, 1, 2) },
		func() error { return s.flush(d) },
		func() error { return s.write(d, 56, 57, 58, 59, 3, 4) },
		func() error { return s.save(d) },
		func() error { return s.write(d, 5, 6) },
	}
	for _, step := range steps {
		err := step()
		if errors.As(err, new(*store.TransportError)) && context.Cause(d.Context()) == nil {
			err = s.flush(d) // a request failed, and the client tries again
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestEveryRequest ends a process at each of its requests, has another one take
// over, and what the first had under way arrive before, meanwhile, or after. It
// also has each request fail and the process go on.
func TestEveryRequest(t *testing.T) { everyRequestOf(t, "") }

// TestEveryRequestPaged is TestEveryRequest with little memory for the map.
func TestEveryRequestPaged(t *testing.T) { everyRequestOf(t, "paged") }

// TestEveryRequestConverted is TestEveryRequest of a disk that was of version 1.
func TestEveryRequestConverted(t *testing.T) { everyRequestOf(t, "converted") }

// TestEveryRequestCompressed is TestEveryRequest with compression.
func TestEveryRequestCompressed(t *testing.T) { everyRequestOf(t, "compressed") }

func everyRequestOf(t *testing.T, what string) {
	var (
		kinds map[string]int
		n     int64
	)
	synctest.Test(t, func(t *testing.T) { n, kinds = everyRequest(t, 1<<40, "late", what) }) // it ends at none
	step := int64(1)
	if testing.Short() {
		step = 7
	}
	switch what {
	case "paged":
		step *= 5
	case "compressed": // the models have the rest
		step *= 12
	case "converted":
		if step *= 60; *opsFlag > 0 { // TestModelConverted has the rest
			step = 1
		}
	}
	ends := 0
	for k := int64(1); k <= n; k += step {
		for _, way := range []string{"without effect", "with effect", "late", "fails", "fails, arrives", "fails, arrives late"} {
			synctest.Test(t, func(t *testing.T) {
				everyRequest(t, k, way, what)
				ends++
			})
			if t.Failed() {
				t.Fatalf("request %d, %s", k, way)
			}
		}
	}
	t.Logf("%d requests, %d ends: %v", n, ends, kinds)
	for _, kind := range []string{"PUT swiftnbd/log", "PUT swiftnbd/run", "PUT swiftnbd/root", "BULK DELETE", "SET METADATA", "LIST", "HEAD swiftnbd/log", "GET swiftnbd/log", "GET swiftnbd/run"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s: this test shows little", kind)
		}
	}
}

// failAt has request k of the gate fail, with its effect or without as way says.
// One that arrives late has it when at most so many more have begun.
func failAt(gate *faulty.Store, rng *rand.Rand, k int64, way string, late int64) {
	gate.SetDriver(func(op faulty.Op) faulty.Fault {
		if op.N != k {
			return faulty.Fault{}
		}
		f := faulty.Fault{Err: faulty.Reset(op.Op), After: way == "fails, arrives"}
		if way == "fails, arrives late" {
			f.Late = 1 + rng.Int64N(late)
		}
		return f
	})
}

func everyRequest(t *testing.T, k int64, way, what string) (used int64, kinds map[string]int) {
	const blocks = 64
	rng := rand.New(rand.NewPCG(uint64(k), 1))
	s := newScript(t, blocks)
	var v *opener
	if what == "converted" {
		v = stampedChunks(t, rng, s.h, blocks)
		v.t, s.flushed = t, s.h.ops
	} else {
		v = (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, blocks*blockSize)
	}
	v.o = smallOptions()
	if what == "paged" {
		v.o.littleMap()
	}
	v.o.Compress = what == "compressed"
	w := newWitness(t, v.box, horizon)
	// A first holder that ends badly: there is a log to be read, and a stray.
	first := newWire(w)
	d, err := v.open(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(d, 20, 21, 22, 23, 24, 25, 26, 20); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(d); err != nil {
		t.Fatal(err)
	}
	first.die()
	d.Close()

	// The one that is ended at request k.
	line := newWire(w)
	var s1 store.Store = line
	gate := faulty.NewGate(line)
	switch way {
	case "late":
		line.holdAt = k
	case "fails", "fails, arrives", "fails, arrives late":
		s1 = gate
		failAt(gate, rng, k, way, 30)
	default:
		gate.CrashAt(k, way == "with effect")
		s1 = gate
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Hour)
	d, err = v.open(ctx, s1)
	stop()
	if err == nil {
		s.checkUnless(d, gate)
		if err := s.everything(d); err != nil && strings.HasPrefix(way, "fails") {
			t.Fatal(err)
		}
		synctest.Wait()
		used = line.requests()
		if way == "late" {
			time.Sleep(time.Duration(rng.IntN(20)) * time.Second) // more comes under way
		}
		line.die()
		d.Close()
	} else {
		line.die()
	}
	synctest.Wait()
	used = max(used, line.requests())
	kinds = line.kinds
	some, rest := line.arrivals(rng)
	some()

	// The next one.
	second := newWire(w)
	if d, err = v.open(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	some()
	s.check(d)
	if err := s.write(d, 2, 8, 40, 60, 61, 62, 63); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(d); err != nil {
		t.Fatal(err)
	}
	some()
	time.Sleep(time.Duration(rng.IntN(12)) * time.Minute)
	s.same(d)
	if rng.IntN(2) == 0 {
		if err := s.save(d); err != nil {
			t.Fatal(err)
		}
	}
	some()
	if err := s.write(d, 1, 9, 33); err != nil {
		t.Fatal(err)
	}
	second.die()
	d.Close()
	synctest.Wait()

	// And the last, who sees all that was under way.
	if rng.IntN(2) == 0 {
		rest()
	}
	v.o.Every = time.Minute
	if d, err = v.open(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	rest()
	s.check(d)
	time.Sleep(26 * time.Hour) // it has looked for strays again, and deleted them
	s.same(d)
	time.Sleep(time.Hour) // what was read is put in order, and what that replaced is deleted
	list, err := v.box.List(t.Context(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(o store.ObjectInfo) bool { return ofVersion1(o.Name) })
	d.mu.RLock()
	named := d.objects.len() + len(d.root.Runs.Blocks) + len(d.root.Runs.Objects) + 1
	d.mu.RUnlock()
	if u := d.Use(); len(list) != named || u.Garbage != 0 {
		names := slices.Collect(func(yield func(string) bool) {
			for _, o := range list {
				yield(o.Name)
			}
		})
		t.Errorf("%d objects are left, %d are named: %v; %+v", len(list), named, names, u)
	}
	d.Close()
	if n := recordKinds(t, v)[layout.Zstd]; (n > 0) != v.o.Compress {
		t.Errorf("%d compressed records are left", n)
	}
	return used, kinds
}
