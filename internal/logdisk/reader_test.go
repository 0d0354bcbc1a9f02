// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/faulty"
)

// TestReaders opens readers beside a writer that writes, trims, flushes, makes
// checkpoints and collects. Each has a state that the disk had at one moment, and
// keeps it: the same bytes, or an error that says that the moment is over.
func TestReaders(t *testing.T) { readers(t, false) }

// TestReadersPaged is TestReaders with little memory for the map.
func TestReadersPaged(t *testing.T) { readers(t, true) }

func readers(t *testing.T, paged bool) {
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
		if paged {
			v.o.littleMap()
		}
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
		for range rounds {
			for range rng.IntN(60) {
				randomOp(t, rng, w, h, blocks, &flushed, gate)
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
