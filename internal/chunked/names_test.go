// SPDX-License-Identifier: MIT

package chunked

import (
	"testing"

	"swiftnbd/internal/geometry"
)

func TestObjectName(t *testing.T) {
	for i, name := range map[geometry.ChunkIndex]string{0: "disk.part/00000000", 7: "disk.part/00000007", 99999999: "disk.part/99999999", 1e8: "disk.part/100000000"} {
		if got := ObjectName(i); got != name {
			t.Errorf("chunk %d is %q, want %q", i, got, name)
		}
		if got, ok := ParseObjectName(name); !ok || got != i {
			t.Errorf("%q is chunk %d, %t", name, got, ok)
		}
	}
	for _, name := range []string{"", "disk.part/", "disk.part/1", "disk.part/000000001", "disk.part/-0000001", "disk.part/+0000001",
		"disk.part/0000000a", "disk.part/99999999999999999999", "Disk.part/00000001", "disk.part/00000001/x", "swiftnbd/00000001"} {
		if i, ok := ParseObjectName(name); ok {
			t.Errorf("%q is taken for chunk %d", name, i)
		}
	}
}

func FuzzParseObjectName(f *testing.F) {
	f.Add("disk.part/00000001")
	f.Add("disk.part/100000000")
	f.Add("disk.part/0000000١")
	f.Fuzz(func(t *testing.T, name string) {
		if i, ok := ParseObjectName(name); ok && (i < 0 || ObjectName(i) != name) {
			t.Errorf("%q is chunk %d, whose name is %q", name, i, ObjectName(i))
		}
	})
}
