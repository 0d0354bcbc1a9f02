// SPDX-License-Identifier: MIT

package main

import (
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/volume"
)

// TestPreferredBlock: within nbdkit's bounds, and a power of two, which it
// insists upon.
func TestPreferredBlock(t *testing.T) {
	for size, want := range map[int64]uint32{
		1: 512, 511: 512, 512: 512, 1000: 512, 1024: 1024, 65536: 65536, 100_000: 65536,
		1 << 20: 1 << 20, 32 << 20: 32 << 20, 1<<25 + 1: 32 << 20, geometry.MaxObjectSize: 32 << 20,
	} {
		if got := preferredBlock(size); got != want {
			t.Errorf("objects of %d: %d, want %d", size, got, want)
		}
	}
}

func TestDescription(t *testing.T) {
	for _, tc := range []struct {
		objectSize, objects int64
		readOnly            bool
		want                string
	}{
		{1 << 20, 1 << 10, false, "1 GiB in objects of 1 MiB"},
		{64 << 10, 3, true, "192 KiB in objects of 64 KiB, read-only"},
		{1000, 3, false, "3000 bytes in objects of 1000 bytes"},
		{1 << 30, 1 << 20, false, "1024 TiB in objects of 1 GiB"},
	} {
		g, err := geometry.New(tc.objectSize, tc.objects)
		if err != nil {
			t.Fatal(err)
		}
		meta := volume.Meta{Version: volume.Version1, Size: g.Size(), Geometry: g}
		if got := description(meta, tc.readOnly); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	if got := description(volume.Meta{Version: volume.Version2, Size: 3 << 30}, true); got != "3 GiB in version 2 of the format, read-only" {
		t.Errorf("of version 2: %q", got)
	}
}
