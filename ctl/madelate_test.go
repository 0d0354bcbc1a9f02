// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// TestMadeLate has the request that makes a disk arrive when another run has made it
// since, perhaps in another way, and it was written to: it makes no other disk of it.
func TestMadeLate(t *testing.T) {
	t.Parallel()
	ways := [][]string{
		{"setup", "disk", "--size", "1M", "--format", "2"},
		{"clone", "golden@v1", "disk"},
		{"clone", "other@v1", "disk"},
	}
	for _, first := range ways {
		for _, second := range ways {
			t.Run(strings.Join(first[:2], " ")+", "+strings.Join(second[:2], " "), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, devswift.Options{}, "golden", "other", "disk")
				b.pace.setup = 5 * time.Millisecond
				for _, name := range []string{"golden", "other"} {
					b.fillLog(name, 1<<20, 1)
					b.ok("snapshot", name, "v1")
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var late http.Header
				b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
					if late == nil && r.Method == http.MethodPut && r.Container == "disk" && r.Object == "" && r.Header.Get("X-Container-Meta-"+volume.KeyUUID) != "" {
						late = r.Header.Clone()
					}
					if late == nil || !changes(r) {
						return nil
					}
					cancel()
					return &devswift.Action{Status: http.StatusForbidden} // it is killed
				})
				if r := b.runContext(ctx, first...); r.code == 0 {
					t.Fatalf("%+v", r)
				}
				b.swift.SetFault(nil)
				b.ok(second...)
				want := noise(1 << 20)
				b.serve("disk", func(d *device.Device) {
					if _, err := d.WriteAt(want, 0); err != nil {
						t.Fatal(err)
					}
				})
				for key := range maps.Keys(late) {
					if item, ok := strings.CutPrefix(key, "X-Container-Meta-"); ok {
						b.setItem("disk", item, late.Get(key))
					}
				}
				if got := b.content("disk", len(want)); !bytes.Equal(got, want) {
					t.Error("the disk is not what was written")
				}
				b.ok("verify", "disk")
			})
		}
	}
}
