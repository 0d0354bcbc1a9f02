// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// requests counts the requests to the account since n of them were made.
func (b *bench) requests(n int) (list []string) {
	for _, r := range b.swift.Requests()[n:] {
		if strings.HasPrefix(r.Path, "/v1/") {
			list = append(list, r.Method+" "+r.Path)
		}
	}
	return list
}

// content reads a disk as a server does.
func (b *bench) content(name string, size int) []byte {
	b.Helper()
	d, end := b.open(name)
	defer end()
	p := make([]byte, size)
	if _, err := d.ReadAt(p, 0); err != nil {
		b.Fatalf("read %s: %v", name, err)
	}
	return p
}

// TestClone makes a clone of a snapshot with few requests, serves it, writes to
// it, downloads and verifies it, flattens it, and deletes its parent.
func TestClone(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	const size = 8 << 20
	disk := b.fillLog("golden", size, 2)
	b.ok("snapshot", "golden", "v1")
	was := bytes.Clone(disk)
	b.serve("golden", func(d *device.Device) { b.scribble(d, disk) })

	n := len(b.swift.Requests())
	if out := b.ok("clone", "golden@v1", "web"); out != "Done, web: a clone of golden@v1, 8 MiB\n" {
		t.Errorf("%q", out)
	}
	if made := b.requests(n); len(made) >= 10 {
		t.Errorf("%d requests: %q", len(made), made)
	}
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "web", path)
	checkImage(t, path, was)
	if got := b.content("web", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what the snapshot was")
	}
	b.serve("web", func(d *device.Device) { b.scribble(d, was) })
	if got := b.content("web", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what was written")
	}
	if got := b.content("golden", size); !bytes.Equal(got, disk) {
		t.Error("the parent is not what it was")
	}
	b.ok("download", "web", path)
	checkImage(t, path, was)
	if out := b.ok("verify", "web"); !strings.Contains(out, "a clone of golden@v1: what it has not written") {
		t.Errorf("%q", out)
	}
	b.ok("verify", "golden")
	if out := b.ok("info", "web"); !strings.Contains(out, "golden@v1\n") {
		t.Errorf("%s", out)
	}
	if out := b.ok("info", "golden"); !strings.Contains(out, "Clones:     web\n") {
		t.Errorf("%s", out)
	}
	if out := b.ok("list", "web"); !strings.Contains(out, ", clone of golden@v1 ") {
		t.Errorf("%s", out)
	}
	var in info
	if err := json.Unmarshal([]byte(b.ok("info", "web", "--json")), &in); err != nil || *in.Parent != "golden" || *in.ParentSnap != "v1" || *in.Depth != 1 || in.ParentURL != nil {
		t.Errorf("%+v, %v", in, err)
	}

	b.fails(1, []string{"golden: snapshot v1 is needed by its clone web"}, "snapshot", "--delete", "golden", "v1")
	b.fails(1, []string{"golden: not deleted: it is needed by its clone web; ", "--force"}, "delete", "golden", "-y")
	checkUnlocked(b, "golden")
	if out := b.ok("flatten", "web"); out != "Done, web has all of its data itself\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "web")
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q are left", names)
	}
	b.fails(1, []string{"web: nothing to flatten: it is not a clone"}, "flatten", "web")
	b.ok("snapshot", "--delete", "golden", "v1")
	b.ok("delete", "golden", "-y")
	if got := b.content("web", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what was written")
	}
	if out := b.ok("verify", "web"); strings.Contains(out, "a clone") {
		t.Errorf("%q", out)
	}
	if out := b.ok("list", "web"); strings.Contains(out, "clone of") {
		t.Errorf("%s", out)
	}
}

// TestCloneUnnamed makes a clone of a disk as it is now, twice, and deletes the
// clones.
func TestCloneUnnamed(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "a", "b")
	const size = 2 << 20
	disk := b.fillLog("golden", size, 1)
	was := bytes.Clone(disk)
	if out := b.ok("clone", "golden", "a"); out != "Done, a: a clone of golden@clone-a, 2 MiB\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "golden")
	b.serve("golden", func(d *device.Device) { b.scribble(d, disk) })
	b.ok("delete", "a", "-y")
	b.gone("a")
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q are left", names)
	}
	b.ok("clone", "golden", "a", "--flatten", "-q")
	if out := b.ok("snapshots", "golden"); !strings.Contains(out, "clone-a ") || !strings.Contains(out, "clone-a-2 ") {
		t.Errorf("%s", out)
	}
	if got := b.content("a", size); !bytes.Equal(got, disk) {
		t.Error("the clone is not what the disk was")
	}
	b.ok("clone", "golden@clone-a", "b")
	if got := b.content("b", size); !bytes.Equal(got, was) {
		t.Error("the clone is not what the first snapshot was")
	}
	b.ok("snapshot", "--delete", "golden", "clone-a-2")
	b.fails(1, []string{"snapshot clone-a is needed by its clone b"}, "snapshot", "--delete", "golden", "clone-a")
	b.ok("snapshot", "--delete", "--force", "golden", "clone-a")
	b.ok("delete", "golden", "-y", "--force")
}

