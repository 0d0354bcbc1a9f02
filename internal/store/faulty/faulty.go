// SPDX-License-Identifier: MIT

// Package faulty makes a store fail on demand. It is a decorator that asks a
// function about each operation, and does what the function answers. If the
// function depends only on the number of the operation, a run can be repeated
// exactly.
package faulty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// Op is one operation as the driver sees it.
type Op struct {
	store.Op
	N int64 // its number, from 1, in the order in which they began
}

// Fault is what happens to one operation. The zero Fault is none. Fields
// combine: first Delay, then the effect if it takes place, then the failure.
type Fault struct {
	// Delay passes before anything else; the context's end cuts it short.
	Delay time.Duration
	// Err, when not nil, is how the operation ends.
	Err error
	// Hang ends the operation with its context and not before.
	Hang bool
	// After lets the operation take effect before it fails with Err or
	// Hang: an ambiguous end. Without it, it never takes effect.
	After bool
	// Short leaves the last Short bytes of a Get unread, and fails it.
	Short int
	// Late, for Put and Delete, lets the operation take effect when that many
	// more operations have begun. If the operation succeeds or After is set, it
	// takes effect now as well (a duplicate).
	Late int64
	// Stale, for reads that may be stale, answers with an earlier state of the
	// store. A Get answers with the object that many versions ago. A List
	// answers without anything that was written through the decorator.
	Stale int
}

// Driver says what happens to an operation; nil means nothing.
type Driver func(Op) Fault

// ErrCrashed ends every operation after the crash. It is not transient: the
// process that would try again is dead.
var ErrCrashed = errors.New("faulty: crashed")

// Unavailable is the answer of a proxy that reached no object server. Use it
// with After for one that reached some.
func Unavailable(op store.Op) error {
	return &store.StatusError{Op: op.String(), Code: 503}
}

// Reset is a connection that broke after the request was sent.
func Reset(op store.Op) error {
	return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("connection reset by peer")}
}

// Refused is a connection that was not made.
func Refused(op store.Op) error {
	return &store.TransportError{Op: op.String(), Err: errors.New("connection refused")}
}

// Store is a store.Store that fails on demand. The driver is asked about each
// operation, which then goes to the inner store. Operations that the inner
// store makes itself are not counted.
type Store struct {
	store.Store // the operations that are decorated in one way
	inner       store.Store

	mu      sync.Mutex
	driver  Driver
	ops     int64
	crashAt int64 // 0: never
	effect  bool  // of the operation at crashAt
	late    []late
	past    map[string]*past // nil: not remembered
}

// late is a write that takes effect when operation number at begins.
type late struct {
	at int64
	do func()
}

// past has the states of an object, oldest first. The last one is the present
// state.
type past struct {
	writing  sync.Mutex // held across a write, so that versions are in order
	versions []version
}

// version is one state of an object.
type version struct {
	exists bool
	data   []byte
	info   store.ObjectInfo
}

// kept is how many versions of an object are remembered, besides the first.
const kept = 8

// New returns s with faults as driver says.
func New(s store.Store, driver Driver) *Store {
	f := &Store{inner: s, driver: driver, past: make(map[string]*past)}
	f.Store = store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		return f.around(ctx, op, nil, func(Fault) error { return call(ctx) })
	})
	return f
}

// NewGate returns s without faults, for CrashAt only. Unlike New's, it makes no
// requests of its own to learn the earlier states of objects. Stale therefore
// does nothing.
func NewGate(s store.Store) *Store {
	f := New(s, nil)
	f.past = nil
	return f
}

// SetDriver replaces the driver for the operations that begin from now on.
func (f *Store) SetDriver(driver Driver) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.driver = driver
}

// Ops returns how many operations have begun.
func (f *Store) Ops() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// CrashAt makes operation number n and all that begin later fail with
// ErrCrashed. effect says whether number n still takes effect. n 0 is never,
// and so revives a crashed store.
func (f *Store) CrashAt(n int64, effect bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt, f.effect = n, effect
}

// Crashed says whether the crash has come.
func (f *Store) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashAt > 0 && f.ops >= f.crashAt
}

// LandAll lets all writes that are late take effect now, in their order.
func (f *Store) LandAll() { f.land(1<<63 - 1) }

