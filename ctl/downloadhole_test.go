// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// TestDownloadLongHoles: a disk of 10 TiB with next to nothing on it takes a moment, and
// not one for each of its ten million chunks. What it has is where it was, and there
// alone.
func TestDownloadLongHoles(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"1", "2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			const size = 10 << 40
			b.ok("setup", "disk", "--size", "10T", "--format", format)
			places := []int64{0, 12 << 30, 5<<40 + 3<<20 + 4096, 5<<40 + 4<<20, size - 4096}
			data := noise(4096)
			b.serve("disk", func(d *device.Device) {
				for _, off := range places {
					if _, err := d.WriteAt(data, off); err != nil {
						t.Error(err)
					}
				}
			})
			path := filepath.Join(t.TempDir(), "image")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if r := b.runContext(ctx, "download", "disk", path); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if info, err := f.Stat(); err != nil || info.Size() != size {
				t.Errorf("%v, %v", info, err)
			}
			at := int64(0)
			for _, want := range places {
				p := make([]byte, len(data))
				if _, err := f.ReadAt(p, want); err != nil || !bytes.Equal(p, data) {
					t.Errorf("at %d is other data, or %v", want, err)
				}
				off, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
				if err != nil || off != want {
					t.Errorf("data is at %d, want %d: %v", off, want, err)
				}
				at = want + 4096
			}
			if off, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err != unix.ENXIO && at < size {
				t.Errorf("data is at %d, too: %v", off, err)
			}
		})
	}
}

// TestHolesFrom: the holes that are found at once are those that are found one by one,
// in few steps.
func TestHolesFrom(t *testing.T) {
	t.Parallel()
	const chunks = 100
	full := map[int64]bool{7: true, 8: true, 30: true, 31: true, 64: true, 99: true}
	for first := range int64(chunks) {
		for n := int64(1); n <= chunks-first; n++ {
			steps, want := 0, int64(0)
			for want < n && !full[first+want] {
				want++
			}
			got := holesFrom(first, n, func(at, count int64) bool {
				steps++
				for i := range count {
					if full[at+i] {
						return false
					}
					if at+i >= first+n {
						t.Fatalf("asked for %d of %d chunks from %d on, of which chunk %d is none", n, chunks, first, at+i)
					}
				}
				return true
			})
			if got != want || steps > 16 {
				t.Fatalf("of %d chunks from %d on %d are holes, found in %d steps, want %d", n, first, got, steps, want)
			}
		}
	}
}
