// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/volume"
)

var everyFlag = flag.Bool("every", false, "interrupt an upload of an increment at each of its requests, and not at some")

// copies are a disk with snapshots, and what it was at each.
type copies struct {
	*bench
	dir   string
	disk  []byte
	at    map[string][]byte // by snapshot
	names []string
	other *bench // where the copies are
}

// newCopies sets a disk of a size up that has the snapshots, between which it was
// changed.
func newCopies(b *bench, size int, names ...string) *copies {
	b.Helper()
	c := &copies{bench: b, dir: b.TempDir(), at: map[string][]byte{}, names: names, other: b}
	c.disk = b.fillLog("disk", size, 1)
	for i, name := range names {
		if i > 0 {
			b.serve("disk", func(d *device.Device) { b.scribble(d, c.disk) })
		}
		b.ok("snapshot", "disk", name)
		c.at[name] = bytes.Clone(c.disk)
	}
	return c
}

// increment downloads what has changed, and returns the file's path.
func (c *copies) increment(since, snap string) string {
	c.Helper()
	path := filepath.Join(c.dir, since+" to "+snap)
	args := []string{"download", "disk@" + snap, path, "-O", "increment"}
	if since != "" {
		args = append(args, "--since", since)
	}
	c.ok(args...)
	return path
}

// has fails unless the copy has these snapshots, and is what the last of them is.
func (c *copies) has(name string, snaps ...string) {
	c.Helper()
	var found []snapshotFound
	if err := json.Unmarshal([]byte(c.ok("snapshots", name, "--json")), &found); err != nil {
		c.Fatal(err)
	}
	var got []string
	for _, s := range found {
		got = append(got, s.Name)
		if s.Of == nil || len(s.Of.UUID) != 32 || len(s.Of.Root) != 17 {
			c.Errorf("%s@%s is a copy of %+v", name, s.Name, s.Of)
		}
	}
	if !slices.Equal(got, snaps) {
		c.Errorf("%s has the snapshots %q, want %q", name, got, snaps)
	}
	path := filepath.Join(c.dir, "read back")
	for _, snap := range snaps {
		c.ok("download", name+"@"+snap, path)
		checkImage(c.T, path, c.at[snap])
	}
	c.ok("download", name, path)
	checkImage(c.T, path, c.at[snaps[len(snaps)-1]])
	checkUnlocked(c.other, name)
}

// TestIncrement carries a disk to another cloud: first all of it, then what has
// changed, and back from there.
func TestIncrement(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "restored")
	other := newBench(t, devswift.Options{})
	b.writeSecrets("[DEFAULT]\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n[disk]\n[restored]\n[backup]\nauthurl = " + other.auth + "\n")
	const size = 4 << 20
	c := newCopies(b, size, "a", "b", "c")
	c.other = other

	full := c.increment("", "a")
	if out := b.ok("upload", full, "--onto", "backup"); !strings.Contains(out, "backup doesn't exist, will be created\n") || !strings.Contains(out, "\nDone, backup has the snapshot a, ") {
		t.Errorf("%q", out)
	}
	c.has("backup", "a")
	ab, bc := c.increment("a", "b"), c.increment("b", "c")
	var down downloaded
	text := b.ok("download", "disk@b", ab, "-O", "increment", "--since", "a", "--json")
	if err := json.Unmarshal([]byte(text), &down); err != nil || *down.Since != "a" || *down.Snapshot != "b" || down.Format != "increment" || down.Fetched == 0 || down.Size != size {
		t.Errorf("%v: %s", err, text)
	}
	var up uploaded
	text = b.ok("upload", ab, "--onto", "backup", "--json")
	if err := json.Unmarshal([]byte(text), &up); err != nil || *up.Since != "a" || *up.Snapshot != "b" || up.Sent != down.Fetched || up.Sent == 0 || up.Image < up.Sent || up.Size != size {
		t.Errorf("%v: %s", err, text)
	}
	c.has("backup", "a", "b")
	if out := b.ok("upload", ab, "--onto", "backup"); out != "Done, backup has the snapshot b already\n" {
		t.Errorf("once more: %q", out)
	}
	// The copy may be opened for writing, if nothing is written.
	other.serve("backup", nil)
	f, err := os.Open(bc)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := b.runWith(t.Context(), io.MultiReader(f), "upload", "-", "--onto", "backup"); r.code != 0 || r.err != "" {
		t.Errorf("from a pipe: %+v", r)
	}
	c.has("backup", "a", "b", "c")
	b.ok("verify", "backup")

	// And back, by a pipe, from the copy.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	code := make(chan int, 1)
	go func() {
		var errs bytes.Buffer
		code <- b.pace.run(t.Context(), []string{"--secrets", b.secrets, "download", "backup@c", "-", "-O", "increment"}, strings.NewReader(""), w, &errs, func(string) string { return "" })
		w.Close()
	}()
	if r := b.runWith(t.Context(), r, "upload", "-", "--onto", "restored"); r.code != 0 || <-code != 0 {
		t.Errorf("back: %+v", r)
	}
	c.other = b
	c.has("restored", "c")
	var own []snapshotFound
	if err := json.Unmarshal([]byte(b.ok("snapshots", "disk", "--json")), &own); err != nil || len(own) != 3 || own[0].Of != nil {
		t.Errorf("%v: %+v", err, own)
	}
}

