// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// diffed holds the difference of two moments against every byte of both, and
// returns how many blocks it has that are equal. before is nil where it is from
// nothing.
func diffed(t testing.TB, o Options, what DiffOptions, before, after []byte) (extra int) {
	t.Helper()
	x, err := OpenDiff(t.Context(), o, what)
	if err != nil {
		t.Fatalf("%+v: %v", what, err)
	}
	defer x.Close()
	if x.From.Size != int64(len(before)) || x.To.Size != int64(len(after)) {
		t.Fatalf("%+v: from %d bytes to %d, want %d and %d", what, x.From.Size, x.To.Size, len(before), len(after))
	}
	old := make([]byte, len(after))
	copy(old, before)
	end := int64(0)
	var last Change
	inside := make([]bool, len(after)/blockSize+1)
	err = x.Changes(t.Context(), func(c Change) error {
		switch {
		case c.Len <= 0 || c.Off < end || c.Off+c.Len > x.To.Size || c.Off%blockSize != 0:
			t.Fatalf("%+v: change %+v after %d, of %d bytes", what, c, end, x.To.Size)
		case c.Off == end && c.Hole == last.Hole && last.Len > 0:
			t.Fatalf("%+v: %+v and %+v are not one", what, last, c)
		case string(old[end:c.Off]) != string(after[end:c.Off]):
			t.Fatalf("%+v: a change in bytes %d to %d is missed", what, end, c.Off)
		}
		for at := c.Off; at < c.Off+c.Len; at += blockSize {
			to := min(at+blockSize, c.Off+c.Len)
			if string(old[at:to]) == string(after[at:to]) {
				extra++
			}
			inside[at/blockSize] = true
			if c.Hole && string(after[at:to]) != string(make([]byte, to-at)) {
				t.Fatalf("%+v: block %d is no hole", what, at/blockSize)
			}
		}
		end, last = c.Off+c.Len, c
		return nil
	})
	if err != nil {
		t.Fatalf("%+v: %v", what, err)
	}
	if string(old[end:]) != string(after[end:]) {
		t.Fatalf("%+v: a change from byte %d on is missed", what, end)
	}
	// The copy has all of them, once.
	if err := x.Copy(t.Context(), 3, func(off, n int64, p []byte) error {
		if p == nil {
			p = make([]byte, n)
		}
		if int64(len(p)) != n || off%blockSize != 0 {
			t.Fatalf("%+v: %d bytes of %d at %d", what, len(p), n, off)
		}
		for at := off; at < off+n; at += blockSize {
			if !inside[at/blockSize] {
				t.Fatalf("%+v: block %d is copied twice, or has not changed", what, at/blockSize)
			}
			inside[at/blockSize] = false
		}
		copy(old[off:], p)
		return nil
	}); err != nil {
		t.Fatalf("%+v: %v", what, err)
	}
	if string(old) != string(after) {
		t.Fatalf("%+v: with the changes it is not what it is", what)
	}
	return extra
}

// whole returns what the disk was after an operation. It had so many blocks at the
// beginning.
func (h *past) whole(blocks, op uint64) []byte {
	blocks = h.size(op, blocks)
	p := make([]byte, blocks*blockSize)
	for b := range blocks {
		h.at(b, op, p[b*blockSize:][:blockSize])
	}
	return p
}

