// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// TestCollectPaged collects a disk that was written at random and whose map is much
// larger than its memory: each page of the map is read once or twice for all groups of
// objects that are collected together, and not once for each.
func TestCollectPaged(t *testing.T) {
	const blocks = 16 << 10
	rng := newRand(t)
	v := newClosing(t, blocks*blockSize)
	v.o = Options{Seal: 128 * layout.FrameSize, Cache: 8 << 20, Connections: 8, FlushTime: -1, GC: 70, Brief: true}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, blocks*blockSize)
	for i, b := range append(rng.Perm(blocks), rng.Perm(blocks)[:blocks/2]...) { // half of the first is garbage then
		p := want[b*blockSize:][:blockSize]
		stamp(p, uint64(b), uint64(i))
		if err := d.Write(t.Context(), p, int64(b)*blockSize); err != nil {
			t.Fatal(err)
		}
	}
	do := doer(t)
	do(d.Drain(t.Context()))
	do(d.Save(t.Context()))
	d.Close()
	v.o.MapMemory = 64 << 10
	d, err = v.open(t.Context(), v.box)
	do(err)
	d.lastWrite.Store(time.Now().Add(-time.Hour).UnixNano()) // it is idle
	pages := 0
	for _, r := range d.tree {
		pages += len(r.index.Pages)
	}
	groups := len(d.victims())
	if !d.paged() || pages < 3 || groups <= collectGroups {
		t.Fatalf("%d pages, %d groups of objects: this test shows nothing", pages, groups)
	}
	before := d.stats.MapGets.Load()
	taken, err := d.collectOnce(t.Context())
	do(err)
	gets := d.stats.MapGets.Load() - before
	t.Logf("%d objects in %d groups: %d blocks were moved; %d reads of the map, which has %d pages", taken, groups, d.stats.Moved.Load(), gets, pages)
	if taken < groups || d.stats.Moved.Load() < blocks/4 {
		t.Errorf("%d objects were collected, %d blocks moved", taken, d.stats.Moved.Load())
	}
	if gets > int64(2*pages) {
		t.Errorf("the map was read %d times, and has %d pages", gets, pages)
	}
	d.checkSums(t)
	got := make([]byte, len(want))
	if do(d.Read(t.Context(), got, 0)); !bytes.Equal(got, want) {
		t.Error("the disk is not what it was")
	}
}

// TestBatches has the groups put together, as far as their objects are not too many.
func TestBatches(t *testing.T) {
	var groups [][]victim
	for i := range 10 {
		groups = append(groups, []victim{{at: layout.Position{N: uint64(i)}, size: batchFrames / 4 * layout.FrameSize}})
	}
	for paged, want := range map[bool]int{false: 1, true: 4} {
		n := uint64(0)
		for batch := range batches(groups, paged) {
			if len(batch) > want || len(batch) < want && n+uint64(len(batch)) < 10 {
				t.Errorf("paged %t: %d groups together, want %d", paged, len(batch), want)
			}
			for _, group := range batch {
				if group[0].at.N != n {
					t.Fatalf("group %d is missing", n)
				}
				n++
			}
		}
		if n != 10 {
			t.Errorf("paged %t: %d groups", paged, n)
		}
	}
}
