// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes a new one")

// keepAll has also the smallest download kept that is interrupted.
func (b *bench) keepAll() {
	b.pace.keptBytes, b.pace.keptChunks, b.pace.downloadNote = 1, 1, 0
}

// isData says whether a request reads a chunk, or data of the log.
func isData(r *devswift.Request) bool {
	return r.Method == http.MethodGet && (strings.HasPrefix(r.Object, chunked.Prefix) || strings.HasPrefix(r.Object, layout.LogPrefix))
}

// patches writes to random places of a disk, as a server does, and to content.
func (b *bench) patches(r *rand.Rand, name string, content []byte, n int) {
	b.Helper()
	b.serve(name, func(d *device.Device) {
		for range n {
			off := r.IntN(len(content) - 1)
			p := noise(1 + r.IntN(min(300_000, len(content)-off)))
			if _, err := d.WriteAt(p, int64(off)); err != nil {
				b.Fatal(err)
			}
			copy(content[off:], p)
		}
	})
}

// resumes are the disks that a download is made of: how they are set up, and the
// snapshot.
var resumes = map[string]struct {
	setup    []string
	snapshot string
}{
	"1":           {setup: []string{"--object-size", "64K"}},
	"1, odd":      {setup: []string{"--object-size", "100000"}},
	"2":           {setup: []string{"--format", "2"}},
	"2, snapshot": {setup: []string{"--format", "2"}, snapshot: "@monday"},
}

// TestDownloadResume interrupts a download at random places, many times over. Each
// time the message says how to go on, the next one goes on there, and in the end
// the file is the disk for every byte. In between it is as after a sudden end: the
// record is older than the file. Notes are made beside a download, and on a fast
// disk it is complete before its second interrupt: it begins anew then.
func TestDownloadResume(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*seedFlag, rand.Uint64())
	t.Logf("-seed=%d", seed)
	for kind, c := range resumes {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(len(kind))))
			b := newBench(t, devswift.Options{}, "disk")
			b.keepAll()
			// The chunks of version 2 are larger.
			size, most := map[string]int{"1": 12 << 20, "1, odd": 126 * 100_000}[kind], 12
			if size == 0 {
				size, most = 24<<20, 4
			}
			b.ok(append([]string{"setup", "disk", "--size", itoa(size)}, c.setup...)...)
			content := make([]byte, size)
			b.patches(r, "disk", content, 60)
			if c.snapshot != "" {
				b.ok("snapshot", "disk", "monday")
				b.patches(r, "disk", append([]byte{}, content...), 5) // the disk goes on
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			args := []string{"download", "disk" + c.snapshot, path, "--resume", "--connections", itoa(1 + r.IntN(2)), "-q"}
			runs, complete, killed := 0, int64(0), 0
			for try := 0; try < 8 || try < 100 && (complete == 0 || runs < 2); try++ {
				ctx, cancel := context.WithCancel(t.Context())
				var mu sync.Mutex
				left := 1 + r.IntN(most)
				var file, record []byte // as a sudden end leaves them
				kill, before := r.IntN(3) == 0, complete
				b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
					if !isData(q) {
						return nil
					}
					mu.Lock()
					defer mu.Unlock()
					if left--; left == 2 && kill {
						record, _ = os.ReadFile(path + ".partial.record")
						file, _ = os.ReadFile(path + ".partial")
					}
					if left <= 0 {
						// Most runs are to come a little further.
						for n := 0; n < 20 && recorded(path) <= before; n++ {
							time.Sleep(5 * time.Millisecond)
						}
						if recorded(path) > before || left < -3 {
							cancel()
						}
					}
					return nil
				})
				got := b.runContext(ctx, args...)
				cancel()
				b.swift.SetFault(nil)
				mu.Lock() // a request that was interrupted may be in the function still
				keptRecord, keptFile := record, file
				mu.Unlock()
				checkUnlocked(b, "disk")
				if got.code == 0 && runs < 2 {
					checkImage(t, path, content)
					checkAlone(t, dir, "image")
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
					complete = 0
					continue
				}
				if got.code == 0 {
					break
				}
				if !strings.HasPrefix(got.err, "swiftnbd-ctl: disk: interrupted") || strings.Count(got.err, "\n") != 1 {
					t.Fatalf("%+v", got)
				}
				if complete == 0 && got.err == "swiftnbd-ctl: disk: interrupted\n" { // before anything was there
					checkAlone(t, dir)
					continue
				}
				was, ok := parseDownloadRecord(string(must(os.ReadFile(path + ".partial.record"))))
				if !ok || was.at < complete || was.at > 0 && !strings.HasSuffix(got.err, humanSize(was.at)+" is downloaded: to go on from there, run the same command with --resume\n") {
					t.Fatalf("%+v, and %+v; %d before", got, was, complete)
				}
				checkAlone(t, dir, "image.partial", "image.partial.record")
				if then, ok := parseDownloadRecord(string(keptRecord)); ok && then.at > 0 && then.at <= was.at {
					// What is behind it may be anything.
					copy(keptFile[then.at:], noise(len(keptFile)-int(then.at)))
					if err := os.WriteFile(path+".partial", keptFile, 0o600); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path+".partial.record", keptRecord, 0o600); err != nil {
						t.Fatal(err)
					}
					was.at = then.at
					killed++
				}
				complete = was.at
				runs++
			}
			if _, err := os.Stat(path); err == nil {
				t.Logf("complete after %d runs", runs)
			} else {
				var out downloaded
				if err := json.Unmarshal([]byte(b.ok(append(args, "--json")...)), &out); err != nil || out.Resumed != complete || out.Fetched > int64(len(content))-complete {
					t.Errorf("%+v, %v; %d were complete", out, err, complete)
				}
			}
			if complete == 0 || runs < 2 {
				t.Errorf("after %d runs %d bytes were complete: this tries nothing", runs, complete)
			}
			t.Logf("%d runs, %d of them with a sudden end, %d bytes were complete before the last", runs, killed, complete)
			checkImage(t, path, content)
			checkAlone(t, dir, "image")
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// recorded returns how much of FILE is complete, as the record says.
func recorded(path string) int64 {
	text, _ := os.ReadFile(path + ".partial.record")
	r, _ := parseDownloadRecord(string(text))
	return r.at
}

