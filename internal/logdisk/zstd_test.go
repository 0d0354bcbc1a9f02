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

	"github.com/klauspost/compress/zstd"

	"swiftnbd/internal/logdisk/blockmap"
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

// sealRecord returns what is in a compressed record, of a block's number, that has
// the bytes.
func sealRecord(frame []byte, first uint64, u *layout.UUID) []byte {
	return layout.AppendCompressed(nil, frame, first, u)
}

// forged are frames that no disk has, by what is wrong.
func forged() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	good := compressor().EncodeAll(prose(rng, 4*blockSize), nil)
	large, _ := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	stream := func(n int) []byte { // without its size
		var b bytes.Buffer
		w, _ := zstd.NewWriter(&b, zstd.WithWindowSize(8<<20))
		for range n {
			_, _ = w.Write(make([]byte, 1<<20))
		}
		_ = w.Close()
		return b.Bytes()
	}
	claim := slices.Clone(compressor().EncodeAll(make([]byte, recordBytes), nil))
	// A frame's header that claims 2^62 bytes: one segment, 8 bytes of size.
	claim = append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40}, claim[8:]...)
	return map[string][]byte{
		"a bomb":               large.EncodeAll(make([]byte, 256<<20), nil),
		"a bomb in a stream":   stream(64),
		"two frames too large": append(slices.Clone(compressor().EncodeAll(make([]byte, recordBytes), nil)), good...),
		"a block too many":     large.EncodeAll(make([]byte, recordBytes+blockSize), nil),
		"a size of 2^62":       claim,
		"cut":                  good[:len(good)-1],
		"cut in half":          good[:len(good)/2],
		"no frame":             []byte("hello"),
		"a part of a block":    compressor().EncodeAll(prose(rng, 4*blockSize-1), nil),
		"no blocks":            compressor().EncodeAll(nil, []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}),
		"too few blocks":       compressor().EncodeAll(prose(rng, blockSize), nil),
	}
}