// TestCloneRefused has each thing that cannot be refused with one line, and
// nothing changed.
func TestCloneRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web", "old", "there", "full", "absent", "plain")
	b.fillLog("golden", 1<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.ok("setup", "old", "--size", "1M")
	b.ok("setup", "there", "--size", "1M", "--format", "2")
	b.create("full", "plain")
	b.put("full", "holiday.jpg", []byte("x"))
	content := map[string]int{}
	for _, name := range []string{"golden", "old", "there", "full", "plain"} {
		content[name] = len(b.names(name, ""))
	}
	long := strings.Repeat("x", 257)
	for _, c := range []struct {
		code  int
		words string
		args  []string
	}{
		{2, "NEW is missing", []string{"golden@v1"}},
		{2, "snapshot's name", []string{"golden@", "web"}},
		{2, "slash", []string{"golden@v1", "a/b"}},
		{2, "needs a name", []string{"golden@v1", ""}},
		{2, "at most 256 bytes", []string{"golden@v1", long}},
		{1, "golden: a disk cannot be a clone of itself", []string{"golden@v1", "golden"}},
		{1, "golden: a disk cannot be a clone of itself", []string{"golden", "golden"}},
		{1, "golden: snapshot v2: there is no such snapshot", []string{"golden@v2", "web"}},
		{1, "old: a disk of version 1", []string{"old@v1", "web"}},
		{1, "old: a disk of version 1", []string{"old", "web"}},
		{1, "absent doesn't exist", []string{"absent@v1", "web"}},
		{1, "absent doesn't exist", []string{"absent", "web"}},
		{1, "plain hasn't been setup", []string{"plain@v1", "web"}},
		{1, "there has already been setup", []string{"golden@v1", "there"}},
		{1, "there has already been setup", []string{"golden", "there"}},
		{1, "old has already been setup", []string{"golden@v1", "old"}},
		{1, "full holds objects, such as holiday.jpg", []string{"golden@v1", "full"}},
		{1, "nowhere not found in", []string{"golden@v1", "nowhere"}},
		{1, "nowhere not found in", []string{"nowhere@v1", "web"}},
	} {
		b.fails(c.code, []string{c.words}, append([]string{"clone"}, c.args...)...)
	}
	b.fails(1, []string{"old: a disk of version 1"}, "flatten", "old")
	b.fails(1, []string{"golden: nothing to flatten"}, "flatten", "golden")
	b.fails(2, []string{"--force is for --delete"}, "snapshot", "--force", "golden", "v3")
	checkUnlocked(b, "golden")
	for name, n := range content {
		if name == "golden" { // flatten has opened it
			continue
		}
		if got := b.names(name, ""); len(got) != n {
			t.Errorf("%s: %q", name, got)
		}
	}
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q", names)
	}
	b.gone("web")

	// An empty container that is there may be the clone's.
	b.ok("clone", "golden@v1", "plain")
}

