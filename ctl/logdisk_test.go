// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// open opens a disk as a server does, and returns it with a way to close it that
// may be called twice.
func (b *bench) open(name string) (*device.Device, func()) {
	b.Helper()
	return b.openAs(name, device.Options{})
}

func (b *bench) openAs(name string, o device.Options) (*device.Device, func()) {
	b.Helper()
	d, err := b.tryOpen(name, o)
	if err != nil {
		b.Fatalf("open %s: %v", name, err)
	}
	closed := false
	end := func() {
		if closed {
			return
		}
		closed = true
		if err := d.Close(); err != nil {
			b.Errorf("close %s: %v", name, err)
		}
	}
	b.Cleanup(func() {
		if !closed {
			d.Abandon()
		}
	})
	return d, end
}

// tryOpen opens a disk as a server does.
func (b *bench) tryOpen(name string, o device.Options) (*device.Device, error) {
	b.Helper()
	b.store(name) // dials
	o.Holder, o.Timeout, o.Connections = "server:1", cmp.Or(o.Timeout, 5*time.Second), 4
	way := cloud.New(b.client, cloud.Options{Connections: 16, Policy: b.pace.work})
	o.Store, o.Lease = way.Writer(name, cmp.Or(b.term, 30*time.Second))
	o.Bases = way.Base
	o.Log = func(format string, args ...any) { b.Logf("server: "+format, args...) }
	return device.Open(context.Background(), o)
}

// serve opens a disk, has use do something with it, and closes it in good order.
func (b *bench) serve(name string, use func(d *device.Device)) {
	b.Helper()
	d, end := b.open(name)
	if use != nil {
		use(d)
	}
	end()
}

// fillLog sets a disk of version 2 up and writes to it in some sessions, from
// which objects with and without garbage, several epochs, trimmed and zeroed
// ranges come. It returns what the disk has then.
func (b *bench) fillLog(name string, size, sessions int) []byte {
	b.Helper()
	b.ok("setup", name, "--size", itoa(size), "--format", "2")
	want := make([]byte, size)
	for range sessions {
		b.serve(name, func(d *device.Device) { b.scribble(d, want) })
	}
	return want
}

// scribble changes a disk here and there, and want with it.
func (b *bench) scribble(d *device.Device, want []byte) {
	b.Helper()
	size := len(want)
	do := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range 40 {
		off := rand.IntN(size)
		p := noise(1 + rand.IntN(min(60_000, size-off)))
		_, err := d.WriteAt(p, int64(off))
		do(err)
		copy(want[off:], p)
		if i%8 == 7 {
			do(d.Sync())
		}
	}
	off, n := rand.IntN(size/2), size/4
	do(d.Zero(int64(off), int64(n), false, false))
	clear(want[off:][:n])
	do(d.Sync())
}

// TestDownloadLog downloads disks of version 2, one of which ends within a chunk.
func TestDownloadLog(t *testing.T) {
	t.Parallel()
	for _, size := range []int{8192, 5<<20 + 4096*3, 16 << 20} {
		b := newBench(t, devswift.Options{}, "disk")
		disk := b.fillLog("disk", size, 3)
		dir := t.TempDir()
		path := filepath.Join(dir, "image")
		for _, args := range [][]string{{}, {"-q"}, {"--connections", "1"}} {
			if out, want := b.ok(append([]string{"download", "disk", path}, args...)...), "Done, "+itoa(size)+" bytes written\n"; out != want {
				t.Errorf("%q, want %q", out, want)
			}
			checkImage(t, path, disk)
			checkUnlocked(b, "disk")
		}
		checkAlone(t, dir, "image")

		// A pipe gets the zeroes too.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte)
		go func() {
			p, _ := io.ReadAll(r)
			got <- p
		}()
		var errs bytes.Buffer
		code := b.pace.run(t.Context(), []string{"--secrets", b.secrets, "download", "disk", "-"}, strings.NewReader(""), w, &errs, func(string) string { return "" })
		w.Close()
		if p := <-got; code != 0 || errs.Len() > 0 || !bytes.Equal(p, disk) {
			t.Errorf("to a pipe: exit status %d, %s, %d bytes", code, errs.String(), len(p))
		}
		// The next session has all of it still, and what a killed one had flushed.
		d, _ := b.open("disk")
		b.scribble(d, disk)
		d.Abandon()
		b.ok("unlock", "disk")
		b.ok("download", "disk", path)
		checkImage(t, path, disk)
	}
}