// TestDownloadSince changes an image in place from one snapshot to the next, also
// after a run that was interrupted.
func TestDownloadSince(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	c := newCopies(b, 4<<20, "a", "b", "c")
	path := filepath.Join(c.dir, "image")
	b.ok("download", "disk@a", path)
	out := b.ok("download", "disk@b", path, "--since", "a")
	if !strings.HasPrefix(out, "Done, ") || !strings.Contains(out, " bytes of data that have changed, the disk has 4194304 bytes\n") {
		t.Errorf("%q", out)
	}
	checkImage(t, path, c.at["b"])
	var gets atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && strings.HasPrefix(r.Object, "swiftnbd/log/") && gets.Add(1) > 2 {
			cancel()
		}
		return nil
	})
	r := b.runContext(ctx, "download", "disk@c", path, "--since", "b", "--connections", "1")
	b.swift.SetFault(nil)
	if r.code != 1 || !strings.Contains(r.err, "disk: interrupted; "+path+" is partly changed: run the same command again") {
		t.Errorf("%+v", r)
	}
	b.ok("download", "disk@c", path, "--since", "b", "-O", "raw", "-q")
	if used := checkImage(t, path, c.at["c"]); used > 4<<20 {
		t.Errorf("the image takes %d bytes", used)
	}
	// And backwards.
	b.ok("download", "disk@a", path, "--since", "c")
	checkImage(t, path, c.at["a"])
	checkAlone(t, c.dir, "image")
}

