// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestDownloadSinceMixed: an image that was partly changed by an interrupted run, and
// is then to be changed to another snapshot, would be neither: what was zeroes before
// and after has data there of the snapshot between. It is refused until it is whole.
func TestDownloadSinceMixed(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	b := newBench(t, devswift.Options{}, "disk")
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	at := map[string][]byte{}
	now := make([]byte, size)
	snapshot := func(name string, change func(d *device.Device) error) {
		t.Helper()
		b.serve("disk", func(d *device.Device) {
			if err := change(d); err != nil {
				t.Fatal(err)
			}
		})
		b.ok("snapshot", "disk", name)
		at[name] = append([]byte(nil), now...)
	}
	write := func(off, n int) func(d *device.Device) error {
		return func(d *device.Device) error {
			copy(now[off:], noise(n))
			_, err := d.WriteAt(now[off:][:n], int64(off))
			return err
		}
	}
	b.ok("setup", "disk", "--size", itoa(size), "--format", "2")
	snapshot("a", write(0, 64<<10))
	snapshot("b", func(d *device.Device) error { // in two objects
		if err := write(1<<20, 64<<10)(d); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
		return write(2<<20, 64<<10)(d)
	})
	snapshot("c", func(d *device.Device) error {
		clear(now[1<<20:])
		return d.Zero(1<<20, size-1<<20, false, false)
	})
	b.ok("download", "disk@a", path)
	interrupted := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var gets atomic.Int32
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Method == http.MethodGet && strings.HasPrefix(r.Object, "swiftnbd/log/") && gets.Add(1) > 1 {
				cancel()
			}
			return nil
		})
		r := b.runContext(ctx, append([]string{"download", "disk@b", path, "--connections", "1"}, args...)...)
		b.swift.SetFault(nil)
		if r.code != 1 || !strings.Contains(r.err, "is partly changed: run the same command again") {
			t.Errorf("%+v", r)
		}
	}
	interrupted("--since", "a")
	if r := b.run("download", "disk@c", path, "--since", "a"); r.code == 0 {
		t.Error("it is done, and the image is neither")
		checkImage(t, path, at["c"])
	} else if !strings.Contains(r.err, "is partly changed from the snapshot a to b by a run that was interrupted: run that once more first") {
		t.Errorf("%+v", r)
	}
	b.ok("download", "disk@b", path, "--since", "a")
	checkImage(t, path, at["b"])
	checkAlone(t, dir, "image")
	b.ok("download", "disk@c", path, "--since", "b")
	checkImage(t, path, at["c"])
	// A whole download ends it, too.
	b.ok("download", "disk@a", path)
	interrupted("--since", "a")
	b.ok("download", "disk@a", path)
	b.ok("download", "disk@c", path, "--since", "a")
	checkImage(t, path, at["c"])
	checkAlone(t, dir, "image")
	// One that is not known is refused.
	b.ok("download", "disk@c", path)
	if err := os.WriteFile(path+".since.record", []byte("?\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	b.fails(1, []string{path + ".since.record is no record of ours"}, "download", "disk@a", path, "--since", "c")
	b.ok("download", "disk@c", path)
	checkAlone(t, dir, "image", "image.since.record")
}
