// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// countedGets counts the GETs of data objects. The collector's PUTs take a while.
func countedGets(s store.Store, n *atomic.Int64) store.Store {
	return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		if at, ok := layout.ParseLogName(op.Name); ok && op.Kind == store.OpGet {
			n.Add(1)
		} else if ok && op.Kind == store.OpPut && at.N >= layout.FirstCollected {
			time.Sleep(time.Second)
		}
		return call(ctx)
	})
}

// readAll reads the disk in order.
func readAll(t *testing.T, d *Disk) []byte { return readFrom(t, d, 0) }

// readFrom is readAll from a chunk on: what is before it stays zero.
func readFrom(t *testing.T, d *Disk, chunk int64) []byte {
	t.Helper()
	all := make([]byte, d.Size())
	for off := chunk * ChunkSize; off < d.Size(); off += 128 << 10 {
		if err := d.Read(t.Context(), all[off:off+128<<10], off); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestGather reads a disk in order that was written at random, with a client that
// writes meanwhile: then the next reader needs a tenth of the requests, and each block
// is what was written last. What replaced what was read is
// not kept for ever.
func TestGather(t *testing.T) {
	for _, writes := range []int{0, 400} {
		synctest.Test(t, func(t *testing.T) {
			const chunks = 24
			rng := rand.New(rand.NewPCG(1, uint64(writes)))
			v := newClosing(t, chunks*ChunkSize)
			v.o = Options{GC: 70, Cache: 16 << 20}
			var gets atomic.Int64
			open := func() *Disk {
				d, err := v.open(t.Context(), countedGets(v.box, &gets))
				if err != nil {
					t.Fatal(err)
				}
				gets.Store(0)
				return d
			}
			want := make([]byte, chunks*ChunkSize)
			write := func(d *Disk, block int) {
				p := want[block*blockSize:][:blockSize]
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if err := d.Write(t.Context(), p, int64(block)*blockSize); err != nil {
					t.Fatal(err)
				}
			}
			d := open()
			for _, block := range rng.Perm(chunks * chunkBlocks) {
				write(d, block)
			}
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.Close()

			d = open()
			if !bytes.Equal(readAll(t, d), want) {
				t.Error("the disk reads as it was not written")
			}
			scattered := gets.Load()
			for range writes {
				write(d, rng.IntN(chunks*chunkBlocks))
				if err := d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			moved := d.stats.Moved.Load()
			if moved < chunks*chunkBlocks/2 {
				t.Errorf("%d blocks of %d were moved", moved, chunks*chunkBlocks)
			}
			if err := d.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.checkSums(t)
			d.Close()

			for k := range 3 {
				d = open()
				if !bytes.Equal(readAll(t, d), want) {
					t.Error("the disk reads as it was not written")
				}
				t.Logf("%d writes: %d GETs, and %d when it is read for time %d", writes, scattered, gets.Load(), k+2)
				time.Sleep(time.Minute)
				d.Close()
			}
			if n := gets.Load(); scattered < 16*chunks || n > scattered/10+int64(writes) {
				t.Errorf("%d GETs were made for %d chunks at first, and at last %d", scattered, chunks, n)
			}
			d = open()
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Hour)
			if u := d.Use(); u.Bytes > u.Live*3/2 || u.Garbage > u.Bytes {
				t.Errorf("of %d live bytes there are %d, and %d of garbage", u.Live, u.Bytes, u.Garbage)
			}
			if !bytes.Equal(readAll(t, d), want) {
				t.Error("the disk reads as it was not written")
			}
		})
	}
}

// TestGatherWhatIsRead reads the second half of a disk that was written at random: the
// first half, but for the chunk before, stays as it is.
func TestGatherWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks, from = 16, 8
		rng := rand.New(rand.NewPCG(3, 4))
		v := newClosing(t, chunks*ChunkSize)
		v.o = Options{GC: 20, Cache: 16 << 20, Idle: 100 * time.Hour}
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range rng.Perm(chunks * chunkBlocks) {
			if err := d.Write(t.Context(), bytes.Repeat([]byte{byte(block)}, blockSize), int64(block)*blockSize); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Close()
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		readFrom(t, d, from)
		time.Sleep(time.Hour)
		synctest.Wait()
		moved := d.stats.Moved.Load()
		if moved < (chunks-from-1)*chunkBlocks || moved > (chunks-from+1)*chunkBlocks {
			t.Errorf("%d blocks were moved, and %d were read", moved, (chunks-from)*chunkBlocks)
		}
	})
}
