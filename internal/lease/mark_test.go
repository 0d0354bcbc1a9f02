// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// setup makes a volume, blank as our own setup leaves it.
func setup(t *testing.T) (*faulty.Store, *mem.Container) {
	t.Helper()
	m := mem.New()
	g, err := geometry.New(16, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Create(t.Context(), m, g); err != nil {
		t.Fatal(err)
	}
	return faulty.New(m, nil), m
}

func items(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	md, err := s.Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return md.Items
}

func read(t *testing.T, s store.Store) volume.Meta {
	t.Helper()
	m, err := volume.Read(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func post(t *testing.T, s store.Store, items map[string]string) {
	t.Helper()
	if err := s.SetMetadata(t.Context(), items); err != nil {
		t.Fatal(err)
	}
}

func mark(t *testing.T, s store.Store) (*lease.Held, volume.Meta) {
	t.Helper()
	h, meta, err := lease.Mark(t.Context(), s, "host:1")
	if err != nil {
		t.Fatal(err)
	}
	return h, meta
}

// releaseMapped gives the volume back as a session of version 1 does that has
// saved the map of its chunks.
func releaseMapped(h *lease.Held, ctx context.Context) error {
	return h.ReleaseWith(ctx, map[string]string{volume.KeyMap: h.Mark()})
}

// lock011 is swiftnbd 0.11's lock: it reads all items, ours too, and sends all
// of them again with its mark. What it returns is its unlock, which sends what
// it read then once more.
func lock011(t *testing.T, s store.Store, id string) (unlock func()) {
	t.Helper()
	meta := maps.Clone(items(t, s))
	meta[volume.KeyClient] = id
	post(t, s, meta)
	return func() {
		meta[volume.KeyLast], meta[volume.KeyClient] = id, ""
		post(t, s, meta)
	}
}

// on runs do before the operations of that kind of which when says so.
func on(kind store.Kind, nth int, do func()) faulty.Driver {
	n := 0
	return func(op faulty.Op) faulty.Fault {
		if op.Kind == kind {
			if n++; n == nth {
				do()
			}
		}
		return faulty.Fault{}
	}
}

func TestMark(t *testing.T) {
	s, m := setup(t)
	before := items(t, m)
	h, meta := mark(t, s)
	if !meta.Blank || meta.Client != h.Mark() || meta.Map != "" {
		t.Errorf("marked: %+v", meta)
	}
	if now := items(t, m); now[volume.KeyClient] != h.Mark() || now[volume.KeyBlank] != "" || now[volume.KeyMap] != "" {
		t.Errorf("while it is held: %v", now)
	}
	// A second one, of ours and in what 0.11 would see.
	_, _, err := lease.Mark(t.Context(), s, "other:2")
	var le *lease.LockedError
	if !errors.As(err, &le) || le.Holder != "host:1" || time.Since(le.Since) > time.Hour || !strings.Contains(err.Error(), "host:1") {
		t.Errorf("a second one: %v", err)
	}
	if now := items(t, m); now[volume.KeyClient] != h.Mark() {
		t.Errorf("the second one has changed the mark: %v", now)
	}
	// Nothing was written: all is as before.
	if err := h.ReleaseUnchanged(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := items(t, m); !maps.Equal(now, before) {
		t.Errorf("after a session that wrote nothing: %v, before %v", now, before)
	}
	// Released without a map, and with one.
	h, _ = mark(t, s)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := read(t, m); now.Client != "" || now.Last != h.Mark() || now.Blank || now.Map != "" {
		t.Errorf("released: %+v", now)
	}
	h, _ = mark(t, s)
	if err := releaseMapped(h, t.Context()); err != nil {
		t.Fatal(err)
	}
	mapped := items(t, m)
	if now := read(t, m); now.Client != "" || now.Last != h.Mark() || now.Blank || now.Map != h.Mark() {
		t.Errorf("released with a map: %+v", now)
	}
	h, meta = mark(t, s)
	if meta.Map == "" {
		t.Errorf("the next session has no map: %+v", meta)
	}
	if err := h.ReleaseUnchanged(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := items(t, m); !maps.Equal(now, mapped) {
		t.Errorf("after a session that wrote nothing: %v, before %v", now, mapped)
	}
}

// TestMarkAfterAnother has somebody come, write and leave between the first
// look at the volume and our mark: what was true then is not any more.
func TestMarkAfterAnother(t *testing.T) {
	for name, another := range map[string]func(t *testing.T, m store.Store){
		"0.11":              func(t *testing.T, m store.Store) { lock011(t, m, "127.0.0.1:1@1")() },
		"0.11 forced setup": func(t *testing.T, m store.Store) { post(t, m, map[string]string{volume.KeyLast: ""}) },
		"one of ours": func(t *testing.T, m store.Store) {
			h, _, err := lease.Mark(t.Context(), m, "other:2")
			if err != nil {
				t.Error(err)
				return
			}
			if err := releaseMapped(h, t.Context()); err != nil {
				t.Error(err)
			}
		},
		"a killed one, unlocked": func(t *testing.T, m store.Store) {
			if _, _, err := lease.Mark(t.Context(), m, "other:2"); err != nil {
				t.Error(err)
			}
			if _, err := lease.Break(t.Context(), m); err != nil {
				t.Error(err)
			}
		},
	} {
		for _, mapped := range []bool{false, true} {
			s, m := setup(t)
			if mapped {
				h, _ := mark(t, s)
				if err := releaseMapped(h, t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			s.SetDriver(on(store.OpSetMetadata, 1, func() { another(t, m) }))
			h, meta, err := lease.Mark(t.Context(), s, "host:3")
			if err != nil {
				t.Fatal(err)
			}
			if meta.Blank || meta.Map != "" {
				t.Errorf("%s has been here, mapped=%t: %+v", name, mapped, meta)
			}
			s.SetDriver(nil)
			if err := h.ReleaseUnchanged(t.Context()); err != nil {
				t.Fatal(err)
			}
			if now := read(t, m); now.Blank || now.Map != "" {
				t.Errorf("%s has been here, mapped=%t: left %+v", name, mapped, now)
			}
		}
	}
}

// TestMarkRaces has another's mark set between ours and the look at it.
func TestMarkRaces(t *testing.T) {
	s, m := setup(t)
	var unlock func()
	s.SetDriver(on(store.OpMetadata, 2, func() { unlock = lock011(t, m, "127.0.0.1:1@1700000000") }))
	_, _, err := lease.Mark(t.Context(), s, "host:1")
	var le *lease.LockedError
	if !errors.As(err, &le) || le.Holder != "127.0.0.1:1" {
		t.Errorf("0.11 was quicker: %v", err)
	}
	if now := read(t, m); now.Client != "127.0.0.1:1@1700000000" {
		t.Errorf("whoever lost has changed the mark: %+v", now)
	}
	unlock()
	if now := read(t, m); now.Client != "" || now.Blank || now.Map != "" {
		t.Errorf("after 0.11: %+v", now)
	}

	s, m = setup(t)
	s.SetDriver(on(store.OpMetadata, 2, func() { post(t, m, map[string]string{volume.KeyClient: ""}) }))
	if _, _, err := lease.Mark(t.Context(), s, "host:1"); err == nil {
		t.Error("marked, though the mark is gone")
	}
}

// TestMarkFails has every request of Mark fail, before and after its effect.
// Nothing may be left locked, and what is left must be true: a volume that
// was blank or mapped and is still called so.
func TestMarkFails(t *testing.T) {
	for _, mapped := range []bool{false, true} {
		for n := int64(1); ; n++ {
			var done bool
			for _, after := range []bool{false, true} {
				s, m := setup(t)
				if mapped {
					h, _ := mark(t, m)
					if err := releaseMapped(h, t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				before := items(t, m)
				s.SetDriver(func(op faulty.Op) faulty.Fault {
					if op.N == n {
						return faulty.Fault{Err: faulty.Reset(op.Op), After: after}
					}
					return faulty.Fault{}
				})
				_, _, err := lease.Mark(t.Context(), s, "host:1")
				if err == nil {
					done = true
					continue
				}
				if now := items(t, m); !maps.Equal(now, before) {
					t.Errorf("request %d failed, after=%t: left %v, was %v", n, after, now, before)
				}
			}
			if done {
				if n < 3 {
					t.Errorf("only %d requests", n)
				}
				break
			}
		}
	}
}

// TestLost has the mark taken away from its holder: the release says so and
// leaves everything to whoever has it now.
func TestLost(t *testing.T) {
	for name, release := range map[string]func(*lease.Held, context.Context) error{
		"release": (*lease.Held).Release, "mapped": releaseMapped, "unchanged": (*lease.Held).ReleaseUnchanged,
	} {
		for _, taken := range []bool{false, true} {
			s, m := setup(t)
			h, _ := mark(t, s)
			was, err := lease.Break(t.Context(), s)
			if err != nil || was != h.Mark() {
				t.Fatalf("break: %q, %v", was, err)
			}
			if now := read(t, m); now.Client != "" || now.Last != h.Mark() || now.Blank || now.Map != "" {
				t.Errorf("broken: %+v", now)
			}
			if taken {
				lock011(t, m, "127.0.0.1:1@1")
			}
			before := items(t, m)
			if err := release(h, t.Context()); !errors.Is(err, lease.ErrLost) {
				t.Errorf("%s: %v", name, err)
			}
			if now := items(t, m); !maps.Equal(now, before) {
				t.Errorf("%s of a lost mark: left %v, was %v", name, now, before)
			}
		}
	}
}

func TestBreak(t *testing.T) {
	s, _ := setup(t)
	if _, err := lease.Break(t.Context(), s); !errors.Is(err, lease.ErrNotLocked) {
		t.Errorf("%v", err)
	}
	if _, err := lease.Break(t.Context(), mem.New()); !errors.Is(err, store.ErrContainerNotFound) {
		t.Errorf("%v", err)
	}
	lock011(t, s, "ctl@1700000000") // the operator's own
	if was, err := lease.Break(t.Context(), s); err != nil || was != "ctl@1700000000" {
		t.Errorf("%q, %v", was, err)
	}
	if now := read(t, s); now.Blank || now.Client != "" {
		t.Errorf("%+v", now)
	}
}

func TestMarkText(t *testing.T) {
	at := time.Unix(1700000000, 0)
	for mark, want := range map[string]struct {
		holder string
		since  time.Time
	}{
		"127.0.0.1:51120@1700000000": {"127.0.0.1:51120", at},
		"ctl@1700000000":             {"ctl", at},
		"a@b@1700000000":             {"a@b", at},
		"nobody":                     {"nobody", time.Time{}},
		"x@y":                        {"x@y", time.Time{}},
		"x@-5":                       {"x@-5", time.Time{}},
		"@1700000000":                {"", at},
		"":                           {"", time.Time{}},
	} {
		holder, since := lease.ParseMark(mark)
		if holder != want.holder || !since.Equal(want.since) {
			t.Errorf("%q: %q, %v", mark, holder, since)
		}
	}
	if err := lease.Locked(""); err != nil {
		t.Error(err)
	}
	if mark := lease.FormatMark(lease.Holder(), at); len(mark) > store.MaxMetaValue || store.CheckMeta(volume.KeyClient, mark) != nil {
		t.Errorf("%q cannot be kept", mark)
	}
}
