// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// The channels in them are made at the first use, which may not be in a bubble of
// synctest: other tests use them, too.
func init() {
	_, _ = decompressor().DecodeAll(compressor().EncodeAll([]byte("first"), nil), make([]byte, 0, 5))
}

// prose returns n bytes that compress about as well as text.
func prose(rng *rand.Rand, n int) []byte {
	words := strings.Fields("the disk is kept in objects and each of them has some blocks that were written at one time by a client of the server")
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s %x ", words[rng.IntN(len(words))], rng.IntN(1<<12))
	}
	return b.Bytes()[:n]
}

func noise(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// recordsOf returns the records of all data objects.
func recordsOf(t testing.TB, v *opener) map[layout.Position][]layout.Record {
	t.Helper()
	all := map[layout.Position][]layout.Record{}
	for name, b := range contents(t, v.box) {
		at, ok := layout.ParseLogName(name)
		if !ok {
			continue
		}
		_, records, _, err := layout.ParseTail(b, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		all[at] = records
	}
	return all
}

// recordKinds counts the records of all data objects.
func recordKinds(t testing.TB, v *opener) (n map[layout.Kind]int) {
	n = map[layout.Kind]int{}
	for _, records := range recordsOf(t, v) {
		for _, r := range records {
			n[r.Kind]++
		}
	}
	return n
}

// sound verifies the disk.
func sound(t testing.TB, v *opener) *Report {
	t.Helper()
	r, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch + 1}, VerifyOptions{})
	if err != nil || len(r.Damage) > 0 || !r.Judged {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// TestCompress writes text and noise with compression on and off, in turns, and
// changes parts of compressed records. The disk has to be what was written, at once,
// after a crash, and after a checkpoint.
func TestCompress(t *testing.T) {
	const size = 4 << 20
	rng := newRand(t)
	v := newVolume(t, size)
	v.o = Options{GC: 70, Every: time.Hour}
	want := make([]byte, size)
	write := func(d *Disk, off int64, p []byte) {
		t.Helper()
		copy(want[off:], p)
		if err := d.Write(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
	}
	check := func(d *Disk) {
		t.Helper()
		got := make([]byte, size)
		if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the disk is not what was written: %v", err)
		}
		for range 50 { // past the cache
			first, n := rng.IntN(size/blockSize), 1+rng.IntN(20)
			n = min(n, size/blockSize-first)
			if _, err := d.Fetch(t.Context(), uint64(first), got[:n*blockSize]); err != nil || !bytes.Equal(got[:n*blockSize], want[first*blockSize:][:n*blockSize]) {
				t.Fatalf("%d blocks from %d are not what was written: %v", n, first, err)
			}
		}
		if err := d.Extents(t.Context(), 0, size, func(off, n int64, hole bool) bool {
			for b := off; b < off+n; b += blockSize {
				if zero := bytes.Count(want[b:][:blockSize], []byte{0}) == blockSize; zero != hole {
					t.Fatalf("byte %d: hole is %t", b, hole)
				}
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	session := func(compress, save bool, change func(d *Disk)) {
		t.Helper()
		v.o.Compress = compress
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		check(d)
		change(d)
		check(d)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(d)
		if save {
			if err := d.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.checkSums(t)
		check(d)
		if from, to := d.stats.CompressFrom.Load(), d.stats.CompressTo.Load(); compress != (to > 0) || to > from {
			t.Errorf("compress is %t: %d bytes became %d", compress, from, to)
		}
	}
	session(true, false, func(d *Disk) {
		write(d, 0, prose(rng, 1<<20))
		write(d, 1<<20, noise(rng, 1<<20))
	})
	n := recordKinds(t, v)
	if n[layout.Zstd] != 16 || n[layout.Data] != 1 {
		t.Errorf("the records are %v: 1 MiB of text and one of noise", n)
	}
	if r := sound(t, v); r.Frames != 512 {
		t.Errorf("%+v", r)
	}
	session(false, true, func(d *Disk) {
		write(d, 5*blockSize, prose(rng, 2*blockSize))    // in the middle of a record
		write(d, 15*blockSize, noise(rng, 20*blockSize))  // over the end of one, all of one, and the beginning of one
		write(d, 40*blockSize+100, prose(rng, blockSize)) // parts of blocks
		write(d, 3<<20+17, prose(rng, 3*blockSize))       // new
		if err := d.Trim(t.Context(), 50*blockSize, 3*blockSize); err != nil {
			t.Fatal(err)
		}
		clear(want[50*blockSize:][:3*blockSize])
	})
	session(true, true, func(d *Disk) {
		for range 100 {
			write(d, int64(rng.IntN(1<<20/blockSize))*blockSize, prose(rng, blockSize))
		}
		if err := d.Zero(t.Context(), 8*blockSize, 30*blockSize); err != nil {
			t.Fatal(err)
		}
		clear(want[8*blockSize:][:30*blockSize])
	})
	session(false, false, func(d *Disk) {})
	v.o.littleMap()
	session(true, true, func(d *Disk) { write(d, 2<<20, prose(rng, 1<<20)) })
	session(false, false, func(d *Disk) {})
	sound(t, v)
}

// TestCompressNotLarger has no object of noise that is larger, or has another form,
// than without compression.
func TestCompressNotLarger(t *testing.T) {
	rng := newRand(t)
	p := noise(rng, 1<<20)
	// Saving less than an eighth is not worth it.
	for i := 0; i < len(p); i += blockSize {
		clear(p[i:][:blockSize/20])
	}
	var sizes []int
	for _, compress := range []bool{false, true} {
		v := newVolume(t, 1<<20)
		v.o.Compress = compress
		d, err := v.open(t.Context(), v.box)
		if err == nil {
			err = errors.Join(d.Write(t.Context(), p, 0), d.Flush(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		sizes = append(sizes, len(get(t, v.box, layout.LogName(layout.Position{Epoch: 1, N: 1}))))
		if n := recordKinds(t, v); n[layout.Zstd] != 0 {
			t.Errorf("the records are %v", n)
		}
	}
	if sizes[0] != sizes[1] {
		t.Errorf("an object has %d bytes, and %d with compression", sizes[0], sizes[1])
	}
}

// watching calls put before each PUT.
type watching struct {
	store.Store
	put func(name string, p []byte)
}

func (w watching) Put(ctx context.Context, name string, p []byte, etag store.ETag) error {
	w.put(name, p)
	return w.Store.Put(ctx, name, p, etag)
}

// TestCompressRequired has a root in Swift that requires the feature before the
// first compressed record, and roots of disks that do not compress without it.
func TestCompressRequired(t *testing.T) {
	for _, compress := range []bool{false, true} {
		v := newVolume(t, 1<<20)
		v.o.Compress = compress
		required, logs := false, 0
		w := watching{v.box, func(name string, p []byte) {
			if _, ok := layout.ParseRootName(name); ok {
				root, err := layout.ParseRoot(p)
				if err != nil {
					t.Error(err)
				}
				required = slices.Contains(root.Requires, layout.FeatureZstd)
			}
			if _, ok := layout.ParseLogName(name); ok {
				if logs++; required != compress {
					t.Errorf("compress is %t: the newest root's requirement is %t", compress, required)
				}
			}
		}}
		d, err := v.open(t.Context(), w)
		if err == nil {
			err = errors.Join(d.Write(t.Context(), make([]byte, 1<<20), 0), d.Flush(t.Context()), d.Snapshot(t.Context(), "one"), d.Save(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		if logs == 0 {
			t.Error("no object was written")
		}
		// What has compressed records stays so when nothing is compressed any more.
		v.o.Compress = false
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(d.root.Requires, layout.FeatureZstd); got != compress {
			t.Errorf("compress was %t: the root's requirement is %t", compress, got)
		}
		d.Close()
	}
}

// TestCompressCollected has the collector move compressed records: as they are
// while much of them is live, and taken apart when the frames are shorter. Left
// alone it comes to rest.
func TestCompressCollected(t *testing.T) {
	const size = 8 << 20
	rng := newRand(t)
	v := newVolume(t, size)
	v.o = Options{Compress: true, Seal: 64 * layout.FrameSize, GC: 90, Every: 2 * time.Millisecond, Idle: 2 * time.Millisecond, Horizon: time.Nanosecond, Checkpoint: 1000}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := prose(rng, size)
	if err := errors.Join(d.Write(t.Context(), want, 0), d.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	// Of half of the records a few blocks stay, of the others most.
	for block := range size / blockSize {
		record, i := block/16, block%16
		if record%2 == 0 && i < 15 || record%2 == 1 && i < 2 {
			p := want[block*blockSize:][:blockSize]
			copy(p, noise(rng, blockSize))
			if err := d.Write(t.Context(), p, int64(block)*blockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var whole, apart int
	quiet := func() bool {
		before := d.stats.Collected.Load()
		time.Sleep(300 * time.Millisecond)
		return before > 0 && d.stats.Collected.Load() == before
	}
	for end := time.Now().Add(60 * time.Second); !quiet(); {
		if time.Now().After(end) {
			t.Fatalf("the collector does not come to rest: %+v", d.Use())
		}
	}
	d.checkSums(t)
	if err := d.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	for at, records := range recordsOf(t, v) {
		for _, r := range records {
			switch {
			case at.N < layout.FirstCollected:
			case r.Kind == layout.Zstd:
				whole++
			case r.Unpacked:
				apart++
			}
		}
	}
	if whole == 0 || apart == 0 {
		t.Errorf("%d compressed records were moved, and %d taken apart", whole, apart)
	}
	if u := d.Use(); u.Bytes > u.Live*11/10 {
		t.Errorf("at rest: %+v", u)
	}
	got := make([]byte, size)
	if _, err := d.Fetch(t.Context(), 0, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is not what was written: %v", err)
	}
	sound(t, v)
}

// TestDensity has an object that is all live never seem to have garbage, and a
// density that is not far from the truth.
func TestDensity(t *testing.T) {
	rng := newRand(t)
	for range 10_000 {
		blocks := 1 + rng.Int64N(1<<20)
		size := min(layout.FooterSize+1+rng.Int64N(blocks*layout.FrameSize), layout.MaxObjectSize)
		d := densityOf(blocks, size)
		if d < 1 || d > layout.MaxDensity {
			t.Fatalf("%d blocks in %d bytes: density %d", blocks, size, d)
		}
		if u := use(blocks, size, d); u < 99 || u > 108 && size > blocks {
			t.Fatalf("%d blocks in %d bytes: %d %% are used, with density %d", blocks, size, u, d)
		}
		var r row
		r.setDensity(d)
		r.add(blocks)
		r.bits |= rowBad
		was := r.live()
		r.add(-blocks - 5)
		if was != blocks || r.live() != -5 || r.density() != d || !r.has(rowBad) {
			t.Fatalf("a row with %d blocks and density %d has %d, then %d and density %d", blocks, d, was, r.live(), r.density())
		}
	}
}

// TestCompressDiff compares two moments between which the collector has moved
// compressed records, and taken blocks out of some: exactly, none has changed.
func TestCompressDiff(t *testing.T) {
	const size = 2 << 20
	rng := newRand(t)
	v := newVolume(t, size)
	v.o = Options{Compress: true, Seal: 64 * layout.FrameSize, GC: 90, Every: time.Hour, Idle: time.Nanosecond}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	do := doer(t)
	do(d.Write(t.Context(), prose(rng, size), 0))
	do(d.Flush(t.Context()))
	for block := range int64(size / blockSize) {
		if block%16 < 14*(block/16%2) {
			do(d.Write(t.Context(), noise(rng, blockSize), block*blockSize))
		}
	}
	do(d.Snapshot(t.Context(), "a"))
	if n, err := d.collectOnce(t.Context()); err != nil || n == 0 {
		t.Fatalf("%d objects were collected: %v", n, err)
	}
	do(d.Snapshot(t.Context(), "b"))
	apart := 0
	for _, records := range recordsOf(t, v) {
		for _, r := range records {
			if r.Unpacked {
				apart += int(r.Count)
			}
		}
	}
	if moved := d.stats.Moved.Load(); apart == 0 || int64(apart) == moved {
		t.Fatalf("%d blocks were moved, and %d were taken out of records", moved, apart)
	}
	x, err := OpenDiff(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch}, DiffOptions{From: "a", To: "b", Exact: true})
	do(err)
	defer x.Close()
	do(x.Changes(t.Context(), func(c Change) error {
		t.Errorf("%+v has not changed", c)
		return nil
	}))
}
