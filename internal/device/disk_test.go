// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// bare is a Disk of another making than version 1's: it does as it is told.
type bare struct {
	Disk // nil: what is not here is not asked for
	size int64
	ctx  context.Context
	stop context.CancelFunc

	save  func() (Ending, error)
	dirty func() (int64, int)
	drain error
	calls []string
}

func newBare(t *testing.T) *bare {
	b := &bare{size: 1 << 20, dirty: func() (int64, int) { return 0, 0 }}
	b.ctx, b.stop = context.WithCancel(t.Context())
	return b
}

func (b *bare) call(name string) error {
	b.calls = append(b.calls, name)
	return nil
}
func (b *bare) Size() int64                                        { return b.size }
func (b *bare) Context() context.Context                           { return b.ctx }
func (b *bare) Read(_ context.Context, p []byte, off int64) error  { return b.call("read") }
func (b *bare) Write(_ context.Context, p []byte, off int64) error { return b.call("write") }
func (b *bare) FlushRange(_ context.Context, off, n int64) error   { return b.call("flush range") }
func (b *bare) Flush(context.Context) error                        { return b.call("flush") }
func (b *bare) Drain(context.Context) error                        { _ = b.call("drain"); return b.drain }
func (b *bare) Unit() string                                       { return "chunk" }
func (b *bare) Dirty() (int64, int)                                { return b.dirty() }
func (b *bare) Save(context.Context) (Ending, error)               { _ = b.call("save"); return b.save() }
func (b *bare) Close()                                             { _ = b.call("close"); b.stop() }

// bareDevice returns a device that serves b and holds the volume "v".
func bareDevice(t *testing.T, b *bare) (*Device, *mem.Cluster, *[]string) {
	t.Helper()
	cluster, fence, log := mem.NewCluster(), new(store.Fence), new([]string)
	if err := volume.Create2(t.Context(), cluster.Container("v"), volume.Meta{UUID: volume.NewUUID(), Size: b.size}); err != nil {
		t.Fatal(err)
	}
	sibling := func(name string) store.Store { return cluster.Container(name) }
	o := Options{
		Store: cluster.Container("v").Fenced(fence), Timeout: time.Second,
		Lease: lease.Options{Store: cluster.Container("v"), Name: "v", Sibling: sibling, Holder: "host:1", Term: time.Minute, Fence: fence},
		Log:   func(format string, args ...any) { *log = append(*log, fmt.Sprintf(format, args...)) },
	}
	held, meta, err := lease.Acquire(t.Context(), o.Lease)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{opts: o, disk: b, held: held, meta: meta, fence: held.Fence()}
	d.letIn()
	return d, cluster, log
}

func itemsOf(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	md, err := s.Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return md.Items
}

