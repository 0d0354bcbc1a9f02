// SPDX-License-Identifier: MIT

package lease_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

// fault is how a request fails: before or after its effect, and whether those
// that come after it fail too.
type fault struct {
	n          int
	after, cut bool
}

func (f fault) String() string {
	return fmt.Sprintf("request %d, after=%t, cut=%t", f.n, f.after, f.cut)
}

var errReset = errors.New("connection reset by peer")

// hook makes request n of those that begin now fail; seen is set where it came.
func (f fault) hook(seen *atomic.Bool) func(request, func() error) error {
	return func(r request, call func() error) error {
		if r.n < f.n || r.n > f.n && !f.cut {
			return call()
		}
		seen.Store(true)
		if f.after && r.n == f.n {
			if err := call(); err != nil {
				return err
			}
		}
		return &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
	}
}

// eachFault runs test with every request failing, until there is none left.
func eachFault(t *testing.T, least int, test func(t *testing.T, s *scene, f fault, seen *atomic.Bool)) {
	t.Helper()
	for _, cut := range []bool{false, true} {
		for _, after := range []bool{false, true} {
			for n := 1; ; n++ {
				f, seen := fault{n, after, cut}, new(atomic.Bool)
				t.Run(f.String(), func(t *testing.T) {
					inScene(t, func(t *testing.T, s *scene) { test(t, s, f, seen) })
				})
				if !seen.Load() {
					if n <= least {
						t.Errorf("there are only %d requests", n-1)
					}
					break
				}
			}
		}
	}
}

// becomesFree has b try until it has the volume, which must be soon after a
// lease that begins now has run out.
func (s *scene) becomesFree(b *party, holder *party) {
	s.t.Helper()
	s.becomesFreeWithin(term+2*grace, b, holder)
}

func (s *scene) becomesFreeWithin(d time.Duration, b *party, holder *party) {
	s.t.Helper()
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		_, err := b.acquire()
		if err == nil {
			break
		}
		if time.Since(begun) > d {
			s.t.Fatalf("it cannot be had after %v: %v", time.Since(begun), err)
		}
	}
	if holder.holds() {
		s.t.Errorf("%s and %s hold it", holder.name, b.name)
	}
	b.writes("after a fault")
	if err := b.held.Release(s.t.Context()); err != nil {
		s.t.Errorf("after a fault: %v", err)
	}
}

// TestAcquireFails has each request of taking a volume fail: one that is free,
// one whose holder is dead, and for ever.
func TestAcquireFails(t *testing.T) {
	for _, how := range []string{"free", "dead", "forever"} {
		t.Run(how, func(t *testing.T) {
			eachFault(t, 5, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
				a, b := s.party("a"), s.party("b")
				if how == "dead" {
					dead := s.party("dead")
					dead.mustAcquire()
					dead.kill()
					// Keep has failed, so it runs out.
					time.Sleep(term + grace)
				}
				if how == "forever" {
					a.term = lease.Forever
				}
				a.set(f.hook(seen))
				_, err := a.acquire()
				a.set(nil)
				if err == nil {
					// What failed does not matter, or none did.
					a.writes("in spite of it")
					if err := a.held.Release(t.Context()); err != nil {
						t.Error(err)
					}
				} else if a.holds() {
					t.Error("it may write, and has not got it")
				}
				if now := read(t, s.volume()); how == "free" && err != nil && !f.cut && (now.Client != "" || !now.Blank) {
					t.Errorf("it is not as it was: %+v", now)
				}
				if how == "forever" && err != nil && f.n >= 9 {
					// All but the answer may have come about.
					_, err := lease.Unlock(t.Context(), b.options())
					if err != nil && !errors.Is(err, lease.ErrNotLocked) {
						t.Error(err)
					}
				}
				if f.cut {
					s.becomesFree(b, a)
					return
				}
				// Whoever has failed and is alive cleans up.
				s.becomesFreeWithin(25*time.Second, b, a)
			})
		})
	}
}

