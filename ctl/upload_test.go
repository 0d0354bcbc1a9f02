// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

// sparse writes an image of size bytes with data at some places, and returns its
// path and content.
func sparse(t *testing.T, size int, data map[int][]byte) (path string, content []byte) {
	t.Helper()
	path, content = filepath.Join(t.TempDir(), "image.raw"), make([]byte, size)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	for off, p := range data {
		copy(content[off:], p)
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return path, content
}

// formats are the options with which upload sets a disk up, in either version.
var formats = map[string][]string{
	"1":           {},
	"1 in 64 KiB": {"--object-size", "64K"},
	"1, odd":      {"--object-size", "100000"},
	"2":           {"--format", "2"},
}

// holds fails unless the disk has this content, and zeroes after it.
func (b *bench) holds(name string, content []byte) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "read back")
	b.ok("download", name, path)
	got, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	if len(got) < len(content) || !bytes.Equal(got[:len(content)], content) || !zero(got[len(content):]) {
		b.Errorf("%s: %d bytes, not the %d bytes of the image and zeroes", name, len(got), len(content))
	}
}

// puts counts the PUTs of data, of either version.
func (b *bench) puts(name string) (n int) {
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodPut && (strings.Contains(r.Path, "/"+name+"/"+chunked.Prefix) || strings.Contains(r.Path, "/"+name+"/"+layout.LogPrefix)) {
			n++
		}
	}
	return n
}

// TestUpload: an image with holes and zeroes goes to a disk that is not there
// yet, and again to the same disk; what is a hole or zeroes is not sent.
func TestUpload(t *testing.T) {
	t.Parallel()
	size := 9<<20 + 12345
	path, content := sparse(t, size, map[int][]byte{
		0: noise(5000), 3 << 20: make([]byte, 1<<20), 5<<20 - 7: noise(300_000), size - 100: noise(100),
	})
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			out := b.ok(append([]string{"upload", path, "disk"}, options...)...)
			if !strings.Contains(out, "disk doesn't exist, will be created\n") || !strings.Contains(out, "\nDone, "+itoa(size)+" bytes uploaded, ") {
				t.Errorf("%q", out)
			}
			checkUnlocked(b, "disk")
			if format == "1" { // chunks 0, 4 and 5, and the last one, which is 9
				if n := b.puts("disk"); n != 4 {
					t.Errorf("%d chunks were sent", n)
				}
			}
			b.holds("disk", content)
			if item := b.items("disk")[volume.KeyUpload]; item != "" {
				t.Errorf("the record stays: %q", item)
			}

			b.fails(1, []string{"disk has data: --force replaces it"}, "upload", path, "disk")
			checkUnlocked(b, "disk")
			b.holds("disk", content)

			// A smaller one in its place: all else is zeroes.
			small, content := sparse(t, 3_000_001, map[int][]byte{1 << 20: noise(10)})
			var out2 uploaded
			text := b.ok("upload", small, "disk", "--force", "--json")
			if err := json.Unmarshal([]byte(text), &out2); err != nil || out2.Container != "disk" || out2.Image != 3_000_001 || out2.Sent == 0 || out2.Sent > 2<<20 || out2.Resumed != 0 {
				t.Errorf("%s: %+v, %v", text, out2, err)
			}
			b.holds("disk", content)
			b.ok("verify", "disk")
			big, _ := sparse(t, 20<<20, nil)
			b.fails(1, []string{big + " has 20971520 bytes, the disk disk"}, "upload", big, "disk", "--force")
			checkUnlocked(b, "disk")
		})
	}
}

// TestUploadSent: what is said to be sent of an image is no more than it has, though all of
// its last object, or block, is written.
func TestUploadSent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, noise(5000), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"1", "2"} {
		b := newBench(t, devswift.Options{}, "disk")
		if out := b.ok("upload", path, "disk", "--format", format, "--size", "1M"); !strings.HasSuffix(out, "\nDone, 5000 bytes uploaded, 5000 of them data that was sent\n") {
			t.Errorf("%q", out)
		}
	}
}

// TestUploadPipe: a pipe has no size, and may end before the disk, but not after
// it.
func TestUploadPipe(t *testing.T) {
	t.Parallel()
	content := noise(2_500_000)
	clear(content[100_000:2_000_000])
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			upload := func(data []byte, args ...string) result {
				return b.runWith(t.Context(), bytes.NewReader(data), append([]string{"upload", "-", "disk"}, args...)...)
			}
			if r := upload(content, options...); r.code != 1 || !strings.Contains(r.err, "give --size") {
				t.Errorf("%+v", r)
			}
			options := append([]string{"--size", "3M"}, options...)
			if r := upload(content, options...); r.code != 0 || r.err != "" {
				t.Errorf("%+v", r)
			}
			b.holds("disk", content)
			if r := upload(noise(5<<20), "--force"); r.code != 1 || !strings.Contains(r.err, "more than the ") {
				t.Errorf("%+v", r)
			}
			checkUnlocked(b, "disk")
		})
	}
}

