// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
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
)

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
