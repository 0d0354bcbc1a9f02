// SPDX-License-Identifier: MIT

package logdisk

import (
	"fmt"
	"testing"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// logObjects returns the sizes of the data objects that Swift has, by N less 1.
func logObjects(t *testing.T, s store.Store, epoch uint32) (sizes []int64) {
	t.Helper()
	list, err := s.List(t.Context(), store.ListOptions{Prefix: layout.LogPrefix})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		if at, ok := layout.ParseLogName(o.Name); !ok || at.Epoch != epoch || at.N != uint64(len(sizes))+1 {
			t.Fatalf("object %d of the log is %s", len(sizes)+1, o.Name)
		}
		sizes = append(sizes, o.Size)
	}
	return sizes
}

// TestWholeChunks writes whole 4 MiB one after the other, in requests of several
// sizes: each 4 MiB is one object.
func TestWholeChunks(t *testing.T) {
	const (
		data    = 4 << 20
		objects = 3
	)
	for _, request := range []int{128 << 10, 1 << 20, data} {
		t.Run(fmt.Sprintf("%dK", request>>10), func(t *testing.T) {
			v := newVolume(t, (objects+1)*data)
			v.o.FlushTime = -1 // a slow machine's objects would be smaller
			d, err := v.open(t.Context(), v.box)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p := make([]byte, request)
			for i := range p {
				p[i] = byte(i>>12) + 1
			}
			for off := int64(0); off < objects*data; off += int64(request) {
				if err := d.Write(t.Context(), p, off); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			sizes := logObjects(t, v.box, v.epoch)
			if len(sizes) != objects {
				t.Fatalf("%d objects of %v bytes for %d times 4 MiB", len(sizes), sizes, objects)
			}
			for i, n := range sizes {
				if least := int64(data / layout.BlockSize * layout.FrameSize); n < least || n > least+4096 {
					t.Errorf("object %d has %d bytes, and the frames of 4 MiB are %d", i+1, n, least)
				}
			}
		})
	}
}