// TestDiff compares moments of a disk between which it was written, trimmed,
// collected, merged, reverted, resized and opened again at random: each with each, in both
// directions, and with the newest, against every byte.
func TestDiff(t *testing.T) {
	rounds := 20
	if *opsFlag > 0 {
		rounds = *opsFlag / 500
	}
	rng := newRand(t)
	var pairs, moves, merges, changed, extra, extraExact int
	synctest.Test(t, func(t *testing.T) {
		const blocks = 300
		v := newClosing(t, blocks*blockSize)
		v.o = Options{
			Seal: 8 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 7,
			Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70, Every: 5 * time.Second, regionShift: 4,
			Compress: rng.IntN(3) > 0,
		}
		h := &past{changes: map[uint64][]change{}, snaps: snapshots{}}
		gate := faulty.NewGate(v.box)
		var flushed uint64
		open := func() *Disk {
			d, err := v.open(t.Context(), v.box)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		var err error
		d := open()
		defer func() { d.Close() }()
		count := func() {
			moves += int(d.stats.Moved.Load())
			d.mu.RLock()
			merges += int(d.merges)
			d.mu.RUnlock()
		}
		// shows says whether there was what this test is about.
		shows := func() bool {
			d.mu.RLock()
			defer d.mu.RUnlock()
			return moves+int(d.stats.Moved.Load()) > 0 && merges+int(d.merges) > 0 && extra > 0 && extraExact*2 <= extra
		}
		var names []string
		for round := 0; round < rounds || round < 10*rounds && !shows(); round++ {
			for range rng.IntN(60) {
				randomOp(t, rng, d, h, h.size(h.ops, blocks), &flushed, gate)
			}
			switch k := rng.IntN(8); k {
			case 6, 7:
				if k == 6 && len(names) == 0 {
					break
				}
				if err = d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				count()
				d.Close()
				v.o.Brief = true
				d = open()
				if k == 6 {
					name := names[rng.IntN(len(names))]
					h.revert(h.snaps[name], blocks)
					err = d.Revert(t.Context(), name)
				} else {
					n := 1 + rng.Uint64N(2*blocks)
					h.resize(n, blocks)
					err = d.Resize(t.Context(), int64(n)*blockSize, true)
				}
				if err = errors.Join(err, d.Save(t.Context())); err != nil {
					t.Fatal(err)
				}
				d.Close()
				v.o.Brief = false
				d = open()
				changed++
			case 0:
				time.Sleep(time.Minute) // the collector's time
			case 1:
				time.Sleep(30 * time.Minute) // what is garbage is deleted
			case 2:
				if err := errors.Join(d.Drain(t.Context()), d.Save(t.Context())); err != nil {
					t.Fatal(err)
				}
			case 3:
				if err := d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				count()
				d.Close()
				d = open()
			}
			if rng.IntN(2) == 0 {
				name := fmt.Sprint(round)
				if err := d.Snapshot(t.Context(), name); err != nil {
					t.Fatal(err)
				}
				names, h.snaps[name] = append(names, name), h.ops
			}
			if len(names) > 5 {
				i := rng.IntN(len(names))
				if err := d.DeleteSnapshot(t.Context(), names[i], false); err != nil {
					t.Fatal(err)
				}
				names = append(names[:i], names[i+1:]...)
			}
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			o := v.o
			o.Store, o.UUID, o.Epoch, o.Newest = v.box, v.uuid, 0, v.epoch
			newest := h.whole(blocks, h.ops)
			moments := append(append([]string{""}, names...), "")
			for i, from := range moments[:len(moments)-1] {
				var before []byte
				if from != "" {
					before = h.whole(blocks, h.snaps[from])
				}
				for k, to := range moments {
					if k == 0 || rng.IntN(5) > 0 {
						continue
					}
					after := newest
					if to != "" {
						after = h.whole(blocks, h.snaps[to])
					}
					pairs++
					n := diffed(t, o, DiffOptions{From: from, To: to}, before, after)
					exact := diffed(t, o, DiffOptions{From: from, To: to, Exact: true}, before, after)
					switch {
					case i == 0 && n+exact > 0:
						t.Errorf("%d and %d blocks are zeroes, from nothing to %q", n, exact, to)
					case i < k: // the copies are followed in this direction only
						extra, extraExact = extra+n, extraExact+exact
					}
				}
			}
		}
		count()
	})
	t.Logf("%d pairs; %d blocks moved, %d merges, %d reverts and resizes; %d equal blocks, %d of them in an exact comparison",
		pairs, moves, merges, changed, extra, extraExact)
	if moves == 0 || merges == 0 || extra == 0 {
		t.Error("nothing was moved or merged: this test shows little")
	}
	if extraExact*2 > extra {
		t.Error("the exact comparison is hardly better")
	}
}

// TestDiffMoved has the collector move all of a disk, which is no change, and some
// of it after it was written.
func TestDiffMoved(t *testing.T) {
	t.Run("frames", func(t *testing.T) { diffMoved(t, false) })
	t.Run("compressed", func(t *testing.T) { diffMoved(t, true) })
}

func diffMoved(t *testing.T, compress bool) {
	synctest.Test(t, func(t *testing.T) {
		const blocks = 64
		v := newClosing(t, blocks*blockSize)
		v.o = Options{
			Seal: 16 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4,
			Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70, Compress: compress,
		}
		s := newScript(t, blocks)
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		do := doer(t)
		for b := uint64(0); b < 40; b++ { // each in an object of its own
			do(s.write(d, b))
			do(s.flush(d))
		}
		do(s.write(d, 40, 41, 42)) // and these in one
		do(s.flush(d))
		do(d.Snapshot(t.Context(), "a"))
		a := s.h.ops
		do(s.write(d, 3, 5))
		do(s.zero(d, 50, 4)) // it was zeroes
		do(s.flush(d))
		time.Sleep(time.Hour) // the collector puts all together
		do(s.write(d, 41))
		do(s.flush(d))
		do(d.Snapshot(t.Context(), "b"))
		if d.stats.Moved.Load() < 40 {
			t.Fatalf("%d blocks were moved: this test shows little", d.stats.Moved.Load())
		}
		o := v.o
		o.Store, o.UUID, o.Newest = v.box, v.uuid, v.epoch
		before, after := s.h.whole(blocks, a), s.h.whole(blocks, s.h.ops)
		if extra := diffed(t, o, DiffOptions{From: "a", To: "b", Exact: true}, before, after); extra != 0 {
			t.Errorf("%d blocks are equal", extra)
		}
		if extra := diffed(t, o, DiffOptions{From: "a", To: "b"}, before, after); extra < 38 {
			t.Errorf("%d blocks are equal, and 38 were moved", extra)
		}
		// The collector's objects are not there: what they have may have changed.
		o.Store = withoutTails{v.box}
		if extra := diffed(t, o, DiffOptions{From: "a", To: "b", Exact: true}, before, after); extra < 38 {
			t.Errorf("%d blocks are equal, and of 38 it is not known", extra)
		}
		if _, err := OpenDiff(t.Context(), o, DiffOptions{From: "a", To: "none"}); !errors.Is(err, ErrNoSnapshot) {
			t.Errorf("a snapshot that is not there: %v", err)
		}
		// A snapshot is deleted while it is compared.
		o.Store = v.box
		x, err := OpenDiff(t.Context(), o, DiffOptions{From: "", To: "a"})
		do(err)
		defer x.Close()
		do(d.DeleteSnapshot(t.Context(), "a", false))
		time.Sleep(time.Hour)
		err = x.Copy(t.Context(), 2, func(int64, int64, []byte) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "snapshot a was deleted meanwhile") {
			t.Errorf("a snapshot that was deleted: %v", err)
		}
	})
}

// TestDiffResized compares moments of a disk that has become smaller and larger.
func TestDiffResized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Seal: 8 * layout.FrameSize, Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70}
		var names []string
		at := map[string][]byte{}
		now := make([]byte, 64*blockSize)
		for i, blocks := range []int{64, 40, 90, 90, 20, 64} {
			o := v.o
			v.o.Brief = true
			d, err := v.open(t.Context(), v.box)
			if err == nil {
				err = errors.Join(d.Resize(t.Context(), int64(blocks)*blockSize, true), d.Save(t.Context()))
				d.Close()
			}
			if v.o = o; err == nil {
				d, err = v.open(t.Context(), v.box)
			}
			if err != nil {
				t.Fatal(err)
			}
			now = append(now, make([]byte, max(0, blocks*blockSize-len(now)))...)[:blocks*blockSize]
			for k := range 12 {
				b := (i*37 + k*5) % blocks
				stamp(now[b*blockSize:][:blockSize], uint64(b), uint64(i*100+k+1))
				if err := d.Write(t.Context(), now[b*blockSize:][:blockSize], int64(b)*blockSize); err != nil {
					t.Fatal(err)
				}
			}
			name := fmt.Sprint(i)
			if err := d.Snapshot(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			names, at[name] = append(names, name), append([]byte(nil), now...)
			time.Sleep(time.Duration(i%2) * time.Hour)
			d.Close()
		}
		at[""] = now
		o := v.o
		o.Store, o.UUID, o.Newest = v.box, v.uuid, v.epoch
		for _, from := range names {
			for _, to := range append(names, "") {
				diffed(t, o, DiffOptions{From: from, To: to}, at[from], at[to])
				diffed(t, o, DiffOptions{From: from, To: to, Exact: true}, at[from], at[to])
			}
		}
	})
}

