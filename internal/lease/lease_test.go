// SPDX-License-Identifier: MIT

package lease_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// TestLease takes a volume, and gives it back in each of the ways.
func TestLease(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		if meta := a.mustAcquire(); !meta.Blank || meta.Client != a.held.Mark() {
			t.Errorf("taken: %+v", meta)
		}
		first := items(t, s.volume())
		if first[volume.KeyClient] != a.held.Mark() || first[volume.KeyBlank] != "" || first[lease.KeyFence] == "" || first[lease.KeyEpoch] != "1" {
			t.Errorf("while it is held: %v", first)
		}
		a.writes("taken")
		_, err := b.acquire()
		le := s.refused("a second one", err, "a")
		if left := le.Until.Sub(le.Now); !le.Leased || left < term-2*time.Second || left > term+time.Second {
			t.Errorf("a second one is told %+v", le)
		}
		if err := b.write(); err == nil || s.written() != "a" {
			t.Error("a second one writes")
		}
		// Nothing of the content has changed, says whoever has it.
		if err := a.held.ReleaseUnchanged(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.isLost("given back")
		if now := s.leases(); len(now) > 0 {
			t.Errorf("left behind: %v", now)
		}
		if meta := b.mustAcquire(); !meta.Blank {
			t.Errorf("after one who wrote nothing: %+v", meta)
		}
		if now := items(t, s.volume()); now[lease.KeyEpoch] != "2" || now[lease.KeyFence] != first[lease.KeyFence] {
			t.Errorf("after a clean end: %v, before it %v", now, first)
		}
		if err := releaseMapped(b.held, t.Context()); err != nil {
			t.Fatal(err)
		}
		mark := b.held.Mark()
		if now := read(t, s.volume()); now.Client != "" || now.Last != mark || now.Map != mark || now.Blank {
			t.Errorf("given back with a map: %+v", now)
		}
		if meta := a.mustAcquire(); meta.Map != mark || meta.Last != mark {
			t.Errorf("after one with a map: %+v", meta)
		}
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := read(t, s.volume()); now.Client != "" || now.Last != a.held.Mark() || now.Map != "" {
			t.Errorf("given back without a map: %+v", now)
		}
		if err := a.held.Release(t.Context()); !errors.Is(err, lease.ErrLost) {
			t.Errorf("given back twice: %v", err)
		}
	})
}

// TestRenewals holds a volume for many times the term, by a clock that shows
// whole seconds, and proxies whose clocks differ by a second.
func TestRenewals(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		n := 0
		var mu sync.Mutex
		s.clock = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			n++
			return time.Now().Add(time.Duration(n%2) * time.Second).Truncate(time.Second)
		}
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		for range 1000 {
			time.Sleep(1700 * time.Millisecond)
			a.writes("renewed")
			_, err := b.acquire()
			s.refused("a second one", err, "a")
		}
		if now := s.leases(); len(now) != 1 || len(s.log) > 0 {
			t.Errorf("after all that: %v, %v", now, s.log)
		}
	})
}

// TestExclusive has many come at once, many times.
func TestExclusive(t *testing.T) {
	for _, plain := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			var all []*party
			for i := range 8 {
				p := s.party(fmt.Sprint("p", i))
				p.plain = plain
				// Requests overlap where they take their time.
				p.set(func(r request, call func() error) error {
					time.Sleep(time.Duration((r.n*7+i*13)%29) * time.Millisecond)
					err := call()
					time.Sleep(time.Duration((r.n*11+i*5)%17) * time.Millisecond)
					return err
				})
				all = append(all, p)
			}
			for round := range 300 {
				var mu sync.Mutex
				var wg sync.WaitGroup
				var holders []*party
				for _, p := range all {
					wg.Go(func() {
						_, err := p.acquire()
						var le *lease.LockedError
						if err != nil && !errors.As(err, &le) {
							t.Errorf("round %d: %s: %v", round, p.name, err)
						}
						if err == nil {
							mu.Lock()
							defer mu.Unlock()
							holders = append(holders, p)
						}
					})
				}
				wg.Wait()
				if len(holders) != 1 {
					t.Fatalf("round %d: %d have it", round, len(holders))
				}
				holders[0].writes("alone")
				if err := holders[0].held.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if now := s.leases(); len(now) > 0 {
				t.Errorf("left behind: %v", now)
			}
		})
	}
}

