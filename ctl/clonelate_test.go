// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"net/http"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// lateRoots has the container's listing show the roots that there are now, as long as
// it is late.
func (b *bench) lateRoots(name string) {
	b.Helper()
	list, err := b.store(name).List(b.Context(), store.ListOptions{Prefix: layout.RootPrefix})
	if err != nil {
		b.Fatal(err)
	}
	page := []map[string]any{}
	for _, info := range list {
		page = append(page, map[string]any{
			"name": info.Name, "bytes": info.Size, "hash": string(info.ETag),
			"last_modified": info.LastModified.UTC().Format("2006-01-02T15:04:05.000000"), "content_type": "application/octet-stream",
		})
	}
	body := string(must(json.Marshal(page)))
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method != http.MethodGet || r.Container != name || r.Object != "" || r.Query.Get("prefix") != layout.RootPrefix {
			return nil
		}
		if r.Query.Get("marker") != "" {
			return &devswift.Action{Status: http.StatusOK, Body: "[]", Header: http.Header{"Content-Type": {"application/json"}}}
		}
		return &devswift.Action{Status: http.StatusOK, Body: body, Header: http.Header{"Content-Type": {"application/json"}}}
	})
}

// TestCloneLateListing makes clones while the parent's listing does not show its newest
// roots yet: of a snapshot that was made just now, and of one that has the name of one
// that was deleted just now.
func TestCloneLateListing(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "one", "two", "three", "four")
	const size = 1 << 20
	b.ok("setup", "golden", "--size", itoa(size), "--format", "2")
	want := noise(size)
	write := func(n int) {
		t.Helper()
		copy(want, noise(n))
		b.serve("golden", func(d *device.Device) {
			if _, err := d.WriteAt(want[:n], 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	is := func(name string) {
		t.Helper()
		if string(b.content(name, size)) != string(want) {
			t.Errorf("%s is not what the snapshot is", name)
		}
	}
	write(size)
	b.ok("snapshot", "golden", "nightly")
	b.lateRoots("golden")
	b.ok("clone", "golden", "one")
	b.ok("snapshot", "golden", "s")
	b.ok("clone", "golden@s", "two")
	is("one")
	is("two")
	b.ok("snapshot", "golden", "nightly", "--delete")
	write(5000)
	b.ok("snapshot", "golden", "nightly")
	b.ok("clone", "golden@nightly", "three")
	is("three")
	b.fails(1, []string{"golden: snapshot none: there is no such snapshot"}, "clone", "golden@none", "four")
}
