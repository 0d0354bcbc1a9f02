// SPDX-License-Identifier: MIT

package volume

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

func mustGeometry(t testing.TB, objectSize, objects int64) geometry.Geometry {
	t.Helper()
	g, err := geometry.New(objectSize, objects)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// post is what swiftnbd 0.11 does to a container: a merge of metadata items,
// an empty value removing the key.
func post(t testing.TB, s store.Store, items map[string]string) {
	t.Helper()
	if err := s.SetMetadata(t.Context(), items); err != nil {
		t.Fatal(err)
	}
}

// items returns the container's metadata as it is.
func items(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	md, err := s.Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return md.Items
}

// session011 is a session of swiftnbd 0.11: it reads all items with the prefix
// swiftnbd-, ours too, and sends all of them again with its mark, and at the
// end with Last. id is its mark.
func session011(t testing.TB, s store.Store, id string, work func()) {
	t.Helper()
	meta := maps.Clone(items(t, s))
	meta[KeyClient] = id
	post(t, s, meta)
	work()
	meta[KeyLast], meta[KeyClient] = id, ""
	post(t, s, meta)
}

// setup011 is 0.11's setup, forced or not.
func setup011(t testing.TB, s store.Store, objects, objectSize string) {
	t.Helper()
	post(t, s, map[string]string{"swiftnbd-version": "1", "swiftnbd-objects": objects,
		"swiftnbd-object_size": objectSize, "swiftnbd-client": "", "swiftnbd-last": ""})
}

func read(t testing.TB, s store.Store) Meta {
	t.Helper()
	m, err := Read(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestBlank has a volume called blank only while nobody can have written it.
func TestBlank(t *testing.T) {
	g := mustGeometry(t, 16, 10)
	fresh := func(t *testing.T) *mem.Container {
		s := mem.New()
		if err := Create(t.Context(), s, g); err != nil {
			t.Fatal(err)
		}
		if m := read(t, s); !m.Blank || m.Map != "" || m.Client != "" || m.Geometry != g {
			t.Fatalf("a new volume is %+v", m)
		}
		return s
	}
	for name, after := range map[string]func(t *testing.T, s store.Store){
		"a session of 0.11":                func(t *testing.T, s store.Store) { session011(t, s, "127.0.0.1:1@1", func() {}) },
		"0.11 at work":                     func(t *testing.T, s store.Store) { post(t, s, map[string]string{KeyClient: "127.0.0.1:1@1"}) },
		"0.11's lock":                      func(t *testing.T, s store.Store) { session011(t, s, "ctl@1", func() {}) },
		"0.11's forced setup":              func(t *testing.T, s store.Store) { setup011(t, s, "10", "16") },
		"0.11's forced setup, a new shape": func(t *testing.T, s store.Store) { setup011(t, s, "20", "32") },
		"a forced setup and a session of 0.11": func(t *testing.T, s store.Store) {
			setup011(t, s, "10", "16")
			session011(t, s, "127.0.0.1:1@1", func() {})
		},
		"our own forced setup": func(t *testing.T, s store.Store) {
			if err := Create(t.Context(), s, g); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			after(t, s)
			if m := read(t, s); m.Blank {
				t.Errorf("still blank: %+v of %v", m, items(t, s))
			}
		})
	}
	t.Run("setup by 0.11", func(t *testing.T) {
		s := mem.New()
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(t.Context(), s); !errors.Is(err, ErrNotSetUp) {
			t.Errorf("a bare container: %v", err)
		}
		setup011(t, s, "10", "16")
		if m := read(t, s); m.Blank || m.Geometry != g {
			t.Errorf("%+v", m)
		}
	})
	t.Run("setup of a container that was there", func(t *testing.T) {
		s := mem.New()
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := Create(t.Context(), s, g); err != nil {
			t.Fatal(err)
		}
		if m := read(t, s); m.Blank {
			t.Errorf("it may hold anything, and is called blank: %+v", m)
		}
	})
}

// TestParseMetaErrors has what is no volume refused, with the item named.
func TestParseMetaErrors(t *testing.T) {
	good := map[string]string{KeyVersion: "1", KeyObjects: "10", KeyObjectSize: "16"}
	if m, err := ParseMeta(good); err != nil || m.Geometry.Size() != 160 {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, k := range []string{KeyVersion, KeyObjects, KeyObjectSize} {
		bad := maps.Clone(good)
		delete(bad, k)
		if _, err := ParseMeta(bad); !errors.Is(err, ErrNotSetUp) {
			t.Errorf("without %s: %v", k, err)
		}
		for _, v := range []string{"x", "-1", "0", "1.5", "99999999999999999999", "1e3", "0x10"} {
			bad[k] = v
			_, err := ParseMeta(bad)
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Key != k || !strings.Contains(err.Error(), v) {
				t.Errorf("%s %q: %v", k, v, err)
			}
		}
	}
	if _, err := ParseMeta(map[string]string{KeyVersion: "2", KeyObjects: "10", KeyObjectSize: "16"}); err == nil {
		t.Error("version 2 is taken for 1")
	}
}

func TestObjectName(t *testing.T) {
	for i, name := range map[geometry.ChunkIndex]string{0: "disk.part/00000000", 7: "disk.part/00000007", 99999999: "disk.part/99999999", 1e8: "disk.part/100000000"} {
		if got := ObjectName(i); got != name {
			t.Errorf("chunk %d is %q, want %q", i, got, name)
		}
		if got, ok := ParseObjectName(name); !ok || got != i {
			t.Errorf("%q is chunk %d, %t", name, got, ok)
		}
	}
	for _, name := range []string{"", "disk.part/", "disk.part/1", "disk.part/000000001", "disk.part/-0000001", "disk.part/+0000001",
		"disk.part/0000000a", "disk.part/99999999999999999999", "Disk.part/00000001", "disk.part/00000001/x", "swiftnbd/00000001"} {
		if i, ok := ParseObjectName(name); ok {
			t.Errorf("%q is taken for chunk %d", name, i)
		}
	}
}

func FuzzParseObjectName(f *testing.F) {
	f.Add("disk.part/00000001")
	f.Add("disk.part/100000000")
	f.Add("disk.part/0000000١")
	f.Fuzz(func(t *testing.T, name string) {
		if i, ok := ParseObjectName(name); ok && (i < 0 || ObjectName(i) != name) {
			t.Errorf("%q is chunk %d, whose name is %q", name, i, ObjectName(i))
		}
	})
}

func FuzzParseMeta(f *testing.F) {
	f.Add("1", "10", "65536", "", "a@1", "a@1", "")
	f.Add("1", "9223372036854775807", "2", "x", "", "", "y")
	f.Fuzz(func(t *testing.T, version, objects, size, client, last, blank, mapped string) {
		m, err := ParseMeta(map[string]string{KeyVersion: version, KeyObjects: objects, KeyObjectSize: size,
			KeyClient: client, KeyLast: last, KeyBlank: blank, KeyMap: mapped})
		if err != nil {
			return
		}
		if m.Geometry.Size() <= 0 || m.Version != FormatVersion {
			t.Errorf("taken: %+v", m)
		}
		if (m.Blank || m.Map != "") && (client != "" || last == "") {
			t.Errorf("believed though %q holds it and %q held it: %+v", client, last, m)
		}
		if m.Map != "" && m.Map != last {
			t.Errorf("the map of %q is believed, %q was the last", m.Map, last)
		}
	})
}
