// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
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