// TestRetakeFails has each request fail with which a lease that has run out is
// taken again, while another comes, or does not.
func TestRetakeFails(t *testing.T) {
	for _, another := range []bool{false, true} {
		t.Run(fmt.Sprintf("another=%t", another), func(t *testing.T) {
			eachFault(t, 6, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
				a, b := s.party("a"), s.party("b")
				a.mustAcquire()
				a.writes("first")
				a.set(cut)
				time.Sleep(term)
				a.set(f.hook(seen))
				time.Sleep(5 * time.Second)
				if !f.cut {
					a.set(nil)
					time.Sleep(20 * time.Second) // somebody may be about to take it
					a.writes("taken again")
					return
				}
				if another && seen.Load() {
					s.becomesFree(b, a)
				}
				a.set(nil)
				time.Sleep(25 * time.Second)
				if another && seen.Load() {
					a.isLost("taken over")
				} else {
					a.writes("taken again")
				}
			})
		})
	}
}

// TestRenewFails has each request of a renewal fail.
func TestRenewFails(t *testing.T) {
	eachFault(t, 2, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		a.set(func(r request, call func() error) error {
			if r.n > 2 { // of the one renewal
				return call()
			}
			return f.hook(seen)(r, call)
		})
		for range 100 {
			time.Sleep(time.Second)
			a.writes("renewed")
		}
		_, err := b.acquire()
		s.refused("renewed", err, "a")
	})
}

// TestReleaseFails has each request of giving back fail, in time and after
// the lease has run out.
func TestReleaseFails(t *testing.T) {
	for _, lapsed := range []bool{false, true} {
		t.Run(fmt.Sprintf("lapsed=%t", lapsed), func(t *testing.T) {
			eachFault(t, 2, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
				a, b := s.party("a"), s.party("b")
				a.mustAcquire()
				if lapsed {
					a.set(cut)
					time.Sleep(2 * term)
				}
				a.set(f.hook(seen))
				err := a.held.Release(t.Context())
				a.set(nil)
				if err == nil && (a.holds() || read(t, s.volume()).Client != "") {
					t.Error("given back, and held")
				}
				s.becomesFree(b, a)
				if err := a.held.Release(t.Context()); !errors.Is(err, lease.ErrLost) {
					t.Errorf("given back again: %v", err)
				}
			})
		})
	}
}

// TestReleaseLate has a holder that has lapsed give back what is another's by
// then.
func TestReleaseLate(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		// It is stopped before the request that gives back.
		wake, done := make(chan struct{}), make(chan error)
		a.set(func(r request, call func() error) error {
			if r.container == "v" && r.Kind == store.OpMetadata {
				<-wake
			}
			return call()
		})
		go func() { done <- a.held.Release(t.Context()) }()
		time.Sleep(term + grace)
		b.mustAcquire()
		close(wake)
		if err := <-done; err == nil {
			t.Error("given back, and it is another's")
		}
		time.Sleep(30 * time.Second)
		b.writes("after that")
	})
}

// TestUnlockFails has each request of an operator's unlock fail. It can be done
// again, and until the mark is gone the holder goes on.
func TestUnlockFails(t *testing.T) {
	eachFault(t, 4, func(t *testing.T, s *scene, f fault, seen *atomic.Bool) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		a.mustAcquire()
		time.Sleep(5 * time.Second)
		b.set(f.hook(seen))
		_, err := lease.Unlock(t.Context(), b.options())
		b.set(nil)
		if read(t, s.volume()).Client != "" {
			if err == nil {
				t.Error("unlocked, and it is not")
			}
			time.Sleep(term)
			a.writes("after a failed unlock")
			if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
				t.Error(err)
			}
		}
		if err := a.write(); err == nil {
			t.Error("it is unlocked, and whoever had it writes")
		}
		time.Sleep(time.Second)
		a.isLost("unlocked")
		s.becomesFree(c, a)
	})
}

