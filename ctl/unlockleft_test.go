// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
)

// TestUnlockLeft ends a lease that a process has left that died before it had set the
// lock mark. It says whose it was.
func TestUnlockLeft(t *testing.T) {
	t.Parallel()
	for name, items := range map[string]map[string]string{
		"named":   {"Swiftnbd-Lease-Holder": "server:1@1700000000", "Swiftnbd-Lease-Until": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)},
		"unnamed": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			b.ok("setup", "disk", "--size", "1M", "--format", "2")
			b.fails(1, []string{"disk is not locked, nothing to do"}, "unlock", "disk")
			locks := func() int {
				b.swift.ResetRequests()
				b.ok("lock", "disk")
				n := len(b.swift.Requests())
				if s := b.ok("unlock", "disk"); !strings.Contains(s, "disk lock was: ctl") {
					t.Errorf("%s", s)
				}
				return n
			}
			usual := locks()
			next, _ := strconv.ParseInt(b.items("disk")[lease.KeyEpoch], 10, 64)
			next++
			if _, err := b.store(lease.ContainerName("disk", next)).CreateContainer(t.Context(), items); err != nil {
				t.Fatal(err)
			}
			r := b.run("unlock", "disk", "--json")
			var out unlocked
			if err := json.Unmarshal([]byte(r.out), &out); err != nil || r.code != 0 || !strings.Contains(r.err, "there is no lock mark") {
				t.Fatalf("%+v, %v", r, err)
			}
			if items != nil && (out.Holder != "server:1" || out.Lease == nil || *out.Lease != next || out.Until == nil) || items == nil && out.Holder != "" {
				t.Errorf("%+v", out)
			}
			if n := locks(); n > usual+30 {
				t.Errorf("%d requests, and %d otherwise: it has waited", n, usual)
			}
		})
	}
}

// TestUnlockSays: of an operator's own lock nothing is said about what its holder
// writes, since that is nobody. Of a delete, whose requests are not signed, and of a
// server it is.
func TestUnlockSays(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"1", "2"} {
		b := newBench(t, devswift.Options{}, "disk")
		b.ok("setup", "disk", "--size", "1M", "--format", format)
		b.serve("disk", nil) // whose key Swift has still
		b.ok("lock", "disk")
		out := b.ok("unlock", "disk")
		if !strings.HasPrefix(out, "disk lock was: ctl since ") || !strings.HasSuffix(out, "\nDone, disk is unlocked\n") || strings.Count(out, "\n") != 2 {
			t.Errorf("version %s, locked by lock: %q", format, out)
		}
		b.put("disk", "something", nil) // so that the delete has begun when it ends
		const stop = "\nSwift does not refuse what they write from now on: make sure that they have stopped\n"
		ctx, cancel := context.WithCancel(t.Context())
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Method == http.MethodDelete && r.Container == "disk" {
				cancel()
				return &devswift.Action{Status: http.StatusServiceUnavailable}
			}
			return nil
		})
		b.runContext(ctx, "delete", "disk", "--yes")
		cancel()
		b.swift.SetFault(nil)
		if out := b.ok("unlock", "disk"); !strings.HasPrefix(out, "disk lock was: ctl-delete since ") || !strings.Contains(out, stop) {
			t.Errorf("version %s, half deleted: %q", format, out)
		}
	}
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "--size", "1M")
	d, err := b.tryOpen("disk", device.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abandon()
	if out := b.ok("unlock", "disk"); !strings.HasPrefix(out, "disk lock was: server:1 since ") || !strings.Contains(out, "\nWhatever they write from now on is refused by Swift\n") {
		t.Errorf("locked by a server: %q", out)
	}
}