// cut interrupts a download to args[1] when n requests for data were made, and
// something is complete. It returns what was said.
func (b *bench) cut(n int, args ...string) string {
	b.Helper()
	complete := func() bool { return recorded(args[1]) > 0 }
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var noting atomic.Bool
	defer func(f func(*os.File) error) { b.pace.sync = f }(b.pace.sync)
	b.pace.sync = func(f *os.File) error {
		noting.Store(true)
		return f.Sync()
	}
	var mu sync.Mutex
	b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
		if !isData(q) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return nil
		}
		// Either the note is on its way, or the first chunk needs more.
		for begun := time.Now(); !complete(); time.Sleep(2 * time.Millisecond) {
			if waited := time.Since(begun); waited > 200*time.Millisecond && !noting.Load() || waited > 10*time.Second {
				return nil
			}
		}
		cancel()
		return &devswift.Action{Status: 503}
	})
	defer b.swift.SetFault(nil)
	r := b.runContext(ctx, append([]string{"download", "--connections", "1"}, args...)...)
	if r.code != 1 || !strings.Contains(r.err, "is downloaded: to go on from there, run the same command with --resume") {
		b.Fatalf("%q: %+v", args, r)
	}
	return r.err
}

// heads counts the HEADs of chunks.
func (b *bench) heads() (n int) {
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodHead && strings.Contains(r.Path, chunked.Prefix) {
			n++
		}
	}
	return n
}

