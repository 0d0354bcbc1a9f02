// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// collecting returns a store that calls put before each PUT of an object of the
// collector.
func collecting(s store.Store, put func() error) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		if at, ok := layout.ParseLogName(op.Name); ok && op.Kind == store.OpPut && at.N >= layout.FirstCollected {
			if err := put(); err != nil {
				return err
			}
		}
		return call(ctx)
	})
}

// TestTidyWithoutRoom has a quota be so full that no object of the collector fits. What
// is garbage is deleted all the same: otherwise it would stay full for ever. The log has
// one line of it, and not one each second.
func TestTidyWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = smallOptions()
		var refused, lines atomic.Int64
		v.o.Log = func(format string, args ...any) {
			if strings.HasPrefix(format, "collect garbage") {
				lines.Add(1)
			}
		}
		d, err := v.open(t.Context(), collecting(v.box, func() error {
			refused.Add(1)
			return store.ErrNoSpace
		}))
		do := doer(t)
		do(err)
		s := newScript(t, 64)
		for range 4 {
			do(s.write(d, 1, 2, 3, 4, 5, 6))
			do(s.flush(d))
		}
		do(s.write(d, 1, 4)) // so there is something to collect, too
		do(s.flush(d))
		do(d.Save(t.Context()))
		if d.Use().Garbage == 0 {
			t.Fatal("nothing is garbage: this test shows nothing")
		}
		time.Sleep(2 * horizon)
		if n := d.Use().Garbage; n != 0 || refused.Load() == 0 {
			t.Errorf("%d bytes of garbage are left; %d objects were refused", n, refused.Load())
		}
		if n := lines.Load(); n != 1 {
			t.Errorf("%d lines for %d refusals", n, refused.Load())
		}
		s.same(d)
	})
}

// TestTidyBusy has clients write so much that there is always something to collect. What
// is garbage is deleted meanwhile.
func TestTidyBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = smallOptions()
		v.o.Idle, v.o.Horizon = time.Nanosecond, time.Minute // it collects all that it can
		d, err := v.open(t.Context(), collecting(v.box, func() error {
			time.Sleep(10*time.Second + time.Millisecond) // and not when a client has just written
			return nil
		}))
		do := doer(t)
		do(err)
		s := newScript(t, 64)
		for n := range uint64(1000) { // half of each object is live for a while
			do(s.write(d, n%32, (n+1)%32))
			do(s.flush(d))
			time.Sleep(time.Second)
		}
		if n := d.stats.Deleted.Load(); n < 100 {
			t.Errorf("%d objects were deleted, and %d were collected", n, d.stats.Collected.Load())
		}
		s.same(d)
	})
}

// TestDeleteOthers has one object that Swift does not delete, as when its timestamp is of
// a clock that was ahead. All others are deleted, and it is when it can be.
func TestDeleteOthers(t *testing.T) {
	for _, bulk := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			v := newClosing(t, 64*blockSize)
			v.o = smallOptions()
			v.o.Brief = true // the test does it by itself
			var stays atomic.Bool
			stays.Store(true)
			stuck := layout.LogName(layout.Position{Epoch: 0, N: 5})
			there := map[string]bool{}
			var mu sync.Mutex
			do := doer(t)
			d, err := v.open(t.Context(), &deleting{v.box, bulk, func(name string) error {
				mu.Lock()
				defer mu.Unlock()
				if name == stuck && stays.Load() {
					return store.ErrSuperseded
				}
				delete(there, name)
				return nil
			}})
			do(err)
			synctest.Wait() // for the collector's look at the beginning
			d.mu.Lock()
			for n := range uint64(3 * deleteAtOnce) {
				o := deadObject{layout.Position{Epoch: 0, N: n + 1}, 100}
				there[layout.LogName(o.at)] = true
				d.garbage.addObject(time.Now(), o)
				d.waste += o.size
			}
			d.mu.Unlock()
			for range 4 {
				if err := d.deleteGarbage(t.Context()); err != nil && !errors.Is(err, store.ErrSuperseded) {
					t.Fatal(err)
				}
			}
			if len(there) != 1 || !there[stuck] {
				t.Errorf("bulk %t: %d objects are left", bulk, len(there))
			}
			stays.Store(false)
			time.Sleep(2 * deleteAgain)
			do(d.deleteGarbage(t.Context()))
			if len(there) > 0 || d.Use().Garbage != 0 {
				t.Errorf("bulk %t: %d objects are left in the end, %d bytes", bulk, len(there), d.Use().Garbage)
			}
		})
	}
}

