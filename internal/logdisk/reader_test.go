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

// TestReaders opens readers beside a writer that writes, trims, flushes, makes
// checkpoints and snapshots, deletes these, and collects. Each has a state that the disk had at one moment, and
// keeps it: the same bytes, or an error that says that the moment is over.
func TestReaders(t *testing.T) { readers(t, "") }

// TestReadersPaged is TestReaders with little memory for the map.
func TestReadersPaged(t *testing.T) { readers(t, "paged") }

// TestReadersCompressed is TestReaders with compression.
func TestReadersCompressed(t *testing.T) { readers(t, "compressed") }

func readers(t *testing.T, how string) {
	rng := newRand(t)
	rounds := 30
	if *opsFlag > 0 {
		rounds = *opsFlag / 100
	}
	synctest.Test(t, func(t *testing.T) {
		const blocks = 200
		v := newClosing(t, blocks*blockSize)
		v.o = Options{
			// A write is in one object: 16 blocks are the most that one has here.
			Seal: 16 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 7,
			Age: time.Second, FlushTime: -1, Timeout: 20 * time.Second, GC: 70, Every: 5 * time.Second, regionShift: 4,
		}
		if how == "paged" {
			v.o.littleMap()
		}
		v.o.Compress = how == "compressed"
		h := &past{changes: map[uint64][]change{}}
		gate := faulty.NewGate(v.box)
		var flushed uint64
		w, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		type reader struct {
			d  *Disk
			op uint64
		}
		var open []reader
		kept, over := 0, 0
		var snaps []string // which keep roots that readers have
		for round := range rounds {
			for range rng.IntN(60) {
				randomOp(t, rng, w, h, blocks, &flushed, gate)
			}
			switch k := rng.IntN(6); {
			case k < 2:
				snaps = append(snaps, fmt.Sprint(round))
				if err := w.Snapshot(t.Context(), snaps[len(snaps)-1]); err != nil {
					t.Fatal(err)
				}
				flushed = h.ops
				for range rng.IntN(10) { // the log after it
					randomOp(t, rng, w, h, blocks, &flushed, gate)
				}
			case k == 2 && len(snaps) > 0:
				if err := w.DeleteSnapshot(t.Context(), snaps[0], false); err != nil {
					t.Fatal(err)
				}
				snaps = snaps[1:]
			}
			o := v.o
			o.Store, o.UUID, o.Epoch, o.Newest = v.box, v.uuid, 0, v.epoch
			d, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(d.Close)
			op, ok := h.prefix(t, d, blocks, flushed, gate)
			if !ok {
				t.Fatal("it cannot be read")
			}
			open = append(open, reader{d, op})
			switch rng.IntN(4) {
			case 0:
				time.Sleep(time.Minute)
			case 1:
				time.Sleep(time.Duration(rng.IntN(30)) * time.Minute)
			}
			k := rng.IntN(len(open))
			r := open[k]
			began := time.Now()
			want, p := make([]byte, blockSize), make([]byte, blockSize)
			for b := range uint64(blocks) {
				_, err := r.d.read(t.Context(), b, p) // past the cache
				var gone *GoneError
				if errors.As(err, &gone) {
					if !strings.Contains(err.Error(), "the disk has gone on, and its moment that is read here, of root 0") || time.Since(began) > 5*time.Second {
						t.Errorf("after %v: %v", time.Since(began), err)
					}
					over++
					r.d.Close()
					open = append(open[:k], open[k+1:]...)
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if h.at(b, r.op, want); string(p) != string(want) {
					t.Fatalf("block %d is not what it was after operation %d", b, r.op)
				}
				kept++
			}
		}
		t.Logf("%d blocks were as they were, %d moments were over", kept, over)
		if kept < blocks || over == 0 {
			t.Error("this test shows little")
		}
	})
}

// TestReaderAway: an object that is away is not taken for one that was deleted, and
// a snapshot that was deleted is named.
func TestReaderAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70}
		s := newScript(t, 64)
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		do := doer(t)
		do(s.write(d, 1, 2, 3))
		do(d.Snapshot(t.Context(), "one"))
		do(s.write(d, 1, 2, 3))
		do(s.flush(d))
		do(s.save(d))
		o := v.o
		o.Store, o.UUID, o.Newest = v.box, v.uuid, v.epoch
		newest, err := Open(t.Context(), o)
		do(err)
		defer newest.Close()
		o.Snapshot = "one"
		one, err := Open(t.Context(), o)
		do(err)
		defer one.Close()
		var gone *GoneError
		p := make([]byte, blockSize)
		// The root is the newest still.
		for name := range live(t, v.box, newest.root) {
			do(v.box.Delete(t.Context(), name))
		}
		if _, err := newest.read(t.Context(), 1, p); err == nil || errors.As(err, &gone) {
			t.Errorf("an object is away: %v", err)
		}
		// There is a newer one, and that of the reader is not deleted yet.
		do(s.write(d, 4))
		do(s.flush(d))
		do(s.save(d))
		if _, err := newest.read(t.Context(), 1, p); err == nil || errors.As(err, &gone) {
			t.Errorf("an object is away, and there is a newer root: %v", err)
		}
		if _, err := one.read(t.Context(), 1, p); err != nil {
			t.Errorf("the snapshot: %v", err)
		}
		do(d.DeleteSnapshot(t.Context(), "one", false))
		if _, err := one.read(t.Context(), 1, p); err != nil {
			t.Errorf("the snapshot was deleted just now: %v", err)
		}
		time.Sleep(time.Hour)
		if _, err := one.read(t.Context(), 1, p); !errors.As(err, &gone) || !strings.Contains(err.Error(), "the snapshot one was deleted while it was read: ") {
			t.Errorf("the snapshot was deleted: %v", err)
		}
	})
}