// TestOutage cuts a holder off for longer than the term, while nobody else
// comes: the same session goes on.
func TestOutage(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		for range 5 {
			time.Sleep(31 * time.Second)
			a.set(cut)
			time.Sleep(term - 21*time.Second)
			if !a.holds() {
				t.Error("lapsed within the term")
			}
			time.Sleep(3 * term)
			if err := a.write(); a.holds() || a.fence.Lost() != nil || err == nil {
				t.Errorf("after the term: holds %t, lost %v, write %v", a.holds(), a.fence.Lost(), err)
			}
			a.set(nil)
			time.Sleep(2 * time.Second)
			a.writes("after an outage")
			_, err := b.acquire()
			s.refused("after an outage", err, "a")
			if now := s.leases(); len(now) != 1 {
				t.Errorf("leases: %v", now)
			}
		}
		if !s.logged("a: ", "run out") || !s.logged("a: ", "renewed") {
			t.Errorf("the log: %q", s.log)
		}
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.mustAcquire()
	})
}

// TestTakeover has a holder cut off, or killed, and another come: not before
// the lease has ended, and then it is the other's for good.
func TestTakeover(t *testing.T) {
	for _, killed := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			// A blank volume is not called so after somebody had it.
			a.mustAcquire()
			mark, key := a.held.Mark(), items(t, s.volume())[lease.KeyFence]
			a.writes("first")
			if killed {
				a.mu.Lock()
				a.dead = true
				a.mu.Unlock()
			}
			a.set(cut)
			begun := time.Now()
			for {
				_, err := b.acquire()
				if err == nil {
					break
				}
				s.refused("while it is held", err, "a")
				if a.holds() && time.Since(begun) > term {
					t.Fatal("the holder goes on beyond its term")
				}
				time.Sleep(100 * time.Millisecond)
			}
			if a.holds() {
				t.Error("two hold it")
			}
			if took := time.Since(begun); took < term || took > term+grace+time.Second {
				t.Errorf("taken over after %v", took)
			}
			if !s.logged("b: ", "over from a") {
				t.Errorf("the log: %q", s.log)
			}
			meta := read(t, s.volume())
			if meta.Client != b.held.Mark() || meta.Last != mark || meta.Blank || meta.Map != "" {
				t.Errorf("taken over: %+v", meta)
			}
			if now := items(t, s.volume())[lease.KeyFence]; now == key || now == "" {
				t.Error("the key is as it was")
			}
			b.writes("taken over")
			a.set(nil)
			time.Sleep(5 * time.Second)
			if !killed {
				a.isLost("when it comes back")
				if err := a.held.Release(t.Context()); !errors.Is(err, lease.ErrLost) {
					t.Errorf("given back by whoever lost it: %v", err)
				}
			}
			time.Sleep(2 * term)
			b.writes("much later")
			if err := b.held.ReleaseUnchanged(t.Context()); err != nil {
				t.Fatal(err)
			}
			if now := read(t, s.volume()); now.Blank || now.Map != "" {
				t.Errorf("given back after a dead holder: %+v", now)
			}
		})
	}
}

// TestFence has a write that was signed by a holder arrive when another has
// the volume, and when nobody has.
func TestFence(t *testing.T) {
	for _, another := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			a.mustAcquire()
			arrive, done := make(chan struct{}), make(chan error)
			a.mu.Lock()
			a.under = func() { <-arrive }
			a.mu.Unlock()
			go func() { done <- a.write() }()
			synctest.Wait()
			a.set(cut)
			if another {
				time.Sleep(term + grace + time.Second)
				b.mustAcquire()
				b.writes("the next")
			} else {
				time.Sleep(11 * time.Second)
			}
			close(arrive)
			if err := <-done; !errors.Is(err, store.ErrFenced) {
				t.Errorf("a late write, another=%t: %v", another, err)
			}
			if w := s.written(); another && w != "b" || !another && w != "" {
				t.Errorf("%q has written", w)
			}
		})
	}
}