// deleting is a store that calls one for each object that is to be deleted. It has a
// bulk delete or not, which goes on after an error.
type deleting struct {
	store.Store
	bulk bool
	one  func(name string) error
}

func (s *deleting) Delete(_ context.Context, name string) error { return s.one(name) }

func (s *deleting) BulkDelete(_ context.Context, names []string) (err error) {
	if !s.bulk {
		return errors.ErrUnsupported
	}
	for _, name := range names {
		if e := s.one(name); err == nil {
			err = e
		}
	}
	return err
}

// TestDeleteRootFirst has a merge of so many runs that one request does not delete them.
// The root that names them goes before, or with the first: a reader who does not find a
// run looks whether its root is there.
func TestDeleteRootFirst(t *testing.T) {
	v := newClosing(t, 64*blockSize)
	v.o = smallOptions()
	v.o.Brief = true
	d, err := v.open(t.Context(), v.box)
	do := doer(t)
	do(err)
	first := layout.RootName(d.rootAt)
	do(d.edit(t.Context(), func(c *checkpoint) error {
		for n := range uint64(2 * deleteAtOnce) {
			c.obsolete = append(c.obsolete, layout.RunName(layout.Position{Epoch: 1, N: n + 1}))
		}
		return nil
	}))
	if names := d.garbage.take(time.Now().Add(2 * horizon)); len(names) != deleteAtOnce || !slices.Contains(names, first) {
		t.Errorf("%d are deleted first, and %s is not one of them", len(names), first)
	}
}

// TestTidySaysOnce has nothing be deleted for hours. The log has one line of it.
func TestTidySaysOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = smallOptions()
		var lines, tries atomic.Int64
		v.o.Log = func(string, ...any) { lines.Add(1) }
		_, err := v.open(t.Context(), &deleting{v.box, true, func(string) error {
			tries.Add(1)
			return store.ErrSuperseded
		}})
		doer(t)(err)
		time.Sleep(2 * horizon) // the first root is garbage
		if lines.Load() != 1 || tries.Load() < 10 {
			t.Errorf("%d lines for %d deletions", lines.Load(), tries.Load())
		}
	})
}

// TestFailedPuts has PUTs of objects of the collector, of runs and of lists arrive and
// seem to fail. What they have left is deleted by the same server: nobody else may
// open the disk for years.
func TestFailedPuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = smallOptions()
		v.o.tableLimit, v.o.keptLimit = 1, 1
		var mu sync.Mutex
		seen, failed := map[string]int{}, map[string]int{}
		d, err := v.open(t.Context(), store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
			err := call(ctx)
			kind := op.Name[:strings.LastIndexByte(op.Name, '/')+1]
			if at, ok := layout.ParseLogName(op.Name); err != nil || op.Kind != store.OpPut || kind == layout.RootPrefix || ok && at.N < layout.FirstCollected {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[kind]++; seen[kind]%3 != 0 {
				return nil
			}
			failed[kind]++
			return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("no answer")}
		}))
		do := doer(t)
		do(err)
		s := newScript(t, 64)
		for n := range 3 {
			do(s.everything(d))
			for d.Snapshot(t.Context(), strconv.Itoa(n)) != nil {
			}
		}
		do(s.everything(d))
		time.Sleep(3 * horizon)
		for d.Save(t.Context()) != nil {
		}
		s.same(d)
		time.Sleep(6 * horizon) // what was read is put in order, and what that replaced is deleted
		for _, kind := range []string{layout.LogPrefix, layout.RunPrefix, layout.KeptPrefix} {
			mu.Lock()
			n := failed[kind]
			mu.Unlock()
			if n == 0 {
				t.Errorf("none of %s has failed: this test shows little", kind)
			}
		}
		atRest(t, d, v.box)
	})
}
