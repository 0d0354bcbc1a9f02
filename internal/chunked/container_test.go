// SPDX-License-Identifier: MIT

package chunked

import (
	"maps"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
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

// session011 is a session of swiftnbd 0.11: it reads all items with the prefix
// swiftnbd-, ours too, and sends all of them again with its mark, and at the
// end with Last. id is its mark.
func session011(t testing.TB, s store.Store, id string, work func()) {
	t.Helper()
	md, err := s.Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	meta := maps.Clone(md.Items)
	meta[volume.KeyClient] = id
	post(t, s, meta)
	work()
	meta[volume.KeyLast], meta[volume.KeyClient] = id, ""
	post(t, s, meta)
}

// setup011 is 0.11's setup, forced or not.
func setup011(t testing.TB, s store.Store, objects, objectSize string) {
	t.Helper()
	post(t, s, map[string]string{"swiftnbd-version": "1", "swiftnbd-objects": objects,
		"swiftnbd-object_size": objectSize, "swiftnbd-client": "", "swiftnbd-last": ""})
}

func read(t testing.TB, s store.Store) volume.Meta {
	t.Helper()
	m, err := volume.Read(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
