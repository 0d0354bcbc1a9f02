// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
)

// lacking is a bench whose disk was killed and lacks the third object before the last
// one of its log. It returns the object, and what the disk was before it.
func lacking(t *testing.T) (b *bench, name string, data, then []byte) {
	b = newBench(t, devswift.Options{}, "disk")
	b.pace.work.Timeout = 300 * time.Millisecond
	disk := b.fillLog("disk", 1<<20, 1)
	b.ok("snapshot", "disk", "before")
	d, _ := b.open("disk")
	for n := range 8 {
		if n == 5 {
			then = bytes.Clone(disk)
		}
		p := noise(4096)
		if _, err := d.WriteAt(p, int64(n%3)*4096); err != nil {
			t.Fatal(err)
		}
		copy(disk[n%3*4096:], p)
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	d.Abandon()
	b.ok("unlock", "disk")
	log := b.names("disk", layout.LogPrefix)
	last, _ := layout.ParseLogName(log[len(log)-1])
	name = layout.LogName(layout.Position{Epoch: last.Epoch, N: 6})
	data = b.object("disk", name)
	b.del(name)
	return b, name, data, then
}

// TestRewind has a disk lack an object that was acknowledged: nobody opens it, until
// it is rewound to the moment before, or the object is back.
func TestRewind(t *testing.T) {
	t.Parallel()
	b, name, data, then := lacking(t)
	if _, err := b.tryOpen("disk", device.Options{Timeout: time.Second}); !errors.As(err, new(*logdisk.AwayError)) {
		t.Fatalf("it is served: %v", err)
	}
	b.fails(1, []string{name, "cannot be found now"}, "snapshot", "disk", "s")
	before := b.writes()
	b.refused([]refusal{
		{1, "disk: not rewound: there is no terminal to ask on, give --yes to rewind without being asked", "disk"},
		{1, "none not found", "none"},
		{2, "CONTAINER is missing", ""},
		{2, "one argument too many", "disk a"},
	}, "rewind")
	b.unchanged(before)

	p := b.start("rewind", "disk")
	p.expect("Swift does not find " + name + " now.")
	p.expect("gives up what is in it, and what is in 2 objects after it. disk becomes what it was before, with 1 MiB.")
	p.expect("Type the container's name to go on: ")
	p.typed("no\n")
	if out := p.end(1); !strings.Contains(out, "disk: not confirmed, nothing has been rewound") {
		t.Errorf("%q", out)
	}
	b.unchanged(before)
	b.is("rewind", b.asked("rewind", "disk", "-y"), map[string]any{"container": "disk", "lost": []any{name}, "given_up": 2., "size": 1048576.})
	checkUnlocked(b, "disk")
	b.holds("disk", then)
	b.put("disk", name, data) // it comes back, too late
	b.holds("disk", then)
	b.serve("disk", func(d *device.Device) { b.scribble(d, then) })
	b.holds("disk", then)
	b.verify(0)
	b.is("rewind", b.asked("rewind", "disk"), map[string]any{"container": "disk", "lost": []any{}, "given_up": 0., "size": 1048576.})
	if out := b.ok("rewind", "disk"); out != "Nothing is missing that was written last, disk is as it was\n" {
		t.Errorf("%q", out)
	}
}

// TestRewindFoundAgain has the object be back when the operator has answered.
func TestRewindFoundAgain(t *testing.T) {
	t.Parallel()
	b, name, data, _ := lacking(t)
	b.put("disk", name, data)
	looked := false
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Object != name {
			looked = looked || r.Method == "PUT" && r.Container != "disk" // it takes the lease
			return nil
		}
		if looked {
			return nil
		}
		return &devswift.Action{Status: 404}
	})
	if out := b.ok("rewind", "disk", "-y"); out != name+" has been found again, disk has lost nothing\n" {
		t.Errorf("%q", out)
	}
	b.swift.SetFault(nil)
	b.verify(0)
}

// TestRewindRoot has the newest root be lost. The one before it is still there, and so
// is the log after that: nothing else is lost.
func TestRewindRoot(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.pace.work.Timeout = 300 * time.Millisecond
	disk := b.fillLog("disk", 1<<20, 2)
	root := b.last(layout.RootPrefix)
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Object == root {
			return &devswift.Action{Status: 404}
		}
		return nil
	})
	b.fails(1, []string{root, "cannot be found now"}, "snapshot", "disk", "s")
	if out := b.ok("rewind", "disk", "--yes"); out != "Done, disk is what it was before "+root+" was written\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "disk")
	b.holds("disk", disk)
	b.ok("snapshot", "disk", "s")
	b.swift.SetFault(nil)
	b.holds("disk", disk)
	b.verify(0)
}
