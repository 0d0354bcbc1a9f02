// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// TestSnapshotVerbs makes snapshots of a disk between sessions, lists them,
// downloads them and deletes them.
func TestSnapshotVerbs(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "old")
	const size = 4 << 20
	disk := b.fillLog("disk", size, 2)
	if out := b.ok("snapshots", "disk"); out != "" {
		t.Errorf("no snapshots: %q", out)
	}
	if out := b.ok("snapshot", "disk", "first one"); out != "Done, disk has the snapshot first one\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "disk")
	first := bytes.Clone(disk)
	d, end := b.open("disk")
	b.scribble(d, disk)
	end()
	b.ok("snapshot", "disk", "second")
	second := bytes.Clone(disk)
	d, end = b.open("disk")
	b.scribble(d, disk)

	path := filepath.Join(t.TempDir(), "image")
	images := func() {
		t.Helper()
		for snap, want := range map[string][]byte{"first one": first, "second": second} {
			b.ok("download", "disk@"+snap, path)
			checkImage(t, path, want)
		}
	}
	images() // while it is in use
	end()
	b.ok("verify", "disk")
	b.ok("download", "disk", path)
	checkImage(t, path, disk)

	var list []snapshotFound
	if err := json.Unmarshal([]byte(b.ok("snapshots", "disk", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "first one" || list[1].Name != "second" || list[0].Size != size || list[0].Bytes == 0 || list[0].Made.IsZero() {
		t.Errorf("%+v", list)
	}

	before := b.names("disk", "")
	b.fails(1, []string{"snapshot second: there is such a snapshot already"}, "snapshot", "disk", "second")
	b.fails(1, []string{"snapshot none: there is no such snapshot"}, "snapshot", "--delete", "disk", "none")
	b.fails(1, []string{"snapshot none: there is no such snapshot"}, "download", "disk@none", path)
	for _, bad := range []string{"", "a@b", "a/b", " a", "a\n", "\xff", string(bytes.Repeat([]byte("x"), 256))} {
		b.fails(2, []string{"snapshot's name"}, "snapshot", "disk", bad)
	}
	b.ok("setup", "old", "--size", "1M")
	for _, args := range [][]string{{"snapshot", "old", "x"}, {"snapshots", "old"}, {"snapshot", "--delete", "old", "x"}, {"download", "old@x", path}} {
		b.fails(1, []string{"old: a disk of version 1 of the format has no snapshots"}, args...)
	}
	checkUnlocked(b, "disk")
	if got := b.names("disk", layout.LogPrefix); len(got) == 0 || len(before) == 0 {
		t.Error("no objects")
	}
	images()

	b.ok("snapshot", "--delete", "disk", "first one")
	b.fails(1, []string{"no such snapshot"}, "download", "disk@first one", path)
	b.ok("download", "disk@second", path)
	checkImage(t, path, second)
	b.ok("snapshot", "--delete", "disk", "second")
	b.serve("disk", nil)
	b.ok("download", "disk", path)
	checkImage(t, path, disk)
	_ = os.Remove(path)
}
