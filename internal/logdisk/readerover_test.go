// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// TestReaderOfPinned: the moment of a reader whose root is a snapshot's is over as any
// other one: the snapshot keeps the root, and not the log after it.
func TestReaderOfPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 20 * time.Second} // what is live stays where it is
		s := newScript(t, 64)
		d, err := v.open(t.Context(), v.box)
		do := doer(t)
		do(err)
		do(s.write(d, 1, 2, 3, 4))
		do(d.Snapshot(t.Context(), "one"))
		do(s.write(d, 1, 2, 3))
		do(s.flush(d))
		o := v.o
		o.Store, o.UUID, o.Newest = v.box, v.uuid, v.epoch
		r, err := Open(t.Context(), o)
		do(err)
		defer r.Close()
		p := make([]byte, blockSize)
		var gone *GoneError
		// What the newest root needs still is away at most.
		do(s.write(d, 2, 3))
		do(s.flush(d))
		do(s.save(d))
		name := layout.LogName(layout.Position{Epoch: v.epoch, N: 2})
		b := get(t, v.box, name)
		do(v.box.Delete(t.Context(), name))
		if _, err := r.read(t.Context(), 1, p); err == nil || errors.As(err, &gone) {
			t.Errorf("an object is away, and there is a newer root: %v", err)
		}
		do(v.box.Put(t.Context(), name, b, ""))
		do(s.write(d, 1, 2, 3))
		do(s.flush(d))
		do(s.save(d))
		time.Sleep(time.Hour)
		if _, err := r.read(t.Context(), 4, p); err != nil {
			t.Errorf("what the snapshot has, too: %v", err)
		}
		began := time.Now()
		if _, err := r.read(t.Context(), 1, p); !errors.As(err, &gone) || time.Since(began) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestReaderRootAway: a listing has the newest root, and Swift does not find it. The
// reader of a snapshot of which an object is not found either gets an error when its
// time is over.
func TestReaderRootAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70}
		s := newScript(t, 64)
		d, err := v.open(t.Context(), v.box)
		do := doer(t)
		do(err)
		do(s.write(d, 1, 2, 3))
		do(d.Snapshot(t.Context(), "one"))
		do(s.write(d, 4))
		do(s.flush(d))
		do(s.save(d))
		away := false
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		asked := 0
		o := v.o
		o.UUID, o.Newest, o.Snapshot = v.uuid, v.epoch, "one"
		o.Store = store.Wrap(v.box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
			if away && (op.Kind == store.OpGet || op.Kind == store.OpHead) {
				if asked++; asked > 10_000 {
					stop()
				}
				time.Sleep(time.Millisecond)
				if op.Name == layout.RootName(d.rootAt) || strings.HasPrefix(op.Name, layout.LogPrefix) {
					return store.ErrNotFound
				}
			}
			return call(ctx)
		})
		r, err := Open(t.Context(), o)
		do(err)
		defer r.Close()
		away = true
		began := time.Now()
		_, err = r.read(ctx, 1, make([]byte, blockSize))
		if !errors.Is(err, store.ErrNotFound) || time.Since(began) > 5*time.Second {
			t.Errorf("after %v and %d requests: %v", time.Since(began), asked, err)
		}
	})
}

// TestReaderOfFlattened: a clone is flattened while it is read, and the snapshot of its
// parent is deleted. Its root is there for as long as no server deletes it. The reader
// is told that its moment is over, and one that follows goes on.
func TestReaderOfFlattened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m, _ := aFamily(t, 64)
		m.o.Timeout, m.o.Horizon, m.o.Every, m.o.Idle, m.t = 20*time.Second, time.Minute, time.Minute, time.Minute, t
		c := f.clone(t, m, "s")
		c.t = t
		do := doer(t)
		o := c.o
		o.Store, o.UUID = c.box, c.uuid
		r, err := Open(t.Context(), o)
		do(err)
		defer r.Close()
		p := make([]byte, blockSize)
		_, err = r.read(t.Context(), 1, p)
		do(err)
		c.o.Brief = true
		d, err := c.open(t.Context(), c.box)
		do(err)
		snaps, err := flattenVerb(t.Context(), d, m.box, c.name)
		do(errors.Join(err, d.Save(t.Context())))
		d.Close()
		if len(snaps) > 0 {
			t.Fatal(snaps)
		}
		parent, err := m.open(t.Context(), m.box)
		do(err)
		do(parent.DeleteSnapshot(t.Context(), "s", false))
		for b := range uint64(64) {
			do(parent.Zero(t.Context(), int64(b)*blockSize, blockSize))
		}
		do(errors.Join(parent.Flush(t.Context()), parent.Save(t.Context())))
		time.Sleep(time.Hour)
		began := time.Now()
		if _, err := r.read(t.Context(), 1, p); !errors.As(err, new(*GoneError)) || time.Since(began) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		o.Newest = c.epoch
		next, err := OpenNewer(t.Context(), o, r)
		do(err)
		defer next.Close()
		_, err = next.read(t.Context(), 1, p)
		do(err)
	})
}

// TestDiffNameAgain: a snapshot is deleted while it is compared, and another one gets
// its name.
func TestDiffNameAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newClosing(t, 64*blockSize)
		v.o = Options{Cache: 8 << 20, Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70}
		s := newScript(t, 64)
		d, err := v.open(t.Context(), v.box)
		do := doer(t)
		do(err)
		do(s.write(d, 1, 2, 3))
		do(d.Snapshot(t.Context(), "nightly"))
		o := v.o
		o.Store, o.UUID, o.Newest = v.box, v.uuid, v.epoch
		x, err := OpenDiff(t.Context(), o, DiffOptions{To: "nightly"})
		do(err)
		defer x.Close()
		do(d.DeleteSnapshot(t.Context(), "nightly", false))
		do(s.write(d, 1, 2, 3))
		do(d.Snapshot(t.Context(), "nightly"))
		time.Sleep(time.Hour)
		err = x.Copy(t.Context(), 2, func(int64, int64, []byte) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "snapshot nightly was deleted meanwhile") {
			t.Error(err)
		}
	})
}
