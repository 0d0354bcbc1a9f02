// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
)

// asks returns the items of requests and answers in the container.
func (b *bench) asks(name string) (list []string) {
	b.Helper()
	md, err := b.store(name).Metadata(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for key, value := range md.Items {
		if strings.HasPrefix(key, "Swiftnbd-A") {
			list = append(list, key+": "+value)
		}
	}
	return list
}

// TestSnapshotServed has a server make and delete snapshots while it writes. Each
// is of one moment, and what the server says is told.
func TestSnapshotServed(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.term = 6 * time.Second
	const size = 4 << 20
	disk := b.fillLog("disk", size, 1)
	d, end := b.open("disk")
	defer end()
	b.scribble(d, disk)
	// Not flushed: it is in the snapshot all the same.
	last := noise(4096)
	if _, err := d.WriteAt(last, 0); err != nil {
		t.Fatal(err)
	}
	copy(disk, last)
	if out := b.ok("snapshot", "disk", "a name of words"); out != "Done, disk has the snapshot a name of words\n" {
		t.Errorf("%q", out)
	}
	first := bytes.Clone(disk)
	b.scribble(d, disk)
	b.fails(1, []string{"disk: snapshot a name of words: there is such a snapshot already"}, "snapshot", "disk", "a name of words")
	b.fails(1, []string{"disk: snapshot none: there is no such snapshot"}, "snapshot", "--delete", "disk", "none")
	b.fails(2, []string{"too long for a request to a running server"}, "snapshot", "disk", strings.Repeat("x", 250))
	b.ok("snapshot", "disk", "é")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk@a name of words", path)
	checkImage(t, path, first)
	b.ok("download", "disk@é", path)
	checkImage(t, path, disk)
	b.ok("snapshot", "--delete", "disk", "é")
	b.fails(1, []string{"no such snapshot"}, "download", "disk@é", path)
	if left := b.asks("disk"); left != nil {
		t.Errorf("left in the container: %q", left)
	}
	end()
	b.ok("verify", "disk")
	b.ok("download", "disk", path)
	checkImage(t, path, disk)
}

// TestSnapshotServerGoes: a server that ends before it answers is not waited for.
func TestSnapshotServerGoes(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 1<<20, 1)
	d, end := b.open("disk")
	defer end()
	b.scribble(d, disk)
	time.AfterFunc(300*time.Millisecond, end)
	b.ok("snapshot", "disk", "snap")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk@snap", path)
	checkImage(t, path, disk)
	if left := b.asks("disk"); left != nil {
		t.Errorf("left in the container: %q", left)
	}
}

// TestSnapshotLocked: an operator's lock is no server, and nobody is asked.
func TestSnapshotLocked(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillLog("disk", 1<<20, 1)
	b.ok("lock", "disk")
	b.fails(1, []string{"disk", "locked"}, "snapshot", "disk", "snap")
	b.ok("unlock", "disk")
}

// TestSnapshotInterrupted: a request that nobody waits for is taken back.
func TestSnapshotInterrupted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillLog("disk", 1<<20, 1)
	_, end := b.open("disk")
	defer end()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		switch {
		case !strings.HasPrefix(r.Header.Get("User-Agent"), program): // the server does not see it
			return &devswift.Action{Status: 503}
		case asked.Load():
			cancel()
		case r.Method == http.MethodPost && r.Container == "disk":
			for key := range r.Header {
				if strings.HasPrefix(key, "X-Container-Meta-Swiftnbd-A") {
					asked.Store(true)
				}
			}
		}
		return nil
	})
	r := b.runContext(ctx, "snapshot", "disk", "snap")
	b.swift.SetFault(nil)
	if r.code == 0 || !strings.Contains(r.err, "interrupted") || !strings.Contains(r.err, "may do it still") {
		t.Errorf("%+v", r)
	}
	if left := b.asks("disk"); left != nil {
		t.Errorf("left in the container: %q", left)
	}
}

// TestResizeServed has a server make a disk larger.
func TestResizeServed(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.term = 6 * time.Second
	const was, now = 1 << 20, 3 << 20
	disk := b.fillLog("disk", was, 1)
	d, end := b.open("disk")
	defer end()
	b.scribble(d, disk)
	if out := b.ok("resize", "disk", "3M"); out != "Done, disk has 3 MiB now, 3145728 bytes; it had 1 MiB\n" {
		t.Errorf("%q", out)
	}
	if d.Size() != now {
		t.Errorf("the server's disk has %d bytes", d.Size())
	}
	disk = append(disk, make([]byte, now-was)...)
	b.scribble(d, disk)
	b.ok("resize", "disk", "3M") // nothing to do
	b.fails(1, []string{"disk is", "a disk becomes smaller only while no server has it"}, "resize", "disk", "2M")
	b.fails(1, []string{"disk: a disk of 3145728 bytes cannot grow to", "while no server has it"}, "resize", "disk", "1E")
	end()
	b.ok("verify", "disk")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	checkImage(t, path, disk)
}