// TestFenceUnlocked has the key changed under a holder that knows nothing: its
// next write finds out at once.
func TestFenceUnlocked(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		a.writes("first")
		time.Sleep(5 * time.Second) // after the early look
		was, err := lease.Unlock(t.Context(), b.options())
		if err != nil || was.Mark != a.held.Mark() || !was.Leased || was.Expired || !was.Fenced || was.Epoch != 1 {
			t.Fatalf("unlocked: %+v, %v", was, err)
		}
		meta := read(t, s.volume())
		if meta.Client != "" || meta.Last != a.held.Mark() || meta.Blank || meta.Map != "" || len(s.leases()) > 0 {
			t.Errorf("unlocked: %+v, %v", meta, s.leases())
		}
		if err := a.write(); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a write of whoever had it: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		a.isLost("unlocked")
		b.mustAcquire()
		b.writes("the next")
		if _, err := lease.Unlock(t.Context(), a.options()); err != nil {
			t.Error(err)
		}
		if _, err := lease.Unlock(t.Context(), a.options()); !errors.Is(err, lease.ErrNotLocked) {
			t.Errorf("unlocked twice: %v", err)
		}
	})
}

// Test011 has swiftnbd 0.11 about, which knows the mark alone.
func Test011(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		unlock := lock011(t, s.volume(), "127.0.0.1:1@1700000000")
		time.Sleep(1000 * term)
		_, err := a.acquire()
		if le := s.refused("0.11's", err, "127.0.0.1:1"); le.Leased {
			t.Error("0.11's mark is called a lease")
		}
		unlock()
		a.mustAcquire()
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		// After us: the number of our last lease stands there still.
		unlock = lock011(t, s.volume(), "127.0.0.1:1@1700000001")
		time.Sleep(1000 * term)
		_, err = a.acquire()
		s.refused("0.11's after ours", err, "127.0.0.1:1")
		unlock()
		// It comes and goes between two of our looks.
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		lock011(t, s.volume(), "127.0.0.1:1@1700000002")()
		time.Sleep(term / 3)
		a.isLost("0.11 was here")
		// It has read the volume's metadata before we came, and sets its mark
		// after we have read ours back.
		var late func()
		b := s.party("b")
		b.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && r.container == "v" && late == nil {
				before := items(t, s.volume())
				late = func() {
					before[volume.KeyClient] = "127.0.0.1:1@1700000003"
					post(t, s.volume(), before)
				}
			}
			return call()
		})
		b.mustAcquire()
		late()
		time.Sleep(1500 * time.Millisecond)
		b.isLost("0.11 is here")
	})
}

// Test011Unlocks has 0.11's unlock take the mark away under a holder, and
// somebody come at once: the holder's writes are refused although nobody told
// it.
func Test011Unlocks(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		post(t, s.volume(), map[string]string{volume.KeyClient: "", volume.KeyLast: a.held.Mark()})
		b.mustAcquire()
		if err := a.write(); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a write of whoever had it: %v", err)
		}
		b.writes("the next")
		time.Sleep(term / 3)
		a.isLost("unlocked by 0.11")
		b.writes("later")
	})
}

// TestRetakeSlow has requests be so slow, once the lease has run out, that it cannot be taken
// again. The log says this, and not that somebody else has it. When they are quick again, so
// is the holder.
func TestRetakeSlow(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		a.mustAcquire()
		a.set(func(r request, call func() error) error {
			if a.holds() {
				return &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
			}
			time.Sleep(6 * time.Second)
			return call()
		})
		time.Sleep(3 * term)
		if a.holds() || !s.logged("cannot be renewed", "took too long") || s.logged("changed hands") {
			t.Errorf("it holds the volume: %v, the log: %q", a.holds(), s.log)
		}
		a.set(nil)
		time.Sleep(term)
		a.writes("quick again")
		if !s.logged("the lease is renewed") {
			t.Errorf("the log: %q", s.log)
		}
	})
}

