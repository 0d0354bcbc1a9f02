// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// A server that knows files only can serve a device.
var _ interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() int64
	Sync() error
} = (*device.Device)(nil)

// TestOpenErrors has Open fail and leave nothing behind.
func TestOpenErrors(t *testing.T) {
	ctx := t.Context()
	if _, err := device.Open(ctx, device.Options{Store: mem.New()}); !errors.Is(err, store.ErrContainerNotFound) {
		t.Errorf("no container: %v", err)
	}
	bare := mem.New()
	if _, err := bare.CreateContainer(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Open(ctx, device.Options{Store: bare}); !errors.Is(err, volume.ErrNotSetUp) {
		t.Errorf("not set up: %v", err)
	}
	second := mem.New()
	if err := volume.Create2(ctx, second, volume.Meta{UUID: volume.NewUUID(), Size: 1 << 20, Root: "00000001-00000001"}); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Open(ctx, device.Options{Store: second}); err == nil || !strings.Contains(err.Error(), "needs a lease") {
		t.Errorf("version 2 without a lease: %v", err)
	}
	var away *logdisk.AwayError
	if _, err := device.Open(ctx, device.Options{Store: second, ReadOnly: true, Timeout: time.Millisecond}); !errors.As(err, &away) {
		t.Errorf("version 2 without its root: %v", err)
	}
	if err := second.SetMetadata(ctx, map[string]string{volume.KeyVersion: "3"}); err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		var fe *volume.FormatError
		if _, err := device.Open(ctx, device.Options{Store: second, ReadOnly: readOnly}); !errors.As(err, &fe) || fe.Key != volume.KeyVersion {
			t.Errorf("version 3, read-only=%t: %v", readOnly, err)
		}
	}
	w := newWorld(t, inMemory(t), 1<<20, 10, true)
	w.opts.Cache = 1 << 20
	if err := w.open(); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("a cache that is too small: %v", err)
	}
	if m := w.meta(); m.Client != "" || !m.Blank {
		t.Errorf("left behind: %+v", m)
	}
	w.opts.Cache = 0
	w.mustOpen()
	first := w.device
	var le *lease.LockedError
	if err := w.open(); !errors.As(err, &le) || le.Holder != "host:1" {
		t.Errorf("a second one: %v", err)
	}
	w.opts.ReadOnly = true
	if err := w.open(); err != nil {
		t.Errorf("a reader beside it: %v", err)
	}
	if err := w.device.Close(); err != nil {
		t.Error(err)
	}
	if m := w.meta(); m.Client == "" {
		t.Error("the reader has taken the writer's lock away")
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// TestRequestErrors has requests that no disk can answer.
func TestRequestErrors(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 4, true)
	w.mustOpen()
	d, b := w.device, make([]byte, 100)
	for _, off := range []int64{-1, 16384 - 99, 16384, 1 << 62} {
		_, readErr := d.ReadAt(b, off)
		_, writeErr := d.WriteAt(b, off)
		for what, err := range map[string]error{
			"read": readErr, "write": writeErr, "zero": d.Zero(off, 100, false, false), "trim": d.Trim(off, 100, false),
			"prefetch": d.Prefetch(off, 100), "extents": d.Extents(off, 100, func(int64, int64, bool) bool { return true }),
		} {
			if !errors.Is(err, device.ErrOutOfRange) {
				t.Errorf("%s at %d: %v", what, off, err)
			}
		}
	}
	if _, err := d.ReadAt(nil, 16384); err != nil {
		t.Errorf("no bytes at the very end: %v", err)
	}
	if err := d.Zero(0, 100, false, true); err != nil {
		t.Errorf("fast zero of a hole: %v", err)
	}
	if _, err := d.WriteAt(b[:1], 5000); err != nil {
		t.Error(err)
	}
	if _, err := d.WriteAt([]byte("x"), 5000); err != nil {
		t.Error(err)
	}
	if err := d.Zero(4096, 1000, false, true); !errors.Is(err, device.ErrSlow) {
		t.Errorf("fast zero of data: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	if _, err := d.ReadAt(b, 0); !errors.Is(err, device.ErrClosed) {
		t.Errorf("read of a closed device: %v", err)
	}
	if err := d.Sync(); !errors.Is(err, device.ErrClosed) {
		t.Errorf("flush of a closed device: %v", err)
	}
	w.opts.ReadOnly = true
	w.mustOpen()
	for what, err := range map[string]error{
		"write": w.device.WriteFUA(b, 0, false), "zero": w.device.Zero(0, 100, false, false), "trim": w.device.Trim(0, 100, false),
	} {
		if !errors.Is(err, device.ErrReadOnly) {
			t.Errorf("%s of a read-only device: %v", what, err)
		}
	}
	if _, err := w.device.ReadAt(b[:1], 5000); err != nil || b[0] != 'x' {
		t.Errorf("read of a read-only device: %q, %v", b[:1], err)
	}
	if err := w.device.Close(); err != nil {
		t.Error(err)
	}
}

// only returns a driver that has fault happen to writes of objects whose names
// begin with prefix.
func only(prefix string, fault func(faulty.Op) faulty.Fault) faulty.Driver {
	return func(op faulty.Op) faulty.Fault {
		if (op.Kind == store.OpPut || op.Kind == store.OpDelete) && strings.HasPrefix(op.Name, prefix) {
			return fault(op)
		}
		return faulty.Fault{}
	}
}

var forbidden = func(op faulty.Op) faulty.Fault {
	return faulty.Fault{Err: &store.StatusError{Op: op.String(), Code: 403, Err: store.ErrForbidden}}
}

// TestCloseDrains has writes refused when the device is to be closed: it goes
// on with its data and its lock, and can be closed when they are taken again.
func TestCloseDrains(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	w.mustOpen()
	d, want := w.device, make([]byte, w.geo.Size())
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		b := make([]byte, 1+rng.IntN(9000))
		noise(rng, b)
		off := rng.Int64N(w.geo.Size() - int64(len(b)))
		if _, err := d.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], b)
	}
	w.session.SetDriver(only(chunked.Prefix, forbidden))
	for range 2 {
		if err := d.Sync(); !errors.Is(err, store.ErrForbidden) {
			t.Errorf("flush: %v", err)
		}
		var de *device.DrainError
		if err := d.Close(); !errors.As(err, &de) || !errors.Is(err, store.ErrForbidden) || de.Chunks == 0 || de.Bytes < int64(de.Chunks) {
			t.Errorf("close: %v", err)
		}
		got := make([]byte, w.geo.Size())
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("what is dirty is gone: %v, %s", err, firstDifference(got, want))
		}
		if m := w.meta(); m.Client == "" {
			t.Error("the lock is gone, and dirty data is here")
		}
	}
	w.session.SetDriver(nil)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := w.raw(); !bytes.Equal(got, want) {
		t.Errorf("closed: %s", firstDifference(got, want))
	}
	if m := w.meta(); m.Client != "" {
		t.Errorf("closed, and %+v", m)
	}
}

