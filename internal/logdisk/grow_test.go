// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// slowRoot lets a root be put only when it is told to.
type slowRoot struct {
	store.Store
	hold chan struct{} // nil: it does not wait
}

func (s *slowRoot) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	if s.hold != nil && strings.HasPrefix(name, layout.RootPrefix) {
		<-s.hold
	}
	return s.Store.Put(ctx, name, data, etag)
}

// TestGrow makes a disk larger while it is written. What is sealed between the
// beginning and the end of that has the old size, and the disk has the new one
// all the same after a crash.
func TestGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const was, now = 64, 1000 // blocks
		v := newClosing(t, was*blockSize)
		v.o = Options{Cache: 8 << 20, GC: 70}
		gate := faulty.NewGate(v.box)
		slow := &slowRoot{Store: gate}
		d, err := v.open(t.Context(), slow)
		if err != nil {
			t.Fatal(err)
		}
		s := newScript(t, was)
		if err := errors.Join(s.write(d, 1, 2, was-1), s.flush(d), s.write(d, 5)); err != nil {
			t.Fatal(err)
		}
		slow.hold = make(chan struct{})
		grown := make(chan error)
		go func() { grown <- d.Grow(t.Context(), now*blockSize) }()
		synctest.Wait()
		if d.Size() != was*blockSize {
			t.Error("the disk is larger before its root is in Swift")
		}
		if err := errors.Join(s.write(d, 7, 8), s.flush(d)); err != nil {
			t.Fatal(err)
		}
		s.h.resize(now, was)
		close(slow.hold)
		if err := <-grown; err != nil {
			t.Fatal(err)
		}
		if d.Size() != now*blockSize {
			t.Errorf("%d bytes", d.Size())
		}
		p := make([]byte, (now-was)*blockSize)
		if err := d.Read(t.Context(), p, was*blockSize); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("the new part is not zeroes: %v", err)
		}
		gate.CrashAt(gate.Ops()+1, false)
		d.Close()

		// What was sealed last has the old size.
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		if d.Size() != now*blockSize {
			t.Errorf("after a crash the disk has %d bytes", d.Size())
		}
		s.same(d)
		q := bytes.Repeat([]byte{7}, 3*blockSize+100)
		off := int64(len(p)) + was*blockSize - int64(len(q))
		if err := errors.Join(d.Write(t.Context(), q, off), d.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		if err := d.Grow(t.Context(), now*blockSize); err != nil {
			t.Errorf("to the size that it has: %v", err)
		}
		if err := d.Grow(t.Context(), was*blockSize); !errors.Is(err, ErrSmaller) {
			t.Errorf("smaller: %v", err)
		}
		if err := d.Grow(t.Context(), MaxSize); err == nil || !strings.Contains(err.Error(), "while no server has it") {
			t.Errorf("to the largest: %v", err)
		}
		if err := d.Grow(t.Context(), 10<<40); err != nil {
			t.Error(err)
		}
		q2 := bytes.Repeat([]byte{9}, blockSize)
		if err := errors.Join(d.Write(t.Context(), q2, 10<<40-blockSize), d.Drain(t.Context()), d.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
		d.Close()
		if d, err = v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		}
		got, got2 := make([]byte, len(q)), make([]byte, len(q2))
		if err := errors.Join(d.Read(t.Context(), got, off), d.Read(t.Context(), got2, 10<<40-blockSize)); err != nil || !bytes.Equal(got, q) || !bytes.Equal(got2, q2) {
			t.Errorf("what was written into the new part: %v", err)
		}
		if d.Size() != 10<<40 {
			t.Errorf("%d bytes", d.Size())
		}
		d.Close()
	})
}
