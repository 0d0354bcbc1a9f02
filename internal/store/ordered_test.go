// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// slow is a store with a network before it: writes that are not answered may
// be carried out later, as long as their signature is good.
type slow struct {
	store.Store
	signed time.Duration // how long signatures are good; 0: they are not
	late   store.Stragglers

	mu    sync.Mutex
	lates []time.Duration // for the writes to come: when they are carried out; 0: now, and answered
	heads int
	busy  sync.WaitGroup
}

func (s *slow) write(ctx context.Context, name string, do func(context.Context) error) error {
	s.mu.Lock()
	late := time.Duration(0)
	if len(s.lates) > 0 {
		late, s.lates = s.lates[0], s.lates[1:]
	}
	s.mu.Unlock()
	if late == 0 {
		return do(ctx)
	}
	sent := time.Now()
	s.busy.Go(func() {
		time.Sleep(late)
		if s.signed == 0 || time.Since(sent) < s.signed {
			_ = do(context.WithoutCancel(ctx))
		}
	})
	if s.signed > 0 {
		s.late.MayLand(name, sent.Add(s.signed))
	}
	return &store.TransportError{Op: "PUT", Sent: true, Err: errors.New("connection reset by peer")}
}

func (s *slow) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	return s.write(ctx, name, func(ctx context.Context) error { return s.Store.Put(ctx, name, data, etag) })
}

func (s *slow) Delete(ctx context.Context, name string) error {
	return s.write(ctx, name, func(ctx context.Context) error { return s.Store.Delete(ctx, name) })
}

func (s *slow) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	s.mu.Lock()
	s.heads++
	s.mu.Unlock()
	return s.Store.Head(ctx, name)
}

func etagOf(data string) store.ETag {
	sum := md5.Sum([]byte(data))
	return store.ETag(hex.EncodeToString(sum[:]))
}

// slowly makes the stores: as they are meant to be put together, and without
// Ordered.
func slowly(t *testing.T, signed time.Duration, ordered bool) (*slow, store.Store) {
	t.Helper()
	m := mem.New()
	if _, err := m.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	net := &slow{Store: m, signed: signed}
	s := store.Limit(store.Retry(net, store.Policy{Timeout: time.Minute}), 4)
	if ordered {
		s = store.Ordered(s, &net.late)
	}
	return net, s
}

func put(t *testing.T, s store.Store, data string) error {
	t.Helper()
	return s.Put(t.Context(), "o", []byte(data), etagOf(data))
}

// is holds the object against data; "" is none. What is late has come by then.
func is(t *testing.T, net *slow, data string) bool {
	t.Helper()
	net.busy.Wait()
	info, err := net.Store.Head(t.Context(), "o")
	if data == "" {
		return errors.Is(err, store.ErrNotFound)
	}
	return err == nil && info.ETag == etagOf(data)
}

// TestOrdered has a write be carried out after the next one of the same object
// has been acknowledged: within an operation that is tried again, after one
// that has failed, a PUT and a DELETE, each against each. Without Ordered, or
// where what is late is not refused, the acknowledged one is lost, which shows
// that this test can fail.
func TestOrdered(t *testing.T) {
	const late = 4 * time.Second
	for name, c := range map[string]struct {
		before func(t *testing.T, s store.Store) error
		after  func(t *testing.T, s store.Store) error
		want   string
	}{
		"put, put": {
			func(t *testing.T, s store.Store) error { return put(t, s, "old") },
			func(t *testing.T, s store.Store) error { return put(t, s, "new") }, "new"},
		"delete, put": {
			func(t *testing.T, s store.Store) error { return s.Delete(t.Context(), "o") },
			func(t *testing.T, s store.Store) error { return put(t, s, "new") }, "new"},
		"put, delete": {
			func(t *testing.T, s store.Store) error { return put(t, s, "old") },
			func(t *testing.T, s store.Store) error { return s.Delete(t.Context(), "o") }, ""},
	} {
		for _, how := range []struct {
			signed  time.Duration
			ordered bool
			kept    bool
		}{{10 * time.Second, true, true}, {10 * time.Second, false, false}, {0, true, false}} {
			inBubble(t, func(t *testing.T) {
				net, s := slowly(t, how.signed, how.ordered)
				if err := put(t, s, "first"); err != nil {
					t.Fatal(err)
				}
				net.lates = []time.Duration{late}
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				// It fails, as its time is up; or Retry does it again.
				_ = c.before(t, timed{s, ctx})
				err := c.after(t, s)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Fatal(err)
				}
				if kept := is(t, net, c.want); kept != how.kept {
					t.Errorf("%s, signed for %v, Ordered %t: what was acknowledged is kept: %t", name, how.signed, how.ordered, kept)
				}
			})
		}
	}
}

