// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/volume"
)

// newConverted is a disk that was of version 1, with so many chunks, each other of
// which is a hole, and what it has.
func newConverted(t testing.TB, objectSize, objects int64) (v *opener, want []byte) {
	t.Helper()
	v = newVolume(t, 4096) // for its container
	if err := v.box.Delete(t.Context(), layout.RootName(layout.Position{N: 1})); err != nil {
		t.Fatal(err)
	}
	want = make([]byte, objectSize*objects)
	for i := int64(0); i < objects; i += 2 {
		p := want[i*objectSize:][:objectSize]
		for k := range p {
			p[k] = byte(i) ^ byte(k) | 1
		}
		if err := v.box.Put(t.Context(), chunked.ObjectName(geometry.ChunkIndex(i)), p, etagOf(p)); err != nil {
			t.Fatal(err)
		}
	}
	c := Conversion{Store: v.box, UUID: v.uuid, Epoch: 1, Objects: objects, ObjectSize: objectSize}
	if _, err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.epoch = 1
	v.o = Options{Cache: 8 << 20, Timeout: time.Second, GC: 70, Horizon: time.Nanosecond, Every: time.Millisecond, Idle: time.Millisecond}
	return v, want
}

// elsewhere says of an object that its bytes are not its own.
type elsewhere struct {
	store.Store
	name string
}

func (e elsewhere) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	info, err := e.Store.Get(ctx, name, p, o)
	if name == e.name {
		info.Elsewhere = "a symlink to /v1/AUTH_a/c/o"
	}
	return info, err
}

// TestChunkForeign: a symlink in a chunk's place is refused as by version 1, and
// writing the whole chunk hides it.
func TestChunkForeign(t *testing.T) {
	v, want := newConverted(t, 8192, 10)
	d, err := v.open(t.Context(), elsewhere{v.box, chunked.ObjectName(4)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 8192)
	var foreign *chunked.ForeignError
	if err := d.Read(t.Context(), p, 4*8192); !errors.As(err, &foreign) || !strings.Contains(err.Error(), "disk.part/00000004 of chunk 4 is a symlink to") {
		t.Errorf("read: %v", err)
	}
	if err := d.Read(t.Context(), p, 2*8192); err != nil || !bytes.Equal(p, want[2*8192:][:8192]) {
		t.Errorf("its neighbour: %v", err)
	}
	if err := d.Write(t.Context(), p, 4*8192); err != nil {
		t.Fatal(err)
	}
	d.cache.Forget(0, d.Size())
	if err := d.Read(t.Context(), p, 4*8192); err != nil {
		t.Errorf("after it was written: %v", err)
	}
}

// TestChunksGone: who reads a moment whose chunks are deleted gets an error, and
// never zeroes.
func TestChunksGone(t *testing.T) {
	v, want := newConverted(t, 8192, 200)
	o := v.o
	o.Store, o.UUID, o.Newest = v.box, v.uuid, 1
	r, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, 8192)
	if hole, err := r.Fetch(t.Context(), 3*2, p); err != nil || !hole {
		t.Fatalf("a hole: %t, %v", hole, err)
	}
	// The writer goes on, and deletes.
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := int64(0); i < 200; i += 2 {
		if err := v.box.Delete(t.Context(), chunked.ObjectName(geometry.ChunkIndex(i))); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := v.box.Head(t.Context(), layout.RootName(layout.Position{Epoch: 1, N: 1})); errors.Is(err, store.ErrNotFound) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the root is not deleted")
		}
	}
	for _, i := range []uint64{0, 8, 50} {
		var gone *GoneError
		if _, err := r.Fetch(t.Context(), 2*i, p); !errors.As(err, &gone) {
			t.Errorf("chunk %d, which had data: %v", i, err)
		}
	}
	_ = want
}

// TestConvertedWithout: a program that does not know chunks refuses the disk.
func TestConvertedWithout(t *testing.T) {
	v, _ := newConverted(t, 8192, 2)
	root, err := layout.ParseRoot(get(t, v.box, layout.RootName(layout.Position{Epoch: 1, N: 1})))
	if err != nil || len(root.Requires) != 1 || root.Requires[0] != layout.FeatureChunks {
		t.Fatalf("%+v, %v", root, err)
	}
	root.Requires = nil
	root.Name.N = 2
	b, err := root.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.box.Put(t.Context(), layout.RootName(root.Name), b, etagOf(b)); err != nil {
		t.Fatal(err)
	}
	var no *layout.UnsupportedError
	if _, err := v.open(t.Context(), v.box); !errors.As(err, &no) {
		t.Errorf("opened a root that has chunks and does not require them: %v", err)
	}
}

// TestModelConverted is TestModel of a disk that was of version 1, which is
// flattened in the end.
func TestModelConverted(t *testing.T) { model(t, false, true) }

