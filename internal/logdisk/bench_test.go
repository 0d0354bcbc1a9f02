// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"math/rand/v2"
	"testing"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// sink is a store that keeps nothing of the log.
type sink struct{ store.Store }

func (s sink) Put(ctx context.Context, name string, p []byte, etag store.ETag) error {
	if _, ok := layout.ParseLogName(name); ok {
		return nil
	}
	return s.Store.Put(ctx, name, p, etag)
}

// BenchmarkRandomWrite is what a 4 KiB write at a random place costs, the upload
// of its object included but for Swift.
func BenchmarkRandomWrite(b *testing.B) {
	v := newVolume(b, 4<<30)
	d, err := v.open(b.Context(), sink{v.box})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, blockSize)
	b.SetBytes(blockSize)
	for b.Loop() {
		if err := d.Write(b.Context(), p, int64(rng.Uint64N(1<<20))*blockSize); err != nil {
			b.Fatal(err)
		}
	}
}
