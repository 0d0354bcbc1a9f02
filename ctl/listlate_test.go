// SPDX-License-Identifier: MIT

package main

import (
	"net/http"
	"testing"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// unlisted has the container's listing show nothing, as long as it is late.
func (b *bench) unlisted(name string) {
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && r.Container == name && r.Object == "" {
			return &devswift.Action{Status: http.StatusNoContent}
		}
		return nil
	})
}

// TestUnlistedData: a disk of version 1 whose chunks the listing does not show yet is not
// taken for one without data by verbs that do away with it: the map has them.
func TestUnlistedData(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "16")
	content := make([]byte, 16<<16)
	copy(content[9<<16:], noise(100_000))
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(content[9<<16:11<<16], 9<<16); err != nil {
			t.Fatal(err)
		}
	})
	path, image := sparse(t, 1<<20, map[int][]byte{0: noise(1000)})
	b.unlisted("disk")
	b.fails(1, []string{"disk has data: --force replaces it"}, "upload", path, "disk")
	b.fails(1, []string{"disk has data in 2 objects behind its new end, from " + chunked.ObjectName(9)}, "resize", "disk", "512K")
	b.fails(1, []string{"disk has data in 1 object behind its new end, from " + chunked.ObjectName(10)}, "resize", "disk", "640K")
	checkUnlocked(b, "disk")
	b.swift.SetFault(nil)
	b.holds("disk", content)

	// What is cut off does not come back, whatever the listing showed.
	b.unlisted("disk")
	b.ok("resize", "disk", "640K", "--force")
	b.ok("resize", "disk", "1M")
	b.swift.SetFault(nil)
	clear(content[10<<16:])
	b.holds("disk", content)
	b.ok("upload", path, "disk", "--force")
	b.holds("disk", image)
}