// TestUploadRefused: what upload does not do, and that it changes nothing then.
func TestUploadRefused(t *testing.T) {
	t.Parallel()
	path, _ := sparse(t, 1<<20, map[int][]byte{0: noise(10)})
	empty, _ := sparse(t, 0, nil)
	b := newBench(t, devswift.Options{}, "disk", "log", "new", "plain", "text")
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\nusername = test:tester\npassword = testing\n[disk]\n[log]\n[new]\n[plain]\n[text]\ncompression = zstd\n[mirror]\nread-only = 1\n")
	b.ok("setup", "disk", "--size", "4M")
	b.ok("setup", "log", "--size", "4M", "--format", "2")
	b.put("disk", chunked.ObjectName(1), noise(1<<20))
	b.setItem("disk", volume.KeyLast, "server:1@1")
	b.create("plain")
	b.put("plain", "photo", noise(10))
	before := b.writes()
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "disk has data: --force replaces it", []string{path, "disk"}},
		{1, "no such file", []string{path + "x", "disk"}},
		{1, "is a directory", []string{"/", "disk"}},
		{1, "is empty", []string{empty, "new"}},
		{1, "more than --size", []string{path, "new", "--size", "64K"}},
		{1, "mirror is read-only", []string{path, "mirror"}},
		{1, "holds objects, such as photo", []string{path, "plain"}},
		{1, "with --format 1", []string{path, "disk", "--format", "2"}},
		{1, "with --format 2", []string{path, "log", "--format", "1"}},
		{1, "not with objects of 64 KiB", []string{path, "disk", "--object-size", "64K"}},
		{1, "with 4 MiB and not 5 MiB: resize", []string{path, "disk", "--size", "5M"}},
		{1, "with 4 MiB and not 3 MiB: resize", []string{path, "log", "--size", "3M"}},
		{1, "[text] compression: a disk of version 1 of the format cannot be compressed", []string{path, "text", "--format", "1"}},
		{2, "must be 1 or 2", []string{path, "disk", "--format", "raw"}},
		{2, "--size", []string{path, "disk", "--size", "some"}},
		{2, "CONTAINER is missing", []string{path}},
	} {
		b.fails(c.code, []string{c.want}, append([]string{"upload"}, c.args...)...)
	}
	b.unchanged(before)
	b.ok("lock", "disk")
	b.fails(1, []string{"disk is locked by ctl since"}, "upload", path, "disk", "--force")
}

// interrupted uploads path to the disk until n PUTs of data were answered, and
// interrupts it then. It returns what was said. The PUTs after them wait a moment: the
// cache is full then, and the interrupt comes before all of the image is read.
func (b *bench) interrupted(n int32, path string, options ...string) string {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var puts atomic.Int32
	var once sync.Once
	var goOn time.Time
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodPut && r.Object != "" && puts.Add(1) > n {
			cancel()
			once.Do(func() { goOn = time.Now().Add(300 * time.Millisecond) })
			time.Sleep(time.Until(goOn))
		}
		return nil
	})
	defer b.swift.SetFault(nil)
	r := b.runContext(ctx, append([]string{"upload", path, "disk", "--connections", "2"}, options...)...)
	if r.code != 1 || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "swiftnbd-ctl: disk: interrupted; ") {
		b.Fatalf("%+v", r)
	}
	checkUnlocked(b, "disk")
	return r.err
}

// TestUploadResume: an interrupted upload says how to go on, and goes on from
// there: the rest alone is sent.
func TestUploadResume(t *testing.T) {
	t.Parallel()
	for format, options := range formats {
		if format == "1 in 64 KiB" {
			continue
		}
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			// Much more than is on its way at once: an interrupt comes before all is
			// read. Of version 2, 32 MiB of the log are, whatever the cache.
			mib := 1 << 18
			if format == "2" {
				mib = 1 << 20
			}
			path, content := sparse(t, 128*mib, map[int][]byte{0: noise(90 * mib), 100 * mib: noise(20 * mib)})
			b := newBench(t, devswift.Options{}, "disk")
			b.pace.uploadCache = 4 << 20
			said := b.interrupted(map[string]int32{"1": 5, "1, odd": 50, "2": 2}[format], path, options...)
			if !strings.Contains(said, " MiB of "+itoa(128*mib>>20)+" MiB is uploaded: to go on from there, run the same command again") {
				t.Errorf("%q", said)
			}
			var sent int64
			var out uploaded
			if format == "2" { // and once more
				b.interrupted(3, path)
			}
			text := b.ok("upload", path, "disk", "--json")
			if err := json.Unmarshal([]byte(text), &out); err != nil || out.Resumed == 0 || out.Sent >= int64(110*mib) || out.Sent+out.Resumed < int64(100*mib) {
				t.Errorf("%s, %v, %d", text, err, sent)
			}
			b.holds("disk", content)
			b.ok("verify", "disk")
			if item := b.items("disk")[volume.KeyUpload]; item != "" {
				t.Errorf("the record stays: %q", item)
			}
		})
	}
}

