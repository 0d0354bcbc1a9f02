// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
)

// TestVerifyCut: what is interrupted between two objects has not checked the others,
// and does not say that they are whole.
func TestVerifyCut(t *testing.T) {
	const objectSize, objects = 8192, 64
	v, _ := newConverted(t, objectSize, objects)
	for i := range geometry.ChunkIndex(objects) {
		p := make([]byte, objectSize)
		if i == objects-1 {
			p = p[:100]
		}
		if err := v.box.Put(t.Context(), chunked.ObjectName(i), p, etagOf(p)); err != nil {
			t.Fatal(err)
		}
	}
	for at := range objects + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		r, err := Verify(ctx, Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Connections: 1, Timeout: time.Second}, VerifyOptions{
			Quick: true,
			Add: func(int64) {
				if n++; n == at {
					cancel()
				}
			},
		})
		cancel()
		if at == 0 {
			if err != nil || len(r.Damage) != 1 {
				t.Fatalf("not interrupted: %+v, %v", r, err)
			}
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted after %d of %d objects: %+v, %v", at, objects, r, err)
		}
	}
}