// TestDownloadLogBlank downloads a disk that nobody has opened yet: a hole.
func TestDownloadLogBlank(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "64M", "--format", "2")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	if used := checkImage(t, path, make([]byte, 64<<20)); used > 4096 {
		t.Errorf("the image takes %d bytes", used)
	}
}

// TestDownloadLogRefused has a locked disk refused, with reading only allowed
// downloaded beside its writer, and a damaged one not kept.
func TestDownloadLogRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillLog("disk", 4<<20, 2)
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	d, end := b.open("disk")
	b.fails(1, []string{"disk is locked by server:1", "unreliable"}, "download", "disk", path)
	end()

	b.writeSecrets("[disk]\nread-only = 1\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPost, Action: devswift.Action{Status: 403}}))
	b.ok("download", "disk", path)
	checkImage(t, path, disk)
	b.swift.SetFault(nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_ = d

	for _, name := range b.names("disk", layout.LogPrefix) {
		b.flip("disk", name, 100)
	}
	b.fails(1, []string{"disk: ", layout.LogPrefix, "damaged frame"}, "download", "disk", path)
	checkAlone(t, dir)
	checkUnlocked(b, "disk")
}

// names returns the names of a container's objects with the prefix.
func (b *bench) names(container, prefix string) (names []string) {
	b.Helper()
	page, err := b.store(container).List(b.Context(), store.ListOptions{Prefix: prefix})
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range page {
		names = append(names, o.Name)
	}
	return names
}

// object returns an object's bytes.
func (b *bench) object(container, name string) []byte {
	b.Helper()
	info, err := b.store(container).Head(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, info.Size)
	if _, err := b.store(container).Get(b.Context(), name, p, store.GetOptions{}); err != nil {
		b.Fatal(err)
	}
	return p
}

// flip changes one byte of an object; a negative place counts from its end.
func (b *bench) flip(container, name string, at int) {
	b.Helper()
	p := b.object(container, name)
	if at < 0 {
		at += len(p)
	}
	p[at] ^= 0x40
	b.put(container, name, p)
}

// noLeases fails if a lease of the disk's is left.
func (b *bench) noLeases(name string, most int64) {
	b.Helper()
	for n := range most + 1 {
		if _, err := b.store(lease.ContainerName(name, n)).Metadata(b.Context()); !errors.Is(err, store.ErrContainerNotFound) {
			b.Errorf("lease %d of %s is left: %v", n, name, err)
		}
	}
}

// TestDeleteLog deletes a disk of version 2 with more objects than a listing has,
// at once and interrupted, after a server was killed.
func TestDeleteLog(t *testing.T) {
	t.Parallel()
	for _, interrupt := range []bool{false, true} {
		objects := 10_300 // a listing has 10,000
		if interrupt {
			objects = 5000
		}
		b := newBench(t, devswift.Options{}, "disk")
		b.fillLog("disk", 1<<20, 2)
		d, _ := b.open("disk")
		if err := d.WriteFUA(noise(5000), 0, true); err != nil {
			t.Fatal(err)
		}
		b.fails(1, []string{"disk is locked by server:1"}, "delete", "disk", "-y")
		d.Abandon()
		var g sync.WaitGroup
		for worker := range 16 {
			g.Go(func() {
				for n := worker; n < objects; n += 16 {
					b.put("disk", layout.LogName(layout.Position{Epoch: 1, N: layout.FirstCollected + uint64(n)}), []byte("x"))
				}
			})
		}
		g.Wait()
		b.ok("unlock", "disk")
		if interrupt {
			ctx, cancel := context.WithCancel(t.Context())
			var bulk atomic.Int64
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Method == http.MethodPost && r.Container == "" && bulk.Add(1) == 20 {
					cancel()
				}
				return nil
			})
			r := b.runContext(ctx, "delete", "disk", "-y")
			if r.code != 1 || !strings.Contains(r.err, "interrupted; it is not deleted to the end: delete it again") {
				t.Errorf("%+v", r)
			}
			b.swift.SetFault(nil)
			b.fails(1, []string{"disk is locked by ctl-delete since "}, "setup", "disk", "--size", "1G", "--format", "2", "-f")
			b.fails(1, []string{"disk is locked by ctl-delete"}, "verify", "disk")
		}
		if out := b.ok("delete", "disk", "-y"); out != "Done, disk has been deleted\n" {
			t.Errorf("%q", out)
		}
		b.gone("disk")
		b.noLeases("disk", 12)
		if n := b.swift.Count(http.MethodDelete); n > 60 {
			t.Errorf("%d DELETEs", n)
		}
	}
}