// withoutTails is a store in which no HEAD finds an object of the collector.
type withoutTails struct{ store.Store }

func (s withoutTails) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	if at, ok := layout.ParseLogName(name); ok && at.N >= layout.FirstCollected {
		return store.ObjectInfo{}, store.ErrNotFound
	}
	return s.Store.Head(ctx, name)
}

// countedMap is a large map whose new data objects are not kept.
type countedMap struct {
	*largeMap
	old, new, bytes atomic.Int64 // reads of the map's first runs, of later ones, and bytes of both
	others          atomic.Int64 // all other requests
}

func (f *countedMap) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	if strings.HasPrefix(name, layout.LogPrefix) {
		return nil
	}
	return f.largeMap.Put(ctx, name, data, etag)
}

func (f *countedMap) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	switch at, ok := layout.ParseRunName(name); {
	case !ok:
		f.others.Add(1)
	case at.Epoch == 1:
		f.old.Add(1)
	default:
		f.new.Add(1)
	}
	f.bytes.Add(int64(len(p)))
	return f.largeMap.Get(ctx, name, p, o)
}

func (f *countedMap) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	f.others.Add(1)
	return f.largeMap.Head(ctx, name)
}

func (f *countedMap) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	f.others.Add(1)
	return f.largeMap.List(ctx, o)
}

// countedLog counts the reads of data objects.
type countedLog struct {
	store.Store
	gets, bytes atomic.Int64
}

