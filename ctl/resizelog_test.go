// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// sized fails unless the disk, its root and its container have so many bytes.
func (b *bench) sized(name string, size int64) {
	b.Helper()
	if got := b.items(name)[volume.KeySize]; got != itoa(int(size)) {
		b.Errorf("%s: the container has the size %s, want %d", name, got, size)
	}
	d, err := b.tryOpen(name, device.Options{ReadOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if d.Size() != size {
		b.Errorf("%s has %d bytes, want %d", name, d.Size(), size)
	}
}

// TestResizeLog: a disk of version 2 grows with zeroes, and becomes smaller without
// its data only when that is asked for. Its snapshots stay as they are.
func TestResizeLog(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 4<<20, 2)
	b.serve("disk", func(d *device.Device) { // data to the last byte
		copy(disk[3<<20:], noise(1<<20))
		if _, err := d.WriteAt(disk[3<<20:], 3<<20); err != nil {
			t.Error(err)
		}
	})
	b.ok("snapshot", "disk", "small")
	if out := b.ok("resize", "disk", "6291457"); out != "Done, disk has 6.0 MiB now, 6295552 bytes; it had 4 MiB\n" {
		t.Errorf("%q", out)
	}
	checkUnlocked(b, "disk")
	b.sized("disk", 6295552)
	b.holds("disk", disk)
	b.verify(0)
	b.ok("snapshot", "disk", "large")

	b.fails(1, []string{"disk has ", " of data behind its new end, from byte 3145728: --force cuts it off"}, "resize", "disk", "3M")
	checkUnlocked(b, "disk")
	b.sized("disk", 6295552)
	b.holds("disk", disk)
	if out := b.ok("resize", "disk", "4M"); !strings.HasPrefix(out, "Done, disk has 4 MiB now") { // there is no data
		t.Errorf("%q", out)
	}
	var out resized
	if err := json.Unmarshal([]byte(b.ok("resize", "disk", "3M", "--force", "--json")), &out); err != nil ||
		out != (resized{Container: "disk", Version: 2, Was: 4 << 20, Size: 3 << 20}) {
		t.Errorf("%+v, %v", out, err)
	}
	b.sized("disk", 3<<20)
	b.holds("disk", disk[:3<<20])
	b.verify(0)
	if out := b.ok("resize", "disk", "3M"); out != "Done, disk has 3 MiB now, 3145728 bytes; it had 3 MiB\n" {
		t.Errorf("once more: %q", out)
	}

	// Growing makes as many requests for any size, and what was cut off is gone.
	b.swift.ResetRequests()
	b.ok("resize", "disk", "5M")
	few := len(b.swift.Requests())
	b.swift.ResetRequests()
	b.ok("resize", "disk", "10T")
	if n := len(b.swift.Requests()); n > few+2 || few > n+2 {
		t.Errorf("growing to 5 MiB is %d requests, to 10 TiB %d", few, n)
	}
	b.sized("disk", 10<<40)
	if list := b.ok("list", "disk"); !strings.Contains(list, "10 TiB") {
		t.Errorf("list: %s", list)
	}
	b.serve("disk", func(d *device.Device) {
		got := make([]byte, 2<<20)
		if _, err := d.ReadAt(got, 3<<20); err != nil || !zero(got) {
			t.Errorf("what was cut off is not zero: %v", err)
		}
		last := noise(4096)
		if _, err := d.WriteAt(last, 10<<40-4096); err != nil {
			t.Error(err)
		}
	})
	b.fails(1, []string{"disk has 4 KiB of data behind its new end, from byte 10995116273664"}, "resize", "disk", "3M")
	b.ok("resize", "disk", "3M", "-f")
	b.holds("disk", disk[:3<<20])
	b.verify(0)
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk@small", path)
	checkImage(t, path, disk)
	b.ok("download", "disk@large", path)
	checkImage(t, path, append(bytes.Clone(disk), make([]byte, 6295552-4<<20)...))
}

// TestResizeLogRefused: what is wrong is said in one line, and changes nothing.
func TestResizeLogRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "locked", "absent")
	disk := b.fillLog("disk", 4<<20, 1)
	b.ok("setup", "locked", "--size", "4M", "--format", "2")
	b.ok("lock", "locked")
	before := b.writes()
	b.refused([]refusal{
		{1, "locked is locked by ctl", "locked 1M"},
		{1, "absent doesn't exist", "absent 8M"},
		{2, "no bytes", "disk 0"},
		{2, "not a number", "disk -- -1"},
		{2, "too large: it can have 9223372036853727232", "disk 9223372036854775807"},
		{2, "too large: it can have 9223372036853727232", "disk 9223372036853727233"},
		{2, "too large", "disk 16E"},
	}, "resize")
	b.fails(2, []string{"--size: a disk of 9223372036854775807 bytes is too large"}, "setup", "absent", "--format", "2", "--size", "9223372036854775807")
	b.unchanged(before)
	b.holds("disk", disk)
	b.writeSecrets("[disk]\nread-only = 1\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	b.fails(1, []string{"disk is read-only in "}, "resize", "disk", "8M")
}

