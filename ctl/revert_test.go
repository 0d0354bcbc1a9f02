// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestRevert goes back and forth between the snapshots of a disk that is written,
// resized and served meanwhile.
func TestRevert(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 4<<20, 2)
	path := filepath.Join(t.TempDir(), "image")
	moments := map[string][]byte{}
	keep := func(name string) {
		t.Helper()
		b.ok("snapshot", "disk", name)
		moments[name] = bytes.Clone(disk)
	}
	keep("first")
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	keep("second")
	b.ok("resize", "disk", "6M")
	disk = append(disk, make([]byte, 2<<20)...)
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	keep("large")
	b.ok("resize", "disk", "2M", "--force")
	disk = disk[: 2<<20 : 2<<20]
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	keep("small")

	back := func(name string) {
		t.Helper()
		disk = bytes.Clone(moments[name])
		if out := b.ok("revert", "disk", name, "--yes"); !strings.HasPrefix(out, "Done, disk is what it was in snapshot "+name+", ") {
			t.Errorf("%q", out)
		}
		checkUnlocked(b, "disk")
		b.sized("disk", int64(len(disk)))
		b.holds("disk", disk)
		b.verify(0)
	}
	b.is("revert", b.asked("revert", "disk", "large", "--yes"), map[string]any{"container": "disk", "snapshot": "large", "was": 2097152., "size": 6291456.})
	for _, name := range []string{"first", "large", "first", "small", "second", "second", "large"} {
		back(name)
		if name == "first" || name == "large" {
			b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
			b.holds("disk", disk)
		}
		for snap, want := range moments {
			b.ok("download", "disk@"+snap, path)
			checkImage(t, path, want)
		}
		b.verify(0)
	}
	// A snapshot goes, and the disk that was reverted to it stays.
	back("large")
	for _, name := range []string{"large", "first", "small", "second"} {
		b.ok("snapshot", "--delete", "disk", name)
		b.holds("disk", disk)
	}
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	b.holds("disk", disk)
	b.verify(0)
}

// TestRevertRefused: what is wrong is said in one line, and changes nothing.
func TestRevertRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "old", "locked", "absent")
	disk := b.fillLog("disk", 4<<20, 1)
	b.ok("snapshot", "disk", "one")
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	b.ok("setup", "old", "--size", "1M")
	b.ok("setup", "locked", "--size", "4M", "--format", "2")
	b.ok("snapshot", "locked", "one")
	b.ok("lock", "locked")
	before := b.writes()
	b.refused([]refusal{
		{1, "disk: snapshot none: there is no such snapshot", "disk none -y"},
		{1, "disk: snapshot none: there is no such snapshot", "disk none"},
		{1, "disk: not reverted: there is no terminal to ask on, give --yes to revert without being asked", "disk one"},
		{1, "old: a disk of version 1 of the format has no snapshots", "old one -y"},
		{1, "locked is locked by ctl", "locked one -y"},
		{1, "absent doesn't exist", "absent one -y"},
		{2, "SNAPSHOT is missing", "disk"},
		{2, "one argument too many", "disk one two"},
		{2, "snapshot's name", "disk a@b -y"},
		{2, "a snapshot's name is empty", "disk '' -y"},
	}, "revert")
	b.unchanged(before)
	b.holds("disk", disk)
	b.writeSecrets("[disk]\nread-only = 1\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	b.fails(1, []string{"disk is read-only in "}, "revert", "disk", "one", "-y")
}

// TestRevertAsks: on a terminal the container's name has to be typed.
func TestRevertAsks(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 1<<20, 1)
	b.ok("snapshot", "disk", "one")
	then := bytes.Clone(disk)
	b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
	before := b.writes()
	p := b.start("revert", "disk", "one")
	p.expect("This makes disk what it was in snapshot one, ")
	p.expect("with 1 MiB. What it is now is lost, unless it has a snapshot.")
	p.expect("Type the container's name to go on: ")
	p.typed("one\n")
	if out := p.end(1); !strings.Contains(out, "disk: not confirmed, nothing has been reverted") {
		t.Errorf("%q", out)
	}
	b.unchanged(before)
	b.holds("disk", disk)
	p = b.start("revert", "disk", "one")
	p.expect("to go on: ")
	p.typed("disk\n")
	if out := p.end(0); !strings.Contains(out, "Done, disk is what it was in snapshot one, 1 MiB") {
		t.Errorf("%q", out)
	}
	b.holds("disk", then)
}

// TestRevertKilled kills the verb at its changes. Repeated, it goes on.
func TestRevertKilled(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 4<<20, 1)
	b.ok("snapshot", "disk", "one")
	then := bytes.Clone(disk)
	b.ok("resize", "disk", "5M")
	disk = append(disk, make([]byte, 1<<20)...)
	everyRequest(b, func() {
		b.ok("resize", "disk", "5M")
		b.serve("disk", func(d *device.Device) { b.scribble(d, bytes.Clone(disk)) })
	}, func() {
		b.sized("disk", 4<<20)
		b.holds("disk", then)
	}, "revert", "disk", "one", "--yes")
}