// TestCompressForged reads records with a right checksum and a frame that is none
// of ours: each is an error that names the object, from reads and from Verify. None
// takes more memory than a record.
func TestCompressForged(t *testing.T) {
	for what, frame := range forged() {
		t.Run(what, func(t *testing.T) {
			v := newVolume(t, 1<<20)
			v.o.Compress = true
			d, err := v.open(t.Context(), v.box)
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			at := layout.Position{Epoch: 1, N: 1} // in the log of that lease
			if len(frame)+4 >= 4*layout.FrameSize {
				frame = frame[:3*layout.FrameSize]
			}
			b := sealRecord(frame, 7, &v.uuid)
			records := []layout.Record{{First: 7, Count: 4, Kind: layout.Zstd, Bytes: uint32(len(b))}}
			b = layout.AppendTail(b, records, layout.Footer{LastOfCut: true, UUID: v.uuid, At: at, FirstOfCut: 1, Size: 1 << 20})
			put(t, v.box, layout.LogName(at), b)
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p := bytes.Repeat([]byte{0xaa}, 4*blockSize)
			err = d.Read(t.Context(), p, 7*blockSize)
			var damaged *layout.DamagedError
			if !errors.As(err, &damaged) || !strings.Contains(err.Error(), layout.LogName(at)) || strings.Contains(err.Error(), "\n") {
				t.Errorf("read: %v", err)
			}
			t.Log(err)
			if err := d.Read(t.Context(), p[:blockSize], 0); err != nil {
				t.Errorf("another block: %v", err)
			}
			r, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: 3}, VerifyOptions{})
			if err != nil || len(r.Damage) != 1 || r.Damage[0].Object != layout.LogName(at) || r.Damage[0].Blocks != 4 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// FuzzUnpack has frames unpacked that anybody may have made.
func FuzzUnpack(f *testing.F) {
	for _, frame := range forged() {
		if len(frame) < 1<<16 {
			f.Add(frame, uint8(0), uint8(4))
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	f.Add(compressor().EncodeAll(prose(rng, recordBytes), nil), uint8(3), uint8(13))
	u := layout.NewUUID()
	f.Fuzz(func(t *testing.T, frame []byte, skip, count uint8) {
		b := sealRecord(frame, 1000, &u)
		n := uint64(count%layout.MaxCompressed) + 1
		e := blockmap.Extent{First: 1000 + uint64(skip), Count: n, Value: blockmap.Value{Kind: layout.Zstd, Bytes: uint32(len(b)), Skip: uint32(skip)}}
		p := make([]byte, n*blockSize)
		err := unpack(b, e, &u, p)
		if err != nil && !errors.As(err, new(*layout.DamagedError)) {
			t.Errorf("%v", err)
		}
		if err == nil && int(skip)+int(n) > layout.MaxCompressed {
			t.Errorf("blocks %d to %d of a record", skip, int(skip)+int(n))
		}
		if len(b) > 4 {
			b[len(b)/2] ^= 1 // a byte that is not what was sealed
			if unpack(b, e, &u, p) == nil {
				t.Error("damaged bytes were taken")
			}
		}
	})
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

// TestCompressDamaged changes single bytes of a compressed record, has it cut off,
// and puts records of another place and of another disk there. Its blocks are errors
// that name the object, and all other blocks are as they were.
func TestCompressDamaged(t *testing.T) {
	const size = 3 * recordBytes
	rng := newRand(t)
	v, other := newVolume(t, size), newVolume(t, size)
	content := prose(rng, size)
	for _, v := range []*opener{v, other} {
		v.o.Compress = true
		d, err := v.open(t.Context(), v.box)
		if err == nil {
			err = errors.Join(d.Write(t.Context(), content, 0), d.Flush(t.Context()), d.Save(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	at := layout.Position{Epoch: 1, N: 1}
	name := layout.LogName(at)
	whole, foreign := get(t, v.box, name), get(t, other.box, name)
	r := recordsOf(t, v)[at]
	if len(r) != 3 || r[1].Kind != layout.Zstd {
		t.Fatalf("the records are %v", r)
	}
	d, err := Open(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	from, to := int(r[1].Place), int(r[1].Place+r[1].Bytes)
	check := func(what string, b []byte, alone bool) {
		t.Helper()
		put(t, v.box, name, b)
		for i := range 3 {
			p := make([]byte, 3*blockSize)
			first := uint64(i*layout.MaxCompressed + 5)
			_, err := d.Fetch(t.Context(), first, p)
			switch {
			case i == 1 && (err == nil || !strings.Contains(err.Error(), name)):
				t.Fatalf("%s: %v", what, err)
			case i != 1 && alone && (err != nil || !bytes.Equal(p, content[first*blockSize:][:len(p)])):
				t.Fatalf("%s: block %d, which is whole: %v", what, first, err)
			case i != 1 && err == nil && !bytes.Equal(p, content[first*blockSize:][:len(p)]):
				t.Fatalf("%s: wrong bytes", what)
			}
		}
		// The collector does not move it, and a map that has a part of the record
		// as another one harms nobody.
		all := extentOfRecord(at, r[1])
		if err := d.fetch(t.Context(), []want{{Extent: all, p: make([]byte, r[1].Bytes), raw: true}}); err == nil {
			t.Fatalf("%s: it is moved", what)
		}
		inner := part(all, all.First+1, all.First+2)
		inner.Place, inner.Bytes = inner.Place+8, 16
		p := make([]byte, blockSize)
		if err := d.fetch(t.Context(), []want{{Extent: part(all, all.First, all.First+1), p: p}, {Extent: inner, p: p}}); err == nil {
			t.Fatalf("%s: a record within it is read", what)
		}
		report, err := Verify(t.Context(), Options{Store: v.box, UUID: v.uuid, Newest: v.epoch, Timeout: time.Millisecond}, VerifyOptions{})
		if err != nil || len(report.Damage) != 1 || report.Damage[0].Object != name || report.Damage[0].Blocks == 0 {
			t.Fatalf("%s: %+v, %v", what, report, err)
		}
		if alone && report.Damage[0].Blocks != layout.MaxCompressed {
			t.Fatalf("%s: %+v", what, report.Damage[0])
		}
	}
	for range 40 {
		b := slices.Clone(whole)
		i := from + rng.IntN(to-from)
		b[i] ^= 1 << rng.IntN(8)
		check(fmt.Sprintf("byte %d of the record", i-from), b, true)
	}
	b := slices.Clone(whole)
	clear(b[from:to])
	check("zeroes", b, true)
	b = slices.Clone(whole)
	copy(b[from:to], foreign[from:to])
	if !bytes.Equal(whole[from:to-4], foreign[from:to-4]) {
		t.Fatal("the other disk's record differs by more than its checksum")
	}
	check("the same blocks of another disk", b, true)
	b = slices.Clone(whole)
	copy(b[from:to], whole[r[0].Place:])
	check("another record", b, true)
	check("the object cut off in the record", whole[:(from+to)/2], false)
	put(t, v.box, name, whole)
	sound(t, v)
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
