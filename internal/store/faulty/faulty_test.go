// SPDX-License-Identifier: MIT

package faulty_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/store/storetest"
)

// create returns a faulty store over one in memory whose container exists.
func create(t *testing.T) (*faulty.Store, *mem.Container) {
	t.Helper()
	m := mem.New()
	if _, err := m.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return faulty.New(m, nil), m
}

// once returns a driver that does fault to the operation number n.
func once(n int64, fault faulty.Fault) faulty.Driver {
	return func(op faulty.Op) faulty.Fault {
		if op.N == n {
			return fault
		}
		return faulty.Fault{}
	}
}

// content returns the object's bytes as a string, or "absent".
func content(t *testing.T, s store.Store) string {
	t.Helper()
	info, err := s.Head(t.Context(), "o")
	if errors.Is(err, store.ErrNotFound) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, info.Size)
	if _, err := s.Get(t.Context(), "o", p, store.GetOptions{Newest: true}); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

func put(t *testing.T, s store.Store, data string) error {
	t.Helper()
	return s.Put(t.Context(), "o", []byte(data), storetest.Sum([]byte(data)))
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return faulty.New(mem.New(), nil) })
}

func TestErrBeforeAndAfter(t *testing.T) {
	for _, after := range []bool{false, true} {
		f, m := create(t)
		f.SetDriver(once(1, faulty.Fault{Err: faulty.Reset(store.Op{}), After: after}))
		if err := put(t, f, "a"); !store.Ambiguous(err) {
			t.Errorf("after %v: put: %v, want ambiguous", after, err)
		}
		want := map[bool]string{false: "absent", true: "a"}[after]
		if got := content(t, m); got != want {
			t.Errorf("after %v: %q, want %q", after, got, want)
		}
		if err := put(t, f, "b"); err != nil {
			t.Error(err)
		}
	}
}

func TestHangAndDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := create(t)
		f.SetDriver(once(1, faulty.Fault{Delay: time.Second, Hang: true, After: true}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := f.Put(ctx, "o", []byte("a"), "")
		if !errors.Is(err, context.DeadlineExceeded) || !store.Ambiguous(err) || time.Since(start) != time.Minute {
			t.Errorf("put: %v after %v", err, time.Since(start))
		}
		if got := content(t, m); got != "a" {
			t.Errorf("%q, want a", got)
		}
		// A delay that outlives the context prevents the effect.
		f.SetDriver(once(2, faulty.Fault{Delay: time.Hour}))
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.Put(ctx, "o", []byte("b"), ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if got := content(t, m); got != "a" {
			t.Errorf("%q, want a", got)
		}
	})
}

func TestShort(t *testing.T) {
	f, _ := create(t)
	if err := put(t, f, "abcdef"); err != nil {
		t.Fatal(err)
	}
	f.SetDriver(once(2, faulty.Fault{Short: 2}))
	p := make([]byte, 6)
	_, err := f.Get(t.Context(), "o", p, store.GetOptions{})
	if !store.Transient(err) || !bytes.Equal(p, []byte("abcd\x00\x00")) {
		t.Errorf("%q, %v", p, err)
	}
}

func TestLate(t *testing.T) {
	f, m := create(t)
	// A lost write lands over a later one.
	f.SetDriver(once(1, faulty.Fault{Err: faulty.Reset(store.Op{}), Late: 2}))
	data := []byte("a")
	if err := f.Put(t.Context(), "o", data, ""); !store.Ambiguous(err) {
		t.Fatal(err)
	}
	data[0] = 'x' // the late landing has a copy
	if err := put(t, f, "b"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, m); got != "b" {
		t.Errorf("%q before the late write lands, want b", got)
	}
	if got := content(t, f); got != "a" { // operation 3
		t.Errorf("%q after the late write landed, want a", got)
	}
	// A duplicate that only LandAll lands.
	f.SetDriver(func(op faulty.Op) faulty.Fault {
		if op.Kind == store.OpDelete {
			return faulty.Fault{Late: 1000}
		}
		return faulty.Fault{}
	})
	if err := f.Delete(t.Context(), "o"); err != nil {
		t.Fatal(err)
	}
	if err := put(t, f, "c"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, m); got != "c" {
		t.Errorf("%q, want c", got)
	}
	f.LandAll()
	if got := content(t, m); got != "absent" {
		t.Errorf("%q after the deletion landed again", got)
	}
}

