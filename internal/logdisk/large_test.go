// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// largeMap is a container with the runs of a disk that was written at random all
// over. It makes their bytes when they are read: all runs are like the first, but
// for their names and for where they begin.
type largeMap struct {
	store.Store
	uuid     layout.UUID
	template []byte // the first run
	index    *layout.RunIndex
}

const (
	largeFirst  = 1 << 28 // the first block of the first run: its number has 5 bytes as a varint, as those of all others
	largeBlocks = 700_000 // of a run: it has about 8 MiB
)

// largeEntry is what the map has for block i of a run.
func largeEntry(first, i uint64) layout.Entry {
	return layout.Entry{First: first + i, Count: 1, At: layout.Position{Epoch: 1, N: 1 + i*7919%1000}, Place: uint32(i*31%1000) * layout.FrameSize}
}

// newLargeMap returns a container with a disk whose map has so many runs.
func newLargeMap(t testing.TB, runs uint64) (l *largeMap, size int64) {
	t.Helper()
	box := mem.New()
	l = &largeMap{Store: box, uuid: layout.NewUUID()}
	w := layout.NewRunWriter(l.uuid, layout.RunBlocks, layout.Position{Epoch: 1, N: 1})
	for i := range uint64(largeBlocks) {
		if err := w.Add(largeEntry(largeFirst, i)); err != nil {
			t.Fatal(err)
		}
	}
	l.template = w.Bytes()
	run, err := layout.ParseRun(l.template, l.uuid)
	if err != nil {
		t.Fatal(err)
	}
	l.index = &run.RunIndex
	if _, err := box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	put := func(name string, b []byte) {
		if err := box.Put(t.Context(), name, b, etagOf(b)); err != nil {
			t.Fatal(err)
		}
	}
	table := layout.Position{Epoch: 1, N: runs + 1}
	w = layout.NewRunWriter(l.uuid, layout.RunObjects, table)
	for n := range uint64(1000) {
		if err := w.AddObject(layout.ObjectEntry{At: layout.Position{Epoch: 1, N: n + 1}, Size: 4<<30 - 1, Live: 1 << 19 * layout.FrameSize}); err != nil {
			t.Fatal(err)
		}
	}
	put(layout.RunName(table), w.Bytes())
	size = int64(largeFirst+runs*largeBlocks) * layout.BlockSize
	root := layout.Root{Name: layout.Position{Epoch: 1, N: 1}, UUID: l.uuid, Size: size, At: layout.Position{Epoch: 1, N: 1000},
		Runs: layout.Runs{Objects: []layout.Position{table}}}
	for n := range runs {
		root.Runs.Blocks = append(root.Runs.Blocks, layout.Position{Epoch: 1, N: n + 1})
	}
	b, err := root.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	put(layout.RootName(root.Name), b)
	return l, size
}

// of returns the number of a run that is made when it is read, from 0.
func (l *largeMap) of(name string) (uint64, bool) {
	at, ok := layout.ParseRunName(name)
	if !ok || at.Epoch != 1 {
		return 0, false
	}
	_, err := l.Store.Head(context.Background(), name)
	return at.N - 1, err != nil
}

func (l *largeMap) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	page, err := l.Store.List(ctx, o)
	if strings.HasPrefix(layout.RunPrefix, o.Prefix) && o.Marker <= layout.RunPrefix {
		for n := range uint64(1000) { // a listing has some of them, and not others
			page = append(page, store.ObjectInfo{Name: layout.RunName(layout.Position{Epoch: 1, N: n + 1}), Size: int64(len(l.template))})
		}
	}
	return page, err
}

func (l *largeMap) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	if _, ok := l.of(name); ok {
		return store.ObjectInfo{Name: name, Size: int64(len(l.template))}, nil
	}
	return l.Store.Head(ctx, name)
}

func (l *largeMap) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	n, ok := l.of(name)
	if !ok {
		return l.Store.Get(ctx, name, p, o)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	end := o.Offset + int64(len(p))
	put := func(at int64, b []byte) {
		if lo, hi := max(at, o.Offset), min(at+int64(len(b)), end); lo < hi {
			copy(p[lo-o.Offset:], b[lo-at:hi-at])
		}
	}
	last := l.index.Pages[len(l.index.Pages)-1]
	tail := append([]byte(nil), l.template[last.Place+int64(last.Bytes):]...)
	for i, ref := range l.index.Pages {
		first := ref.First + n*largeBlocks
		binary.LittleEndian.PutUint64(tail[i*20:], first)
		if ref.Place >= end || ref.Place+int64(ref.Bytes) <= o.Offset {
			continue
		}
		page := append([]byte(nil), l.template[ref.Place:][:ref.Bytes]...)
		binary.PutUvarint(page, first)
		binary.LittleEndian.PutUint32(page[len(page)-4:], crc32.Checksum(page[:len(page)-4], table))
		put(ref.Place, page)
	}
	footer := tail[len(tail)-64:]
	binary.LittleEndian.PutUint32(footer[40:], crc32.Checksum(tail[:len(tail)-64], table))
	binary.LittleEndian.PutUint64(footer[48:], n+1)
	binary.LittleEndian.PutUint32(footer[60:], crc32.Checksum(footer[:60], table))
	put(last.Place+int64(last.Bytes), tail)
	return store.ObjectInfo{Name: name, Size: int64(len(l.template))}, nil
}