// TestUploadResumePipe: so does an upload from a pipe, which reads what is there.
func TestUploadResumePipe(t *testing.T) {
	t.Parallel()
	content := noise(32 << 20)
	b := newBench(t, devswift.Options{}, "disk")
	b.pace.uploadCache = 4 << 20
	path, _ := sparse(t, len(content), map[int][]byte{0: content})
	b.interrupted(5, path)
	r := b.runWith(t.Context(), bytes.NewReader(content), "upload", "-", "disk", "--json")
	var out uploaded
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != 0 || out.Resumed == 0 || out.Sent+out.Resumed != 32<<20 {
		t.Errorf("%+v, %v", r, err)
	}
	b.holds("disk", content)
}

// TestUploadResumeOther: what an earlier upload has left of another image is not
// taken for a part of this one, and neither is what somebody has written since.
func TestUploadResumeOther(t *testing.T) {
	t.Parallel()
	for format, options := range map[string][]string{"1": {}, "2": {"--format", "2"}} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			b.pace.uploadCache = 4 << 20
			// Much larger than what is on its way at once: an interrupt comes before all is read.
			size := map[string]int{"1": 32 << 20, "2": 112 << 20}[format]
			path, content := sparse(t, size, map[int][]byte{0: noise(size)})
			b.interrupted(3, path, options...)
			other, otherContent := sparse(t, size, map[int][]byte{0: noise(1 << 20), 20 << 20: noise(100)})
			b.fails(1, []string{"a part of another image", "--force replaces it"}, "upload", other, "disk")
			checkUnlocked(b, "disk")
			// A short pipe is another image too, and cannot be read twice.
			if r := b.runWith(t.Context(), bytes.NewReader(noise(10)), "upload", "-", "disk"); r.code != 1 || !strings.Contains(r.err, "--force replaces it") {
				t.Errorf("%+v", r)
			}
			// The first one still goes on: nothing was changed.
			var out uploaded
			said := b.interrupted(2, path)
			if !strings.Contains(said, "is uploaded: to go on") {
				t.Errorf("%q", said)
			}
			if err := json.Unmarshal([]byte(b.ok("upload", path, "disk", "--json")), &out); err != nil || out.Resumed == 0 {
				t.Errorf("%+v, %v", out, err)
			}
			b.holds("disk", content)

			b.interrupted(2, path, "--force")
			b.ok("upload", other, "disk", "--force")
			b.holds("disk", otherContent)

			b.interrupted(2, path, "--force")
			b.serve("disk", func(d *device.Device) {
				if _, err := d.WriteAt(noise(4096), 4096); err != nil {
					t.Error(err)
				}
			})
			b.fails(1, []string{"disk has data"}, "upload", path, "disk")
			// A session in the same second has the same mark.
			items := b.items("disk")
			if was, counts := unfinishedUpload(items, items[volume.KeyLast]); counts {
				t.Errorf("the record of before the change counts: %+v", was)
			}
			b.ok("upload", path, "disk", "--force")
			b.holds("disk", content)
		})
	}
}

// TestUploadKilled: what was noted on the way counts after an upload that has not
// ended at all.
func TestUploadKilled(t *testing.T) {
	t.Parallel()
	for format, options := range map[string][]string{"1": {}, "2": {"--format", "2"}} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			b.pace.uploadNote = 0
			path, content := sparse(t, 24<<20, map[int][]byte{0: noise(24 << 20)})
			// Once a note is made, no request gets through any more.
			var notes atomic.Int32
			var dead atomic.Bool
			ctx, cancel := context.WithCancel(t.Context())
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if strings.HasPrefix(r.Header.Get("X-Container-Meta-"+volume.KeyUpload), uploadRecordVersion+" ") { // the first is in Swift when the second comes
					notes.Add(1)
				} else if notes.Load() > 1 && r.Method == http.MethodPut {
					dead.Store(true)
					cancel()
				}
				if dead.Load() {
					return &devswift.Action{Status: 403}
				}
				return nil
			})
			patient := b.pace
			b.pace.work.Timeout = 2 * time.Second // it is not to hope for long
			r := b.runContext(ctx, append([]string{"upload", path, "disk"}, options...)...)
			b.pace = patient
			if r.code != 1 {
				t.Errorf("%+v", r)
			}
			b.swift.SetFault(nil)
			b.fails(1, []string{"disk is locked by ctl-upload"}, "upload", path, "disk")
			b.ok("unlock", "disk")
			var out uploaded
			if err := json.Unmarshal([]byte(b.ok("upload", path, "disk", "--json")), &out); err != nil || out.Resumed == 0 {
				t.Errorf("%+v, %v", out, err)
			}
			b.holds("disk", content)
			b.ok("verify", "disk")
		})
	}
}

