// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// filled is a disk of 64 chunks of 64 KiB with data.
func filled(b *bench) []byte {
	chunks := make(map[int][]byte)
	var content []byte
	for i := range 64 {
		chunks[i] = noise(1 << 16)
		content = append(content, chunks[i]...)
	}
	b.fill("disk", 64, 1<<16, chunks)
	return content
}

// TestDownloadKeptWithoutName: a download that is complete and does not get its name
// is kept, also a small one, and the next one reads no data again.
func TestDownloadKeptWithoutName(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	content := filled(b)
	path := filepath.Join(t.TempDir(), "image")
	var once sync.Once
	b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
		if isData(q) {
			once.Do(func() { _ = os.Mkdir(path, 0o777) }) // a name that a file cannot get
		}
		return nil
	})
	b.fails(1, []string{"rename ", "; 4 MiB is downloaded: to go on from there, run the same command with --resume"}, "download", "disk", path)
	b.swift.SetFault(nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.swift.ResetRequests()
	b.ok("download", "disk", path, "--resume")
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, chunked.Prefix) {
			t.Errorf("%s was read again", r.Path)
		}
	}
	checkImage(t, path, content)
	checkAlone(t, filepath.Dir(path), "image")
}

// failingSync makes the Sync number n, and no other, fail: the kernel tells of data
// that it could not write once. failed says whether it has.
func (b *bench) failingSync(n int32) (failed func() bool) {
	var syncs atomic.Int32
	b.pace.sync = func(f *os.File) error {
		if syncs.Add(1) == n {
			return unix.EIO
		}
		return f.Sync()
	}
	return func() bool { return syncs.Load() >= n }
}

// noteUntil has each request for data of a download to path, which has one
// connection, wait for a note of the data before, until enough says true. Notes are
// made beside the download, which would be complete sooner. A chunk that comes while
// the note before it ends gets none: the next request does not wait for one for ever.
func (b *bench) noteUntil(path string, enough func() bool) {
	first, noted := true, int64(0)
	b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
		if !isData(q) {
			return nil
		}
		for end := time.Now().Add(200 * time.Millisecond); !first && !enough() && recorded(path) <= noted && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		first, noted = false, recorded(path)
		return nil
	})
}

// TestDownloadSyncFails: data that could not be made durable does not count as
// downloaded, also if a later Sync says nothing, and what a note has before is kept.
func TestDownloadSyncFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	content := filled(b)
	path := filepath.Join(t.TempDir(), "image")

	// Without a note nothing is known to be there.
	b.failingSync(1)
	b.fails(1, []string{"input/output error", "nothing of it can be kept"}, "download", "disk", path)
	checkAlone(t, filepath.Dir(path))

	b.keepAll()
	for n := int32(2); n < 5; n++ { // in a note, which nobody waits for
		b.noteUntil(path, b.failingSync(n))
		b.fails(1, []string{"input/output error", " is downloaded: to go on from there, run the same command with --resume"}, "download", "disk", path, "--connections", "1")
		if at := recorded(path); at == 0 || at >= int64(len(content)) {
			t.Errorf("Sync %d fails, and %d bytes are noted", n, at)
		}
		b.swift.SetFault(nil)
		b.ok("download", "disk", path, "--resume")
		checkImage(t, path, content)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDownloadResumeAgain: a download that is interrupted while it fetches changed
// chunks again is gone on with, and also one that is killed there.
func TestDownloadResumeAgain(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		b := newBench(t, devswift.Options{}, "disk")
		b.keepAll()
		content := filled(b)
		path := filepath.Join(t.TempDir(), "image")
		b.cut(40, "disk", path)
		most := recorded(path)
		b.serve("disk", func(d *device.Device) {
			for i := range 20 {
				copy(content[i<<16:], noise(1000))
				if _, err := d.WriteAt(content[i<<16:][:1000], int64(i)<<16); err != nil {
					t.Fatal(err)
				}
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var file, record []byte
		n := 0
		b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
			if !isData(q) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 8 {
				record, _ = os.ReadFile(path + ".partial.record")
				file, _ = os.ReadFile(path + ".partial")
				cancel()
			}
			return nil
		})
		r := b.runContext(ctx, "download", "disk", path, "--resume", "--connections", "1")
		b.swift.SetFault(nil)
		if r.code != 1 || !strings.Contains(r.err, "interrupted; "+humanSize(most)+" is downloaded: to go on from there") {
			t.Fatalf("%+v", r)
		}
		if kill {
			if err := os.WriteFile(path+".partial", file, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+".partial.record", record, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		// What has been fetched again is not so once more, though the disk's last
		// session is the one of the mark that the record would have.
		b.swift.ResetRequests()
		out := b.ok("download", "disk", path, "--resume")
		if !strings.Contains(out, "chunks fetched again") || strings.Contains(out, "20 chunks") {
			t.Errorf("%s", out)
		}
		checkImage(t, path, content)
		checkAlone(t, filepath.Dir(path), "image")
	}
}

// TestDownloadResumeAgainDamaged: without a digest each chunk is compared, whoever
// has had the disk.
func TestDownloadResumeAgainDamaged(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.keepAll()
	content := filled(b)
	path := filepath.Join(t.TempDir(), "image")
	b.cut(40, "disk", path)
	r, _ := parseDownloadRecord(string(must(os.ReadFile(path + ".partial.record"))))
	r.sum = noSum
	if err := r.write(path + ".partial.record"); err != nil {
		t.Fatal(err)
	}
	f := must(os.OpenFile(path+".partial", os.O_WRONLY, 0))
	if _, err := f.WriteAt(noise(10), 3<<16); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.setItem("disk", volume.KeyMap, "")
	if out := b.ok("download", "disk", path, "--resume"); !strings.Contains(out, "1 chunk fetched again") {
		t.Errorf("%s", out)
	}
	checkImage(t, path, content)
}