// TestDownloadResumeRefused: what cannot be gone on with, and that nothing is lost by
// trying.
func TestDownloadResumeRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "other", "log")
	b.keepAll()
	content := b.fill("disk", 64, 1<<16, map[int][]byte{1: noise(1 << 16), 40: noise(1 << 16)})
	b.fill("other", 65, 1<<16, map[int][]byte{1: noise(1 << 16)})
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	partial, record := path+".partial", path+".partial.record"
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { // who opens it for writing waits for a reader
		if f, err := os.Open(fifo); err == nil {
			f.Close()
		}
	}()
	b.fails(1, []string{"--resume: " + fifo + " is a pipe", "only a download to a file"}, "download", "disk", fifo, "--resume")
	if out := b.start("download", "disk", "-", "--resume").end(1); !strings.Contains(out, "not writing a disk to a terminal") {
		t.Errorf("%q", out)
	}
	_, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var errs strings.Builder
	if code := b.pace.run(t.Context(), []string{"--secrets", b.secrets, "download", "disk", "-", "--resume"}, strings.NewReader(""), w, &errs, func(string) string { return "" }); code != 1 ||
		!strings.HasPrefix(errs.String(), "swiftnbd-ctl: --resume: standard output is a pipe, which has got what it has got") {
		t.Errorf("exit status %d, %q", code, errs.String())
	}
	checkUnlocked(b, "disk")

	// Somebody's file is left alone.
	if err := os.WriteFile(partial, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"--resume"}} {
		b.fails(1, []string{partial + " is in the way"}, append([]string{"download", "disk", path}, more...)...)
	}
	if err := os.WriteFile(record, []byte("my own notes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails(1, []string{record + " is no record of a download"}, "download", "disk", path)
	if string(must(os.ReadFile(partial))) != "mine" {
		t.Error("somebody's file is another now")
	}
	for _, name := range []string{partial, record} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}

	b.cut(30, "disk", path)
	before := must(os.ReadFile(record))
	b.fails(1, []string{partial + " is of another disk, or of one that had another size"}, "download", "other", path, "--resume")
	b.fails(1, []string{partial + " is a raw image", "give --image-format raw"}, "download", "disk", path, "--resume", "-O", "qcow2")
	f, err := os.OpenFile(partial, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"--resume"}} {
		b.fails(1, []string{partial + ": another download writes to it"}, append([]string{"download", "disk", path}, more...)...)
	}
	f.Close()
	b.ok("lock", "disk")
	b.fails(1, []string{"disk is locked by ctl"}, "download", "disk", path) // which would begin anew
	b.ok("unlock", "disk")
	if string(must(os.ReadFile(record))) != string(before) {
		t.Error("the record is another now")
	}

	// One byte of it is another.
	data := must(os.ReadFile(partial))
	data[1<<16+5]++
	if err := os.WriteFile(partial, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails(1, []string{partial + " is not what its record says, or is damaged"}, "download", "disk", path, "--resume")
	data[1<<16+5]--
	if err := os.WriteFile(partial, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.ok("download", "disk", path, "--resume")
	checkImage(t, path, content)
	checkAlone(t, dir, "image")
	b.ok("download", "disk", path, "--resume") // of nothing: it begins
	checkImage(t, path, content)
}

// TestDownloadResumeErrors: an error that is no interrupt leaves as much, and going
// on with nothing but an error again loses none of it.
func TestDownloadResumeErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.keepAll()
	chunks := make(map[int][]byte)
	for i := range 64 {
		chunks[i] = noise(4096)
	}
	content := b.fill("disk", 64, 4096, chunks)
	path := filepath.Join(t.TempDir(), "image")
	refuse := devswift.Rules(devswift.Rule{Method: http.MethodGet, Prefix: "/v1/AUTH_test/disk/disk.part/00000050", Action: devswift.Action{Status: 403}})
	for i, more := range [][]string{nil, {"--resume"}, {"--resume"}} {
		b.swift.SetFault(refuse)
		b.fails(1, []string{"disk: ", "chunk 50", "permission denied", "; 200 KiB is downloaded: to go on from there"}, append([]string{"download", "disk", path}, more...)...)
		b.swift.SetFault(nil)
		// It ends before it has gone on.
		b.setItem("disk", volume.KeyLast, "server:1@"+itoa(i)) // so that each chunk is asked for
		b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodHead, Prefix: "/v1/AUTH_test/disk/disk.part/", Action: devswift.Action{Status: 403}}))
		b.fails(1, []string{"permission denied", "; 200 KiB is downloaded: to go on from there"}, "download", "disk", path, "--resume")
		b.swift.SetFault(nil)
	}
	var out downloaded
	if err := json.Unmarshal([]byte(b.ok("download", "disk", path, "--resume", "--json")), &out); err != nil || out.Resumed != 50*4096 || out.Fetched != 14*4096 {
		t.Errorf("%+v, %v", out, err)
	}
	checkImage(t, path, content)
}

// TestDownloadResumeQcow2: so with an image that is not raw: qemu finds in it what
// the disk has.
func TestDownloadResumeQcow2(t *testing.T) {
	t.Parallel()
	raw, content := sparse(t, 6<<20, map[int][]byte{0: noise(70_000), 1 << 20: noise(2 << 20), 4 << 20: noise(1 << 20), 6<<20 - 9: noise(9)})
	for format, options := range map[string][]string{"1": {"--object-size", "64K"}, "2": {"--format", "2"}} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			b.keepAll()
			b.ok(append([]string{"upload", raw, "disk"}, options...)...)
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			n := map[string]int{"1": 10, "2": 1}[format]
			b.cut(n, "disk", path, "-O", "qcow2")
			b.fails(1, []string{"is a qcow2 image: give --image-format qcow2"}, "download", "disk", path, "--resume")
			early, record := must(os.ReadFile(path+".partial")), must(os.ReadFile(path+".partial.record"))
			b.cut(n, "disk", path, "-O", "qcow2", "--resume")
			// As after a sudden end: more is in the image than in the record.
			if err := os.WriteFile(path+".partial.record", record, 0o600); err != nil {
				t.Fatal(err)
			}
			if len(early) >= len(must(os.ReadFile(path+".partial"))) {
				t.Error("the second run has written nothing")
			}
			if format == "1" {
				// What was data is a hole now.
				content := append([]byte{}, content...)
				clear(content[2<<20 : 4<<20])
				b.serve("disk", func(d *device.Device) {
					if err := d.Zero(2<<20, 2<<20, false, false); err != nil {
						t.Fatal(err)
					}
				})
			}
			var out downloaded
			if err := json.Unmarshal([]byte(b.ok("download", "disk", path, "--resume", "-O", "qcow2", "--json")), &out); err != nil || out.Resumed == 0 || out.Format != "qcow2" {
				t.Errorf("%+v, %v", out, err)
			}
			want := filepath.Join(dir, "want")
			b.ok("download", "disk", want)
			mustQemu(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", want, path)
			mustQemu(t, "qemu-img", "check", "-f", "qcow2", path)
			checkAlone(t, dir, "image", "want")
		})
	}
}

