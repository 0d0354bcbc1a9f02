// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"strings"
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