// TestLockLog locks a disk of version 2 against servers, and takes it from one that
// serves it: that one ends, and the next has a complete prefix of its writes.
func TestLockLog(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	want := b.fillLog("disk", 2<<20, 1)
	root := b.items("disk")[volume.KeyRoot]
	b.ok("lock", "disk")
	b.fails(1, []string{"disk is already locked: ctl since "}, "lock", "disk")
	var locked *lease.LockedError
	if _, err := b.tryOpen("disk", device.Options{}); !errors.As(err, &locked) || locked.Holder != "ctl" {
		t.Errorf("open of a locked disk: %v", err)
	}
	for _, verb := range [][]string{{"download", "disk", "/dev/null"}, {"verify", "disk"}, {"delete", "disk", "-y"}} {
		b.fails(1, []string{"disk is locked by ctl since "}, verb...)
	}
	b.ok("unlock", "disk")
	b.fails(1, []string{"is not locked"}, "unlock", "disk")
	if got := b.items("disk")[volume.KeyRoot]; got != root {
		t.Errorf("root %q was %q", got, root)
	}

	// Block i is written and flushed after block i-1, until that fails.
	d, _ := b.open("disk")
	const blocks = 512
	last := make(chan int)
	go func() {
		for i := range 1 << 20 {
			p := bytes.Repeat([]byte{byte(1 + i/blocks)}, layout.BlockSize)
			if d.WriteFUA(p, int64(i%blocks)*layout.BlockSize, true) != nil {
				last <- i
				return
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	out := b.ok("unlock", "disk")
	if !strings.Contains(out, "disk lock was: server:1 since ") || !strings.Contains(out, "is refused by Swift") {
		t.Errorf("%s", out)
	}
	acked := 0
	select {
	case acked = <-last: // so many were acknowledged
	case <-time.After(30 * time.Second):
		t.Fatal("the former holder goes on writing")
	}
	if acked < 2 {
		t.Fatalf("%d writes", acked)
	}
	next, end := b.open("disk")
	got := make([]byte, len(want))
	if _, err := next.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	end()
	for _, n := range []int{acked, acked + 1} { // the last one may be there or not
		now := bytes.Clone(want)
		for i := max(0, n-blocks); i < n; i++ {
			copy(now[i%blocks*layout.BlockSize:][:layout.BlockSize], bytes.Repeat([]byte{byte(1 + i/blocks)}, layout.BlockSize))
		}
		if bytes.Equal(now, got) {
			b.verify(0)
			return
		}
	}
	t.Errorf("after %d writes that were acknowledged the disk is no prefix of them", acked)
}
