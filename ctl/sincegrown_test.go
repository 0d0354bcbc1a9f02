// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"swiftnbd/internal/logdisk"
)

// TestDownloadSinceGrown: a disk has grown since the snapshot that a block device
// holds. What it has grown by reads as zeroes there, whatever the device had behind the
// smaller disk, and is no change of the disk. A file stands for the device.
func TestDownloadSinceGrown(t *testing.T) {
	t.Parallel()
	for _, sizes := range [][2]int{{3 << 20, 6 << 20}, {1_000_000, 2 << 20}, {3 << 20, 3 << 20}, {6 << 20, 3 << 20}} {
		from, to := sizes[0], sizes[1]
		path, content := filepath.Join(t.TempDir(), "device"), noise(8<<20)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := &patched{file: f, path: path, size: int64(to), device: true}
		err = p.check(&logdisk.Diff{From: logdisk.Moment{Snapshot: "a", Size: int64(from)}, To: logdisk.Moment{Snapshot: "b", Size: int64(to)}})
		if err == nil {
			err = p.commit()
		}
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(content)
		if from < to {
			clear(want[from:to])
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("from %d to %d bytes: the device is not the grown disk and what was behind it, %v", from, to, err)
		}
	}
}
