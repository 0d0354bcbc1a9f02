// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/volume"
)

// noise returns n bytes, none of which is zero.
func noise(n int) []byte {
	p := make([]byte, n)
	_, _ = crand.Read(p) // never fails
	return bytes.ReplaceAll(p, []byte{0}, []byte{1})
}

// checkImage holds a file against what it must contain, and returns the bytes
// that it takes on the disk.
func checkImage(t *testing.T, path string, want []byte) int64 {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, not the %d bytes of the disk", path, len(got), len(want))
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// checkAlone fails if there is anything but the named files in dir.
func checkAlone(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s has %q, want %q", dir, got, names)
	}
}

// checkUnlocked fails if the container is locked. What a download or a delete
// that deleted nothing has found must be there again.
func checkUnlocked(b *bench, name string) {
	b.Helper()
	items := b.items(name)
	if items[volume.KeyClient] != "" || strings.HasPrefix(items[volume.KeyLast], "ctl-d") {
		b.Errorf("%s: the lock is %q, the last one %q", name, items[volume.KeyClient], items[volume.KeyLast])
	}
}

// TestDownload: chunks, absent objects and objects full of zeroes, in several
// shapes, one of which is no power of two.
func TestDownload(t *testing.T) {
	t.Parallel()
	for _, size := range []int{4096, 65536, 100_000, 1000} {
		b := newBench(t, devswift.Options{}, "disk")
		half := make([]byte, size)
		copy(half[size/2:], noise(size-size/2))
		disk := b.fill("disk", 40, size, map[int][]byte{0: noise(size), 7: make([]byte, size), 8: half, 20: noise(size), 21: noise(size)})
		dir := t.TempDir()
		path := filepath.Join(dir, "image.raw")
		for _, args := range [][]string{{}, {"-q"}, {"--connections", "1"}} {
			want := "Done, " + itoa(len(disk)) + " bytes written\n"
			if out := b.ok(append([]string{"download", "disk", path}, args...)...); out != want {
				t.Errorf("%q, want %q", out, want)
			}
			if used, most := checkImage(t, path, disk), int64(5*(size+2*4096)); used > most {
				t.Errorf("object size %d: the image takes %d bytes, expected at most %d: where are the holes?", size, used, most)
			}
			checkUnlocked(b, "disk")
		}
		checkAlone(t, dir, "image.raw")
	}
}

// TestDownloadHolesWithin: zeroes within an object are holes too.
func TestDownloadHolesWithin(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	chunk := make([]byte, 1<<20)
	copy(chunk[300_000:], noise(10))
	disk := b.fill("disk", 2, 1<<20, map[int][]byte{1: chunk})
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	if used := checkImage(t, path, disk); used > 16384 {
		t.Errorf("the image takes %d bytes", used)
	}
}

// TestDownloadBlank: of a disk that nobody has opened yet nothing is asked.
func TestDownloadBlank(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "1000")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	b.ok("download", "disk", path) // nor does the download make it forget that
	for _, r := range b.swift.Requests() {
		if strings.Contains(r.Path, chunked.Prefix) {
			t.Fatalf("%s %s", r.Method, r.Path)
		}
	}
	if used := checkImage(t, path, make([]byte, 1000*65536)); used > 4096 {
		t.Errorf("the image takes %d bytes", used)
	}
}