// TestIncrementRefused: what is no increment, is of something else, or comes in the
// wrong order, changes nothing.
func TestIncrementRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "backup", "new", "old", "other", "locked", "full", "small", "taken")
	c := newCopies(b, 1<<20, "a", "b", "c")
	full, ab, bc, ac := c.increment("", "a"), c.increment("a", "b"), c.increment("b", "c"), c.increment("a", "c")
	b.ok("upload", full, "--onto", "backup")
	b.ok("setup", "old", "--size", "1M")
	b.fillLog("other", 1<<20, 1)
	b.ok("snapshot", "other", "a")
	b.ok("upload", full, "--onto", "locked")
	b.ok("lock", "locked")
	b.ok("setup", "small", "--size", "512K", "--format", "2")
	b.ok("upload", full, "--onto", "taken")
	b.ok("snapshot", "taken", "b")
	b.ok("upload", full, "--onto", "full")
	b.serve("full", func(d *device.Device) {
		if _, err := d.WriteAt(noise(10), 40960); err != nil {
			t.Fatal(err)
		}
	})
	image := filepath.Join(c.dir, "image")
	b.ok("download", "disk@a", image)
	data, err := os.ReadFile(ab)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, p []byte) string {
		t.Helper()
		path := filepath.Join(c.dir, name)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	damaged := bytes.Clone(data)
	damaged[len(data)/2] ^= 1
	type refusal struct {
		code int
		want string
		args []string
	}
	refused := func(list []refusal) {
		t.Helper()
		for _, r := range list {
			b.fails(r.code, []string{r.want}, r.args...)
		}
	}
	before := b.writes()
	refused([]refusal{
		{1, "backup has no copy of the snapshot b of disk, onto which the increment goes: the newest that it has is a", []string{"upload", bc, "--onto", "backup"}},
		{1, "other has no copy of the snapshot a of disk, onto which the increment goes: it has none of that disk", []string{"upload", ab, "--onto", "other"}},
		{1, "new is not set up, and has to be a copy of disk@a", []string{"upload", ab, "--onto", "new"}},
		{1, "taken has another snapshot b, which is no copy of disk@b", []string{"upload", ab, "--onto", "taken"}},
		{1, "old: a disk of version 1", []string{"upload", ab, "--onto", "old"}},
		{1, "locked is locked by ctl", []string{"upload", ab, "--onto", "locked"}},
		{1, "no increment", []string{"upload", image, "--onto", "backup"}},
		{1, "is a directory", []string{"upload", c.dir, "--onto", "backup"}},
		{1, "no such file", []string{"upload", ab + "x", "--onto", "backup"}},
		{1, "nowhere not found", []string{"upload", ab, "--onto", "nowhere"}},
		{2, "one argument too many", []string{"upload", ab, "backup", "--onto", "backup"}},
		{2, "exclude each other", []string{"upload", ab, "--onto", "backup", "--force"}},
		{2, "exclude each other", []string{"upload", ab, "--onto", "backup", "--size", "1M"}},
		{2, "disk names no snapshot", []string{"download", "disk", image, "--since", "a"}},
		{2, "that is the same snapshot", []string{"download", "disk@a", image, "--since", "a"}},
		{2, "--since: ", []string{"download", "disk@b", image, "--since", "a@b"}},
		{2, "only a raw image can be changed in place", []string{"download", "disk@b", image, "--since", "a", "-O", "qcow2"}},
		{2, "cannot be changed in place", []string{"download", "disk@b", "-", "--since", "a"}},
		{1, "snapshot none: there is no such snapshot", []string{"download", "disk@b", image, "--since", "none"}},
		{1, "with --since the image has to be there, and to hold the snapshot a", []string{"download", "disk@b", image + "x", "--since", "a"}},
		{1, "has 7 bytes, and the snapshot a has 1048576", []string{"download", "disk@b", file("short", []byte("1234567")), "--since", "a"}},
		{1, "is a qcow2 image", []string{"download", "disk@b", file("qcow2", append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<20-8)...)), "--since", "a"}},
		{1, "old: a disk of version 1", []string{"download", "old@b", image, "--since", "a"}},
		{1, "is a directory", []string{"download", "disk@b", c.dir, "-O", "increment"}},
	})
	b.unchanged(before)
	checkImage(t, image, c.at["a"])
	// The disk had to be taken to find out.
	refused([]refusal{
		{1, "full was written to since it became the copy a, at byte 40960", []string{"upload", ab, "--onto", "full"}},
		{1, "small has 524288 bytes, and disk@a has 1048576: give it that size first", []string{"upload", full, "--onto", "small"}},
		{1, "other has another snapshot a", []string{"upload", full, "--onto", "other"}},
	})
	b.ok("snapshot", "--delete", "other", "a")
	refused([]refusal{{1, "other has data, and the increment is a whole disk", []string{"upload", full, "--onto", "other"}}})
	for _, name := range []string{"full", "small", "other", "backup", "taken"} {
		checkUnlocked(b, name)
	}
	c.has("backup", "a")

	// A damaged one is found on the way, and a whole one goes on from there; another
	// one does not.
	for name, p := range map[string][]byte{"damaged": damaged, "cut": data[:len(data)-5]} {
		b.fails(1, []string{"backup: ", name, "; the increment is not complete: run the same command again"}, "upload", file(name, p), "--onto", "backup")
		checkUnlocked(b, "backup")
		time.Sleep(1100 * time.Millisecond) // so that this session has another mark
		b.fails(1, []string{"backup was written to since it became the copy a"}, "upload", ac, "--onto", "backup")
	}
	b.ok("upload", ab, "--onto", "backup")
	c.has("backup", "a", "b")
	b.ok("upload", bc, "--onto", "backup")
	c.has("backup", "a", "b", "c")
}

