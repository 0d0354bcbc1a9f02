// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// TestDownloadResumeChanged1: of a disk of version 1, what has changed since is
// fetched again, and nothing else; what nobody can have changed is not asked for.
func TestDownloadResumeChanged1(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.keepAll()
	b.ok("setup", "disk", "64")
	content := noise(64 << 16)
	clear(content[20<<16 : 24<<16])
	write := func(use func(d *device.Device)) { b.serve("disk", use) }
	write(func(d *device.Device) {
		for i := range 64 {
			if i >= 20 && i < 24 {
				continue
			}
			if _, err := d.WriteAt(content[i<<16:][:1<<16], int64(i)<<16); err != nil {
				t.Fatal(err)
			}
		}
	})
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	goesOn := func(what string, words ...string) {
		t.Helper()
		r := b.run("download", "disk", path, "--resume")
		if r.code != 0 || r.err != "" {
			t.Fatalf("%s: %+v", what, r)
		}
		for _, w := range words {
			if !strings.Contains(r.out, w) {
				t.Errorf("%s: %q lacks %q", what, r.out, w)
			}
		}
		if len(words) == 0 && r.out != fmt.Sprintf("Done, %d bytes written\n", len(content)) {
			t.Errorf("%s: %q", what, r.out)
		}
		checkImage(t, path, content)
		checkAlone(t, dir, "image")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}

	// Nobody has had it: the map, and the last session's mark, are enough.
	b.cut(40, "disk", path)
	b.swift.ResetRequests()
	goesOn("unchanged")
	if n := b.heads(); n > 0 {
		t.Errorf("%d chunks were asked for, and nobody had changed any", n)
	}

	// A killed download leaves its mark as the last session's, and no map.
	b.cut(40, "disk", path)
	r, _ := parseDownloadRecord(string(must(os.ReadFile(path + ".partial.record"))))
	if r.moment.mark == "" || r.moment.mark == r.moment.at {
		t.Fatalf("%+v", r)
	}
	last := b.items("disk")[volume.KeyLast]
	b.setItem("disk", volume.KeyLast, r.moment.mark)
	b.setItem("disk", volume.KeyMap, "")
	b.swift.ResetRequests()
	goesOn("a killed download's mark")
	if n := b.heads(); n > 0 {
		t.Errorf("after a killed download: %d chunks were asked for", n)
	}
	b.setItem("disk", volume.KeyLast, last)

	// A server has: three chunks are others, one of them a hole now, and a hole has data.
	b.cut(40, "disk", path)
	write(func(d *device.Device) {
		for _, i := range []int{3, 21} {
			copy(content[i<<16+100:], noise(1000))
			if _, err := d.WriteAt(content[i<<16+100:][:1000], int64(i)<<16+100); err != nil {
				t.Fatal(err)
			}
		}
		clear(content[7<<16 : 8<<16])
		if err := d.Zero(7<<16, 1<<16, false, false); err != nil {
			t.Fatal(err)
		}
		copy(content[60<<16:], noise(1<<16)) // not there yet
		if _, err := d.WriteAt(content[60<<16:][:1<<16], 60<<16); err != nil {
			t.Fatal(err)
		}
	})
	goesOn("a server has changed it", "disk has changed since: 3 chunks fetched again\n")

	// And without a map, as after a server that was killed: each is asked for.
	b.cut(40, "disk", path)
	b.put("disk", chunked.ObjectName(5), noise(1<<16))
	copy(content[5<<16:], b.object("disk", chunked.ObjectName(5)))
	b.setItem("disk", volume.KeyLast, "server:1@1700000000")
	b.swift.ResetRequests()
	goesOn("without a map", "disk has changed since: 1 chunk fetched again\n")
	if n := b.heads(); n < 36 {
		t.Errorf("%d chunks were asked for", n)
	}
}

// TestDownloadResumeChanged2: of a disk of version 2 another moment is refused, and
// nothing is changed; the same command without --resume begins anew. A snapshot
// stays as it is.
func TestDownloadResumeChanged2(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.keepAll()
	content := b.fillLog("disk", 6<<20, 2)
	b.ok("snapshot", "disk", "monday")
	old := append([]byte{}, content...)
	dir := t.TempDir()
	path, monday := filepath.Join(dir, "image"), filepath.Join(dir, "monday")
	b.cut(3, "disk", path)
	b.cut(3, "disk@monday", monday)
	b.serve("disk", func(d *device.Device) { b.scribble(d, content) })
	before := [][]byte{must(os.ReadFile(path + ".partial")), must(os.ReadFile(path + ".partial.record"))}
	b.fails(1, []string{path + ".partial is of the disk at another moment (the disk has changed since", "without --resume"}, "download", "disk", path, "--resume")
	checkUnlocked(b, "disk")
	for i, name := range []string{path + ".partial", path + ".partial.record"} {
		if string(must(os.ReadFile(name))) != string(before[i]) {
			t.Errorf("%s was changed", name)
		}
	}
	b.ok("download", "disk", path)
	checkImage(t, path, content)

	var out downloaded
	if err := json.Unmarshal([]byte(b.ok("download", "disk@monday", monday, "--resume", "--json")), &out); err != nil || out.Resumed == 0 {
		t.Errorf("%+v, %v", out, err)
	}
	checkImage(t, monday, old)
	// Another snapshot of the same name is another moment.
	b.cut(3, "disk@monday", monday)
	b.ok("snapshot", "--delete", "disk", "monday")
	b.ok("snapshot", "disk", "monday")
	b.fails(1, []string{"at another moment"}, "download", "disk@monday", monday, "--resume")
	b.ok("download", "disk@monday", monday)
	checkImage(t, monday, content)
	checkAlone(t, dir, "image", "monday")
}