// stampedChunks is a disk of version 1 that was converted, with a map of its
// chunks or without. Half of them are holes; the others have the stamps of the
// first operation.
func stampedChunks(t testing.TB, rng *rand.Rand, h *past, blocks uint64) *opener {
	t.Helper()
	v := newVolume(t, blockSize)
	if err := v.box.Delete(t.Context(), layout.RootName(layout.Position{N: 1})); err != nil {
		t.Fatal(err)
	}
	per := uint64(1) << rng.IntN(5) // blocks of a chunk
	geo, err := geometry.New(int64(per)*blockSize, int64(blocks/per))
	if err != nil {
		t.Fatal(err)
	}
	vol, _ := chunked.Open(t.Context(), v.box, volume.Meta{Version: volume.Version1, Geometry: geo, Blank: true}, false)
	h.ops++
	for c := range blocks / per {
		if rng.IntN(2) == 0 {
			continue
		}
		p := make([]byte, per*blockSize)
		for i := range per {
			stamp(p[i*blockSize:][:blockSize], c*per+i, h.ops)
		}
		h.note(c*per, per, h.ops, false)
		if err := vol.Write(t.Context(), geometry.ChunkIndex(c), p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vol.SaveMap(t.Context(), "a session"); err != nil {
		t.Fatal(err)
	}
	c := Conversion{Store: v.box, UUID: v.uuid, Epoch: 1, Objects: geo.Objects(), ObjectSize: geo.ObjectSize()}
	_, err = c.Begin(t.Context())
	if mapped := rng.IntN(2) == 0; err == nil && mapped {
		_, err = c.Known(t.Context(), "a session", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	v.epoch = 1
	return v
}

// ofVersion1 says whether an object is of a disk of version 1.
func ofVersion1(name string) bool {
	return strings.HasPrefix(name, chunked.Prefix) || strings.HasPrefix(name, chunked.MapPrefix)
}

// chunksEnd flattens a converted disk, deletes its snapshots, and fails unless its
// chunks go then, and no byte of the disk with them.
func chunksEnd(t *testing.T, v *opener, h *past, blocks, flushed uint64) {
	t.Helper()
	v.o.Brief = true
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	if err := flattenAll(t, d); err != nil {
		t.Fatal(err)
	}
	for name := range h.snaps {
		if err := d.DeleteSnapshot(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	v.o.Brief = false
	if d, err = v.open(t.Context(), v.box); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list, err := v.box.List(t.Context(), store.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d.mu.RLock()
		requires := d.root.Requires
		d.mu.RUnlock()
		if !slices.ContainsFunc(list, func(o store.ObjectInfo) bool { return ofVersion1(o.Name) }) && len(without(without(requires, layout.FeatureZstd), layout.FeatureInline)) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d objects, and the root requires %q", len(list), requires)
		}
	}
	d.cache.Forget(0, d.Size())
	if _, ok := h.prefix(t, d, blocks, flushed, faulty.NewGate(v.box)); !ok {
		t.Error("cannot be read")
	}
}

// TestReaderOfChunks has readers at a moment with chunks while a server deletes
// these: they read what was there, until they are told that it is gone.
func TestReaderOfChunks(t *testing.T) {
	v, want := newConverted(t, 8192, 64)
	v.o.Horizon = 30 * time.Millisecond
	ro := v.o
	ro.Store, ro.UUID, ro.Newest = v.box, v.uuid, 1
	r, err := Open(t.Context(), ro)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v.o.Brief = true
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Flatten(t.Context(), func(int64) {}), d.Save(t.Context())); err != nil {
		t.Fatal(err)
	}
	if left, snaps, err := d.ChunksNeeded(t.Context()); !left || len(snaps) > 0 || err != nil {
		t.Errorf("chunks that are needed: %t, %q, %v", left, snaps, err)
	}
	d.Close()
	v.o.Brief = false
	if d, err = v.open(t.Context(), v.box); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	rng := newRand(t)
	p := make([]byte, 8192)
	reads := 0
	for end := time.Now().Add(20 * time.Second); ; reads++ {
		i := rng.Uint64N(64)
		_, err := r.Fetch(t.Context(), 2*i, p)
		if errors.As(err, new(*GoneError)) {
			break
		}
		if err != nil || !bytes.Equal(p, want[i*8192:][:8192]) {
			t.Fatalf("chunk %d after %d reads: %v", i, reads, err)
		}
		if time.Now().After(end) {
			t.Fatal("the chunks are not deleted")
		}
		// What the reader has learned to be a hole stays one.
		if r.base.lower.vol != nil && reads%8 == 0 {
			r.base.lower.vol, _ = chunked.Open(t.Context(), store.Wrap(v.box, r.base.lower.present), volume.Meta{Version: volume.Version1, Geometry: r.base.lower.geo}, false)
		}
	}
	if reads == 0 {
		t.Error("nothing was read: this test shows little")
	}
	got := make([]byte, len(want))
	if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk: %v", err)
	}
}
