// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
)

// TestVerbsEveryRequest has swiftnbd-ctl end at each request of each verb, with its
// effect, without, or with it later, removes the lock that this has left, and runs the
// verb again. All disks and snapshots are then what they are to be. (clone and upload
// --onto have TestCloneCut and TestIncrementEveryRequest, setup TestSetupInterrupted.)
func TestVerbsEveryRequest(t *testing.T) {
	t.Parallel()
	const size = 256 << 10
	for _, c := range []struct {
		args string
		gone string // the disk that is deleted
		says string // run again, when it was done
	}{
		{"snapshot disk c", "", "there is such a snapshot already"},
		{"snapshot --delete disk b", "", "there is no such snapshot"},
		{"revert disk a --yes", "", ""},
		{"resize disk 512K", "", ""},
		{"resize disk 128K --force", "", ""},
		{"upload WHOLE disk --force", "", ""},
		{"flatten web", "", "nothing to flatten"},
		{"clone --flatten disk@a copy -q", "", "copy has already been setup"},
		{"convert old", "", "is of version 2 of the format already"},
		{"delete web --yes", "web", "web doesn't exist"},
		{"delete old --yes", "old", "old doesn't exist"},
		{"diff disk@a disk@b", "", ""},
		{"download disk@a IMAGE", "", ""},
		{"verify disk", "", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			whole, image := filepath.Join(dir, "whole"), filepath.Join(dir, "image")
			args := strings.Fields(strings.NewReplacer("WHOLE", whole, "IMAGE", image).Replace(c.args))
			ends := 0
			run := func(k int, way string) (requests int) {
				b := newBench(t, devswift.Options{}, "disk", "web", "old", "copy")
				disk := b.fillLog("disk", size, 1)
				b.ok("snapshot", "disk", "a")
				a := bytes.Clone(disk)
				b.ok("download", "disk", whole)
				b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
				b.ok("snapshot", "disk", "b")
				want := map[string][]byte{"disk": disk, "disk@a": a, "disk@b": bytes.Clone(disk)}
				if args[1] == "web" {
					b.ok("clone", "disk@a", "web")
					want["web"] = bytes.Clone(a)
					b.serve("web", func(d *device.Device) { b.scribble(d, want["web"]) })
				}
				if args[1] == "old" {
					want["old"] = b.fillChunks("old", size, "64K")
				}

				// Nothing that is not cut fails, however busy the machine is.
				patient := quick
				patient.work.Timeout, patient.contact.Timeout = time.Minute, time.Minute
				patient.work.Attempt, patient.contact.Attempt = time.Minute, time.Minute
				b.pace = patient
				if way != "uncut" {
					b.pace.work.Timeout, b.pace.contact.Timeout = 400*time.Millisecond, 400*time.Millisecond
					b.pace.work.Attempt, b.pace.contact.Attempt = 300*time.Millisecond, 300*time.Millisecond
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var n atomic.Int64
				var late time.Time
				b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
					if !strings.HasPrefix(r.Path, "/v1/") {
						return nil
					}
					switch i := int(n.Add(1)); {
					case i > k:
						return &devswift.Action{Status: 403}
					case i < k:
						return nil
					}
					cancel()
					// What is late of the lease may take the disk from the next one, as
					// the lease's own tests show. A note of a clone that is late protects the
					// parent until somebody deletes the snapshot by force.
					if way == "late" && changes(r) && !strings.HasPrefix(r.Object, layout.ChildPrefix) && (r.Object != "" || r.Container == "") {
						late = time.Now().Add(500*time.Millisecond + rand.N(time.Second))
						return &devswift.Action{Delay: time.Until(late)}
					}
					return &devswift.Action{Status: 403, After: way != "before"}
				})
				first := b.runContext(ctx, args...)
				b.swift.SetFault(nil)
				b.pace = patient
				requests = int(n.Load())
				if k > requests {
					if first.code != 0 {
						t.Fatalf("uncut: %+v", first)
					}
				} else if first.code != 0 {
					ends++
				}

				unlock := func() {
					for _, name := range []string{"disk", "web", "old", "copy"} {
						if r := b.run("unlock", name); r.code != 0 && !strings.Contains(r.err, "is not locked") && !strings.Contains(r.err, "doesn't exist") && !strings.Contains(r.err, "hasn't been setup") {
							t.Fatalf("%+v", r)
						}
					}
				}
				if args[0] != "delete" { // which goes on with what it has left
					unlock()
				}
				again := b.run(args...)
				for try := 0; try < 5 && again.code == 1 && strings.Contains(again.err, "locked"); try++ {
					unlock()
					again = b.run(args...)
				}
				if again.code != 0 && (c.says == "" || !strings.Contains(again.err, c.says)) && !(args[0] == "verify" && again.code == exitStrays) {
					t.Fatalf("cut at request %d of %s: %+v, and again: %+v", k, way, first, again)
				}
				time.Sleep(time.Until(late) + 100*time.Millisecond)
				switch args[0] {
				case "snapshot":
					if args[1] == "--delete" {
						delete(want, "disk@b")
					} else {
						want["disk@c"] = disk
					}
				case "revert", "upload":
					want["disk"] = a
				case "resize":
					want["disk"] = append(bytes.Clone(disk), make([]byte, size)...)
					if args[2] == "128K" {
						want["disk"] = disk[:128<<10]
					}
				case "clone":
					want["copy"] = a
					if again.code != 0 { // the clone was made, and perhaps not flattened
						if r := b.run("flatten", "copy"); r.code != 0 && !strings.Contains(r.err, "nothing to flatten") {
							t.Fatalf("%+v", r)
						}
					}
				case "delete":
					delete(want, c.gone)
					b.gone(c.gone)
				case "download":
					checkImage(t, image, a)
				}
				for name, content := range want {
					if strings.Contains(name, "@") {
						path := filepath.Join(t.TempDir(), "image")
						b.ok("download", name, path)
						checkImage(t, path, content)
						continue
					}
					if !bytes.Equal(b.content(name, len(content)), content) {
						t.Errorf("%s is not what it is to be", name)
					}
					if r := b.run("verify", name); r.code != 0 && r.code != exitStrays {
						t.Errorf("verify %s: %+v", name, r)
					}
					checkUnlocked(b, name)
				}
				if notes := b.notes("disk"); len(notes) > 0 {
					t.Errorf("nothing needs the disk, and it has the notes %q", notes)
				}
				return requests
			}
			total := run(1<<30, "uncut")
			step := max(1, total/2)
			first := 1 + rand.IntN(step)
			if *everyFlag {
				first, step = 1, 1
			}
			for k := first; k <= total; k += step {
				for i, way := range []string{"before", "after", "late"} {
					if !*everyFlag && i != (k+k/step)%3 {
						continue
					}
					if run(k, way); t.Failed() {
						t.Fatalf("cut at request %d of %d, %s", k, total, way)
					}
				}
			}
			t.Logf("%s: %d requests, %d ends", c.args, total, ends)
			if ends == 0 {
				t.Error("no end: this test shows little")
			}
		})
	}
}
