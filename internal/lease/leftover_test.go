// SPDX-License-Identifier: MIT

package lease_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

// dies has a process that takes the volume die before its request n.
func dies(p *party, n int) {
	p.set(func(r request, call func() error) error {
		if r.n >= n {
			return errDead
		}
		return call()
	})
	_, _ = p.acquire()
	p.kill()
}

// TestUnlockLeftover has a process die at each request while it takes the volume. Where
// it leaves no mark, and a lease that keeps others away, an unlock ends that: the next
// one has the volume at once. What the lease before has kept stays.
func TestUnlockLeftover(t *testing.T) {
	named, unnamed := 0, 0
	for n := 2; n < 12; n++ {
		inScene(t, func(t *testing.T, s *scene) {
			first := s.party("first")
			first.extra = map[string]string{"Swiftnbd-Lease-Word": "kept"}
			first.mustAcquire()
			first.kill()
			time.Sleep(10 * term)
			if _, err := lease.Unlock(t.Context(), s.party("operator").options()); err != nil {
				t.Fatal(err)
			}

			a, b := s.party("a"), s.party("b")
			dies(a, n)
			left := len(s.leases()) > 1
			if read(t, s.volume()).Client != "" || !left {
				return // an unlock of old, or nothing has happened
			}
			was, err := lease.Unlock(t.Context(), b.options())
			if err != nil {
				t.Fatalf("dead at request %d: %v", n, err)
			}
			if was.Mark != "" || was.Epoch == 0 {
				t.Errorf("dead at request %d: it was %+v", n, was)
			}
			switch was.Holder {
			case "a":
				named++
			case "":
				unnamed++
			default:
				t.Errorf("it was of %s", was.Holder)
			}
			begun := time.Now()
			b.mustAcquire()
			if d := time.Since(begun); d > 2*time.Second {
				t.Errorf("dead at request %d: b has waited for %v", n, d)
			}
			if k := b.has().Former()["Swiftnbd-Lease-Word"]; len(k) != 1 || k[0] != "kept" {
				t.Errorf("dead at request %d: kept is %v", n, b.has().Former())
			}
			b.writes("after it")
			if err := b.has().Release(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := lease.Unlock(t.Context(), b.options()); !errors.Is(err, lease.ErrNotLocked) {
				t.Errorf("unlocked once more: %v", err)
			}
		})
	}
	if named == 0 || unnamed == 0 {
		t.Errorf("%d with a name and %d without", named, unnamed)
	}
}

// TestUnlockBesideTaking has an unlock begin while a process takes the volume, that is
// stopped for a time before one of its requests. Whatever comes of it, there is one
// holder at most, with a third one who comes then, and the volume can be had.
func TestUnlockBesideTaking(t *testing.T) {
	var taken, ended int
	for n := 2; n < 12; n++ {
		for _, pause := range []time.Duration{time.Second, 4 * time.Second, 15 * time.Second, 30 * time.Second} {
			inScene(t, func(t *testing.T, s *scene) {
				a, b, c := s.party("a"), s.party("b"), s.party("c")
				a.set(func(r request, call func() error) error {
					if r.n == n {
						time.Sleep(pause)
					}
					return call()
				})
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = a.acquire() })
				wg.Go(func() {
					time.Sleep(500 * time.Millisecond)
					was, err := lease.Unlock(t.Context(), b.options())
					var other *lease.TakenError
					switch {
					case err == nil && was.Mark != "":
						return // taken from a holder, who does not know it yet
					case err == nil:
						ended++
					case errors.As(err, &other):
						taken++
					case !errors.Is(err, lease.ErrNotLocked):
						t.Errorf("%d, %v: %v", n, pause, err)
					}
					_, _ = c.acquire()
				})
				for range 400 {
					if a.holds() && c.holds() {
						t.Errorf("%d, %v: a and c have it", n, pause)
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				wg.Wait()
				if !a.holds() && !c.holds() {
					s.becomesFree(s.party("d"), a)
				}
			})
		}
	}
	if taken == 0 || ended == 0 {
		t.Errorf("%d taken and %d ended", taken, ended)
	}
}

// TestUnlockLeftoverFails has each request of such an unlock fail. It can be done
// again, and the volume can be had in the end.
func TestUnlockLeftoverFails(t *testing.T) {
	eachFault(t, 50, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		dies(a, 5)
		b.set(f.hook(seen))
		_, err := lease.Unlock(t.Context(), b.options())
		b.set(nil)
		if err != nil {
			if _, err := lease.Unlock(t.Context(), b.options()); err != nil && !errors.Is(err, lease.ErrNotLocked) {
				t.Errorf("again: %v", err)
			}
		}
		begun := time.Now()
		c.mustAcquire()
		if d := time.Since(begun); d > 25*time.Second {
			t.Errorf("it cannot be had for %v", d)
		}
		c.writes("after it")
	})
}