// TestCloseDrainsTheRest has one chunk refused when the device is to be closed:
// all the others are written all the same, and what is left is that one.
func TestCloseDrainsTheRest(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	w.mustOpen()
	want := make([]byte, w.geo.Size())
	for i := range w.geo.Objects() {
		if _, err := w.device.WriteAt([]byte{byte(i + 1)}, i*4096+7); err != nil {
			t.Fatal(err)
		}
		want[i*4096+7] = byte(i + 1)
	}
	w.session.SetDriver(only(chunked.ObjectName(3), forbidden))
	var de *device.DrainError
	if err := w.device.Close(); !errors.As(err, &de) || !errors.Is(err, store.ErrForbidden) || de.Chunks != 1 {
		t.Errorf("close: %v; want one chunk that is left", err)
	}
	w.device.Abandon()
	want[3*4096+7] = 0
	if got := w.raw(); !bytes.Equal(got, want) {
		t.Errorf("of what could be written some is not: %s", firstDifference(got, want))
	}
}

// TestCloseTurnsAway closes a device while its store answers nothing: requests
// that wait end at once, those that come later are turned away at once, and
// none waits for the drain. When the drain fails the device takes requests
// again.
func TestCloseTurnsAway(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, false)
	w.mustOpen()
	d := w.device
	if _, err := d.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	reading, draining := make(chan struct{}, 100), make(chan struct{}, 100)
	w.session.SetDriver(func(op faulty.Op) faulty.Fault {
		switch {
		case op.Name == chunked.ObjectName(0) && op.Kind == store.OpGet: // completing the chunk
			draining <- struct{}{}
			return faulty.Fault{Hang: true}
		case op.Kind == store.OpGet:
			reading <- struct{}{}
			return faulty.Fault{Hang: true}
		}
		return faulty.Fault{}
	})
	waiting := make(chan error, 3)
	go func() { _, err := d.ReadAt(make([]byte, 10), 8192); waiting <- err }()
	go func() { waiting <- d.Prefetch(16384, 4096) }()
	go func() { waiting <- d.WriteFUA([]byte("y"), 32768, true) }()
	for range 3 {
		<-reading
	}
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	<-draining
	for range 3 {
		if err := <-waiting; !errors.Is(err, device.ErrClosed) {
			t.Errorf("a request that was waiting: %v", err)
		}
	}
	_, err := d.ReadAt(make([]byte, 10), 5)
	for what, err := range map[string]error{
		"read": err, "write": d.WriteFUA([]byte("z"), 9, false), "flush": d.Sync(), "zero": d.Zero(0, 4096, false, false),
		"trim": d.Trim(0, 4096, false), "prefetch": d.Prefetch(0, 4096), "advice": d.Advise(0, 4096),
		"extents": d.Extents(0, 4096, func(int64, int64, bool) bool { return true }),
	} {
		if !errors.Is(err, device.ErrClosed) {
			t.Errorf("a %s while it is being closed: %v", what, err)
		}
	}
	select {
	case err := <-closed:
		t.Fatalf("closed before the store answered: %v", err)
	default:
	}
	w.session.SetDriver(only(chunked.Prefix, forbidden))
	var de *device.DrainError
	if err := <-closed; !errors.As(err, &de) || de.Chunks != 2 {
		t.Fatalf("close: %v; want the two chunks that were written", err)
	}
	got := make([]byte, 1)
	if _, err := d.ReadAt(got, 5); err != nil || got[0] != 'x' {
		t.Errorf("after a drain that failed: %q, %v", got, err)
	}
	w.session.SetDriver(nil)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := w.raw(); got[5] != 'x' {
		t.Error("not written")
	}
}