func (c *countedLog) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if strings.HasPrefix(name, layout.LogPrefix) {
		c.gets.Add(1)
		c.bytes.Add(int64(len(p)))
	}
	return c.Store.Get(ctx, name, p, o)
}

// TestDiffCopyRequests copies what was written at random on a disk: each object is
// read once, and hardly anything that has not changed.
func TestDiffCopyRequests(t *testing.T) {
	const blocks, writes = 1 << 20, 8000
	rng := newRand(t)
	v := newVolume(t, blocks*blockSize)
	v.o = Options{Cache: 8 << 20, Seal: 1 << 20, Brief: true}
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, blockSize)
	fill := func(op uint64, n int) map[uint64]bool {
		written := map[uint64]bool{}
		for range n {
			b := rng.Uint64N(blocks)
			written[b] = true
			stamp(p, b, op)
			if err := d.Write(t.Context(), p, int64(b)*blockSize); err != nil {
				t.Fatal(err)
			}
		}
		return written
	}
	fill(1, writes)
	if err := d.Snapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	written := fill(2, writes)
	if err := d.Snapshot(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	c := &countedLog{Store: v.box}
	x, err := OpenDiff(t.Context(), Options{Store: c, UUID: v.uuid, Newest: v.epoch}, DiffOptions{From: "a", To: "b", Exact: true})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := x.Copy(t.Context(), 4, func(off, n int64, data []byte) error {
		for at := int64(0); at < n; at += blockSize {
			b := uint64(off+at) / blockSize
			if stamp(p, b, 2); !written[b] || string(data[at:at+blockSize]) != string(p) {
				t.Fatalf("block %d was not written, or not so", b)
			}
			delete(written, b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(written) > 0 {
		t.Errorf("%d blocks are missing", len(written))
	}
	const data = writes * layout.FrameSize
	t.Logf("%d requests, %d bytes for %d bytes of frames", c.gets.Load(), c.bytes.Load(), data)
	if c.gets.Load() > data>>20+8 || c.bytes.Load() > data*11/10 {
		t.Errorf("%d requests, %d bytes", c.gets.Load(), c.bytes.Load())
	}
}

// TestLargeDiff compares two moments of a disk that was written at random all over,
// and of which some was written at random between them: 1 GiB of 1 TiB with -ops=1.
// What both have in common is not read.
func TestLargeDiff(t *testing.T) {
	runs, writes := uint64(60), 10_000
	if *opsFlag > 0 {
		runs, writes = 384, 1<<18
	}
	rng := newRand(t)
	l, size := newLargeMap(t, runs)
	f := &countedMap{largeMap: l}
	o := Options{Store: f, UUID: l.uuid, Epoch: 2, Root: "00000001-00000001", Cache: 8 << 20}
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Snapshot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	written := map[uint64]bool{}
	p := make([]byte, blockSize)
	blocks := uint64(size) / blockSize
	for range writes {
		b := largeFirst + rng.Uint64N(blocks-largeFirst)
		written[b] = true
		if err := d.Write(t.Context(), p, int64(b)*blockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Snapshot(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	o.Epoch, o.Newest = 0, 2
	for _, exact := range []bool{false, true} {
		f.old.Store(0)
		f.new.Store(0)
		f.bytes.Store(0)
		f.others.Store(0)
		began := time.Now()
		x, err := OpenDiff(t.Context(), o, DiffOptions{From: "a", To: "b", Exact: exact})
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		err = x.Changes(t.Context(), func(c Change) error {
			for at := c.Off; at < c.Off+c.Len; at += blockSize {
				if !written[uint64(at)/blockSize] {
					t.Fatalf("block %d was not written", at/blockSize)
				}
				found++
			}
			return nil
		})
		x.Close()
		if err != nil {
			t.Fatal(err)
		}
		if found != len(written) {
			t.Errorf("%d blocks, and %d were written", found, len(written))
		}
		t.Logf("exact: %t: %d of %d blocks in %v; reads of the shared runs: %d, of the others: %d; %d bytes in all, %.1f for each block; %d other requests",
			exact, found, blocks, time.Since(began), f.old.Load(), f.new.Load(), f.bytes.Load(), float64(f.bytes.Load())/float64(found), f.others.Load())
		if f.old.Load() > 0 {
			t.Errorf("%d reads of what both moments share", f.old.Load())
		}
		if most := int64(len(written))*40 + 1<<20; f.bytes.Load() > most {
			t.Errorf("%d bytes were read, want at most %d", f.bytes.Load(), most)
		}
		if most := f.bytes.Load()/(256<<10) + 40; f.new.Load()+f.others.Load() > most {
			t.Errorf("%d requests, want at most %d", f.new.Load()+f.others.Load(), most)
		}
	}
}
