// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

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
