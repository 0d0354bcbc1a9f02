// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"context"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// stack is a store in which a DELETE brings the object's previous version back,
// as X-Versions-Location does. It counts requests.
type stack struct {
	store.Store
	on       bool
	hidden   bool // the container has no header that says so
	old      map[string][][]byte
	now      map[string][]byte
	requests map[store.Kind]int
}

func (s *stack) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	s.requests[store.OpPut]++
	if before, ok := s.now[name]; ok {
		s.old[name] = append(s.old[name], before)
	}
	s.now[name] = bytes.Clone(data)
	return s.Store.Put(ctx, name, data, etag)
}

func (s *stack) Delete(ctx context.Context, name string) error {
	s.requests[store.OpDelete]++
	old := s.old[name]
	if !s.on || len(old) == 0 {
		delete(s.now, name)
		return s.Store.Delete(ctx, name)
	}
	s.now[name], s.old[name] = old[len(old)-1], old[:len(old)-1]
	return s.Store.Put(ctx, name, s.now[name], "")
}

func (s *stack) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	s.requests[store.OpHead]++
	return s.Store.Head(ctx, name)
}

func (s *stack) Metadata(ctx context.Context) (store.Metadata, error) {
	s.requests[store.OpMetadata]++
	md, err := s.Store.Metadata(ctx)
	if s.on && !s.hidden {
		md.Versions.Stack = "old"
	}
	return md, err
}

// TestDeleteIsProved deletes chunks in a container that begins to bring older
// versions back: the first is found out by looking, and zeroed; the others are
// zeroed without a DELETE; one of zeroes costs nothing. A new session reads
// zeroes.
func TestDeleteIsProved(t *testing.T) {
	ctx := t.Context()
	inner := mem.New()
	g, err := geometry.New(4096, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Create(ctx, inner, g); err != nil {
		t.Fatal(err)
	}
	s := &stack{Store: inner, old: map[string][][]byte{}, now: map[string][]byte{}, requests: map[store.Kind]int{}}
	meta, err := volume.Read(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	v, _ := Open(ctx, s, meta, false)
	var told []geometry.ChunkIndex
	v.OnRestoring(func(i geometry.ChunkIndex, versions store.Versions) {
		if told = append(told, i); versions.Stack != "old" {
			t.Errorf("told of %v", versions)
		}
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cost := func(what string, put, del, head, metadata int) {
		t.Helper()
		want := map[store.Kind]int{store.OpPut: put, store.OpDelete: del, store.OpHead: head, store.OpMetadata: metadata}
		for kind, n := range want {
			if s.requests[kind] != n {
				t.Errorf("%s: %d requests %s, want %d", what, s.requests[kind], kind, n)
			}
		}
		clear(s.requests)
	}
	for i := range geometry.ChunkIndex(3) {
		must(v.Write(ctx, i, bytes.Repeat([]byte{0x11}, 4096)))
		must(v.Write(ctx, i, bytes.Repeat([]byte{0x22}, 4096)))
	}
	clear(s.requests)

	must(v.Delete(ctx, 0))
	cost("a DELETE that deletes", 0, 1, 1, 0)
	if k := v.Knowledge(0); k != Hole {
		t.Errorf("chunk 0 is %v, want a hole", k)
	}
	s.on = true
	must(v.Delete(ctx, 1))
	cost("a DELETE that restores", 1, 1, 1, 1)
	must(v.Delete(ctx, 2))
	cost("the next", 1, 0, 0, 0)
	must(v.Delete(ctx, 2))
	cost("a chunk of zeroes", 0, 0, 0, 0)
	if len(told) != 1 || told[0] != 1 {
		t.Errorf("told of chunks %v, want 1", told)
	}

	meta.Blank = false
	next, _ := Open(ctx, s, meta, false)
	for i := range geometry.ChunkIndex(3) {
		p := bytes.Repeat([]byte{0xff}, 4096)
		hole, err := next.Read(ctx, i, 0, p)
		must(err)
		if !hole && !bytes.Equal(p, make([]byte, 4096)) {
			t.Errorf("a new session reads %#x in chunk %d", p[0], i)
		}
	}
}

// TestDeleteLeavesAnObject has a DELETE succeed and the object stay, although the
// container has no header that says why: a replica that shows it again, or a
// header that came and went. Zeroes are written in its place, the chunk is no
// hole, and the next DELETE is tried again.
func TestDeleteLeavesAnObject(t *testing.T) {
	ctx := t.Context()
	inner := mem.New()
	g, err := geometry.New(4096, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Create(ctx, inner, g); err != nil {
		t.Fatal(err)
	}
	s := &stack{Store: inner, old: map[string][][]byte{}, now: map[string][]byte{}, requests: map[store.Kind]int{}, hidden: true}
	meta, err := volume.Read(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	v, _ := Open(ctx, s, meta, false)
	told := 0
	v.OnRestoring(func(i geometry.ChunkIndex, versions store.Versions) {
		if told++; i != 1 || versions != (store.Versions{}) {
			t.Errorf("told of chunk %d, %v", i, versions)
		}
	})
	for i := range geometry.ChunkIndex(3) {
		for _, b := range []byte{0x11, 0x22} {
			if err := v.Write(ctx, i, bytes.Repeat([]byte{b}, 4096)); err != nil {
				t.Fatal(err)
			}
		}
	}
	clear(s.requests)
	s.on = true
	if err := v.Delete(ctx, 1); err != nil {
		t.Fatal(err)
	}
	s.on = false
	if told != 1 || v.Knowledge(1) != Known {
		t.Errorf("told %d times, and chunk 1 is %v", told, v.Knowledge(1))
	}
	p := bytes.Repeat([]byte{0xff}, 4096)
	if _, err := inner.Get(ctx, ObjectName(1), p, store.GetOptions{}); err != nil || !bytes.Equal(p, make([]byte, 4096)) {
		t.Errorf("the object is %#x..., %v; want zeroes", p[0], err)
	}
	if err := v.Delete(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if v.Knowledge(2) != Hole || s.requests[store.OpDelete] != 2 || s.requests[store.OpPut] != 1 {
		t.Errorf("the next chunk is %v, after %v", v.Knowledge(2), s.requests)
	}
}
