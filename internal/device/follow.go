// SPDX-License-Identifier: MIT

package device

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
)

// ErrNoFollow says that the volume is of version 1.
var ErrNoFollow = errors.New("a disk of version 1 of the format has no moments to follow")

// followed is a volume of version 2 that is read, and moves to newer moments of
// it. Each request sees one moment. A request that comes when the last look was
// Options.Follow ago first looks for a newer moment, and those that come meanwhile
// wait for it. If nobody reads, nothing is looked for. A moment that was left is
// closed when its last request has ended.
type followed struct {
	// newer opens the newest moment, or returns nil if it is cur still.
	newer   func(ctx context.Context, cur *logdisk.Disk) (*loggedDisk, error)
	every   time.Duration
	timeout time.Duration
	log     func(format string, args ...any)

	ctx     context.Context // of the looks, and of all requests
	cancel  context.CancelCauseFunc
	looking chan struct{} // has an item while somebody looks
	looked  atomic.Int64  // when the last look began, Unix ns
	closing sync.WaitGroup

	mu   sync.RWMutex // guards all below
	cur  *followedMoment
	past Stats // of the moments that were left
}

// followedMoment is a moment, and who reads it.
type followedMoment struct {
	*loggedDisk
	users sync.WaitGroup
}

func newFollowed(first *loggedDisk, o Options, newer func(context.Context, *logdisk.Disk) (*loggedDisk, error)) *followed {
	f := &followed{newer: newer, every: o.Follow, timeout: max(o.Timeout, time.Second), log: o.Log,
		looking: make(chan struct{}, 1), cur: &followedMoment{loggedDisk: first}}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.looked.Store(time.Now().UnixNano())
	return f
}

// current returns the moment that is read now. users.Done is the caller's to call.
func (f *followed) current() *followedMoment {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.cur.users.Add(1)
	return f.cur
}

// due says whether a request that came at a time needs a look for a newer moment: the
// last one began too long before. So those that wait for a look do not each look again,
// one after the other.
func (f *followed) due(came time.Time) bool {
	return came.Sub(time.Unix(0, f.looked.Load())) >= f.every
}

// look moves to the newest moment if it is time, or if over is read still, which is
// a moment that is over. If it fails, the moment stays.
func (f *followed) look(ctx context.Context, over *followedMoment) {
	came := time.Now()
	if over == nil && !f.due(came) {
		return
	}
	select {
	case f.looking <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-f.looking }()
	cur := f.current()
	defer cur.users.Done()
	if over == nil && !f.due(came) || over != nil && (cur != over || f.looked.Load() > came.UnixNano()) {
		return // somebody has
	}
	begun := time.Now()
	within, cancel := context.WithTimeout(f.ctx, f.timeout)
	defer cancel()
	d, err := f.newer(within, cur.Disk)
	f.looked.Store(begun.UnixNano())
	switch {
	case err != nil:
		// Who has come meanwhile has waited for long enough, perhaps for most of timeout.
		f.looked.Store(time.Now().UnixNano())
		if f.ctx.Err() == nil {
			f.log("look for a newer moment of the disk: %v (tried again; until then clients read the one before)", err)
		}
		return
	case d == nil:
		return
	}
	f.mu.Lock()
	f.cur = &followedMoment{loggedDisk: d}
	f.mu.Unlock()
	f.closing.Go(func() {
		cur.users.Wait()
		f.mu.Lock()
		s := cur.Stats()
		f.past.add(s)
		f.mu.Unlock()
		cur.loggedDisk.Close()
	})
}

// do has a request read one moment. If that is over, it reads the newest one.
func (f *followed) do(ctx context.Context, request func(d *loggedDisk) error) error {
	f.look(ctx, nil)
	try := func() (m *followedMoment, err error) {
		m = f.current()
		defer m.users.Done() // also after a panic, which ends this request alone
		return m, request(m.loggedDisk)
	}
	m, err := try()
	if errors.As(err, new(*logdisk.GoneError)) {
		f.look(ctx, m)
		_, err = try()
	}
	return err
}

// inside says whether a range lies on a moment's disk, which may have become
// smaller.
func inside(d *loggedDisk, off, n int64) error {
	if size := d.Size(); off > size || n > size-off {
		return ErrOutOfRange
	}
	return nil
}

func (f *followed) Read(ctx context.Context, p []byte, off int64) error {
	return f.do(ctx, func(d *loggedDisk) error {
		if err := inside(d, off, int64(len(p))); err != nil {
			return err
		}
		return d.Read(ctx, p, off)
	})
}

func (f *followed) Extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) error {
	// What was told of one moment cannot be taken back.
	return f.do(ctx, func(d *loggedDisk) error {
		if err := inside(d, off, n); err != nil {
			return err
		}
		return d.Extents(ctx, off, n, emit)
	})
}

func (f *followed) Prefetch(ctx context.Context, off, n int64) error {
	return f.do(ctx, func(d *loggedDisk) error {
		if err := inside(d, off, n); err != nil {
			return err
		}
		return d.Prefetch(ctx, off, n)
	})
}

func (f *followed) Advise(off, n int64) {
	m := f.current()
	defer m.users.Done()
	if inside(m.loggedDisk, off, n) == nil {
		m.Advise(off, n)
	}
}

func (f *followed) Size() int64 {
	m := f.current()
	defer m.users.Done()
	return m.Size()
}

func (f *followed) Stats() Stats {
	m := f.current()
	defer m.users.Done()
	s := m.Stats()
	f.mu.RLock()
	defer f.mu.RUnlock()
	s.add(f.past)
	return s
}

// add adds what another has counted.
func (s *Stats) add(o Stats) {
	s.Hits += o.Hits
	s.Misses += o.Misses
	s.Fetches += o.Fetches
	s.Ahead += o.Ahead
	s.Failures += o.Failures
	s.Evicted += o.Evicted
	s.Flushes += o.Flushes
}

// Nothing is ever written.

func (f *followed) Write(context.Context, []byte, int64) error     { return ErrReadOnly }
func (f *followed) Zero(context.Context, int64, int64) error       { return ErrReadOnly }
func (f *followed) Trim(context.Context, int64, int64) error       { return ErrReadOnly }
func (f *followed) FastZero(int64, int64) bool                     { return false }
func (f *followed) Flush(context.Context) error                    { return nil }
func (f *followed) FlushRange(context.Context, int64, int64) error { return nil }
func (f *followed) Drain(context.Context) error                    { return nil }
func (f *followed) Dirty() (bytes int64, chunks int)               { return 0, 0 }
func (f *followed) Save(context.Context) (Ending, error)           { return Ending{Unchanged: true}, nil }
func (f *followed) Unit() string                                   { return "object" }
func (f *followed) Preferred() int64                               { return layout.BlockSize }
func (f *followed) Context() context.Context                       { return f.ctx }

func (f *followed) Close() {
	f.cancel(logdisk.ErrClosed)
	f.looking <- struct{}{} // nobody looks any more
	f.closing.Wait()
	f.cur.loggedDisk.Close()
}
