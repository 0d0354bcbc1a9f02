// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// TestResize: a disk grows with zeroes, and becomes smaller without its data only
// when that is asked for; what was cut off never comes back.
func TestResize(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "256K", "--object-size", "64K")
	if out := b.ok("resize", "disk", "300K"); out != "Done, disk has 320 KiB now, 327680 bytes; it had 256 KiB\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "disk")
	items := b.items("disk")
	if items[volume.KeyObjects] != "5" || items[volume.KeyBlank] == "" || items[volume.KeyBlank] != items[volume.KeyLast] {
		t.Errorf("a new disk does not stay one: %v", items)
	}
	content := noise(5 << 16)
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(content, 0); err != nil {
			t.Error(err)
		}
	})
	b.fails(1, []string{"disk has data in 2 objects behind its new end", chunked.ObjectName(3), "--force"}, "resize", "disk", "192K")
	checkUnlocked(b, "disk")
	b.holds("disk", content)

	var out resized
	if err := json.Unmarshal([]byte(b.ok("resize", "disk", "192K", "--force", "--json")), &out); err != nil ||
		out != (resized{Container: "disk", Version: 1, Was: 5 << 16, Size: 3 << 16, Deleted: 2}) {
		t.Errorf("%+v, %v", out, err)
	}
	b.holds("disk", content[:3<<16])
	b.ok("resize", "disk", "1M")
	b.holds("disk", content[:3<<16])
	b.ok("verify", "disk")

	// An object behind the end is not of the disk, and does not become so.
	b.put("disk", chunked.ObjectName(20), noise(1<<16))
	b.fails(1, []string{"1 object behind its end", chunked.ObjectName(20), "--force deletes"}, "resize", "disk", "2M")
	b.ok("resize", "disk", "2M", "--force")
	b.holds("disk", content[:3<<16])
	b.serve("disk", func(d *device.Device) {
		if d.Size() != 2<<20 {
			t.Errorf("%d bytes", d.Size())
		}
	})
}

// TestResizeRefused: what resize does not do.
func TestResizeRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "absent")
	b.ok("setup", "disk", "4")
	b.ok("lock", "disk")
	before := b.writes()
	b.refused([]refusal{
		{1, "disk is locked by ctl", "disk 1M"},
		{1, "absent doesn't exist", "absent 8M"},
		{2, "SIZE is missing", "disk"},
		{2, "unknown unit", "disk 8Q"},
		{2, "no bytes", "disk 0"},
	}, "resize")
	b.unchanged(before)
}

// TestResizeInterrupted: a disk that becomes smaller has its new size before any
// of its objects goes, and the same command finishes it.
func TestResizeInterrupted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	chunks := make(map[int][]byte)
	for i := range 64 {
		chunks[i] = noise(4096)
	}
	disk := b.fill("disk", 64, 4096, chunks)
	ctx, cancel := context.WithCancel(t.Context())
	var smaller atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Header.Get("X-Container-Meta-"+volume.KeyObjects) == "16" {
			smaller.Store(true)
		} else if smaller.Load() { // what comes after it is the deletion
			b.swift.SetFault(nil)
			cancel()
			return &devswift.Action{Status: 503}
		}
		return nil
	})
	r := b.runContext(ctx, "resize", "disk", "64K", "--force")
	if r.code != 1 || !strings.Contains(r.err, "disk: interrupted; the disk has its new size") || !strings.Contains(r.err, "run the same command again") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	checkUnlocked(b, "disk")
	b.holds("disk", disk[:16*4096])
	b.ok("resize", "disk", "64K", "--force")
	if n := len(b.names("disk", chunked.Prefix)); n != 16 {
		t.Errorf("%d objects are left", n)
	}
	b.ok("resize", "disk", "256K")
	b.holds("disk", disk[:16*4096])
}