// TestPauses stops one process before, or after, each of its requests, for a
// moment, for longer than others wait, and for longer than a lease lasts; and
// has another come meanwhile. Never do both hold the volume, what the one writes
// who has it is kept, and in the end it can be had.
func TestPauses(t *testing.T) {
	procedures := map[string]struct {
		prepare, do func(a *party)
	}{
		"acquire": {func(*party) {}, func(a *party) { _, _ = a.acquire() }},
		"takeover": {func(a *party) {
			dead := a.party("dead")
			dead.mustAcquire()
			dead.kill()
			time.Sleep(term + grace)
		}, func(a *party) { _, _ = a.acquire() }},
		"retake": {func(a *party) {
			a.mustAcquire()
			a.set(cut)
			time.Sleep(term)
		}, func(a *party) { time.Sleep(2 * time.Second) }},
		"retake, plain": {func(a *party) {
			a.plain = true
			a.mustAcquire()
			a.set(cut)
			time.Sleep(term)
		}, func(a *party) { time.Sleep(2 * time.Second) }},
		"renew": {func(a *party) {
			a.mustAcquire()
			time.Sleep(10 * time.Second)
		}, func(a *party) { time.Sleep(20 * time.Second) }},
		"release": {func(a *party) { a.mustAcquire() }, func(a *party) { _ = a.held.Release(a.t.Context()) }},
		"unlock": {func(a *party) { a.party("c").mustAcquire() },
			func(a *party) { _, _ = lease.Unlock(a.t.Context(), a.options()) }},
	}
	for name, p := range procedures {
		for _, pause := range []time.Duration{3 * time.Second, 25 * time.Second, 2*term + 7*time.Second} {
			for _, after := range []bool{false, true} {
				for n, more := 1, true; more; n++ {
					var seen atomic.Bool
					t.Run(fmt.Sprintf("%s,%v,after=%t,%d", name, pause, after, n), func(t *testing.T) {
						inScene(t, func(t *testing.T, s *scene) {
							a, b := s.party("a"), s.party("b")
							b.plain = strings.Contains(name, "plain")
							p.prepare(a)
							var stopped atomic.Value // the request before whose effect
							a.set(func(r request, call func() error) error {
								if r.n != n {
									return call()
								}
								seen.Store(true)
								if r.container == "v" && !after {
									stopped.Store(r.Kind)
								}
								if after {
									defer time.Sleep(pause)
								} else {
									time.Sleep(pause)
								}
								return call()
							})
							done := make(chan struct{})
							go func() {
								defer close(done)
								p.do(a)
							}()
							deposed := false
							both := func(d time.Duration) {
								for range d / (100 * time.Millisecond) {
									time.Sleep(100 * time.Millisecond)
									if a.holds() && b.holds() {
										t.Fatal("both hold it")
									}
									if b.holds() {
										if err := b.write(); err != nil {
											deposed = true
										}
									}
									if a.holds() {
										if err := a.write(); err == nil && b.holds() {
											t.Fatal("both write")
										}
									}
								}
							}
							both(500 * time.Millisecond)
							came := make(chan struct{})
							go func() {
								defer close(came)
								for begun := time.Now(); time.Since(begun) < pause; time.Sleep(time.Second) {
									if _, err := b.acquire(); err == nil {
										return
									}
								}
							}()
							both(pause + 25*time.Second)
							<-done
							<-came
							// Whose mark was on its way may take it from the next,
							// as an unlock does; nothing else may.
							if (deposed || b.has() != nil && b.fences().Lost() != nil) && stopped.Load() != store.OpSetMetadata {
								t.Errorf("the one who came is not left alone: %v", b.fences().Lost())
							}
							for _, p := range []*party{a, b} {
								if p.holds() {
									p.set(nil)
									p.writes("in the end")
									if err := p.held.Release(t.Context()); err != nil {
										t.Error(err)
									}
								}
							}
							synctest.Wait()
							for _, p := range s.parties {
								p.kill()
							}
							c := s.party("last")
							if mark := read(t, s.volume()).Client; mark != "" && name == "unlock" {
								return // not unlocked, and its holder is dead
							}
							s.becomesFree(c, a)
						})
					})
					more = seen.Load()
				}
			}
		}
	}
}
