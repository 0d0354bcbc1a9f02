// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// TestNeighbours has several clients change and read parts of the disk that are each
// one's own, but lie in the same blocks as those of others. The cache has hardly any
// room, and meanwhile the disk is read in order, flushed, and its objects are moved. Each
// client reads what it has written last, and so does who opens the disk after it.
func TestNeighbours(t *testing.T) {
	const (
		clients = 8
		blocks  = 12 * chunkBlocks
		sector  = blockSize / clients
		lasts   = 1500 * time.Millisecond
	)
	// Of each four blocks, the first belongs to one client, with a sector on either side
	// of it. The third has a sector for each.
	var own [clients][][2]int64 // off, n
	for b := int64(4); b < blocks-4; b += 4 {
		k := b / 4 % clients
		own[k] = append(own[k], [2]int64{b*blockSize - sector, blockSize + 2*sector})
		for k := range int64(clients) {
			own[k] = append(own[k], [2]int64{(b+2)*blockSize + k*sector, sector})
		}
	}
	for _, compress := range []bool{false, true} {
		rng := newRand(t)
		v := newVolume(t, blocks*blockSize)
		v.o = Options{
			Seal: 64 * layout.FrameSize, Cache: MinCache(), Connections: 4, Checkpoint: 20, Compress: compress,
			Age: time.Millisecond, GC: 70, Every: time.Millisecond, Idle: 3 * time.Millisecond, Horizon: time.Nanosecond,
		}
		if compress {
			v.o.littleMap()
		}
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, blocks*blockSize)
		var wg sync.WaitGroup
		errs := make([]error, clients+1)
		until := time.Now().Add(lasts)
		client := func(rng *rand.Rand, own [][2]int64) error {
			got := make([]byte, blockSize+2*sector)
			for n := uint64(1); time.Now().Before(until); n++ {
				r := own[rng.IntN(len(own))]
				if rng.IntN(2) == 0 {
					r = own[rng.IntN(100)] // which the cache may have still
				}
				lo := rng.Int64N(r[1])
				off, p := r[0]+lo, want[r[0]+lo:][:1+rng.Int64N(r[1]-lo)]
				if rng.IntN(3) == 0 {
					off, p = r[0], want[r[0]:][:r[1]]
				}
				if whole := (off + blockSize - 1) / blockSize * blockSize; r[1] > blockSize && rng.IntN(3) == 0 && whole+blockSize <= r[0]+r[1] {
					off, p = whole, want[whole:][:blockSize]
				}
				var err error
				switch rng.IntN(8) {
				case 0:
					clear(p)
					err = d.Zero(t.Context(), off, int64(len(p)))
				case 1:
					clear(p)
					err = d.Trim(t.Context(), off, int64(len(p)))
				case 2, 3, 4:
					for i := range p {
						p[i] = byte(n + uint64(i)*n>>3)
					}
					err = d.Write(t.Context(), p, off)
				}
				if err == nil {
					off, p = r[0], want[r[0]:][:r[1]]
					err = d.Read(t.Context(), got[:len(p)], off)
				}
				if err != nil {
					return err
				}
				for i := range p {
					if got[i] != p[i] {
						return fmt.Errorf("operation %d: byte %d is %#x, want %#x", n, off+int64(i), got[i], p[i])
					}
				}
			}
			return nil
		}
		for k := range clients {
			seed := rng.Uint64()
			wg.Go(func() { errs[k] = client(rand.New(rand.NewPCG(seed, 3)), own[k]) })
		}
		wg.Go(func() {
			p := make([]byte, 256<<10)
			for off := int64(0); time.Now().Before(until) && errs[clients] == nil; off = (off + int64(len(p))) % (blocks * blockSize) {
				errs[clients] = errors.Join(d.Read(t.Context(), p, off), d.Flush(t.Context()))
			}
		})
		wg.Wait()
		t.Logf("%d evicted, %d moved, %d gathered", d.Cache().Stats().Evicted.Load(), d.Stats().Moved.Load(), d.Stats().Gathered.Load())
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if d.Cache().Stats().Evicted.Load() == 0 || d.Stats().Moved.Load() == 0 {
			t.Error("this test shows little")
		}
		if err := errors.Join(d.Drain(t.Context()), d.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
		d.Close()
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after it the disk is another: %v", err)
		}
		d.Close()
	}
}
