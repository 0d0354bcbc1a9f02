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
)

// holder holds reads of runs, which only merges make on a small disk, until
// their context ends.
type holder struct {
	store.Store
	seen  chan struct{} // gets an item when it holds one
	under atomic.Int32  // reads that it holds now
}

func (h *holder) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if !strings.HasPrefix(name, layout.RunPrefix) {
		return h.Store.Get(ctx, name, p, o)
	}
	h.under.Add(1)
	select {
	case h.seen <- struct{}{}:
	default:
	}
	<-ctx.Done()
	time.Sleep(time.Second) // a request does not end at once
	h.under.Add(-1)
	return store.ObjectInfo{}, context.Cause(ctx)
}

// TestRest: after Rest nothing of the collector or a merge is under way, nothing
// is said about it, and the last checkpoint is made all the same.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Cache: 8 << 20, Checkpoint: 1000, GC: 70, Log: func(format string, args ...any) {
			t.Errorf("it says: %s", fmt.Sprintf(format, args...))
		}}
		h := &holder{Store: v.box, seen: make(chan struct{}, 1)}
		d, err := v.open(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		s := newScript(t, 64)
		held := false
		for i := uint64(63); i > 0 && !held; i-- {
			if err := errors.Join(s.write(d, i), s.flush(d), d.Save(t.Context())); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			select {
			case <-h.seen:
				held = true
			default:
			}
		}
		if !held {
			t.Fatal("there was no merge")
		}
		if err := s.write(d, 40); err != nil {
			t.Fatal(err)
		}
		if err := d.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Rest()
		if n := h.under.Load(); n != 0 {
			t.Errorf("%d requests of a merge are under way after Rest", n)
		}
		if err := d.Save(t.Context()); err != nil {
			t.Error(err)
		}
		d.Close()
	})
}