func TestStale(t *testing.T) {
	f, m := create(t)
	if err := put(t, m, "0"); err != nil { // before the decorator
		t.Fatal(err)
	}
	for _, data := range []string{"1", "2"} {
		if err := put(t, f, data); err != nil {
			t.Fatal(err)
		}
	}
	read := func(stale int, o store.GetOptions) string {
		f.SetDriver(func(faulty.Op) faulty.Fault { return faulty.Fault{Stale: stale} })
		p := make([]byte, 1)
		_, err := f.Get(t.Context(), "o", p, o)
		if errors.Is(err, store.ErrNotFound) {
			return "absent"
		}
		if err != nil {
			t.Error(err)
		}
		return string(p)
	}
	for stale, want := range map[int]string{0: "2", 1: "1", 2: "0", 3: "0"} {
		if got := read(stale, store.GetOptions{}); got != want {
			t.Errorf("stale %d: %q, want %q", stale, got, want)
		}
	}
	if got := read(1, store.GetOptions{Newest: true}); got != "2" {
		t.Errorf("newest: %q", got)
	}
	if got := read(1, store.GetOptions{IfMatch: storetest.Sum([]byte("2"))}); got != "2" {
		t.Errorf("if-match: %q", got)
	}
	if err := f.Delete(t.Context(), "o"); err != nil {
		t.Fatal(err)
	}
	if got := read(1, store.GetOptions{}); got != "2" {
		t.Errorf("deleted, read stale: %q, want 2", got)
	}
	if got := read(0, store.GetOptions{}); got != "absent" {
		t.Errorf("deleted: %q", got)
	}
	// The listing is from before the decorator.
	if err := f.Put(t.Context(), "new", nil, ""); err != nil {
		t.Fatal(err)
	}
	f.SetDriver(func(faulty.Op) faulty.Fault { return faulty.Fault{Stale: 1} })
	page, err := f.List(t.Context(), store.ListOptions{})
	if err != nil || len(page) != 1 || page[0].Name != "o" {
		t.Errorf("stale listing: %v, %v", page, err)
	}
}

func TestCrash(t *testing.T) {
	for _, effect := range []bool{false, true} {
		f, m := create(t)
		f.CrashAt(2, effect)
		if err := put(t, f, "a"); err != nil || f.Crashed() {
			t.Fatalf("before the crash: %v", err)
		}
		for range 2 {
			if err := put(t, f, "b"); !errors.Is(err, faulty.ErrCrashed) || store.Transient(err) {
				t.Errorf("put: %v", err)
			}
		}
		if _, err := f.List(t.Context(), store.ListOptions{}); !errors.Is(err, faulty.ErrCrashed) || !f.Crashed() {
			t.Errorf("list: %v", err)
		}
		want := map[bool]string{false: "a", true: "b"}[effect]
		if got := content(t, m); got != want {
			t.Errorf("effect %v: %q, want %q", effect, got, want)
		}
		f.CrashAt(0, false)
		if got := content(t, f); got != want {
			t.Errorf("revived: %q, want %q", got, want)
		}
	}
}

// TestRandomRepeats runs the same operations twice with one seed.
func TestRandomRepeats(t *testing.T) {
	rates := faulty.Rates{
		Refuse: 0.05, Fail: 0.05, Lose: 0.05, Ambiguous: 0.1, Short: 0.1, Late: 0.1, Twice: 0.1, Stale: 0.1,
	}
	run := func(seed uint64) string {
		f, m := create(t)
		f.SetDriver(faulty.Random(seed, rates))
		log := ""
		for i := range 300 {
			var err error
			switch i % 3 {
			case 0:
				err = put(t, f, fmt.Sprint(i))
			case 1:
				p := make([]byte, 1)
				_, err = f.Get(t.Context(), "o", p, store.GetOptions{})
				log += string(p)
			case 2:
				err = f.Delete(t.Context(), "o")
			}
			log += fmt.Sprintln(err)
		}
		f.LandAll()
		return log + content(t, m)
	}
	first := run(1)
	if run(1) != first {
		t.Error("the same seed, and another run")
	}
	if run(2) == first {
		t.Error("another seed, and the same run")
	}
}