// TestUncleanMap has what the volume says of its content come back, which a
// request that was late on its way may do, when somebody has written since.
func TestUncleanMap(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		before := read(t, s.volume())
		a.mustAcquire()
		a.writes("first")
		time.Sleep(5 * time.Second)
		post(t, s.volume(), map[string]string{volume.KeyClient: "", volume.KeyBlank: before.Last})
		if _, err := b.acquire(); err == nil || !a.holds() {
			t.Errorf("taken from one who does not know it: %v", err)
		}
		time.Sleep(term / 3)
		if meta := b.mustAcquire(); meta.Blank {
			t.Errorf("believed to be blank: %+v", meta)
		}
		if err := b.held.ReleaseUnchanged(t.Context()); err != nil {
			t.Fatal(err)
		}
		if meta := read(t, s.volume()); meta.Blank {
			t.Errorf("called blank: %+v", meta)
		}
	})
}

// TestForever is an operator's lock.
func TestForever(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.term = lease.Forever
		a.mustAcquire()
		time.Sleep(1000 * time.Hour)
		_, err := b.acquire()
		if le := s.refused("locked", err, "a"); le.Leased {
			t.Error("it is said to end")
		}
		a.writes("much later")
		state, err := lease.Inspect(t.Context(), b.options())
		if err != nil || !state.Leased || !state.Never || state.Expired || state.Held() == nil {
			t.Errorf("inspected: %+v, %v", state, err)
		}
		if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
			t.Fatal(err)
		}
		if err := a.held.ReleaseUnchanged(t.Context()); !errors.Is(err, lease.ErrLost) {
			t.Errorf("given back: %v", err)
		}
		b.mustAcquire()
		if err := b.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.mustAcquire()
		if err := a.held.ReleaseUnchanged(t.Context()); err != nil || len(s.leases()) > 0 {
			t.Errorf("given back: %v, %v", err, s.leases())
		}
	})
}

// TestKeep leaves a volume held by a process that is gone.
func TestKeep(t *testing.T) {
	for _, reachable := range []bool{true, false} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			a.mustAcquire()
			if !reachable {
				a.set(cut)
			}
			a.held.Keep(t.Context())
			a.set(nil)
			a.isLost("kept")
			time.Sleep(100 * term)
			_, err := b.acquire()
			if reachable {
				s.refused("kept", err, "a")
				if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
					t.Error(err)
				}
				b.mustAcquire()
			} else if err != nil {
				t.Errorf("its lease has run out: %v", err)
			}
		})
	}
}

// TestMarkOnly falls back to the mark.
func TestMarkOnly(t *testing.T) {
	for _, forbidden := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			if forbidden {
				a.set(func(r request, call func() error) error {
					if r.container != "v" {
						return &store.StatusError{Op: r.String(), Code: 403, Err: store.ErrForbidden}
					}
					return call()
				})
			} else {
				a.term = 0
			}
			// Also after somebody who may do more.
			b.mustAcquire()
			_, err := a.acquire()
			s.refused("while it is another's", err, "b")
			if err := b.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.mustAcquire()
			if forbidden != s.logged("a: ", "mark only") {
				t.Errorf("the log: %q", s.log)
			}
			time.Sleep(1000 * term)
			a.writes("much later")
			_, err = b.acquire()
			s.refused("while it is marked", err, "a")
			unlock := lock011(t, s.volume(), "127.0.0.1:1@1")
			time.Sleep(15 * time.Second)
			a.isLost("marked by another")
			unlock()
			// Two who set their marks at once, the second after the first has
			// read its own back.
			a.set(nil)
			a.term = 0
			go func() {
				time.Sleep(500 * time.Millisecond)
				post(t, s.volume(), map[string]string{volume.KeyClient: "127.0.0.1:1@2"})
			}()
			if _, err := a.acquire(); err == nil {
				t.Error("taken, and another has set its mark")
			}
		})
	}
}
