// SPDX-License-Identifier: MIT

package main

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/volume"
)

// TestVerifyUnlisted: chunks that the listing lacks, and the map has, count as those
// that it has.
func TestVerifyUnlisted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "16")
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(noise(3*65536), 0); err != nil {
			t.Fatal(err)
		}
	})
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodGet && r.Container == "disk" && r.Object == "" {
			return &devswift.Action{Status: http.StatusNoContent}
		}
		return nil
	})
	for _, args := range [][]string{nil, {"--quick"}} {
		if out := b.verify(0, args...); out.Objects != 3 || out.Bytes != 3*65536 {
			t.Errorf("%v: %+v", args, out)
		}
	}
}

// TestVerifyTotal: what is done comes to the total that was said before, of a disk
// that was converted and does not need each of its chunks any more.
func TestVerifyTotal(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fillChunks("disk", 1<<20, "64K")
	b.ok("convert", "disk")
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(noise(200_000), 0); err != nil {
			t.Fatal(err)
		}
	})
	meta, err := volume.Read(t.Context(), b.store("disk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, quick := range []bool{false, true} {
		var total, done atomic.Int64
		r, err := logdisk.Verify(t.Context(), logdisk.Options{Store: b.store("disk"), UUID: meta.UUID, Root: meta.Root, Connections: 2, Timeout: time.Second}, logdisk.VerifyOptions{
			Quick: quick, Held: func() error { return nil },
			Begin: func(n int64) { total.Store(n) }, Add: func(n int64) { done.Add(n) },
		})
		if err != nil || r.Chunks.Count == 0 || len(r.Damage) > 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		if total.Load() == 0 || total.Load() != done.Load() {
			t.Errorf("quick %v: %d of %d", quick, done.Load(), total.Load())
		}
	}
}
