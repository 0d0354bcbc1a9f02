// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// bytesIn returns how many bytes the objects of a container have.
func bytesIn(t testing.TB, s store.Store) (n int64) {
	list, err := s.List(context.WithoutCancel(t.Context()), store.ListOptions{})
	doer(t)(err)
	for _, o := range list {
		n += o.Size
	}
	return n
}

// TestNoRoomForCheckpoint has a quota be so full that the first run of a checkpoint fits,
// and the next one does not. Nobody needs what is there of it, and clients need the room:
// without it each flush of theirs would fail for ten minutes.
func TestNoRoomForCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 4096*blockSize)
		v.o = smallOptions()
		v.o.tableLimit = 1 // the table of objects is a run
		v.o.Checkpoint, v.o.GC = 10_000, 0
		var limit, first atomic.Int64 // bytes: of the container, and of the run that fits; 0: any, and none yet
		d, err := v.open(t.Context(), store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
			if n := limit.Load(); n == 0 || op.Kind != store.OpPut {
				return call(ctx)
			}
			if strings.HasPrefix(op.Name, layout.RunPrefix) && first.Load() == 0 {
				first.Store(int64(op.Bytes))
				limit.Add(int64(op.Bytes))
			}
			if bytesIn(t, v.box)+int64(op.Bytes) > limit.Load() {
				return store.ErrNoSpace
			}
			return call(ctx)
		}))
		do := doer(t)
		do(err)
		s := newScript(t, 4096)
		for b := range uint64(1000) {
			do(s.write(d, b*4))
		}
		do(s.flush(d))
		limit.Store(bytesIn(t, v.box) + 500)
		if err := d.Save(t.Context()); !errors.Is(err, store.ErrNoSpace) || first.Load() < blockSize+blockSize/2 {
			t.Fatalf("the checkpoint ends with %v, after a run of %d bytes: this test shows nothing", err, first.Load())
		}
		time.Sleep(5 * time.Second)
		do(s.write(d, 1))
		do(s.flush(d))
		limit.Store(0)
		time.Sleep(3 * horizon)
		do(d.Save(t.Context()))
		time.Sleep(3 * horizon)
		s.same(d)
		atRest(t, d, v.box)
	})
}

// TestQuotaSaidOnce has a quota be used up for a while, with writes that wait, a checkpoint
// that is due, and a client who reads what is scattered. Each has one line in the log, and
// not one for each attempt; and one more when the quota is used up again later.
func TestQuotaSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks = 8
		rng := rand.New(rand.NewPCG(1, 1))
		v := newClosing(t, chunks*ChunkSize)
		v.o = Options{Seal: 128 * layout.FrameSize, GC: 1, Idle: time.Hour, Cache: MinCache(), Checkpoint: 20, FlushTime: -1}
		var mu sync.Mutex
		lines, refused := map[string]int{}, map[string]int{}
		v.o.Log = func(format string, _ ...any) {
			mu.Lock()
			defer mu.Unlock()
			lines[format[:strings.Index(format, ":")]]++
		}
		var full atomic.Bool
		d, err := v.open(t.Context(), store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
			if op.Kind != store.OpPut || !full.Load() {
				return call(ctx)
			}
			kind := "other"
			if at, ok := layout.ParseLogName(op.Name); ok {
				kind = "by clients"
				if at.N >= layout.FirstCollected {
					kind = "in order"
				}
			}
			mu.Lock()
			defer mu.Unlock()
			refused[kind]++
			return &store.StatusError{Op: op.String(), Code: 413, Err: store.ErrNoSpace}
		}))
		do := doer(t)
		do(err)
		write := func(n int) {
			p := make([]byte, blockSize)
			for _, b := range rng.Perm(chunks * chunkBlocks)[:n] {
				stamp(p, uint64(b), 3)
				do(d.Write(t.Context(), p, int64(b)*blockSize))
			}
		}
		for n := 1; n <= 2; n++ {
			for range 30 { // a checkpoint is due
				write(256)
				do(d.Flush(t.Context()))
			}
			full.Store(true)
			write(512)
			if d.Flush(t.Context()) == nil {
				t.Fatal("a flush succeeds that Swift has refused")
			}
			for range 20 {
				readAll(t, d)
				time.Sleep(5 * time.Second)
			}
			full.Store(false)
			time.Sleep(time.Minute)
			do(d.Flush(t.Context()))
			mu.Lock()
			for line, some := range lines {
				if some > n {
					t.Errorf("%d times it is full, and %d lines say %s", n, some, line)
				}
			}
			mu.Unlock()
		}
		if refused["by clients"] < 200 || refused["in order"] < 20 || lines["write back"] != 2 || lines["put in order what was read"] != 2 {
			t.Errorf("this test shows little: %v, for %v", lines, refused)
		}
	})
}

// TestCollectorRests has a quota be used up for an hour. The collector reads what it would
// move again now and then, and not each second. It goes on when there is room.
func TestCollectorRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = smallOptions()
		var full atomic.Bool
		full.Store(true)
		var refused atomic.Int64
		d, err := v.open(t.Context(), collecting(v.box, func() error {
			if !full.Load() {
				return nil
			}
			refused.Add(1)
			return store.ErrNoSpace
		}))
		do := doer(t)
		do(err)
		s := newScript(t, 64)
		do(s.write(d, 1, 2, 3, 4, 5, 6))
		do(s.flush(d))
		do(s.write(d, 1, 4))
		do(s.flush(d))
		time.Sleep(time.Hour)
		gets := d.stats.Gets.Load()
		if n := refused.Load(); n < 10 || n > 500 {
			t.Errorf("it has tried %d times, and read %d parts of objects", n, gets)
		}
		full.Store(false)
		time.Sleep(time.Minute)
		if d.stats.Collected.Load() == 0 {
			t.Error("it has not gone on")
		}
		s.same(d)
	})
}