// TestDownloadReplaces: an older image has its mode and its link still, and is
// not touched by a download that fails.
func TestDownloadReplaces(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "readonly")
	disk := b.fill("disk", 8, 4096, map[int][]byte{1: noise(4096), 6: noise(4096)})
	dir := t.TempDir()
	path, link := filepath.Join(dir, "image"), filepath.Join(dir, "link")
	old := []byte("an older image")
	restore := func() {
		t.Helper()
		if err := os.WriteFile(path, old, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	if err := os.Symlink("image", link); err != nil {
		t.Fatal(err)
	}

	failed := func(words ...string) {
		t.Helper()
		b.fails(1, words, "download", "disk", link)
		checkImage(t, path, old)
		checkAlone(t, dir, "image", "link")
	}
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk/disk.part/00000006", Action: devswift.Action{Status: 403}}))
	failed("disk: ", "chunk 6", "permission denied")
	checkUnlocked(b, "disk")
	b.swift.SetFault(nil)

	b.put("disk", "disk.part/00000003", noise(4095))
	failed("disk.part/00000003", "4095", "4096")
	checkUnlocked(b, "disk")
	b.put("disk", "disk.part/00000003", noise(4097))
	failed("disk.part/00000003", "4096")
	if err := b.store("disk").Delete(t.Context(), "disk.part/00000003"); err != nil {
		t.Fatal(err)
	}

	b.setItem("disk", volume.KeyClient, "127.0.0.1:51120@1700000000")
	failed("disk is locked by 127.0.0.1:51120 since 2023-11-14 22:13:20 UTC, downloading a container in use is unreliable")
	if b.items("disk")[volume.KeyClient] == "" {
		t.Error("somebody else's lock has gone")
	}
	b.ok("unlock", "disk")

	// The lock is taken from us while we download.
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Object == "disk.part/00000006" {
			b.swift.SetFault(nil)
			b.ok("unlock", "disk")
		}
		return nil
	})
	failed("disk was unlocked while it was downloaded")

	b.ok("download", "disk", link)
	checkImage(t, path, disk)
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link: %v, %v", info, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the image: %v, %v", info.Mode(), err)
	}
	checkAlone(t, dir, "image", "link")
}

// TestDownloadUnlockFails: the image is whole and kept, the lock is reported.
func TestDownloadUnlockFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fill("disk", 4, 4096, map[int][]byte{1: noise(4096)})
	b.pace.contact.Timeout, b.pace.work.Timeout = time.Second, time.Second
	// The lease's own container, the mark, and then its removal.
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPost, Skip: 2, Action: devswift.Action{Status: 503}}))
	path := filepath.Join(t.TempDir(), "image")
	r := b.run("download", "disk", path)
	if r.code != 1 || !strings.Contains(r.err, "disk stays locked: ") {
		t.Errorf("%+v", r)
	}
	checkImage(t, path, disk)
}

// TestDownloadReadOnly: a read-only section is downloaded, under the lock
// where the credentials allow that, and without it otherwise.
func TestDownloadReadOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fill("disk", 4, 4096, map[int][]byte{1: noise(4096)})
	b.writeSecrets("[disk]\nread-only = 1\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path)
	checkUnlocked(b, "disk")
	b.setItem("disk", volume.KeyLast, "")

	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPost, Action: devswift.Action{Status: 403}}))
	r := b.run("download", "disk", path)
	if r.code != 0 || !strings.Contains(r.err, "warning: disk cannot be locked") {
		t.Errorf("%+v", r)
	}
	checkImage(t, path, disk)
	b.writeSecrets("[disk]\nusername = test:tester\npassword = testing\nauthurl = " + b.auth + "\n")
	b.fails(1, []string{"permission denied"}, "download", "disk", path)
}

// TestDownloadInterrupted: nothing half-done is left, neither here nor there.
func TestDownloadInterrupted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fill("disk", 64, 4096, map[int][]byte{1: noise(4096), 60: noise(4096)})
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		switch r.Object {
		case "disk.part/00000040":
			cancel()
		case "disk.part/00000050":
			return &devswift.Action{Hang: true}
		}
		return nil
	})
	r := b.runContext(ctx, "download", "disk", filepath.Join(dir, "image"))
	if r.code != 1 || r.err != "swiftnbd-ctl: disk: interrupted\n" || r.out != "" {
		t.Errorf("%+v", r)
	}
	checkAlone(t, dir)
	b.swift.SetFault(nil)
	checkUnlocked(b, "disk")
}