// TestCloneServed makes clones of a disk that a server has and writes: of a
// snapshot that it has, and of what it is now.
func TestCloneServed(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web", "now")
	b.term = 2 * time.Second
	disk := b.fillLog("golden", 2<<20, 1)
	b.ok("snapshot", "golden", "v1")
	v1 := bytes.Clone(disk)
	d, end := b.open("golden")
	b.scribble(d, disk)
	n := len(b.swift.Requests())
	b.ok("clone", "golden@v1", "web")
	made := 0
	for _, r := range b.requests(n) {
		if !strings.Contains(r, "golden-lease") && !strings.Contains(r, "lease") {
			made++
		}
	}
	if made > 20 { // the server's own, too
		t.Errorf("%d requests: %q", made, b.requests(n))
	}
	b.ok("clone", "golden", "now")
	now := bytes.Clone(disk)
	b.scribble(d, disk)
	b.fails(1, []string{"golden: snapshot v1 is needed by its clone web"}, "snapshot", "--delete", "golden", "v1")
	b.fails(1, []string{"golden is locked by server:1"}, "delete", "golden", "-y")
	if !bytes.Equal(b.content("web", len(v1)), v1) || !bytes.Equal(b.content("now", len(now)), now) {
		t.Error("a clone is not what its parent was")
	}
	b.ok("flatten", "web")
	b.ok("snapshot", "--delete", "golden", "v1")
	b.ok("snapshot", "--delete", "--force", "golden", "clone-now")
	end()
	if !bytes.Equal(b.content("web", len(v1)), v1) || !bytes.Equal(b.content("golden", len(disk)), disk) {
		t.Error("a disk is not what was written")
	}
}

// TestCloneReadOnly makes clones of a parent of which the credentials may only
// read: without a note, and with a line that says so.
func TestCloneReadOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web", "web2")
	disk := b.fillLog("golden", 2<<20, 1)
	b.ok("snapshot", "golden", "v1")
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Container == "golden" && r.Method != http.MethodGet && r.Method != http.MethodHead {
			return &devswift.Action{Status: 403}
		}
		return nil
	})
	r := b.run("clone", "golden@v1", "web")
	if r.code != 0 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "web: nothing protects the parent: these credentials may not write to golden, ") {
		t.Errorf("%+v", r)
	}
	if got := b.content("web", len(disk)); !bytes.Equal(got, disk) {
		t.Error("the clone is not what the disk was")
	}
	r = b.run("clone", "golden", "web2")
	if r.code != 1 || !strings.Contains(r.err, "golden@SNAPSHOT") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	b.gone("web2")
	if out := b.ok("flatten", "web"); out != "Done, web has all of its data itself\n" {
		t.Errorf("%q", out)
	}
	b.swift.SetFault(nil)
	b.ok("delete", "golden", "-y")
	if got := b.content("web", len(disk)); !bytes.Equal(got, disk) {
		t.Error("the clone is not what the disk was")
	}
}

// TestCloneTwenty makes twenty clones of one image, several at once, writes to
// them, and deletes them all.
func TestCloneTwenty(t *testing.T) {
	t.Parallel()
	names := []string{"golden"}
	for i := range 20 {
		names = append(names, "web"+itoa(i))
	}
	b := newBench(t, devswift.Options{}, names...)
	const size = 1 << 20
	disk := b.fillLog("golden", size, 1)
	b.ok("snapshot", "golden", "v1")
	var g sync.WaitGroup
	for _, name := range names[1:] {
		g.Go(func() {
			if r := b.run("clone", "golden@v1", name); r.code != 0 || r.err != "" {
				t.Errorf("%+v", r)
			}
		})
	}
	g.Wait()
	if n := len(b.notes("golden")); n != 20 {
		t.Errorf("%d notes", n)
	}
	line := b.fails(1, []string{"golden: snapshot v1 is needed by its clones web", " and web"}, "snapshot", "--delete", "golden", "v1")
	if strings.Count(line, "web") != 20 {
		t.Errorf("%s", line)
	}
	for i, name := range names[1:] {
		want := bytes.Clone(disk)
		if i%5 == 0 {
			b.serve(name, func(d *device.Device) { b.scribble(d, want) })
		}
		if !bytes.Equal(b.content(name, size), want) {
			t.Errorf("%s is not what it was", name)
		}
	}
	for _, name := range names[1:] {
		b.fails(1, []string{"golden: not deleted: it is needed by its clone"}, "delete", "golden", "-y")
		b.ok("delete", name, "-y")
	}
	b.ok("snapshot", "--delete", "golden", "v1")
	b.ok("delete", "golden", "-y")
}

// TestCloneLarge makes a clone of 10 TiB.
func TestCloneLarge(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	b.ok("setup", "golden", "--size", "10T", "--format", "2")
	p := noise(100_000)
	b.serve("golden", func(d *device.Device) {
		if _, err := d.WriteAt(p, 7<<40); err != nil {
			t.Fatal(err)
		}
	})
	b.ok("snapshot", "golden", "v1")
	n := len(b.swift.Requests())
	b.ok("clone", "golden@v1", "web")
	if made := b.requests(n); len(made) >= 10 {
		t.Errorf("%d requests: %q", len(made), made)
	}
	b.serve("web", func(d *device.Device) {
		got := make([]byte, len(p))
		if _, err := d.ReadAt(got, 7<<40); err != nil || !bytes.Equal(got, p) {
			t.Errorf("read: %v", err)
		}
		clear(p)
		if _, err := d.ReadAt(got, 8<<40); err != nil || !bytes.Equal(got, p) {
			t.Errorf("read: %v", err)
		}
	})
}