// TestCloseWithoutMap has the map's objects refused, or hang until the time
// for them is up: the volume must be unlocked all the same, without a map.
func TestCloseWithoutMap(t *testing.T) {
	for name, fault := range map[string]func(faulty.Op) faulty.Fault{
		"refused": forbidden,
		"hangs":   func(faulty.Op) faulty.Fault { return faulty.Fault{Hang: true} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, inMemory(t), 4096, 64, true)
			w.driver = only(volume.ExtraPrefix, fault)
			w.opts.Timeout = 100 * time.Millisecond
			w.mustOpen()
			if _, err := w.device.WriteAt([]byte("x"), 5); err != nil {
				t.Fatal(err)
			}
			if err := w.device.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if m := w.meta(); m.Client != "" || m.Last == "" || m.Map != "" || m.Blank {
				t.Errorf("left behind: %+v", m)
			}
			if got := w.raw(); got[5] != 'x' {
				t.Error("not written")
			}
		})
	}
}

// TestSessions has a volume that is only read keep its map, or its blankness,
// through any number of sessions, and holes cost no request.
func TestSessions(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	all := make([]byte, w.geo.Size())
	saved := "" // the map's session
	for n := range 4 {
		w.opts.Holder = fmt.Sprintf("host:%d", n)
		w.mustOpen()
		opened := w.session.Ops()
		if _, err := w.device.ReadAt(all, 0); err != nil {
			t.Fatal(err)
		}
		if ops := w.session.Ops() - opened; n == 0 && ops != 0 || ops > 1 {
			t.Errorf("session %d: reading a blank volume took %d requests", n, ops)
		}
		if err := w.device.Close(); err != nil {
			t.Fatal(err)
		}
		if m := w.meta(); m.Map == "" {
			t.Errorf("session %d left no map: %+v", n, m)
		} else if n == 0 {
			saved = m.Map
		} else if m.Map != saved || m.Last != saved {
			t.Errorf("session %d has written nothing, and left %+v in place of the map of %s", n, m, saved)
		}
	}
	w.mustOpen()
	if _, err := w.device.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	w.kill()
	if m := w.meta(); m.Map != "" || m.Blank {
		t.Errorf("believed after a crash: %+v", m)
	}
}