// TestLargeMap opens a disk of 11 TiB, 10 TiB of which were written at random in
// blocks (without -ops=1 a smaller one), looks blocks up all over it, and changes as many as make a checkpoint
// due: the map stays within its memory.
func TestLargeMap(t *testing.T) {
	runs, looks, trims := uint64(3835), 400, 600_000
	long := *opsFlag > 0
	if !long {
		runs, looks, trims = 200, 100, 50_000
	}
	rng := newRand(t)
	l, size := newLargeMap(t, runs)
	before := heap()
	began := time.Now()
	d, err := Open(t.Context(), Options{Store: l, UUID: l.uuid, Epoch: 2, Root: "00000001-00000001", Cache: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	took := time.Since(began)
	blocks := uint64(size) / layout.BlockSize
	var most, mostHeap int64
	measure := func() {
		d.mu.RLock()
		most = max(most, d.mapBytes())
		d.mu.RUnlock()
	}
	look := func(block uint64, trimmed map[uint64]bool) {
		err := d.viewed(t.Context(), block, 1, func() {
			v, ok := d.m.Get(block)
			want := largeEntry(block, 0)
			if block >= largeFirst {
				i := (block - largeFirst) % largeBlocks
				want = largeEntry(block-i, i)
			}
			switch {
			case trimmed[block]:
				if v.Kind != layout.Trimmed {
					t.Errorf("block %d is %v, and was trimmed", block, v)
				}
			case block < largeFirst:
				if ok {
					t.Errorf("block %d is %v, and was never written", block, v)
				}
			case v.Kind != layout.Data || v.At != want.At || v.Place != want.Place:
				t.Errorf("block %d is %v, want %v", block, v, want)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range looks {
		look(rng.Uint64N(blocks), nil)
		measure()
	}
	mostHeap = max(mostHeap, heap()-before)
	trimmed := map[uint64]bool{}
	for i := range trims {
		b := largeFirst + rng.Uint64N(blocks-largeFirst)
		if err := d.Trim(t.Context(), int64(b)*layout.BlockSize, layout.BlockSize); err != nil {
			t.Fatal(err)
		}
		if i%500 == 0 {
			trimmed[b] = true
			measure()
		}
	}
	if err := d.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for b := range trimmed {
		look(b, trimmed)
		measure()
	}
	mostHeap = max(mostHeap, heap()-before)
	t.Logf("opened in %v; the map took at most %d MiB, the heap %d MiB more than before; %d checkpoints; %d reads of the map, %d MiB",
		took, most>>20, mostHeap>>20, d.stats.Saves.Load(), d.stats.MapGets.Load(), d.stats.MapBytes.Load()>>20)
	if most > defaultMapMemory {
		t.Errorf("the map took %d bytes of memory, and may take %d", most, defaultMapMemory)
	}
	if long && d.stats.Saves.Load() < 2 {
		t.Error("no checkpoint came: this test shows little")
	}
}

// TestLargeOpen opens a disk of 1.1 TiB, of which 100 GiB were written at random,
// with requests of 20 ms each: after a clean end, and after a session that was
// killed with 1,000 objects of log. Without -ops=1 only the requests take time.
func TestLargeOpen(t *testing.T) {
	if *opsFlag > 0 {
		largeOpen(t)
		return
	}
	synctest.Test(t, func(t *testing.T) { largeOpen(t) })
}

func largeOpen(t *testing.T) {
	l, size := newLargeMap(t, 38)
	delay := func(d time.Duration) store.Store {
		return store.Wrap(l, func(ctx context.Context, _ store.Op, call func(context.Context) error) error {
			time.Sleep(d)
			return call(ctx)
		})
	}
	open := func(epoch uint32, limit time.Duration) *Disk {
		o := Options{Store: delay(20 * time.Millisecond), UUID: l.uuid, Epoch: epoch, Root: "00000001-00000001", Cache: 8 << 20, Checkpoint: 2000}
		began := time.Now()
		d, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		opened := time.Since(began)
		block := rand.Uint64N(uint64(size)/layout.BlockSize-largeFirst) + largeFirst
		if err := d.viewed(t.Context(), block, 1, func() {
			if v, ok := d.m.Get(block); !ok || v.Kind != layout.Data {
				t.Errorf("block %d is %v", block, v)
			}
		}); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		t.Logf("opened in %v, and looked a block up after %v; the log ended at %v", opened, took, d.former)
		if took > limit {
			t.Errorf("it took %v, and may take %v", took, limit)
		}
		return d
	}
	d := open(2, time.Second)
	p := make([]byte, layout.BlockSize)
	for range 1000 {
		block := rand.Uint64N(uint64(size) / layout.BlockSize)
		if err := errors.Join(d.Write(t.Context(), p, int64(block)*layout.BlockSize), d.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	if d = open(3, 3*time.Second); d.former != (layout.Position{Epoch: 2, N: 1000}) {
		t.Errorf("the log ended at %v", d.former)
	}
	d.Close()
}

// heap returns the bytes that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // of pools
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}