// TestIncrementResized: the disk has become larger, and then smaller. The copy has to
// be resized, which is no change that anybody has written.
func TestIncrementResized(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "backup")
	c := newCopies(b, 1<<20, "a")
	change := func(size int, name string) {
		t.Helper()
		b.ok("resize", "disk", itoa(size), "--force")
		c.disk = append(c.disk, make([]byte, max(0, size-len(c.disk)))...)[:size]
		b.serve("disk", func(d *device.Device) { b.scribble(d, c.disk) })
		b.ok("snapshot", "disk", name)
		c.at[name] = bytes.Clone(c.disk)
	}
	change(2<<20, "b")
	change(512<<10, "c")
	change(3<<20, "d")
	b.ok("upload", c.increment("", "a"), "--onto", "backup")
	image := filepath.Join(c.dir, "image")
	b.ok("download", "disk@a", image)
	was := "a"
	for _, snap := range []string{"b", "c", "d"} {
		path := c.increment(was, snap)
		b.fails(1, []string{"give it that size first"}, "upload", path, "--onto", "backup")
		b.ok("resize", "backup", itoa(len(c.at[snap])), "--force")
		b.ok("upload", path, "--onto", "backup")
		b.ok("download", "disk@"+snap, image, "--since", was)
		checkImage(t, image, c.at[snap])
		was = snap
	}
	c.has("backup", "a", "b", "c", "d")
}

// TestIncrementForeign: after an interrupted upload somebody else has written to
// the copy, and what they wrote stays.
func TestIncrementForeign(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "backup")
	c := newCopies(b, 1<<20, "a", "b")
	b.ok("upload", c.increment("", "a"), "--onto", "backup")
	ab := c.increment("a", "b")
	data, err := os.ReadFile(ab)
	if err != nil {
		t.Fatal(err)
	}
	r := b.runWith(t.Context(), bytes.NewReader(data[:len(data)-5]), "upload", "-", "--onto", "backup")
	if r.code != 1 || !strings.Contains(r.err, "its end is missing; the increment is not complete") {
		t.Errorf("%+v", r)
	}
	b.serve("backup", func(d *device.Device) {
		if _, err := d.WriteAt(noise(10), 100_000); err != nil {
			t.Fatal(err)
		}
	})
	b.fails(1, []string{"backup was written to since it became the copy a", "swiftnbd-ctl revert drops it"}, "upload", ab, "--onto", "backup")
	b.ok("revert", "backup", "a", "--yes")
	b.ok("upload", ab, "--onto", "backup")
	c.has("backup", "a", "b")
}

