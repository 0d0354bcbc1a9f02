// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// sink is a store that keeps nothing of the log.
type sink struct {
	store.Store
	takes time.Duration // for an object of it
}

func (s sink) Put(ctx context.Context, name string, p []byte, etag store.ETag) error {
	if _, ok := layout.ParseLogName(name); ok {
		time.Sleep(s.takes)
		return nil
	}
	return s.Store.Put(ctx, name, p, etag)
}

// BenchmarkRandomWrite is what a 4 KiB write at a random place costs, the upload
// of its object included but for Swift.
func BenchmarkRandomWrite(b *testing.B) {
	v := newVolume(b, 4<<30)
	d, err := v.open(b.Context(), sink{v.box, 20 * time.Millisecond})
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

// BenchmarkSequentialWrite is what a sequential write in requests of 1 MiB costs,
// the uploads of its objects included but for Swift, which takes 20 ms for each.
func BenchmarkSequentialWrite(b *testing.B) {
	v := newVolume(b, 1<<30)
	d, err := v.open(b.Context(), sink{v.box, 20 * time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i>>12) + 1
	}
	b.SetBytes(int64(len(p)))
	off := int64(0)
	for b.Loop() {
		if err := d.Write(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		off = (off + int64(len(p))) % (1 << 30)
	}
	if err := d.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}
