// SPDX-License-Identifier: MIT

package lease_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// finds says that the party has found what was kept last; others may be with it.
func (p *party) finds(what, want string) {
	p.t.Helper()
	if got := p.has().Former()[keyDurable]; !slices.Contains(got, want) {
		p.t.Errorf("%s: %s finds %q, and %s was kept last", what, p.name, got, want)
	}
}

// late is a hook that keeps back the first request that is: it is answered as if the
// connection was reset, and made when the function that late returns is called.
func late(t *testing.T, is func(request) bool) (hook func(request, func() error) error, arrives func()) {
	held := make(chan func() error, 1)
	done := false
	return func(r request, call func() error) error {
			if !done && is(r) {
				done = true
				held <- call
				return &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
			}
			return call()
		}, func() {
			if err := (<-held)(); err != nil {
				t.Error(err)
			}
		}
}

func marks(r request) bool  { return r.container == "v" && r.Kind == store.OpSetMetadata }
func renews(r request) bool { return r.container != "v" && r.Kind == store.OpSetMetadata }

// TestKeptLateMark has the mark of one who gave up arrive when another has had the
// volume since, and died: with the mark comes the number of a lease that does not have
// what they kept. The others come between the two numbers, and give the volume back.
func TestKeptLateMark(t *testing.T) {
	for between := range 3 {
		inScene2(t, func(t *testing.T, s *scene) {
			a, p, b, c := s.party("a"), s.party("p"), s.party("b"), s.party("c")
			a.dies("01/07")
			hook, arrives := late(t, marks)
			p.set(hook)
			if _, err := p.acquire(); err == nil {
				t.Fatal("it is taken")
			}
			for i := range between {
				x := s.party(fmt.Sprint("x", i))
				x.mustAcquire()
				if err := x.held.ReleaseUnchanged(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b.mustAcquire()
			b.finds("first", "01/07")
			b.keeps("03/01")
			time.Sleep(term)
			b.kill()
			arrives()
			time.Sleep(term + grace)
			c.mustAcquire()
			c.finds(fmt.Sprintf("after a late mark, %d between", between), "03/01")
		})
	}
}

// TestLateMarkOfMany has such a mark arrive while another holds the volume, whose
// number is not the next one: nobody takes it from them before they know.
func TestLateMarkOfMany(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		p, b, c := s.party("p"), s.party("b"), s.party("c")
		hook, arrives := late(t, marks)
		p.set(hook)
		if _, err := p.acquire(); err == nil {
			t.Fatal("it is taken")
		}
		for i := range 3 {
			x := s.party(fmt.Sprint("x", i))
			x.mustAcquire()
			if err := x.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		b.mustAcquire()
		time.Sleep(5 * time.Second)
		arrives()
		_, err := c.acquire()
		if b.holds() {
			s.refused("while b does not know", err, "b")
		}
		time.Sleep(term)
		b.isLost("replaced by a late mark")
		if c.mustAcquire(); b.holds() {
			t.Error("both have it")
		}
	})
}

// TestKeptWhileUnlocked has the holder renew the lease when the unlock has looked at it
// and has not yet removed the mark. With cut, the unlock dies when it has.
func TestKeptWhileUnlocked(t *testing.T) {
	for _, cut := range []bool{false, true} {
		inScene2(t, func(t *testing.T, s *scene) {
			a, b, c := s.party("a"), s.party("b"), s.party("c")
			a.mustAcquire()
			a.keeps("01/07")
			time.Sleep(term)
			b.set(func(r request, call func() error) error {
				if marks(r) {
					a.keeps("01/09")
					time.Sleep(term)
					defer func() {
						if cut {
							b.kill()
						}
					}()
				}
				return call()
			})
			if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(term)
			a.isLost("unlocked")
			if cut { // a lease that cannot be read is not one that is not there
				c.set(func(r request, call func() error) error {
					if r.Kind == store.OpMetadata && r.container == lease.ContainerName("v", 1) {
						return &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
					}
					return call()
				})
				if _, err := c.acquire(); !errors.Is(err, errReset) {
					t.Errorf("it is taken, although a lease cannot be read: %v", err)
				}
				c.set(nil)
			}
			c.mustAcquire()
			c.finds(fmt.Sprint("renewed while it was unlocked, cut ", cut), "01/09")
			if err := c.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if now := s.leases(); len(now) > 0 {
				t.Errorf("left behind: %v", now)
			}
		})
	}
}

// TestKeptAsReleased has somebody come at the moment when a holder without a last root
// has removed the mark.
func TestKeptAsReleased(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		a.keeps("01/07")
		time.Sleep(term)
		a.keeps("01/09") // later than the last renewal
		a.set(func(r request, call func() error) error {
			err := call()
			if marks(r) {
				b.mustAcquire()
			}
			return err
		})
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.finds("as it is given back", "01/09")
	})
}