// TestDownloadNotKept: what would be there again in a moment is not kept, nor is
// what was made while somebody else may have written.
func TestDownloadNotKept(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	chunks := make(map[int][]byte)
	for i := range 64 {
		chunks[i] = noise(1 << 16)
	}
	content := b.fill("disk", 64, 1<<16, chunks)
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	ctx, cancel := context.WithCancel(t.Context())
	b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
		if q.Object == chunked.ObjectName(60) {
			cancel()
		}
		return nil
	})
	if r := b.runContext(ctx, "download", "disk", path); r.code != 1 || r.err != "swiftnbd-ctl: disk: interrupted\n" {
		t.Errorf("%+v", r)
	}
	checkAlone(t, dir)
	b.swift.SetFault(nil)

	b.keepAll()
	b.cut(30, "disk", path)
	b.swift.SetFault(func(q *devswift.Request) *devswift.Action {
		if q.Object == chunked.ObjectName(60) && q.Method == http.MethodGet {
			b.swift.SetFault(nil)
			b.ok("unlock", "disk")
		}
		return nil
	})
	b.fails(1, []string{"disk was unlocked while it was downloaded: the image is not to be trusted, and not kept"}, "download", "disk", path, "--resume")
	checkAlone(t, dir)
	b.ok("download", "disk", path)
	checkImage(t, path, content)
}

// TestDownloadKilledEarly: a download that is killed while it takes the lock leaves
// nothing that the next one would take for somebody else's.
func TestDownloadKilledEarly(t *testing.T) {
	t.Parallel()
	for _, format := range writeFormats {
		b := newBench(t, devswift.Options{}, "disk")
		content := b.fill("disk", 16, 4096, map[int][]byte{1: noise(4096)})
		path := filepath.Join(t.TempDir(), "image")
		var early []byte
		looked := false
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Method == http.MethodPost && r.Container == "disk" && !looked {
				var err error
				if early, err = os.ReadFile(path + ".partial"); err != nil {
					t.Error(err)
				}
				looked = true
			}
			return nil
		})
		b.ok("download", "disk", path, "-O", format)
		b.swift.SetFault(nil)
		if !looked {
			t.Fatal("it took no lock")
		}
		if err := os.WriteFile(path+".partial", early, 0o600); err != nil {
			t.Fatal(err)
		}
		b.ok("download", "disk", path, "-O", format)
		if format == formatRaw {
			checkImage(t, path, content)
		}
		checkAlone(t, filepath.Dir(path), "image")
	}
}

// TestDownloadRecord: the record is read as it was written, and nothing else is.
func TestDownloadRecord(t *testing.T) {
	for _, m := range []moment{{}, {disk: "disk 1/ü/5", at: "-", mark: "127.0.0.1:5@1700000000", lease: 1 << 40}, {disk: "a b\nc", at: "%", mark: "%2D"}} {
		r := downloadRecord{format: "raw", unit: 1 << 20, at: 5 << 20, sum: newDigest().sum(), moment: m}
		if got, ok := parseDownloadRecord(r.String()); !ok || got != r || strings.Count(r.String(), "\n") != 1 {
			t.Errorf("%q is %+v, %v", r.String(), got, ok)
		}
	}
	good := downloadRecord{format: "raw", unit: 1, at: 0, sum: "x"}.String()
	if _, ok := parseDownloadRecord(good); !ok {
		t.Errorf("%q is refused", good)
	}
	for _, text := range []string{"", "\n", strings.TrimSuffix(good, "\n"), good + good, "2" + good[1:], "1 raw 0 0 x - - - 1\n", "1 raw 5 -5 x - - - 1\n", "1 raw a 5 x - - - 1\n", "1 raw 5 5 x %zz - - 1\n", "1 raw 5 5 x - - -\n", "1 raw 5 5 x - - - z\n"} {
		if got, ok := parseDownloadRecord(text); ok {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// TestPartialName: the names of FILE.partial and its record fit a file system.
func TestPartialName(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	content := b.fill("disk", 4, 4096, map[int][]byte{1: noise(4096)})
	dir := t.TempDir()
	name := strings.Repeat("n", 255)
	b.ok("download", "disk", filepath.Join(dir, name))
	checkImage(t, filepath.Join(dir, name), content)
	checkAlone(t, dir, name)
}
