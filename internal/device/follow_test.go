// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// reader opens the volume for reading, beside its writer.
func (w *world) reader(follow time.Duration) *device.Device {
	w.t.Helper()
	slow := store.Wrap(w.cloud.own, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		switch op.Kind {
		case store.OpGet:
			time.Sleep(rand.N(5 * time.Millisecond))
		case store.OpHead, store.OpList, store.OpMetadata:
		default:
			w.t.Errorf("a reader makes the request %v", op)
		}
		return call(ctx)
	})
	d, err := device.Open(context.Background(), device.Options{
		Store: slow, ReadOnly: true, Follow: follow, Cache: logCache, Connections: 4, Timeout: 10 * time.Second,
		Lease: lease.Options{Name: "v", Sibling: w.cloud.ownSibling},
		Log: func(format string, args ...any) {
			if line := fmt.Sprintf(format, args...); !strings.HasPrefix(line, "reading a volume") {
				w.t.Error(line)
			}
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// round returns a disk of which the blocks before k have the number n, and the
// others n-1.
type round struct{ n, k int }

func (r round) after(o round) bool { return r.n > o.n || r.n == o.n && r.k > o.k }

// roundOf finds out what a disk is that is written from its beginning to its end,
// block for block, again and again. A mixture of moments is none of these.
func roundOf(p []byte) (r round, err error) {
	number := func(b int) int { return int(p[b*layout.BlockSize]) | int(p[b*layout.BlockSize+1])<<8 }
	blocks := len(p) / layout.BlockSize
	r.n = number(0)
	for b := range blocks {
		n := number(b)
		if !bytes.Equal(p[b*layout.BlockSize:][:layout.BlockSize], numbered(n)) {
			return r, fmt.Errorf("block %d is nothing that was written", b)
		}
		switch {
		case n == r.n && r.k == b:
			r.k++
		case n != r.n-1:
			return r, fmt.Errorf("block 0 is of round %d, and block %d of %d; %d blocks are as block 0", r.n, b, n, r.k)
		}
	}
	return r, nil
}

// numbered returns a block with a number.
func numbered(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, layout.BlockSize/2) }

// TestFollow reads a disk beside a busy writer: each request sees one moment, a
// later one no earlier moment, and none that is older than Follow. Who does not
// follow stays where they were.
func TestFollow(t *testing.T) { follow(t, false) }

// TestFollowCompressed is TestFollow with compression.
func TestFollowCompressed(t *testing.T) { follow(t, true) }

func follow(t *testing.T, compress bool) {
	const blocks, rounds = 256, 12
	w := newLogWorld(t, overHTTP(t), 64<<10, blocks/16)
	w.opts.Compress = compress
	w.mustOpen()
	var durable atomic.Int64 // so many rounds are
	write := func(n int) {
		for b := range blocks {
			if err := w.device.WriteFUA(numbered(n), int64(b)*layout.BlockSize, false); err != nil {
				t.Fatal(err)
			}
			if b%100 == 99 {
				if err := w.device.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.device.Sync(); err != nil {
			t.Fatal(err)
		}
		durable.Store(int64(n))
	}
	write(1)
	still := w.reader(0)
	defer still.Abandon()
	before := make([]byte, blocks*layout.BlockSize)
	if _, err := still.ReadAt(before, 0); err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	var moved atomic.Int64
	for _, follow := range []time.Duration{time.Nanosecond, 20 * time.Millisecond} {
		d := w.reader(follow)
		for range 2 {
			g.Go(func() {
				var last round
				p := make([]byte, blocks*layout.BlockSize)
				for last.n < rounds || last.k < blocks {
					least := durable.Load()
					time.Sleep(follow)
					if _, err := d.ReadAt(p, 0); err != nil {
						t.Error(err)
						return
					}
					r, err := roundOf(p)
					switch {
					case err != nil:
						t.Errorf("no moment of the disk: %v", err)
						return
					case last.after(r):
						t.Errorf("back from %+v to %+v", last, r)
						return
					case int64(r.n) < least:
						t.Errorf("round %d, and %d was durable before", r.n, least)
						return
					case r.after(last):
						moved.Add(1)
					}
					last = r
				}
			})
		}
		defer d.Abandon()
	}
	for n := 2; n <= rounds; n++ {
		write(n)
	}
	g.Wait()
	if moved.Load() < 4 {
		t.Errorf("moved %d times: this test shows little", moved.Load())
	}
	p := make([]byte, len(before))
	if _, err := still.ReadAt(p, 0); err != nil || !bytes.Equal(p, before) {
		t.Errorf("who does not follow has moved: %v", err)
	}
	if err := w.device.Close(); err != nil {
		t.Error(err)
	}
}

// TestFollowOver: who follows moves on when the moment is over, and reads on when
// there is none newer to be found.
func TestFollowOver(t *testing.T) {
	const blocks = 64
	c := newCloud(t, devswift.Options{}, swiftstore.Options{})
	w := newLogWorld(t, c, 64<<10, blocks/16)
	fill := func(n int) {
		t.Helper()
		w.mustOpen()
		for b := range blocks {
			if err := w.device.WriteFUA(numbered(n), int64(b)*layout.BlockSize, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.device.Close(); err != nil {
			t.Fatal(err)
		}
	}
	names := func() (list []string) {
		t.Helper()
		for _, prefix := range []string{layout.LogPrefix, layout.RootPrefix} {
			page, err := c.own.List(t.Context(), store.ListOptions{Prefix: prefix})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page {
				list = append(list, o.Name)
			}
		}
		return list
	}
	fill(1)
	old := names()
	follows, stays := w.reader(time.Hour), w.reader(0)
	defer follows.Abandon()
	defer stays.Abandon()
	p := make([]byte, layout.BlockSize)
	if _, err := follows.ReadAt(p, 0); err != nil || !bytes.Equal(p, numbered(1)) {
		t.Fatalf("block 0: %v", err)
	}
	fill(2)
	for _, name := range old { // as the collector does
		if err := c.own.Delete(t.Context(), name); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
	for _, b := range []int64{blocks - 1, 0} {
		if _, err := follows.ReadAt(p, b*layout.BlockSize); err != nil || !bytes.Equal(p, numbered(2)) {
			t.Errorf("block %d of who follows: %v, %d", b, err, p[0])
		}
	}
	if _, err := stays.ReadAt(p, (blocks-1)*layout.BlockSize); err == nil || !strings.Contains(err.Error(), "the disk has gone on, and its moment that is read here") {
		t.Errorf("who stays: %v", err)
	}
	if err := follows.WriteFUA(p, 0, false); !errors.Is(err, device.ErrReadOnly) {
		t.Errorf("a write: %v", err)
	}
	if s := follows.Stats(); s.Misses < 2 || s.Fetches < 2 {
		t.Errorf("counted: %+v", s)
	}
}

// TestFollowRefused: version 1 has no moments.
func TestFollowRefused(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 4, true)
	for _, readOnly := range []bool{false, true} {
		if _, err := device.Open(t.Context(), device.Options{Store: w.inner, ReadOnly: readOnly, Compress: true}); !errors.Is(err, device.ErrNoCompression) {
			t.Errorf("version 1, read-only is %t: %v", readOnly, err)
		}
	}
	if _, err := device.Open(t.Context(), device.Options{Store: w.inner, ReadOnly: true, Follow: time.Second}); !errors.Is(err, device.ErrNoFollow) {
		t.Error(err)
	}
}
