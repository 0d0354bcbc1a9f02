// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
)

// gated is a volume whose writes wait until the test lets them go.
type gated struct {
	*fakeVolume
	begun, let chan struct{}
}

func (g *gated) Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error {
	g.begun <- struct{}{}
	<-g.let
	return g.fakeVolume.Write(ctx, i, p)
}

// TestDirtyMemory counts what memory holds and Swift lacks: not what was zeroed,
// not what was fetched to complete an object, and nothing twice.
func TestDirtyMemory(t *testing.T) {
	const size = 1 << 20
	geo, err := geometry.New(size, 16)
	if err != nil {
		t.Fatal(err)
	}
	v := &gated{newFakeVolume(t, size, 1), make(chan struct{}), make(chan struct{})}
	v.objects[0], v.objects[1] = full(size), full(size)
	c, err := New(v, geo, Options{Size: 16 * size, Connections: 4, Age: 1 << 60, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	want := func(when string, n int64) {
		t.Helper()
		if got, used := c.DirtyMemory(), c.Used(); got != n || got > used {
			t.Errorf("%s: %d bytes are dirty, want %d; %d are used", when, got, n, used)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	page := full(4096)
	do(c.Write(ctx, page, 8192))
	want("written", 4096)
	do(c.Zero(ctx, size, size))
	want("zeroed beside it", 4096)
	if n, chunks := c.Dirty(); n != 4096+size || chunks != 2 {
		t.Errorf("Swift lacks %d bytes in %d chunks", n, chunks)
	}
	flushed := make(chan error)
	go func() { flushed <- c.Flush(ctx) }()
	<-v.begun
	want("being uploaded", 4096)
	do(c.Write(ctx, page, 8192+2048))
	want("written meanwhile", 4096+2048)
	close(v.let)
	do(<-flushed)
	want("flushed", 4096)
	go func() { flushed <- c.Flush(ctx) }()
	<-v.begun
	do(<-flushed)
	want("flushed again", 0)
}

// full returns n bytes of which none is 0.
func full(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = 1
	}
	return p
}

// TestOldestDirty follows the age of the oldest dirty byte: an upload that fails
// does not make it younger, and one that succeeds leaves what was written since
// it began.
func TestOldestDirty(t *testing.T) {
	const size = 1 << 20
	geo, err := geometry.New(size, 16)
	if err != nil {
		t.Fatal(err)
	}
	v := &gated{newFakeVolume(t, size, 1), make(chan struct{}), make(chan struct{})}
	c, err := New(v, geo, Options{Size: 16 * size, Connections: 4, Age: 1 << 60, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if since := c.OldestDirty(); !since.IsZero() {
		t.Errorf("nothing is dirty, and that since %v", since)
	}
	before := time.Now()
	do(c.Write(ctx, full(size), 0))
	after := time.Now()
	since := c.OldestDirty()
	if since.Before(before) || since.After(after) {
		t.Errorf("written between %v and %v, it is dirty since %v", before, after, since)
	}
	v.refuse.Store(true)
	flushed := make(chan error)
	flush := func() {
		t.Helper()
		go func() { flushed <- c.Flush(ctx) }()
		<-v.begun
	}
	flush()
	v.let <- struct{}{}
	ended := func() error { // the flush may try more than once
		for {
			select {
			case err := <-flushed:
				return err
			case <-v.begun:
				v.let <- struct{}{}
			}
		}
	}
	if err := ended(); err == nil {
		t.Error("the flush says that all is well")
	}
	if got := c.OldestDirty(); !got.Equal(since) {
		t.Errorf("dirty since %v; after an upload that failed: %v", since, got)
	}
	v.refuse.Store(false)
	flush()
	do(c.Write(ctx, full(4096), 0)) // while the chunk is being uploaded
	if got := c.OldestDirty(); !got.Equal(since) {
		t.Errorf("dirty since %v; during the next upload: %v", since, got)
	}
	v.let <- struct{}{}
	do(<-flushed)
	if got := c.OldestDirty(); got.Before(after) || got.After(time.Now()) {
		t.Errorf("the byte that was written during the upload is dirty since %v", got)
	}
	flush()
	close(v.let)
	do(<-flushed)
	if got := c.OldestDirty(); !got.IsZero() {
		t.Errorf("all is flushed, and something is dirty since %v", got)
	}
}