// land lets the late writes land that are due by operation number n.
func (f *Store) land(n int64) {
	f.mu.Lock()
	slices.SortStableFunc(f.late, func(a, b late) int { return cmp.Compare(a.at, b.at) })
	i := 0
	for i < len(f.late) && f.late[i].at <= n {
		i++
	}
	due := slices.Clone(f.late[:i])
	f.late = slices.Delete(f.late, 0, i)
	f.mu.Unlock()
	for _, l := range due {
		l.do()
	}
}

// around does one operation. again, if not nil, prepares its effect for a late
// landing. again itself may use the caller's data; the function that it returns
// may not.
func (f *Store) around(ctx context.Context, op store.Op, again func() func(), call func(Fault) error) error {
	f.mu.Lock()
	f.ops++
	n := f.ops
	crash, effect := f.crashAt > 0 && n >= f.crashAt, f.effect && n == f.crashAt
	driver := f.driver
	f.mu.Unlock()
	if crash {
		if effect {
			_ = call(Fault{})
		}
		return fmt.Errorf("%s: %w", op, ErrCrashed)
	}
	f.land(n)
	var fault Fault
	if driver != nil {
		fault = driver(Op{Op: op, N: n})
	}
	if fault.Delay > 0 {
		t := time.NewTimer(fault.Delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return &store.TransportError{Op: op.String(), Sent: true, Err: context.Cause(ctx)}
		}
	}
	if fault.Late > 0 && again != nil {
		do := again()
		f.mu.Lock()
		f.late = append(f.late, late{n + fault.Late, do})
		f.mu.Unlock()
	}
	if fault.Err == nil && !fault.Hang {
		return call(fault)
	}
	if fault.After {
		if err := call(fault); err != nil {
			return err
		}
	}
	if fault.Hang {
		<-ctx.Done()
		return &store.TransportError{Op: op.String(), Sent: true, Err: context.Cause(ctx)}
	}
	return fault.Err
}

// Put implements store.Store.
func (f *Store) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	put := func(ctx context.Context, data []byte) error {
		return f.write(ctx, name, true, data, func() error { return f.inner.Put(ctx, name, data, etag) })
	}
	again := func() func() {
		data := slices.Clone(data)
		return func() { _ = put(context.Background(), data) }
	}
	op := store.Op{Kind: store.OpPut, Name: name, Bytes: len(data)}
	return f.around(ctx, op, again, func(Fault) error { return put(ctx, data) })
}

// Delete implements store.Store.
func (f *Store) Delete(ctx context.Context, name string) error {
	del := func(ctx context.Context) error {
		return f.write(ctx, name, false, nil, func() error { return f.inner.Delete(ctx, name) })
	}
	again := func() func() { return func() { _ = del(context.Background()) } }
	return f.around(ctx, store.Op{Kind: store.OpDelete, Name: name}, again, func(Fault) error { return del(ctx) })
}

// Get implements store.Store.
func (f *Store) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	op := store.Op{Kind: store.OpGet, Name: name, Bytes: len(p), Fresh: o.Newest || o.IfMatch != ""}
	var info store.ObjectInfo
	err := f.around(ctx, op, nil, func(fault Fault) error {
		if fault.Stale > 0 && !op.Fresh {
			if v, ok := f.version(name, fault.Stale); ok {
				var err error
				info, err = v.get(op, p, o)
				return err
			}
		}
		if fault.Short <= 0 {
			var err error
			info, err = f.inner.Get(ctx, name, p, o)
			return err
		}
		whole, quiet := make([]byte, len(p)), o
		quiet.Arrived = nil
		if _, err := f.inner.Get(ctx, name, whole, quiet); err != nil {
			return err
		}
		n := o.Fill(p, whole[:max(0, len(p)-fault.Short)])
		return &store.TransportError{Op: op.String(), Sent: true, Err: fmt.Errorf("the answer was cut short after %d bytes", n)}
	})
	return info, err
}

// get answers a Get with this version.
func (v version) get(op store.Op, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if !v.exists {
		return store.ObjectInfo{}, &store.StatusError{Op: op.String(), Code: 404, Err: store.ErrNotFound}
	}
	if size := int64(len(v.data)); o.Offset > size || int64(len(p)) > size-o.Offset {
		return store.ObjectInfo{}, fmt.Errorf("%s: the object has %d bytes: %w", op, len(v.data), io.ErrUnexpectedEOF)
	}
	o.Fill(p, v.data[o.Offset:])
	return v.info, nil
}