// TestLost has the lock taken away under an open device: closing says so, and
// leaves it to whoever has it.
func TestLost(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	w.mustOpen()
	if _, err := w.device.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := lease.Break(t.Context(), w.inner); err != nil {
		t.Fatal(err)
	}
	if err := w.inner.SetMetadata(t.Context(), map[string]string{volume.KeyClient: "other@1"}); err != nil {
		t.Fatal(err)
	}
	if err := w.device.Close(); !errors.Is(err, lease.ErrLost) {
		t.Errorf("close: %v", err)
	}
	if m := w.meta(); m.Client != "other@1" || m.Map != "" {
		t.Errorf("left behind: %+v", m)
	}
}

// TestCloseUnderTraffic closes a device while clients are at work: each of
// their requests is answered or turned away, and all that was acknowledged is
// there.
func TestCloseUnderTraffic(t *testing.T) {
	for range 20 {
		w := newWorld(t, inMemory(t), 4096, 16, true)
		w.opts.Cache = 100 << 10
		w.mustOpen()
		d := w.device
		acknowledged := make([]byte, 16)
		var wg sync.WaitGroup
		for c := range 16 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := byte(1); n < 200; n++ {
					_, err := d.WriteAt([]byte{n}, int64(c)*4096+7)
					if errors.Is(err, device.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					acknowledged[c] = n
				}
			}()
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		got := w.raw()
		for c, n := range acknowledged {
			if got[c*4096+7] != n {
				t.Errorf("client %d: %d was acknowledged, %d is there", c, n, got[c*4096+7])
			}
		}
	}
}

// TestFlushWaitsForNothingNewer has others write without a pause while one
// flushes: each flush ends.
func TestFlushWaitsForNothingNewer(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	w.driver = func(faulty.Op) faulty.Fault { return faulty.Fault{Delay: 200 * time.Microsecond} }
	w.mustOpen()
	d := w.device
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := d.WriteAt([]byte{byte(n)}, int64((n*4+c)*37)%w.geo.Size()); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 20 {
			if err := d.WriteFUA([]byte{byte(n), 1, 2, 3}, 12345, n%2 == 0); err != nil {
				t.Error(err)
			}
			if err := d.Sync(); err != nil {
				t.Error(err)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Error("flushes do not end while others write")
	}
	stop()
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestLateDuplicate has a write land a second time after a newer one, which
// Swift cannot tell from a newer write. The old bytes must not be read as if
// they were the new ones.
func TestLateDuplicate(t *testing.T) {
	w := newWorld(t, inMemory(t), 4096, 64, true)
	w.opts.Cache = 5 * (4096 + 512) // so that nothing is kept for long
	w.mustOpen()
	d := w.device
	late := true
	w.session.SetDriver(only(chunked.ObjectName(3), func(faulty.Op) faulty.Fault {
		if late {
			late = false
			return faulty.Fault{Late: 1 << 40}
		}
		return faulty.Fault{}
	}))
	for _, b := range []string{"old", "new"} {
		if err := d.WriteFUA([]byte(b), 3*4096, true); err != nil {
			t.Fatal(err)
		}
	}
	w.session.LandAll()
	all := make([]byte, w.geo.Size())
	for i := range int64(3) { // read other chunks until this one is evicted
		if _, err := d.ReadAt(all[:3*4096], (20+3*i)*4096); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(all[:3*4096:3*4096], (30+3*i)*4096); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 3)
	_, err := d.ReadAt(b, 3*4096)
	var ce *chunked.ChangedError
	switch {
	case errors.As(err, &ce) && ce.Chunk == 3:
	case err == nil && string(b) == "new":
	default:
		t.Errorf("read %q, %v", b, err)
	}
	w.kill()
}