// TestReaderOpensLate has the writer go on, and delete at once what its newest root
// does not need, while a reader opens the disk, at each of its requests. The reader
// then opens the newer moment, without waiting for what is deleted. A snapshot that
// is deleted meanwhile is not found.
func TestReaderOpensLate(t *testing.T) {
	for _, snapshot := range []string{"", "one"} {
		for _, deleted := range []bool{false, true} {
			if deleted && snapshot == "" {
				continue
			}
			later := 0
			for k, done := int64(1), false; !done; k++ {
				synctest.Test(t, func(t *testing.T) {
					v := newClosing(t, 64*blockSize)
					v.o = Options{Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 20 * time.Second, Horizon: time.Nanosecond, Every: time.Second}
					v.o.littleMap()
					s := newScript(t, 64)
					do := doer(t)
					w, err := v.open(t.Context(), v.box)
					do(err)
					do(s.write(w, 1, 2, 3, 4, 5))
					do(w.Snapshot(t.Context(), "one"))
					at := s.h.ops
					do(s.write(w, 1, 2, 3))
					do(s.save(w))
					do(s.write(w, 3, 4, 9))
					do(s.flush(w))
					before := s.flushed
					var requests atomic.Int64 // several beside each other
					line := store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
						if requests.Add(1) == k {
							err := errors.Join(s.write(w, 1, 2, 3, 4, 5, 6, 7, 8, 9), s.save(w))
							if deleted {
								err = errors.Join(err, w.DeleteSnapshot(t.Context(), "one", false))
							}
							if err != nil {
								t.Error(err)
							}
							time.Sleep(time.Minute)
						}
						return call(ctx)
					})
					o := v.o
					o.Store, o.UUID, o.Newest, o.Snapshot = line, v.uuid, v.epoch, snapshot
					began := time.Now()
					r, err := Open(t.Context(), o)
					if done = requests.Load() < k; done {
						do(err)
					}
					if took := time.Since(began); took > 61*time.Second {
						t.Errorf("request %d: it took %v", k, took)
					}
					if err != nil && deleted && (errors.Is(err, ErrNoSnapshot) || errors.As(err, new(*GoneError))) {
						later++
						return
					}
					if err != nil {
						t.Fatalf("request %d: %v", k, err)
					}
					defer r.Close()
					p, want := make([]byte, blockSize), make([]byte, blockSize)
					if snapshot != "" {
						for b := range uint64(64) {
							s.h.at(b, at, want)
							if _, err := r.read(t.Context(), b, p); errors.As(err, new(*GoneError)) && deleted {
								return
							} else if err != nil || string(p) != string(want) {
								t.Fatalf("request %d, block %d: %v", k, b, err)
							}
						}
						return
					}
					if _, err := r.read(t.Context(), 1, p); errors.As(err, new(*GoneError)) {
						return // it had read all that it opens with
					}
					if op, _ := s.h.prefix(t, r, 64, before, faulty.NewGate(nil)); op > before {
						later++
					}
				})
				if t.Failed() {
					return
				}
			}
			if later == 0 && (snapshot == "" || deleted) {
				t.Errorf("%q, deleted is %t: this test shows little", snapshot, deleted)
			}
		}
	}
}