// TestUploadFull: a quota ends an upload with its reason, and leaves no lock.
func TestUploadFull(t *testing.T) {
	t.Parallel()
	for format, options := range map[string][]string{"1": {}, "2": {"--format", "2"}} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			path, content := sparse(t, 8<<20, map[int][]byte{0: noise(8 << 20)})
			var puts atomic.Int32
			b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Method == http.MethodPut && (strings.HasPrefix(r.Object, chunked.Prefix) || strings.HasPrefix(r.Object, layout.LogPrefix)) && puts.Add(1) > 0 {
					return &devswift.Action{Status: 413}
				}
				return nil
			})
			r := b.run(append([]string{"upload", path, "disk"}, options...)...)
			if r.code != 1 || !strings.Contains(r.err, "413") || !strings.Contains(r.err, "run the same command again") {
				t.Errorf("%+v", r)
			}
			checkUnlocked(b, "disk")
			b.swift.SetFault(nil)
			b.ok("upload", path, "disk")
			b.holds("disk", content)
		})
	}
}

// TestUploadUnlocked: the lock is taken from us.
func TestUploadUnlocked(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.pace.uploadTerm = 3 * time.Second // it is renewed, and found to be lost, the sooner
	path, _ := sparse(t, 32<<20, map[int][]byte{0: noise(32 << 20)})
	var once atomic.Bool
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if strings.HasPrefix(r.Object, chunked.Prefix) && once.CompareAndSwap(false, true) {
			b.ok("unlock", "disk")
		}
		return nil
	})
	r := b.run("upload", path, "disk")
	if r.code != 1 || !strings.Contains(r.err, "disk was unlocked while it was uploaded: it is not complete") {
		t.Errorf("%+v", r)
	}
	b.swift.SetFault(nil)
	checkUnlocked(b, "disk")
}

// TestUploadBar: on a terminal a bar shows how far it is, how fast, and how long
// it takes; not with -q, and not in a pipe.
func TestUploadBar(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Latency: 20 * time.Millisecond}, "disk")
	path, content := sparse(t, 48<<20, map[int][]byte{0: noise(24 << 20)})
	done := fmt.Sprintf("Done, %d bytes uploaded, %d of them data that was sent\r\n", 48<<20, 24<<20)
	out := b.start("upload", path, "disk", "--connections", "2").end(0)
	if !strings.Contains(out, "Uploading disk") || !strings.Contains(out, "%") || !strings.Contains(out, "24.0 MiB / 24.0 MiB") || !strings.Contains(out, "/s") || !strings.HasSuffix(out, done) {
		t.Errorf("on a terminal: %q", out)
	}
	b.holds("disk", content)
	if out := b.start("upload", "-q", path, "disk", "-f").end(0); out != done {
		t.Errorf("with -q: %q", out)
	}
}

// TestUploadRecord: the item is read as it was written, and nothing else is.
func TestUploadRecord(t *testing.T) {
	r := uploadRecord{unit: 1 << 20, at: 5 << 20, sum: newDigest().sum(), mark: "ctl-upload@1700000000"}
	if got, ok := parseUploadRecord(r.String()); !ok || got != r {
		t.Errorf("%+v, %v", got, ok)
	}
	begun := uploadRecord{mark: r.mark}
	if got, ok := parseUploadRecord(begun.String()); !ok || got != begun {
		t.Errorf("%+v, %v", got, ok)
	}
	if len(r.String()) > 200 {
		t.Errorf("%d bytes for an item, of which Swift takes 256", len(r.String()))
	}
	for _, item := range []string{"", "1", "2 1048576 5 x y", "1 0 5 x y", "1 5 0 x y", "1 5 5 x ", "1 a 5 x y", "1 -5 5 x y", "begun ", "begun"} {
		if got, ok := parseUploadRecord(item); ok {
			t.Errorf("%q: %+v", item, got)
		}
	}
}