// TestUnlockNumberStays has one who waits behind a lease that was left take the next
// number while an unlock ends that lease, and a third one come after the unlock, who
// looks at the volume before the mark of the other is there. Only one gets it.
func TestUnlockNumberStays(t *testing.T) {
	met := false
	for range 100 {
		inScene(t, func(t *testing.T, s *scene) { met = besideUnlock(t, s) || met })
		if met && t.Failed() {
			return
		}
	}
	if !met {
		t.Error("the unlock has seen the other one each time: this test shows nothing")
	}
}

// besideUnlock says whether the unlock has not seen the other one.
func besideUnlock(t *testing.T, s *scene) bool {
	a, b, x, c := s.party("a"), s.party("b"), s.party("x"), s.party("c")
	dies(a, 4)
	if l := s.leases(); len(l) != 1 {
		t.Fatalf("leases %q", l)
	}
	next := lease.ContainerName("v", 2)
	// Who sets their mark waits before that.
	type gate struct{ at, goes chan struct{} }
	gated := func(p *party) gate {
		g := gate{make(chan struct{}), make(chan struct{})}
		var once sync.Once
		p.set(func(r request, call func() error) error {
			if r.container == "v" && r.Kind == store.OpSetMetadata {
				once.Do(func() {
					close(g.at)
					<-g.goes
				})
			}
			return call()
		})
		return g
	}
	xg, cg := gated(x), gated(c)
	b.set(func(r request, call func() error) error {
		if r.container == next && r.Kind == store.OpCreateContainer {
			<-xg.at // x has it
		}
		return call()
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _, _ = x.acquire() })
	if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
		if !errors.As(err, new(*lease.TakenError)) {
			t.Error(err)
		}
		close(xg.goes)
		return false
	}
	wg.Go(func() { _, _ = c.acquire() })
	<-cg.at
	close(xg.goes)
	time.Sleep(time.Second)
	close(cg.goes)
	time.Sleep(time.Second)
	if x.holds() == c.holds() {
		t.Errorf("x has it: %v; c: %v", x.holds(), c.holds())
	}
	return true
}

// TestUnlockWhileTaking has an operator unlock the volume between any two requests of a
// process that takes it. The process does not believe that it holds what was unlocked.
func TestUnlockWhileTaking(t *testing.T) {
	unlocked := 0
	for n := 1; n < 10; n++ { // from the tenth on it holds it
		inScene(t, func(t *testing.T, s *scene) {
			first := s.party("first") // so that there is a key, and a number
			first.mustAcquire()
			if err := first.has().Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			a, operator := s.party("a"), s.party("operator")
			a.set(func(r request, call func() error) error {
				if r.n == n {
					if _, err := lease.Unlock(t.Context(), operator.options()); err == nil {
						unlocked++
					}
				}
				return call()
			})
			h, _, err := lease.Acquire(t.Context(), a.options())
			if err != nil {
				return
			}
			if is := read(t, s.volume()).Client; is != h.Mark() {
				t.Errorf("unlocked before request %d: it holds the volume, which has the mark %q", n, is)
			}
			if err := h.Release(t.Context()); err != nil {
				t.Errorf("unlocked before request %d: %v", n, err)
			}
		})
	}
	if unlocked < 2 {
		t.Errorf("unlocked %d times only", unlocked)
	}
}

// TestLockBehindEnded has an operator lock and unlock a volume whose holder has died. No
// lease stays.
func TestLockBehindEnded(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, operator := s.party("a"), s.party("operator")
		a.mustAcquire()
		a.kill()
		time.Sleep(10 * term)
		o := operator.options()
		o.Term = lease.Forever
		if _, _, err := lease.Acquire(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if n := len(s.leases()); n != 1 {
			t.Errorf("%d leases while it is locked", n)
		}
		if _, err := lease.Unlock(t.Context(), operator.options()); err != nil {
			t.Fatal(err)
		}
		if n := s.leases(); len(n) > 0 {
			t.Errorf("leases stay: %v", n)
		}
	})
}