// TestIncrementEveryRequest interrupts an upload of an increment at its requests,
// by a signal or by a sudden end, and does it again: the copy is whole then.
func TestIncrementEveryRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	c := newCopies(b, 256<<10, "a", "b", "c")
	full, ab, bc := c.increment("", "a"), c.increment("a", "b"), c.increment("b", "c")
	b.pace.uploadTerm = 5 * time.Second
	n := 0
	copyOf := func() string {
		n++
		name := fmt.Sprintf("backup%d", n)
		text, err := os.ReadFile(b.secrets)
		if err != nil {
			t.Fatal(err)
		}
		b.writeSecrets(string(text) + "[" + name + "]\n")
		b.ok("upload", full, "--onto", name)
		return name
	}
	// How many requests are there?
	name := copyOf()
	before := len(b.swift.Requests())
	b.ok("upload", ab, "--onto", name)
	total := len(b.swift.Requests()) - before
	step := max(1, total/4)
	first := 1 + rand.IntN(step)
	if *everyFlag {
		first, step = 1, 1
	}
	ends := 0
	for k := first; k <= total; k += step {
		for _, way := range []string{"signal", "death", "death after it"} {
			name := copyOf()
			ctx, cancel := context.WithCancel(t.Context())
			var seen atomic.Int32
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Account == "" {
					return nil
				}
				i := int(seen.Add(1))
				if i >= k {
					cancel()
				}
				if way == "death" && i >= k || way == "death after it" && i > k {
					return &devswift.Action{Status: 403}
				}
				return nil
			})
			b.pace.work.Timeout, b.pace.contact.Timeout = 500*time.Millisecond, 500*time.Millisecond
			r := b.runContext(ctx, "upload", ab, "--onto", name)
			b.swift.SetFault(nil)
			b.pace.work.Timeout, b.pace.contact.Timeout = 10*time.Second, 3*time.Second
			cancel()
			if r.code != 0 {
				ends++
			}
			if u := b.run("unlock", name); u.code != 0 && !strings.Contains(u.err, "is not locked") {
				t.Fatalf("%s at request %d: %+v", way, k, u)
			}
			// It may have died between its lease and its mark: then the lease ends
			// by itself.
			again := b.run("upload", ab, "--onto", name)
			for end := time.Now().Add(12 * b.pace.uploadTerm); strings.Contains(again.err, "locked by ctl-upload") && time.Now().Before(end); {
				time.Sleep(200 * time.Millisecond)
				again = b.run("upload", ab, "--onto", name)
			}
			if again.code != 0 || again.err != "" || !strings.HasPrefix(again.out, "Done, "+name+" has the snapshot b") {
				t.Fatalf("%s at request %d of %d: %+v, and then %+v", way, k, total, r, again)
			}
			b.ok("upload", bc, "--onto", name)
			c.has(name, "a", "b", "c")
			if t.Failed() {
				t.Fatalf("%s at request %d of %d: %+v", way, k, total, r)
			}
		}
	}
	t.Logf("%d requests, %d ends", total, ends)
	if ends < 6 {
		t.Errorf("%d ends: this test shows little", ends)
	}
}

// TestOntoRecord reads what was written, and nothing else.
func TestOntoRecord(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	c := newCopies(b, 64<<10, "a", "b")
	_ = c
	x, err := logdisk.OpenDiff(t.Context(), logdiskOptions(b, "disk"), logdisk.DiffOptions{From: "a", To: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r := recordOf(headerOf("disk", x))
	r.mark = "ctl-upload@1 2"
	whole := r
	whole.from.Epoch, whole.from.N = 0, 0
	for _, r := range []ontoRecord{r, whole} {
		if got, ok := parseOntoRecord(r.String()); !ok || got != r {
			t.Errorf("%q is read as %+v, %t", r, got, ok)
		}
	}
	for _, item := range []string{"", "onto", "1 2 3 4 5", strings.Replace(r.String(), "onto ", "onto x", 1), strings.Replace(r.String(), " ctl", "", 1)[:60], "onto " + x.UUID.String() + " - - mark"} {
		if got, ok := parseOntoRecord(item); ok {
			t.Errorf("%q is read as %+v", item, got)
		}
	}
	if _, ok := parseUploadRecord(r.String()); ok {
		t.Error("it is taken for the record of an image")
	}
}

// logdiskOptions are for a look at a disk that nobody writes.
func logdiskOptions(b *bench, name string) logdisk.Options {
	b.Helper()
	meta, err := volume.Read(b.Context(), b.store(name))
	if err != nil {
		b.Fatal(err)
	}
	return logdisk.Options{Store: b.store(name), UUID: meta.UUID, Root: meta.Root, Newest: 100}
}