// timed makes operations with a context of its own.
type timed struct {
	store.Store
	ctx context.Context
}

func (s timed) Put(_ context.Context, name string, data []byte, etag store.ETag) error {
	return s.Store.Put(s.ctx, name, data, etag)
}
func (s timed) Delete(_ context.Context, name string) error { return s.Store.Delete(s.ctx, name) }

// TestOrderedWithin has an earlier attempt of the same operation be late, which
// does not matter, and of one before it too.
func TestOrderedWithin(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		net, s := slowly(t, 10*time.Second, true)
		net.lates = []time.Duration{3 * time.Second, 5 * time.Second, 20 * time.Second}
		begun := time.Now()
		if err := put(t, s, "a"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 10*time.Second || took > 25*time.Second {
			t.Errorf("it took %v", took)
		}
		if !is(t, net, "a") {
			t.Error("it is not there")
		}
		// All has come: no wait, and no look.
		net.heads, begun = 0, time.Now()
		if err := put(t, s, "b"); err != nil || time.Since(begun) > 0 || net.heads > 0 {
			t.Errorf("after that: %v, %v, %d looks", err, time.Since(begun), net.heads)
		}
		if err := s.Delete(t.Context(), "o"); err != nil || time.Since(begun) > 0 {
			t.Errorf("deleted: %v, %v", err, time.Since(begun))
		}
		if err := s.Delete(t.Context(), "o"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("deleted again: %v", err)
		}
	})
}

// TestOrderedLong has the next write come when what was late is refused by then:
// it waits for nothing. Others are not disturbed in between.
func TestOrderedLong(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		net, s := slowly(t, 10*time.Second, true)
		net.lates = []time.Duration{time.Hour}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := put(t, timed{s, ctx}, "old"); err == nil {
			t.Fatal("written")
		}
		begun := time.Now()
		if err := s.Put(t.Context(), "another", []byte("x"), ""); err != nil || time.Since(begun) > 0 {
			t.Errorf("another object: %v, %v", err, time.Since(begun))
		}
		time.Sleep(10*time.Second + 1)
		begun = time.Now()
		if err := put(t, s, "new"); err != nil || time.Since(begun) > 0 || net.heads > 0 {
			t.Errorf("%v, %v, %d looks", err, time.Since(begun), net.heads)
		}
		if !is(t, net, "new") {
			t.Error("what was acknowledged is lost")
		}
	})
}

// TestOrderedCancelled has the caller leave while what was late is waited for:
// the write has not been confirmed, and the next one is.
func TestOrderedCancelled(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		net, s := slowly(t, 10*time.Second, true)
		net.lates = []time.Duration{8 * time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := put(t, timed{s, ctx}, "a"); !errors.Is(err, context.DeadlineExceeded) || !store.Transient(err) {
			t.Errorf("cancelled: %v", err)
		}
		if err := put(t, s, "b"); err != nil {
			t.Fatal(err)
		}
		if !is(t, net, "b") {
			t.Error("what was acknowledged is lost")
		}
	})
}
