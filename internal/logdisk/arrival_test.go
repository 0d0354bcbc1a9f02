// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// breaking is a store whose first attempt to read of each data object brings so
// many bytes, in pieces, and fails. It may damage a byte of each attempt.
type breaking struct {
	store.Store
	after   int // bytes; negative: no attempt fails
	damaged int // the place of the byte in the answer; negative: none

	mu    sync.Mutex // guards all below
	tries map[string]int
	into  *byte // where the last attempt put the first byte
}

func (b *breaking) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if !strings.HasPrefix(name, layout.LogPrefix) || o.Arrived == nil {
		return b.Store.Get(ctx, name, p, o)
	}
	quiet, all := o, make([]byte, len(p))
	quiet.Arrived = nil
	info, err := b.Store.Get(ctx, name, all, quiet)
	if err != nil {
		return info, err
	}
	if b.damaged >= 0 && b.damaged < len(all) {
		all[b.damaged] ^= 4
	}
	b.mu.Lock()
	if b.tries == nil {
		b.tries = make(map[string]int)
	}
	b.tries[name]++
	b.into = &p[0]
	fails := b.tries[name] == 1 && b.after >= 0
	b.mu.Unlock()
	o.Tell(0)
	end := len(p)
	if fails {
		end = min(end, b.after)
	}
	for n := 0; n < end; {
		k := min(10_007, end-n) // not in step with frames
		copy(p[n:], all[n:n+k])
		n += k
		o.Tell(n)
	}
	if fails {
		return info, &store.TransportError{Op: "GET " + name, Sent: true, Err: errors.New("the connection was closed")}
	}
	return info, nil
}

// TestArrival reads chunks whose frames come in pieces, with attempts that fail
// anywhere, into memory that has room for the frames and into memory that has not.
// Bytes that are not the chunk's or its room's stay as they are.
func TestArrival(t *testing.T) {
	v := newVolume(t, 4*ChunkSize)
	v.o = Options{Seal: 16 << 20, Brief: true}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*ChunkSize)
	for i := range uint64(4 * chunkBlocks) {
		stamp(want[i*blockSize:][:blockSize], i, 1)
	}
	// The chunks 0 and 1 are in one object. Of chunk 2 a block lies elsewhere, and
	// of chunk 3 the second half.
	for _, r := range [][2]int{{0, 4 * ChunkSize}, {2*ChunkSize + 7*blockSize, blockSize}, {3*ChunkSize + ChunkSize/2, ChunkSize / 2}} {
		if err := d.Write(t.Context(), want[r[0]:][:r[1]], int64(r[0])); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	const frames = chunkBlocks * layout.FrameSize
	for _, after := range []int{-1, 0, 1, 4095, layout.FrameSize, 3*layout.FrameSize + 1, frames / 2, frames - 1, frames} {
		for _, room := range []int{0, frames - ChunkSize - 1, frames - ChunkSize, cache.Room} {
			for chunk := range 4 {
				t.Run(fmt.Sprintf("%d/%d/%d", after, room, chunk), func(t *testing.T) {
					b := &breaking{Store: v.box, after: after, damaged: -1}
					d, err := v.open(t.Context(), store.Retry(b, store.Policy{Base: time.Microsecond}))
					if err != nil {
						t.Fatal(err)
					}
					defer d.Close()
					memory := bytes.Repeat([]byte{0xa5}, ChunkSize+2*cache.Room)
					p := memory[: ChunkSize : ChunkSize+room]
					hole, err := reader{d}.Read(t.Context(), geometry.ChunkIndex(chunk), 0, p)
					if err != nil || hole {
						t.Fatalf("read: %v, %v", hole, err)
					}
					if !bytes.Equal(p, want[chunk*ChunkSize:][:ChunkSize]) {
						t.Error("wrong bytes")
					}
					if rest := memory[ChunkSize+room:]; !bytes.Equal(rest, bytes.Repeat([]byte{0xa5}, len(rest))) {
						t.Error("bytes behind the room were changed")
					}
					inPlace := b.into == &p[0]
					if fits := room >= frames-ChunkSize && chunk < 2; inPlace != fits {
						t.Errorf("read in place: %v, want %v", inPlace, fits)
					}
					for name, n := range b.tries {
						if after >= 0 && n < 2 {
							t.Errorf("%s: %d attempts, and none has failed", name, n)
						}
					}
				})
			}
		}
	}
}

// TestArrivalDamaged: a damaged byte of any frame is an error that names the object,
// in place too, and in the second attempt.
func TestArrivalDamaged(t *testing.T) {
	v := newVolume(t, ChunkSize)
	v.o = Options{Seal: 16 << 20, Brief: true}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, ChunkSize, ChunkSize+cache.Room)
	for i := range uint64(chunkBlocks) {
		stamp(p[i*blockSize:][:blockSize], i, 1)
	}
	if err := d.Write(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	for _, place := range []int{0, blockSize, layout.FrameSize - 1, 100*layout.FrameSize + 5, chunkBlocks*layout.FrameSize - 1} {
		for _, after := range []int{-1, 50 * layout.FrameSize} {
			for _, room := range []int{0, cache.Room} {
				b := &breaking{Store: v.box, after: after, damaged: place}
				d, err := v.open(t.Context(), store.Retry(b, store.Policy{Base: time.Microsecond}))
				if err != nil {
					t.Fatal(err)
				}
				_, err = reader{d}.Read(t.Context(), 0, 0, p[:ChunkSize:ChunkSize+room])
				if err == nil || !strings.Contains(err.Error(), "read object "+layout.LogPrefix) {
					t.Errorf("byte %d is damaged, an attempt fails after %d, room %d: %v", place, after, room, err)
				}
				d.Close()
			}
		}
	}
}

// silent is a store that does not tell what has arrived.
type silent struct{ store.Store }

func (s silent) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	o.Arrived = nil
	return s.Store.Get(ctx, name, p, o)
}

// TestArrivalUntold: a store that breaks the contract makes errors, and never wrong
// bytes.
func TestArrivalUntold(t *testing.T) {
	v := newVolume(t, ChunkSize)
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, blockSize)
	stamp(p, 3, 1)
	if err := d.Write(t.Context(), p, 3*blockSize); err != nil {
		t.Fatal(err)
	}
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if d, err = v.open(t.Context(), silent{v.box}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Read(t.Context(), p, 3*blockSize); err == nil || !strings.Contains(err.Error(), "have come in") {
		t.Errorf("read: %v", err)
	}
}
