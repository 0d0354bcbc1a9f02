// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// TestRootLate has each request by which a server notes its newest root, of a disk that
// is deleted and made anew under its name, arrive once more then. The new disk has no
// such root, and opens all the same.
func TestRootLate(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	b := newBench(t, devswift.Options{}, "disk")
	var mu sync.Mutex
	var notes []map[string]string
	b.fillLog("disk", size, 1)
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method != http.MethodPost || r.Container != "disk" || r.Header.Get("X-Container-Meta-"+volume.KeyRoot) == "" {
			return nil
		}
		items := make(map[string]string)
		for key := range r.Header {
			if name, ok := strings.CutPrefix(key, "X-Container-Meta-"); ok {
				items[name] = r.Header.Get(key)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		notes = append(notes, items)
		return nil
	})
	for seed := range 3 {
		b.serve("disk", func(d *device.Device) {
			if _, err := d.WriteAt(bytes.Repeat([]byte{byte(seed)}, size), 0); err != nil {
				t.Fatal(err)
			}
		})
	}
	b.swift.SetFault(nil)
	mu.Lock()
	defer mu.Unlock()
	if len(notes) == 0 {
		t.Fatal("no root is noted: this test shows nothing")
	}
	for _, items := range notes {
		b.ok("delete", "disk", "--yes")
		want := b.fillLog("disk", size, 1)
		if err := b.store("disk").SetMetadata(t.Context(), items); err != nil {
			t.Fatal(err)
		}
		if r := b.run("verify", "disk"); r.code != 0 && r.code != exitStrays {
			t.Errorf("verify: %+v", r)
		}
		if !bytes.Equal(b.content("disk", size), want) {
			t.Error("the disk has other bytes")
		}
		b.serve("disk", func(d *device.Device) { b.scribble(d, want) })
		if !bytes.Equal(b.content("disk", size), want) {
			t.Error("in the end the disk has other bytes")
		}
	}
}
