// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
)

// TestCloneTwice has several operators make the clone of one name at the same
// moment: one of them makes it, and the others are told that it is there.
func TestCloneTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: time.Millisecond}, "golden", "web", "web2")
	disk := b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.create("web2") // all of them find it
	b.pace.setup = 500 * time.Millisecond
	for _, name := range []string{"web", "web2"} {
		var g sync.WaitGroup
		var made atomic.Int64
		for range 3 {
			g.Go(func() {
				switch r := b.run("clone", "golden@v1", name); {
				case r.code == 0:
					made.Add(1)
				case r.code != 1 || !strings.Contains(r.err, name+" has already been setup") || strings.Count(r.err, "\n") != 1:
					t.Errorf("%+v", r)
				}
			})
		}
		g.Wait()
		if made.Load() != 1 {
			t.Errorf("%s: %d of them have made it", name, made.Load())
		}
		if !bytes.Equal(b.content(name, len(disk)), disk) {
			t.Errorf("%s is not what the disk was", name)
		}
		if n := len(b.notes("golden")); n == 0 {
			t.Error("no note")
		}
	}
}

// TestCloneTurnLeft: who died while it was their turn keeps nobody from it.
func TestCloneTurnLeft(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	disk := b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.create("web")
	turn := lease.ContainerName("web", 0)
	b.create(turn)
	b.ok("clone", "golden@v1", "web")
	if !bytes.Equal(b.content("web", len(disk)), disk) {
		t.Error("web is not what the disk was")
	}
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodDelete && strings.HasSuffix(r.Path, "/"+turn) && r.Status == http.StatusNoContent {
			return
		}
	}
	t.Error("whose turn it was is there still")
}

// TestFlattenAgain interrupts flatten, runs it again, and flattens a clone that
// has snapshots.
func TestFlattenAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	const size = 8 << 20
	b.ok("setup", "golden", "--size", itoa(size), "--format", "2")
	disk := noise(size)
	b.serve("golden", func(d *device.Device) {
		if _, err := d.WriteAt(disk, 0); err != nil {
			t.Fatal(err)
		}
	})
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	b.serve("web", func(d *device.Device) { b.scribble(d, disk) })
	b.ok("snapshot", "web", "before")
	before := bytes.Clone(disk)
	b.serve("web", func(d *device.Device) { b.scribble(d, disk) })

	ctx, cancel := context.WithCancel(t.Context())
	var gets atomic.Int64
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Container == "golden" && strings.HasPrefix(r.Object, layout.LogPrefix) && gets.Add(1) == 4 {
			cancel()
		}
		return nil
	})
	if r := b.runContext(ctx, "flatten", "web", "--connections", "1"); r.code != 1 || !strings.Contains(r.err, "interrupted") {
		t.Errorf("%+v", r)
	}
	first := gets.Swap(0)
	checkUnlocked(b, "web")
	if !bytes.Equal(b.content("web", size), disk) {
		t.Error("the clone is not what was written")
	}
	b.swift.SetFault(nil)

	r := b.run("flatten", "web")
	if r.code != 0 || r.out != "Done, web has all of its data itself, but for its snapshots: before\n" || !strings.Contains(r.err, "web: its snapshots need the parent, golden, still") {
		t.Errorf("%+v (%d reads before)", r, first)
	}
	b.fails(1, []string{"snapshot v1 is needed by its clone web"}, "snapshot", "--delete", "golden", "v1")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "web@before", path)
	checkImage(t, path, before)
	b.ok("download", "web", path)
	checkImage(t, path, disk)
	b.ok("snapshot", "--delete", "web", "before")
	b.ok("flatten", "web")
	b.ok("snapshot", "--delete", "golden", "v1")
	b.ok("delete", "golden", "-y")
	b.ok("verify", "web")
	if !bytes.Equal(b.content("web", size), disk) {
		t.Error("the clone is not what was written")
	}
}

// TestCloneParentGone deletes the parent by force: what the clone has written
// itself is read, and the rest is an error that names the parent.
func TestCloneParentGone(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	const size = 4 << 20
	b.fillLog("golden", size, 1)
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	own := noise(64 << 10)
	d, end := b.openAs("web", device.Options{Timeout: 200 * time.Millisecond})
	defer end()
	if err := d.WriteFUA(own, 1<<20, true); err != nil {
		t.Fatal(err)
	}
	b.ok("delete", "golden", "-y", "-f")
	p := make([]byte, len(own))
	if _, err := d.ReadAt(p, 1<<20); err != nil || !bytes.Equal(p, own) {
		t.Errorf("its own data: %v", err)
	}
	failed := 0
	for off := int64(0); off < size; off += 512 << 10 {
		_, err := d.ReadAt(p, off)
		if off == 1<<20 {
			continue
		}
		if err != nil && !strings.Contains(err.Error(), "the parent of this clone, golden, snapshot v1, cannot be read: ") {
			t.Errorf("at %d: %v", off, err)
		}
		if err == nil && strings.Trim(string(p), "\x00") != "" {
			continue // it was read before
		}
		failed++
	}
	if failed == 0 {
		t.Error("all of it is read")
	}
	end()
	if r := b.run("verify", "web", "-q"); r.code != exitDamage || !strings.Contains(r.out, "lost: golden/swiftnbd/root/") || !strings.Contains(r.out, "the parent of this clone, golden, snapshot v1, cannot be read: ") {
		t.Errorf("%+v", r)
	}
}

// TestCloneDeleteAgain interrupts the deletion of a clone, and deletes it again:
// the note of it goes, too.
func TestCloneDeleteAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	ctx, cancel := context.WithCancel(t.Context())
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodDelete && r.Container == "web" && r.Object == "" {
			cancel()
			return &devswift.Action{Status: 503}
		}
		return nil
	})
	if r := b.runContext(ctx, "delete", "web", "-y"); r.code != 1 || !strings.Contains(r.err, "delete it again") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	if n := len(b.names("web", "swiftnbd/root/")); n > 0 {
		t.Errorf("%d roots are there still: this test shows little", n)
	}
	b.ok("delete", "web", "-y")
	b.gone("web")
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q", names)
	}
}