// TestEnding has a disk say in each way how its volume is given back.
func TestEnding(t *testing.T) {
	for _, c := range []struct {
		name    string
		ending  Ending
		err     error
		last    bool // Last is the session's mark
		root    string
		tidied  bool
		logged  string
		garbage bool
	}{
		{name: "nothing", last: true},
		{name: "unchanged", ending: Ending{Unchanged: true, Items: map[string]string{volume.KeyRoot: "wrong"}}},
		{name: "items", ending: Ending{Items: map[string]string{volume.KeyRoot: "00000001-00000001"}}, last: true, root: "00000001-00000001"},
		{name: "items and garbage", ending: Ending{Items: map[string]string{volume.KeyRoot: "00000001-00000001"}}, last: true, root: "00000001-00000001", garbage: true},
		{name: "not saved", err: errors.New("Swift is away"), last: true, logged: "the next start will be slower: Swift is away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBare(t)
			d, cluster, log := bareDevice(t, b)
			if err := cluster.Container("v").Put(t.Context(), "old", []byte("x"), ""); err != nil {
				t.Fatal(err)
			}
			if c.garbage {
				c.ending.Tidy = func(ctx context.Context, s store.Store) {
					if now := itemsOf(t, cluster.Container("v")); now[volume.KeyClient] != "" || now[volume.KeyRoot] != c.root {
						t.Errorf("tidied before the volume was given back: %v", now)
					}
					if err := d.opts.Store.Delete(ctx, "old"); !errors.Is(err, lease.ErrLost) {
						t.Errorf("the fence lets a writer pass: %v", err)
					}
					if err := s.Delete(ctx, "old"); err != nil {
						t.Error(err)
					}
				}
			}
			b.save = func() (Ending, error) { return c.ending, c.err }
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if want := []string{"drain", "save", "close"}; !slices.Equal(b.calls, want) {
				t.Errorf("asked for %q, want %q", b.calls, want)
			}
			now := itemsOf(t, cluster.Container("v"))
			if now[volume.KeyClient] != "" || (now[volume.KeyLast] == d.held.Mark()) != c.last || now[volume.KeyRoot] != c.root {
				t.Errorf("given back: %v", now)
			}
			_, err := cluster.Container("v").Head(t.Context(), "old")
			if gone := errors.Is(err, store.ErrNotFound); gone != c.garbage {
				t.Errorf("the garbage is gone: %t, want %t", gone, c.garbage)
			}
			if got := strings.Join(*log, "\n"); got != c.logged {
				t.Errorf("logged %q, want %q", got, c.logged)
			}
		})
	}
}

// TestUndrained has a disk that cannot write what is dirty go on.
func TestUndrained(t *testing.T) {
	b := newBare(t)
	d, cluster, _ := bareDevice(t, b)
	before := itemsOf(t, cluster.Container("v"))
	b.drain, b.dirty = errors.New("Swift is away"), func() (int64, int) { return 4096, 2 }
	var de *DrainError
	if err := d.Close(); !errors.As(err, &de) || err.Error() != "4096 bytes in 2 chunks could not be written: Swift is away" {
		t.Fatalf("not drained: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); err != nil || !d.Open() {
		t.Errorf("it does not go on: %v", err)
	}
	if now := itemsOf(t, cluster.Container("v")); !maps.Equal(now, before) || slices.Contains(b.calls, "save") || slices.Contains(b.calls, "close") {
		t.Errorf("asked for %q; the container has %v, had %v", b.calls, now, before)
	}
	d.Abandon()
	if !slices.Contains(b.calls, "close") || itemsOf(t, cluster.Container("v"))[volume.KeyClient] != d.held.Mark() {
		t.Errorf("abandoned: %q", b.calls)
	}
}

// TestGrows has requests reach what a disk has grown by.
func TestGrows(t *testing.T) {
	b := newBare(t)
	d, _, _ := bareDevice(t, b)
	defer d.Abandon()
	p := make([]byte, 4096)
	at := b.size - 4096
	for _, off := range []int64{at + 1, at + 4096, -1, 1<<63 - 1} {
		if _, err := d.ReadAt(p, off); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("4096 bytes at %d of %d: %v", off, b.size, err)
		}
	}
	if len(b.calls) > 0 {
		t.Errorf("asked for %q", b.calls)
	}
	if _, err := d.ReadAt(p, at); err != nil {
		t.Error(err)
	}
	b.size *= 2
	if err := d.WriteFUA(p, b.size-4096, true); err != nil {
		t.Error(err)
	}
	if want := []string{"read", "write", "flush range"}; !slices.Equal(b.calls, want) || d.Size() != b.size {
		t.Errorf("asked for %q of %d bytes", b.calls, d.Size())
	}
}

// TestContains holds a device's bounds against those of geometry.
func TestContains(t *testing.T) {
	g, err := geometry.New(1000, 7)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{disk: &bare{size: g.Size()}}
	edges := []int64{-1 << 63, -1, 0, 1, 3500, 6999, 7000, 7001, 1<<63 - 1}
	for _, off := range edges {
		for _, n := range edges {
			if got := d.contains(off, n); got != g.Contains(off, n) {
				t.Errorf("%d bytes at %d: %t", n, off, got)
			}
		}
	}
}
