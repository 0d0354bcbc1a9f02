// SPDX-License-Identifier: MIT

package lease_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// TestMargin has a holder stop before its lease's end, whatever whole second a
// proxy shows.
func TestMargin(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		a.mustAcquire()
		for range 500 {
			time.Sleep(1130 * time.Millisecond)
			g, err := a.fences().Grant()
			if err != nil {
				t.Fatal(err)
			}
			if left := g.UntilServer.Sub(g.Until); left < 900*time.Millisecond {
				t.Errorf("it stops %v before its lease ends", left)
			}
		}
	})
}

// TestClockJumps has the cluster's clock be further ahead than a holder has
// reckoned, as it is for one whose machine was asleep. What it promises itself
// is not more than others see.
func TestClockJumps(t *testing.T) {
	for _, wait := range []time.Duration{0, 3 * time.Second, 18 * time.Second} {
		inScene(t, func(t *testing.T, s *scene) {
			var ahead atomic.Int64
			s.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())).Truncate(time.Second) }
			a, b := s.party("a"), s.party("b")
			a.mustAcquire()
			time.Sleep(5*time.Second + wait)
			ahead.Store(int64(30 * time.Second))
			// One renewal more, which is reckoned with the clock of before.
			var seen atomic.Bool
			a.set(func(r request, call func() error) error {
				if seen.Load() {
					return cut(r, call)
				}
				seen.Store(r.container == "v")
				return call()
			})
			for {
				if _, err := b.acquire(); err == nil {
					break
				}
				time.Sleep(200 * time.Millisecond)
			}
			if a.holds() {
				t.Errorf("both hold it, after %v", wait)
			}
		})
	}
}

// TestMeanwhile has two come and one of them go between a look at the volume
// and the creation of what looks like the next lease: whoever has the volume by
// then is left alone.
func TestMeanwhile(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		done := false
		a.set(func(r request, call func() error) error {
			if r.Kind == store.OpCreateContainer && !done {
				done = true
				b.mustAcquire()
				if err := b.held.Release(t.Context()); err != nil {
					t.Error(err)
				}
				c.mustAcquire()
			}
			return call()
		})
		_, err := a.acquire()
		s.refused("meanwhile", err, "c")
		time.Sleep(5 * time.Second)
		c.writes("meanwhile")
		if now := s.leases(); len(now) != 1 {
			t.Errorf("left behind: %v", now)
		}
	})
}

// TestLateNumber has a number be set late that is not the holder's: the holder
// sets it right, and meanwhile it is known to hold the volume.
func TestLateNumber(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		for range 3 {
			a.mustAcquire()
			if err := a.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		a.mustAcquire()
		for _, number := range []string{"2", "7", "nonsense"} {
			time.Sleep(term)
			post(t, s.volume(), map[string]string{lease.KeyEpoch: number})
			_, err := b.acquire()
			if le := s.refused(number, err, "a"); !le.Leased && number != "nonsense" {
				t.Errorf("%s: not known as a lease", number)
			}
			time.Sleep(term / 3)
			a.writes(number)
			if now := items(t, s.volume())[lease.KeyEpoch]; now != "4" {
				t.Errorf("%s: it stays %s", number, now)
			}
		}
		// Of one who is dead, too.
		post(t, s.volume(), map[string]string{lease.KeyEpoch: "2"})
		a.set(cut)
		time.Sleep(term + grace)
		b.mustAcquire()
	})
}

// TestLateRenewals has a renewal's request arrive once more when the next has
// been made: it does not make the lease end earlier than its holder knows.
func TestLateRenewals(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		var mu sync.Mutex
		var calls []func() error
		a.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && strings.Contains(r.container, "lease") {
				mu.Lock()
				calls = append(calls, call)
				mu.Unlock()
			}
			return call()
		})
		time.Sleep(10*term + 5*time.Second)
		a.set(cut)
		mu.Lock()
		if err := calls[len(calls)-2](); err != nil {
			t.Error(err)
		}
		mu.Unlock()
		for a.holds() {
			_, err := b.acquire()
			s.refused("held", err, "a")
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * grace)
		b.mustAcquire()
	})
}