// killed runs the tool as a process that is killed at the change number k that it
// makes once it has the lock, before that has any effect. Whatever it reads in
// between does not tell one moment from the other. It says whether it got that far.
func (b *bench) killed(k int64, args ...string) bool {
	b.Helper()
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"--secrets", b.secrets}, args...)...)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	var (
		n       atomic.Int64
		marked  atomic.Bool
		reached = make(chan struct{})
	)
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		switch {
		case n.Load() >= k:
			return &devswift.Action{Hang: true}
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
		case marked.Load():
			if n.Add(1) == k {
				close(reached)
				return &devswift.Action{Hang: true}
			}
		case r.Header.Get("X-Container-Meta-"+volume.KeyClient) != "":
			marked.Store(true)
		}
		return nil
	})
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-reached:
		_ = cmd.Process.Kill()
		<-ended
	case err := <-ended:
		if err != nil && n.Load() < k {
			b.Errorf("%q: %v", args, err)
		}
	}
	b.swift.SetFault(nil)
	return n.Load() >= k
}

// everyRequest kills a verb at each change that it makes, checks what is left, and
// repeats it. before makes the disk what it is to be first.
func everyRequest(b *bench, before func(), after func(), args ...string) {
	b.Helper()
	for k := int64(1); ; k++ {
		before()
		got := b.killed(k, args...)
		if r := b.run("unlock", "disk"); got && r.code != 0 && !strings.Contains(r.err, "is not locked") {
			b.Errorf("unlock: %+v", r)
		}
		b.verify(0)
		b.ok(args...)
		after()
		if b.Failed() {
			b.Fatalf("change %d", k)
		}
		if !got {
			b.verify(0)
			b.Logf("%q makes %d changes", args, k-1)
			return
		}
	}
}

// TestResizeKilled kills the verb at its requests. Repeated, it goes on.
func TestResizeKilled(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 4<<20, 1)
	b.ok("snapshot", "disk", "all")
	write := func() {
		b.ok("resize", "disk", "4M")
		b.serve("disk", func(d *device.Device) {
			p := noise(100_000)
			copy(disk[3<<20-50_000:], p)
			if _, err := d.WriteAt(p, 3<<20-50_000); err != nil {
				t.Error(err)
			}
		})
	}
	everyRequest(b, write, func() {
		b.sized("disk", 3<<20)
		clear(disk[3<<20:])
		b.holds("disk", disk[:3<<20])
	}, "resize", "disk", "3M", "--force")
	everyRequest(b, func() { b.ok("resize", "disk", "3M") }, func() {
		b.sized("disk", 4<<20)
		b.holds("disk", disk)
	}, "resize", "disk", "4M")
}