// TestCloneLongNames has names that do not fit into the metadata of a container.
func TestCloneLongNames(t *testing.T) {
	t.Parallel()
	golden, snap := strings.Repeat("g", 200), strings.Repeat("é", 100)
	b := newBench(t, devswift.Options{}, golden, "web")
	disk := b.fillLog(golden, 1<<20, 1)
	b.ok("snapshot", golden, snap)
	b.ok("clone", golden+"@"+snap, "web")
	if out := b.ok("list", "web"); !strings.Contains(out, ", clone ") {
		t.Errorf("%s", out)
	}
	if out := b.ok("info", "web"); !strings.Contains(out, golden+"@"+snap+"\n") {
		t.Errorf("%s", out)
	}
	if !bytes.Equal(b.content("web", len(disk)), disk) {
		t.Error("the clone is not what the disk was")
	}
	b.ok("delete", "web", "-y")
	b.ok("snapshot", "--delete", golden, snap)
}

// TestCloneDiff lists what has changed in a clone. What neither moment has
// written is their parent's, and has not changed.
func TestCloneDiff(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "golden", "web")
	const size = 4 << 20
	disk := b.fillLog("golden", size, 2)
	b.ok("snapshot", "golden", "v1")
	b.ok("clone", "golden@v1", "web")
	b.ok("snapshot", "web", "blank")
	diff := func(from string, was []byte, to string, is []byte) (changed int) {
		t.Helper()
		var found diffFound
		if err := json.Unmarshal([]byte(b.ok("diff", "--json", from, to)), &found); err != nil {
			t.Fatal(err)
		}
		at := 0
		same := func(end int) {
			t.Helper()
			if !bytes.Equal(was[at:end], is[at:end]) {
				t.Errorf("%s to %s: bytes %d to %d have changed, and are not listed", from, to, at, end)
			}
		}
		for _, e := range found.Extents {
			same(int(e.Offset))
			at = int(e.Offset + e.Length)
			changed += int(e.Length)
			if e.Kind == "zero" && strings.Trim(string(is[e.Offset:at]), "\x00") != "" {
				t.Errorf("%s to %s: bytes %d to %d are not zero", from, to, e.Offset, at)
			}
		}
		same(size)
		return changed
	}
	if n := diff("web@blank", disk, "web", disk); n != 0 {
		t.Errorf("%d bytes of nothing have changed", n)
	}
	blank := bytes.Clone(disk)
	d, end := b.open("web")
	p := noise(10_000)
	if _, err := d.WriteAt(p, 1<<20); err != nil {
		t.Fatal(err)
	}
	copy(disk[1<<20:], p)
	if err := d.Zero(2<<20, 8192, true, false); err != nil {
		t.Fatal(err)
	}
	clear(disk[2<<20:][:8192])
	end()
	b.ok("snapshot", "web", "one")
	one := bytes.Clone(disk)
	b.serve("web", func(d *device.Device) { b.scribble(d, disk) })
	if n := diff("web@blank", blank, "web@one", one); n == 0 || n > 32<<10 {
		t.Errorf("%d bytes have changed", n)
	}
	diff("web@blank", blank, "web", disk)
	diff("web@one", one, "web", disk)
	diff("web@one", one, "web@blank", blank)
	b.ok("revert", "web", "blank", "-y")
	if !bytes.Equal(b.content("web", size), blank) {
		t.Error("the clone is not what it was at first")
	}
	if r := b.run("flatten", "web"); r.code != 0 || !strings.Contains(r.out, "but for its snapshots: blank, one\n") {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(b.content("web", size), blank) {
		t.Error("the clone is not what it was at first, when it is flattened")
	}
	diff("web@one", one, "web@one", one)
	diff("web@one", one, "web", blank) // of which one has the parent
}

// notes returns the names of the notes of a disk's clones.
func (b *bench) notes(name string) []string {
	b.Helper()
	return slices.DeleteFunc(b.names(name, layout.ChildPrefix), func(n string) bool {
		_, ok := layout.ParseRecentName(n)
		return ok
	})
}