// TestKeptLateRenewal has a renewal arrive that has hung for longer than all slots
// take, or, with abandon, when its holder has given up.
func TestKeptLateRenewal(t *testing.T) {
	for _, abandon := range []bool{false, true} {
		inScene2(t, func(t *testing.T, s *scene) {
			a, b := s.party("a"), s.party("b")
			a.mustAcquire()
			var n atomic.Int64 // renewals, and one
			var last atomic.Value
			value := func(n int64) string { return fmt.Sprintf("01/%03d", n) }
			a.keeps(value(n.Add(1)))
			hook, arrives := late(t, renews)
			last.Store("")
			a.set(func(r request, call func() error) error {
				err := hook(r, call)
				if renews(r) && err == nil {
					last.Store(value(n.Load()))
				}
				if renews(r) {
					a.keeps(value(n.Add(1)))
				}
				return err
			})
			if abandon {
				for n.Load() == 1 {
					time.Sleep(time.Second / 10)
				}
				a.keeps("01/100")
				a.held.Keep(t.Context())
				last.Store("01/100")
			} else {
				for n.Load() < 6 {
					time.Sleep(time.Second / 10)
				}
				a.kill()
			}
			arrives()
			time.Sleep(term + grace)
			if abandon {
				_, err := b.acquire()
				s.refused("abandoned", err, "a")
				if _, err := lease.Unlock(t.Context(), b.options()); err != nil {
					t.Fatal(err)
				}
			}
			b.mustAcquire()
			b.finds(fmt.Sprint("a late renewal, abandon ", abandon), last.Load().(string))
		})
	}
}

// TestKeptOfAnother has a lease that is left of an earlier disk of the same name, with
// what its holder kept: it is on the way, or a late request names it. That is no
// reason to look for anything in the log of this disk.
func TestKeptOfAnother(t *testing.T) {
	for _, named := range []bool{false, true} {
		inScene2(t, func(t *testing.T, s *scene) {
			left := map[string]string{
				"Swiftnbd-Lease-Holder": "old@1", "Swiftnbd-Lease-Until": "2000-01-01T00:00:00.000Z",
				keyDurable: "02/99", "Swiftnbd-Lease-Disk": "99999999999999999999999999999999",
			}
			time.Sleep(term)
			if _, err := s.cluster.Container(lease.ContainerName("v", 2)).CreateContainer(t.Context(), left); err != nil {
				t.Fatal(err)
			}
			a, b, c := s.party("a"), s.party("b"), s.party("c")
			a.mustAcquire()
			if err := a.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if named {
				if err := s.volume().SetMetadata(t.Context(), map[string]string{lease.KeyEpoch: "2"}); err != nil {
					t.Fatal(err)
				}
			}
			b.mustAcquire()
			b.former("a lease of another disk")
			b.keeps("03/01")
			time.Sleep(term)
			if _, err := lease.Unlock(t.Context(), c.options()); err != nil && !errors.Is(err, lease.ErrNotLocked) {
				t.Fatal(err)
			}
			c.mustAcquire()
			c.former("after an unlock", "03/01")
		})
	}
}

// TestKeptLateNumber has a late request set an older number when the holder has given
// the volume back without a last root.
func TestKeptLateNumber(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		x, a, c := s.party("x"), s.party("a"), s.party("c")
		x.mustAcquire()
		if err := x.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.mustAcquire()
		a.keeps("02/05")
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.volume().SetMetadata(t.Context(), map[string]string{lease.KeyEpoch: "1"}); err != nil {
			t.Fatal(err)
		}
		c.mustAcquire()
		c.finds("after a late number", "02/05")
	})
}

// TestUnlockEndsLate has an unlock give up because the answer to what it writes into its
// lease is lost. When that arrives, it does not end the lease of who has come since.
func TestUnlockEndsLate(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		a.mustAcquire()
		a.keeps("01/07")
		time.Sleep(term)
		a.kill()
		hook, arrives := late(t, renews)
		b.set(hook)
		if _, err := lease.Unlock(t.Context(), b.options()); err == nil {
			t.Fatal("it is unlocked")
		}
		time.Sleep(term + grace)
		c.mustAcquire()
		c.finds("after an unlock that gave up", "01/07")
		arrives()
		if now := s.state(); !now.Leased || now.Mark != c.held.Mark() {
			t.Errorf("the lease of c is another's: %+v", now)
		}
	})
}

// TestKeptPassed has an unlock go past what the dead holder kept: a late request has
// set an older number, and a lease after it was left behind. Or somebody has removed
// the lease of the mark. Whoever comes next begins after the unlock's number.
func TestKeptPassed(t *testing.T) {
	for _, removed := range []bool{false, true} {
		inScene2(t, func(t *testing.T, s *scene) {
			x, a, b, c := s.party("x"), s.party("a"), s.party("b"), s.party("c")
			x.mustAcquire()
			if err := x.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.dies("02/05")
			var err error
			if removed {
				b.mustAcquire()
				b.kill()
				err = s.cluster.Container(lease.ContainerName("v", 3)).DeleteContainer(t.Context())
			} else {
				until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
				_, err = s.cluster.Container(lease.ContainerName("v", 3)).CreateContainer(t.Context(), map[string]string{"Swiftnbd-Lease-Holder": "z@1", "Swiftnbd-Lease-Until": until})
				err = errors.Join(err, s.volume().SetMetadata(t.Context(), map[string]string{volume.KeyClient: "", volume.KeyLast: a.held.Mark(), lease.KeyEpoch: "1"}))
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := lease.Unlock(t.Context(), c.options()); err != nil {
				t.Fatal(err)
			}
			c.mustAcquire()
			c.finds(fmt.Sprint("after an unlock, removed ", removed), "02/05")
		})
	}
}