// TestRetakeUnlocked has a volume be unlocked, and taken, in the middle of
// being taken again.
func TestRetakeUnlocked(t *testing.T) {
	for _, plain := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			a.plain, b.plain = plain, plain
			a.mustAcquire()
			a.set(cut)
			time.Sleep(term)
			var held atomic.Bool
			look := func() {
				if a.holds() {
					held.Store(true)
				}
			}
			a.set(func(r request, call func() error) error {
				if r.Kind == store.OpSetMetadata && r.container == "v" {
					if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
						t.Error(err)
					}
					b.mustAcquire()
				}
				err := call()
				look()
				return err
			})
			for range 100 {
				time.Sleep(10 * time.Millisecond)
				look()
			}
			time.Sleep(2 * time.Second)
			if held.Load() || b.has() == nil {
				t.Errorf("it believes to have it again: %t", held.Load())
			}
			a.isLost("unlocked")
			if !plain {
				time.Sleep(term)
				b.writes("the next")
			}
		})
	}
}

// TestNames has volumes with names as long as Swift takes them.
func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, n := range []int{1, 230, 236, 237, 238, 255, 256} {
		for _, epoch := range []int64{1, 9, 10, 12345678} {
			name := lease.ContainerName(strings.Repeat("é", n/2)+strings.Repeat("x", n%2), epoch)
			if err := store.CheckContainerName(name); err != nil || seen[name] || !strings.Contains(name, ".swiftnbd-lease.") {
				t.Errorf("%q: %v", name, err)
			}
			seen[name] = true
		}
	}
}

// TestRecreated has the volume be deleted under its holder, and made anew, with
// leases of the old one left.
func TestRecreated(t *testing.T) {
	for _, soon := range []bool{true, false} {
		inScene(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			a.mustAcquire()
			time.Sleep(5 * time.Second)
			for n := int64(2); n < 6; n += 2 { // of somebody who is long gone
				name := lease.ContainerName("v", n)
				if _, err := s.cluster.Container(name).CreateContainer(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.volume().DeleteContainer(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !soon {
				time.Sleep(term)
				a.isLost("deleted")
			}
			s.setup()
			if err := a.write(); err == nil {
				t.Error("whoever had the old one writes to the new one")
			}
			for begun := time.Now(); ; time.Sleep(time.Second) {
				if _, err := b.acquire(); err == nil {
					break
				} else if time.Since(begun) > term+2*grace {
					t.Fatal(err)
				}
			}
			b.writes("the new one")
			time.Sleep(term)
			a.isLost("made anew")
			b.writes("the new one, later")
			if now := read(t, s.volume()); now.Client != b.held.Mark() {
				t.Errorf("%+v", now)
			}
		})
	}
}

// TestLateRecord has the end of a lease that nobody got arrive when another
// has the volume, and dies: it is free when its lease has run out.
func TestLateRecord(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		a.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata {
				time.AfterFunc(30*time.Second, func() { _ = call() })
				return &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
			}
			return call()
		})
		if _, err := a.acquire(); err == nil {
			t.Fatal("taken")
		}
		a.set(nil)
		time.Sleep(9 * time.Second)
		b.mustAcquire()
		time.Sleep(20 * time.Second)
		b.set(cut)
		s.becomesFree(c, b)
	})
}

// TestWiped has all that the volume says of its lease go away under a holder:
// it has to find out before another gets the volume.
func TestWiped(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.plain, b.plain = true, true
		a.mustAcquire()
		time.Sleep(1500 * time.Millisecond) // after the early look
		post(t, s.volume(), map[string]string{volume.KeyClient: "", lease.KeyEpoch: ""})
		for {
			if _, err := b.acquire(); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if a.holds() {
			t.Error("both hold it")
		}
		b.writes("wiped")
	})
}

// TestKeyChanged has somebody else use the container's second key: nothing
// could be written any more, and the holder says so.
func TestKeyChanged(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		post(t, s.volume(), map[string]string{lease.KeyFence: "the user's own"})
		if err := a.write(); !errors.Is(err, store.ErrFenced) {
			t.Errorf("written: %v", err)
		}
		time.Sleep(time.Second)
		a.isLost("the key was changed")
	})
}
