// SPDX-License-Identifier: MIT

package volume

import (
	"encoding/hex"
	"errors"
	"maps"
	"strconv"
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
	// Whose the fault is, is said for setup: it replaces version 1's alone.
	for _, c := range []struct {
		items   map[string]string
		version int
	}{
		{map[string]string{KeyVersion: "1", KeyObjects: "x", KeyObjectSize: "16"}, 1},
		{map[string]string{KeyVersion: "1", KeyObjects: "9", KeyObjectSize: "0"}, 1},
		{map[string]string{KeyVersion: "2"}, 2},
		{map[string]string{KeyVersion: "3"}, 0},
		{map[string]string{KeyVersion: "x"}, 0},
	} {
		var fe *FormatError
		if _, err := ParseMeta(c.items); !errors.As(err, &fe) || fe.Version != c.version {
			t.Errorf("%v: %v, of version %d, want %d", c.items, err, fe.Version, c.version)
		}
	}
	// A version that is not known is never "not set up": setup would write over it.
	for _, v := range []string{"2", "3", "20", "x"} {
		for _, bad := range []map[string]string{
			{KeyVersion: v, KeyObjects: "10", KeyObjectSize: "16"},
			{KeyVersion: v, KeyObjects: "10"},
			{KeyVersion: v, KeyObjectSize: "16"},
			{KeyVersion: v, "Swiftnbd-Size": "160"},
			{KeyVersion: v},
		} {
			_, err := ParseMeta(bad)
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Key != KeyVersion || !strings.Contains(err.Error(), strconv.Quote(v)) {
				t.Errorf("%v: %v", bad, err)
			}
		}
	}
}

// TestVersion2 writes a container of version 2 and reads it.
func TestVersion2(t *testing.T) {
	want := Meta{Version: Version2, UUID: NewUUID(), Size: 10<<40 + 1, Root: "0000000a-00000001"}
	if want.UUID == NewUUID() {
		t.Fatalf("two volumes have the identity %x", want.UUID)
	}
	s := mem.New()
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	post(t, s, map[string]string{KeyVersion: "1", KeyObjects: "10", KeyObjectSize: "16", KeyBlank: "a@1", KeyLast: "a@1", KeyMap: "a@1"})
	if err := Create2(t.Context(), s, want); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s); got != want {
		t.Errorf("read: %+v, written %+v", got, want)
	}
	// 0.11 takes what has all three of its keys for a disk.
	for _, key := range []string{KeyObjects, KeyObjectSize, KeyBlank, KeyMap} {
		if value := items(t, s)[key]; value != "" {
			t.Errorf("%s is left: %q", key, value)
		}
	}
	if err := read(t, s).Need(Version2); err != nil {
		t.Error(err)
	}
	var ve *VersionError
	if err := read(t, s).Need(Version1); !errors.As(err, &ve) || ve.Has != 2 || ve.Need != 1 || strings.Contains(err.Error(), "\n") {
		t.Errorf("version 1 needed: %v", err)
	}
	post(t, s, map[string]string{KeyClient: "b@2", KeyLast: "a@1"})
	if got := read(t, s); got.Client != "b@2" || got.Last != "a@1" || got.Blank || got.Map != "" {
		t.Errorf("held: %+v", got)
	}

	before := items(t, s)
	for _, bad := range []Meta{{Size: 1}, {UUID: want.UUID}, {UUID: want.UUID, Size: -1}} {
		var fe *FormatError
		if err := Create2(t.Context(), s, bad); !errors.As(err, &fe) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if after := items(t, s); !maps.Equal(after, before) {
		t.Errorf("refused, and written: %v", after)
	}
	good := map[string]string{KeyVersion: "2", KeyUUID: "000102030405060708090a0b0c0d0e0f", KeySize: "4097"}
	if m, err := ParseMeta(good); err != nil || m.Size != 4097 || m.UUID[15] != 15 || m.Root != "" {
		t.Errorf("without a root: %+v, %v", m, err)
	}
	for key, values := range map[string][]string{
		KeyUUID: {"", "0", "000102030405060708090a0b0c0d0e", "000102030405060708090a0b0c0d0e0f10", "000102030405060708090a0b0c0d0e0g",
			"00000000000000000000000000000000", "00010203-0405-0607-0809-0a0b0c0d0e0f"},
		KeySize: {"", "0", "-1", "x", "9223372036854775808", "1.5"},
	} {
		for _, value := range values {
			bad := maps.Clone(good)
			bad[key] = value
			_, err := ParseMeta(bad)
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Version != Version2 || !strings.Contains(err.Error(), key) {
				t.Errorf("%s %q: %v", key, value, err)
			}
		}
	}
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
		if m.Geometry.Size() <= 0 || m.Size != m.Geometry.Size() || m.Version != Version1 {
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

func FuzzParseMeta2(f *testing.F) {
	f.Add("2", "000102030405060708090a0b0c0d0e0f", "4097", "00000001-00000001", "a@1")
	f.Fuzz(func(t *testing.T, version, uuid, size, root, client string) {
		m, err := ParseMeta(map[string]string{KeyVersion: version, KeyUUID: uuid, KeySize: size, KeyRoot: root, KeyClient: client})
		if err != nil {
			return
		}
		if m.Version != Version2 || m.Size <= 0 || m.UUID == [16]byte{} || m.Root != root || m.Client != client || m.Geometry != (geometry.Geometry{}) {
			t.Errorf("taken: %+v", m)
		}
		if !strings.EqualFold(hex.EncodeToString(m.UUID[:]), uuid) {
			t.Errorf("%q is read as %x", uuid, m.UUID)
		}
	})
}