// TestDownloadStream: to a pipe everything goes in order, zeroes too.
func TestDownloadStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fill("disk", 50, 70_000, map[int][]byte{0: noise(70_000), 30: noise(70_000), 49: noise(70_000)})
	for _, how := range []string{"-", "fifo"} {
		path, out := how, (*os.File)(nil)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if how == "fifo" {
			path = filepath.Join(t.TempDir(), "fifo")
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			w.Close()
			r.Close()
		} else {
			out = w
		}
		got := make(chan []byte, 1)
		go func() {
			in := r
			if how == "fifo" {
				var err error
				if in, err = os.Open(path); err != nil {
					t.Error(err)
				}
			}
			data, _ := io.ReadAll(in)
			got <- data
		}()
		var errs, text bytes.Buffer
		var stdout io.Writer = &text
		if out != nil {
			stdout = out
		}
		code := b.pace.run(t.Context(), []string{"--secrets", b.secrets, "download", "disk", path}, strings.NewReader(""), stdout, &errs, func(string) string { return "" })
		w.Close()
		if data := <-got; code != 0 || errs.Len() != 0 || !bytes.Equal(data, disk) {
			t.Errorf("%s: exit status %d, %d bytes, %s", how, code, len(data), errs.String())
		}
		checkUnlocked(b, "disk")
	}
}

// TestDownloadReaderGone: whoever reads our output goes away; the lock goes
// all the same.
func TestDownloadReaderGone(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fill("disk", 8, 65536, map[int][]byte{0: noise(65536), 3: noise(65536)})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	code := b.pace.run(t.Context(), []string{"--secrets", b.secrets, "download", "disk", "-"}, strings.NewReader(""), w, io.Discard, func(string) string { return "" })
	if code != 1 {
		t.Errorf("exit status %d", code)
	}
	checkUnlocked(b, "disk")
}

// TestDownloadSlow: several requests are under way at once.
func TestDownloadSlow(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fill("disk", 32, 4096, map[int][]byte{3: noise(4096)})
	// Each read is answered only when eight of them have come.
	gate, come := make(chan struct{}), make(chan struct{}, 100)
	go func() {
		for range 8 {
			<-come
		}
		close(gate)
	}()
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if strings.HasPrefix(r.Object, chunked.Prefix) {
			come <- struct{}{}
			select {
			case <-gate:
			case <-time.After(10 * time.Second):
				t.Error("never were there eight requests at once")
			}
		}
		return nil
	})
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "disk", path, "--connections", "8")
	checkImage(t, path, disk)
}

// TestDownloadWithMap: what the last session knew of the chunks saves the
// requests for holes, survives the download, and tells a damaged chunk.
func TestDownloadWithMap(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "500", "--object-size", "4096")
	s, data := b.store("disk"), noise(4096)
	held, meta, err := lease.Mark(t.Context(), s, "host:1")
	if err != nil {
		t.Fatal(err)
	}
	v, err := chunked.Open(t.Context(), s, meta, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Write(t.Context(), 123, data); err != nil {
		t.Fatal(err)
	}
	if _, err := v.SaveMap(t.Context(), held.Mark()); err != nil {
		t.Fatal(err)
	}
	if err := held.ReleaseWith(t.Context(), map[string]string{volume.KeyMap: held.Mark()}); err != nil {
		t.Fatal(err)
	}

	disk := make([]byte, 500*4096)
	copy(disk[123*4096:], data)
	path := filepath.Join(t.TempDir(), "image")
	for range 2 {
		b.swift.ResetRequests()
		b.ok("download", "disk", path)
		checkImage(t, path, disk)
		reads := 0
		for _, r := range b.swift.Requests() {
			if strings.Contains(r.Path, chunked.Prefix) {
				reads++
			}
		}
		if reads != 1 {
			t.Errorf("%d reads of chunks, one of which has data", reads)
		}
	}
	b.put("disk", chunked.ObjectName(123), noise(4096))
	b.fails(1, []string{"disk: ", "chunk 123", "disk.part/00000123"}, "download", "disk", path)
	checkImage(t, path, disk)
}
