// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// info runs info --json.
func (b *bench) info(args ...string) (in info) {
	b.Helper()
	out := b.ok(append([]string{"info", "disk", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return in
}

// TestInfoLog holds what info says of a disk of version 2 against what was
// written, from setup to a killed session and to damage.
func TestInfoLog(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "1G", "--format", "2")
	in := b.info()
	if in.Version != 2 || in.Size != 1<<30 || *in.Root != "00000000-00000001" || *in.Runs != 0 || *in.Log != 0 || *in.Opens != opensAtOnce ||
		*in.Live != 0 || *in.Garbage != 0 || *in.Use != 100 || in.Amplification != nil || *in.Data != 0 || in.Objects != nil {
		t.Errorf("a new disk: %s", b.ok("info", "disk", "--json"))
	}

	// 64 blocks twice: half of the log is garbage.
	write := func(d *device.Device) {
		for range 2 {
			if _, err := d.WriteAt(noise(64*layout.BlockSize), 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.serve("disk", write)
	in = b.info()
	if *in.Live != 64*layout.BlockSize || *in.Use < 45 || *in.Use > 51 || *in.Amplification < 2 || *in.Amplification > 2.2 || *in.Data != 2 ||
		*in.Garbage < 64*layout.FrameSize || *in.Runs != 1 || *in.Log != 0 || *in.Opens != opensAtOnce || *in.Root != "00000001-00000002" ||
		time.Since(*in.RootMade) > time.Minute {
		t.Errorf("after a session: %s", b.ok("info", "disk", "--json"))
	}
	if out := b.ok("list", "disk"); !strings.Contains(out, "about ") || !strings.Contains(out, "KiB") {
		t.Errorf("list does not say how much is stored:\n%s", out)
	}
	out := b.ok("info", "disk")
	for _, want := range []string{"256 KiB in 2 objects, ", " % of the log, ", "bytes are stored for each byte of data", "00000001-00000002, written ", "1 run of the map", "0 objects since", "at once", "version 2"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}

	// In use, and then killed: the log is read at the next start.
	d, _ := b.open("disk")
	write(d)
	in = b.info()
	if *in.Log != 2 || *in.Opens != opensLog || *in.Holder != "server:1" || *in.Live != 64*layout.BlockSize {
		t.Errorf("in use: %s", b.ok("info", "disk", "--json"))
	}
	d.Abandon()
	if out := b.ok("info", "disk"); !strings.Contains(out, "2 objects since") || !strings.Contains(out, "after the map and the log were read") {
		t.Errorf("after a kill:\n%s", out)
	}
	b.ok("unlock", "disk")

	// It makes few requests, and changes nothing.
	b.swift.ResetRequests()
	b.info()
	if n := len(b.swift.Requests()); n > 150 { // most of them look for objects behind the log's end
		t.Errorf("info made %d requests", n)
	}
	for _, r := range b.swift.Requests() {
		if (r.Method == http.MethodPut || r.Method == http.MethodDelete) && strings.Contains(r.Path, "/"+layout.LogPrefix) && r.Status < 300 {
			t.Errorf("info changes something: %+v", r)
		}
	}

	run := b.last(layout.RunPrefix)
	b.flip("disk", run, 5)
	in = b.info()
	if *in.Opens != opensNot || in.OpensWhy == nil || !strings.Contains(*in.OpensWhy, "damaged") || in.Live != nil || *in.Root == "" {
		t.Errorf("with a damaged run: %s", b.ok("info", "disk", "--json"))
	}
	if out := b.ok("info", "disk"); !strings.Contains(out, "NOT: ") || !strings.Contains(out, run) {
		t.Errorf("with a damaged run:\n%s", out)
	}
	for _, name := range b.names("disk", layout.RootPrefix) {
		b.put("disk", name, []byte("x"))
	}
	if in = b.info(); *in.Opens != opensNot || in.Runs != nil {
		t.Errorf("with damaged roots: %s", b.ok("info", "disk", "--json"))
	}
}

// TestInfoLogLarge has the map of a large disk read with --full only.
func TestInfoLogLarge(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "1G", "--format", "2")
	d, _ := b.open("disk")
	for i := range 70 { // objects of log
		if err := d.WriteFUA(noise(layout.BlockSize), int64(i)*layout.BlockSize, true); err != nil {
			t.Fatal(err)
		}
	}
	d.Abandon()
	b.swift.ResetRequests()
	in := b.info()
	if in.Live != nil || *in.Log != 70 || *in.Opens != opensLog {
		t.Errorf("%s", b.ok("info", "disk", "--json"))
	}
	for _, r := range b.swift.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, "/"+layout.LogPrefix) {
			t.Errorf("it reads %s", r.Path)
		}
	}
	if out := b.ok("info", "disk"); !strings.Contains(out, "not known: --full") {
		t.Errorf("%s", out)
	}
	if in := b.info("--full"); *in.Live != 70*layout.BlockSize || *in.Data != 70 {
		t.Errorf("%s", b.ok("info", "disk", "--json", "--full"))
	}
}
