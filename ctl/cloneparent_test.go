// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestCloneParentTaken has the parent of a clone unlocked while a server has it, and
// served by another one, which writes and ends. The first one goes on for as long as
// it does not know. The clone is what the snapshot was all the time, and protects it.
func TestCloneParentTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web", "late")
	b.term = 2 * time.Second
	disk := b.fillLog("golden", 2<<20, 2)
	b.ok("snapshot", "golden", "v1")
	v1 := bytes.Clone(disk)
	first, _ := b.open("golden")
	b.scribble(first, disk)
	b.ok("clone", "golden@v1", "web")
	web, end := b.openAs("web", device.Options{})
	defer end()
	sound := func(when string) {
		t.Helper()
		got := make([]byte, len(v1))
		if _, err := web.ReadAt(got, 0); err != nil || !bytes.Equal(got, v1) {
			t.Errorf("%s: a clone that is served is not what the snapshot was: %v", when, err)
		}
		b.ok("clone", "golden@v1", "late") // whose cache is empty
		if !bytes.Equal(b.content("late", len(v1)), v1) {
			t.Errorf("%s: a new clone is not what the snapshot was", when)
		}
		b.ok("delete", "late", "-y")
		b.fails(1, []string{"golden: snapshot v1 is needed by its clone web"}, "snapshot", "--delete", "golden", "v1")
	}
	b.ok("unlock", "golden")
	sound("unlocked")
	second, over := b.open("golden")
	b.scribble(second, disk)
	if _, err := first.WriteAt(noise(4096), 0); err == nil {
		if first.Sync() == nil {
			t.Error("the first server has flushed after the second one had the disk")
		}
	}
	first.Abandon()
	sound("served by another one")
	over()
	sound("left")
	if !bytes.Equal(b.content("golden", len(disk)), disk) {
		t.Error("the parent is not what the second server has written")
	}
	if r := b.run("verify", "golden"); r.code != 0 && r.code != exitStrays {
		t.Errorf("%+v", r)
	}
}
