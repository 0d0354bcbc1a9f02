// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/store/storetest"
)

// gate is a store whose Delete operations stay until they are let go; it
// records the names in the order in which they began.
type gate struct {
	store.Store
	mu      sync.Mutex
	began   []string
	running int
	most    int
	let     chan struct{}
}

func newGate() *gate { return &gate{Store: mem.New(), let: make(chan struct{})} }

func (g *gate) Delete(ctx context.Context, name string) error {
	g.mu.Lock()
	g.began = append(g.began, name)
	g.running++
	g.most = max(g.most, g.running)
	g.mu.Unlock()
	<-g.let
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	return nil
}

// start begins n operations of a class, in order.
func start(ctx context.Context, l *store.Limiter, g *gate, class store.Class, prefix string, n int) {
	s := l.StoreAs(class, g)
	for i := range n {
		go func() { _ = s.Delete(ctx, fmt.Sprint(prefix, i)) }()
		synctest.Wait()
	}
}

func (g *gate) letGo(n int) {
	for range n {
		g.let <- struct{}{}
		synctest.Wait()
	}
}

func (g *gate) wantBegan(t *testing.T, want ...string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.began, want) {
		t.Errorf("began %q, want %q", g.began, want)
	}
	g.began = nil
}

func TestLimitConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.Limit(mem.New(), 3) })
}

// TestLimitClasses follows the slots of a limiter of 4, one of them Background's.
func TestLimitClasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		l := store.NewLimiter(4)
		ctx := t.Context()
		// Background alone may have them all.
		start(ctx, l, g, store.Background, "b", 6)
		g.wantBegan(t, "b0", "b1", "b2", "b3")
		start(ctx, l, g, store.Foreground, "f", 3)
		g.wantBegan(t)
		if got, want := l.Load(), (store.Load{Background: 4, WaitingForeground: 3, WaitingBackground: 2}); got != want {
			t.Errorf("load %+v, want %+v", got, want)
		}
		// What waits in the foreground comes first, until background has
		// no more than its own slot.
		g.letGo(3)
		g.wantBegan(t, "f0", "f1", "f2")
		g.letGo(4)
		g.letGo(2)
		g.wantBegan(t, "b4", "b5")
		if got := l.Load(); got != (store.Load{}) {
			t.Errorf("load %+v at the end", got)
		}
		if g.most != 4 {
			t.Errorf("%d at once, want 4", g.most)
		}
	})
}

// TestLimitBackgroundIsNotStarved has more readers than slots, all the time.
func TestLimitBackgroundIsNotStarved(t *testing.T) {
	for _, slots := range []int{1, 2, 16} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate()
			l := store.NewLimiter(slots)
			start(t.Context(), l, g, store.Foreground, "f", 2*slots)
			start(t.Context(), l, g, store.Background, "b", 1)
			g.wantBegan(t, names("f", slots)...)
			g.letGo(1)
			g.wantBegan(t, "b0")
			g.letGo(2 * slots)
		})
	}
}

func names(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(prefix, i))
	}
	return all
}

// TestLimitOneSlot lets the classes take turns.
func TestLimitOneSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		l := store.NewLimiter(1)
		start(t.Context(), l, g, store.Background, "b", 3)
		start(t.Context(), l, g, store.Foreground, "f", 3)
		g.letGo(6)
		g.wantBegan(t, "b0", "f0", "b1", "f1", "b2", "f2")
		if g.most != 1 {
			t.Errorf("%d at once", g.most)
		}
	})
}

func TestLimitUnlimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		l := store.NewLimiter(1)
		start(t.Context(), l, g, store.Foreground, "f", 2)
		start(t.Context(), l, g, store.Unlimited, "u", 2)
		g.wantBegan(t, "f0", "u0", "u1")
		g.letGo(4)
		g.wantBegan(t, "f1")
	})
}

// TestLimitCancel leaves the queue, from its middle, and gives the slot back
// that it was given at the same moment.
func TestLimitCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		l := store.NewLimiter(1)
		s := l.Store(g)
		start(t.Context(), l, g, store.Foreground, "f", 1)
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		var err error
		go func() { err = s.Delete(ctx, "cancelled") }()
		synctest.Wait()
		start(t.Context(), l, g, store.Foreground, "g", 1)
		cancel(gone)
		synctest.Wait()
		if !errors.Is(err, gone) || store.Ambiguous(err) {
			t.Errorf("cancelled while waiting: %v", err)
		}
		g.letGo(2)
		g.wantBegan(t, "f0", "g0")
		if err := s.Delete(ctx, "late"); !errors.Is(err, gone) {
			t.Errorf("cancelled before: %v", err)
		}
		if got := l.Load(); got != (store.Load{}) {
			t.Errorf("load %+v at the end: a slot is lost", got)
		}
	})
}

// hook is a store whose Delete does something else.
type hook struct {
	store.Store
	do func()
}

func (h *hook) Delete(context.Context, string) error {
	h.do()
	return nil
}

// TestLimitCancelAsTheSlotComes gives up at the moment at which the slot is
// granted, many times, and checks that no slot is lost.
func TestLimitCancelAsTheSlotComes(t *testing.T) {
	h := &hook{Store: mem.New()}
	l := store.NewLimiter(1)
	s := l.Store(h)
	for range 5000 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		h.do = func() {
			go func() {
				defer close(done)
				_, _ = s.Head(ctx, "o")
			}()
			for l.Load().WaitingForeground == 0 {
				runtime.Gosched()
			}
			cancel() // and the slot is free right after
		}
		_ = s.Delete(t.Context(), "o")
		<-done
		if got := l.Load(); got != (store.Load{}) {
			t.Fatalf("load %+v at the end: a slot is lost", got)
		}
	}
}
