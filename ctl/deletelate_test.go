// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/volume"
)

// TestCloneLateInDelete tries to make a clone at each moment of a deletion, which takes
// hours on a large disk. As long as the snapshot's root is there, it is refused.
func TestCloneLateInDelete(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Without: []string{"bulk_delete"}}, "golden", "late")
	b.fillLog("golden", 1<<20, 3)
	b.ok("snapshot", "golden", "v1")
	var tries, busy atomic.Int64
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodDelete && r.Container == "golden" && strings.HasPrefix(r.Object, layout.RootPrefix) && busy.CompareAndSwap(0, 1) {
			defer busy.Store(0)
			tries.Add(1)
			if r := b.run("clone", "golden@v1", "late"); r.code == 0 {
				t.Errorf("a clone was made when there was still: %q", b.names("golden", ""))
			}
		}
		return nil
	})
	b.ok("delete", "golden", "-y", "--connections", "1")
	b.swift.SetFault(nil)
	if tries.Load() == 0 {
		t.Error("no clone was tried: this test shows nothing")
	}
	b.gone("golden")
}

// TestReadWhileDeleted reads a disk that was converted, and a clone of it, at each moment
// of its deletion by force: what is not there any more is an error, and no zeroes.
func TestReadWhileDeleted(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{Without: []string{"bulk_delete"}}, "disk", "web")
	const size = 512 << 10
	want := noise(size)
	b.ok("setup", "disk", "--size", itoa(size), "--object-size", "64K")
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
	})
	b.setItem("disk", volume.KeyMap, "") // as after a crash: what chunks there are is not known
	b.ok("convert", "disk")
	b.ok("snapshot", "disk", "v1")
	b.ok("clone", "disk@v1", "web")

	moments := 0
	over := map[string]bool{} // it cannot be read any more
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method != http.MethodDelete || r.Container != "disk" || r.Object == "" {
			return nil
		}
		moments++
		for _, name := range []string{"disk", "web"} {
			if over[name] {
				continue
			}
			d, err := b.tryOpen(name, device.Options{ReadOnly: true, Timeout: 100 * time.Millisecond})
			if err != nil {
				over[name] = true
				continue
			}
			for at := int64(0); at < size; at += 64 << 10 {
				got := make([]byte, 64<<10)
				if _, err := d.ReadAt(got, at); err != nil {
					over[name] = true
				} else if !bytes.Equal(got, want[at:][:len(got)]) {
					t.Errorf("before %s is deleted: %s has other bytes at %d", r.Object, name, at)
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	b.ok("delete", "disk", "-y", "--force", "--connections", "1")
	b.swift.SetFault(nil)
	if moments < 10 || !over["disk"] || !over["web"] {
		t.Errorf("%d moments, over %v: this test shows little", moments, over)
	}
}
