// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

const keyDurable = "Swiftnbd-Lease-Durable"

var meta2 = volume.Meta{UUID: [16]byte{1, 2, 3}, Size: 1 << 30, Root: "00000001-00000001"}

// inScene2 is inScene with a volume of version 2.
func inScene2(t *testing.T, test func(*testing.T, *scene)) {
	t.Helper()
	inScene(t, func(t *testing.T, s *scene) {
		s.cluster = mem.NewCluster()
		if err := volume.Create2(t.Context(), s.volume(), meta2); err != nil {
			t.Fatal(err)
		}
		test(t, s)
		want := map[string]string{volume.KeyVersion: "2", volume.KeyUUID: "01020300000000000000000000000000", volume.KeySize: "1073741824"}
		for key, value := range items(t, s.volume()) {
			switch key {
			case volume.KeyClient, volume.KeyLast, volume.KeyRoot, lease.KeyEpoch, lease.KeyFence:
			default:
				if want[key] != value {
					t.Errorf("the container has %s: %q, want %q", key, value, want[key])
				}
			}
		}
		if got := read(t, s.volume()); got.UUID != meta2.UUID || got.Size != meta2.Size {
			t.Errorf("in the end it is %+v", got)
		}
	})
}

// keeps has the party's lease keep value from now on.
func (p *party) keeps(value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.extra = map[string]string{keyDurable: value}
}

// dies has the party take the volume, keep value in its lease, and die. Its lease is
// over then.
func (p *party) dies(value string) {
	p.t.Helper()
	p.mustAcquire()
	p.keeps(value)
	time.Sleep(term)
	p.kill()
	time.Sleep(term + grace)
}

// former says what the lease that the party came after has kept.
func (p *party) former(what string, want ...string) {
	p.t.Helper()
	got := slices.Sorted(slices.Values(p.has().Former()[keyDurable]))
	if !slices.Equal(got, want) {
		p.t.Errorf("%s: the lease before kept %q, want %q", what, got, want)
	}
}

// state returns what an onlooker sees.
func (s *scene) state() lease.State {
	s.t.Helper()
	got, err := lease.Inspect(s.t.Context(), lease.Options{Store: s.volume(), Name: "v", Sibling: func(name string) store.Store { return s.cluster.Container(name) }})
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// TestVersion2 takes a volume of version 2, renews, and gives it back.
func TestVersion2(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		meta := a.mustAcquire()
		if meta.Version != volume.Version2 || meta.UUID != meta2.UUID || meta.Root != meta2.Root || meta.Client != a.held.Mark() || a.held.Epoch() != 1 {
			t.Errorf("taken, under number %d: %+v", a.held.Epoch(), meta)
		}
		a.former("the first")
		a.writes("taken")
		_, err := b.acquire()
		s.refused("a second one", err, "a")
		for i := range 10 {
			a.keeps(fmt.Sprintf("1/%d", i))
			time.Sleep(term)
			a.writes("renewed")
		}
		kept := s.state().Kept[keyDurable]
		if !slices.Contains(kept, "1/9") || len(kept) > 4 || len(s.state().Kept) != 1 {
			t.Errorf("after renewals the lease keeps %q", s.state().Kept)
		}
		if err := a.held.ReleaseWith(t.Context(), map[string]string{volume.KeyRoot: "00000001-00000002"}); err != nil {
			t.Fatal(err)
		}
		a.isLost("given back")
		if now := read(t, s.volume()); now.Client != "" || now.Last != a.held.Mark() || now.Root != "00000001-00000002" {
			t.Errorf("given back: %+v", now)
		}
		if now := s.leases(); len(now) > 0 {
			t.Errorf("left behind: %v", now)
		}
		if meta := b.mustAcquire(); meta.Root != "00000001-00000002" || b.held.Epoch() != 2 {
			t.Errorf("taken again, under number %d: %+v", b.held.Epoch(), meta)
		}
		b.former("after a clean end")
		if err := b.held.ReleaseUnchanged(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := read(t, s.volume()); now.Client != "" || now.Last != a.held.Mark() || now.Root != "00000001-00000002" {
			t.Errorf("given back unchanged: %+v", now)
		}
	})
}

// TestKeptOfTheDead has what a holder kept passed on to whoever comes after
// them, and after those who came and died before they could say anything.
func TestKeptOfTheDead(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b, c, d := s.party("a"), s.party("b"), s.party("c"), s.party("d")
		a.dies("1/7")
		b.mustAcquire()
		b.former("taken over", "1/7")
		b.writes("taken over")
		time.Sleep(5 * term) // more renewals than there are slots
		b.kill()
		time.Sleep(term + grace)
		c.mustAcquire()
		c.former("taken over from one who kept nothing", "1/7")
		if c.held.Epoch() != 3 {
			t.Errorf("the third has number %d", c.held.Epoch())
		}
		c.keeps("3/1")
		time.Sleep(5 * term)
		c.kill()
		time.Sleep(term + grace)
		d.mustAcquire()
		d.former("taken over from one who kept something", "3/1")
		if err := d.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.leases(); slices.Contains(now, lease.ContainerName("v", 3)) || slices.Contains(now, lease.ContainerName("v", 4)) {
			t.Errorf("left behind: %v", now)
		}
	})
}

// TestKeptLate has a renewal arrive when others have been made since: it must
// not hide what they say.
func TestKeptLate(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		a.mustAcquire()
		a.keeps("1/1")
		held := make(chan func() error, 1)
		a.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && r.container != "v" && len(held) == 0 {
				held <- call
				a.keeps("1/2")
				return &store.TransportError{Op: r.String(), Err: errors.New("cut off")}
			}
			return call()
		})
		time.Sleep(term)
		if kept := s.state().Kept[keyDurable]; !slices.Contains(kept, "1/2") || slices.Contains(kept, "1/1") {
			t.Fatalf("before it arrives: %q", kept)
		}
		if err := (<-held)(); err != nil {
			t.Fatal(err)
		}
		if kept := s.state().Kept[keyDurable]; !slices.Contains(kept, "1/2") || !slices.Contains(kept, "1/1") {
			t.Errorf("after it has arrived: %q", kept)
		}
	})
}

// TestKeptWhenTakenAgain has a holder whose lease ran out take the next number:
// it keeps what the one before kept.
func TestKeptWhenTakenAgain(t *testing.T) {
	for _, own := range []bool{false, true} {
		inScene2(t, func(t *testing.T, s *scene) {
			a, b, c := s.party("a"), s.party("b"), s.party("c")
			a.dies("1/7")
			b.mustAcquire()
			want := "1/7"
			if own {
				want = "2/5"
				b.keeps(want)
				time.Sleep(5 * term)
			}
			b.set(cut)
			time.Sleep(2 * term)
			b.set(nil)
			time.Sleep(term)
			b.writes("taken again")
			if b.held.Epoch() != 3 {
				t.Errorf("taken again under number %d", b.held.Epoch())
			}
			b.kill()
			time.Sleep(term + grace)
			c.mustAcquire()
			c.former("after one who took it again", want)
		})
	}
}

// TestKeptUnlocked has an operator's unlock pass on what the holder kept.
func TestKeptUnlocked(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b := s.party("a"), s.party("b")
		a.mustAcquire()
		a.keeps("1/7")
		time.Sleep(term)
		was, err := lease.Unlock(t.Context(), b.options())
		if err != nil || was.Mark != a.held.Mark() || !was.Leased || was.Epoch != 1 {
			t.Fatalf("unlocked: %+v, %v", was, err)
		}
		if now := s.state(); now.Held() != nil || !slices.Equal(now.Kept[keyDurable], []string{"1/7"}) {
			t.Errorf("unlocked: %+v", now)
		}
		time.Sleep(term)
		a.isLost("unlocked")
		begun := time.Now()
		meta := b.mustAcquire()
		if waited := time.Since(begun); waited > 0 {
			t.Errorf("the next one waits for %v", waited)
		}
		if meta.Last != a.held.Mark() || b.held.Epoch() != 3 {
			t.Errorf("after an unlock, under number %d: %+v", b.held.Epoch(), meta)
		}
		b.former("after an unlock", "1/7")
		if err := b.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.leases(); len(now) > 0 {
			t.Errorf("left behind: %v", now)
		}
	})
}

// TestVersion2NeedsALease has the mark alone refused, with the reason, and
// nothing changed.
func TestVersion2NeedsALease(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		before := items(t, s.volume())
		for _, c := range []struct {
			name, reason string
			change       func(*lease.Options)
		}{
			{"no siblings", "mark only", func(o *lease.Options) { o.Sibling = nil }},
			{"no term", "mark only", func(o *lease.Options) { o.Term = 0 }},
			{"no right", "may not create containers", func(o *lease.Options) {
				reach := o.Sibling
				o.Sibling = func(name string) store.Store {
					return store.Wrap(reach(name), func(ctx context.Context, op store.Op, call func(context.Context) error) error {
						if op.Kind == store.OpCreateContainer {
							return store.ErrForbidden
						}
						return call(ctx)
					})
				}
			}},
		} {
			o := s.party(c.name).options()
			c.change(&o)
			_, _, err := lease.Acquire(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), "a disk of version 2 of the format needs a lease") || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if _, _, err := lease.Mark(t.Context(), s.volume(), "a"); err == nil || !strings.Contains(err.Error(), "needs a lease") {
			t.Errorf("the mark: %v", err)
		}
		if now := items(t, s.volume()); !maps.Equal(now, before) || len(s.leases()) > 0 {
			t.Errorf("changed: %v, before %v, leases %v", now, before, s.leases())
		}
	})
}

// TestAfter takes a volume whose metadata tell an older number than was used.
func TestAfter(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		p := s.party("first")
		o := p.options()
		o.After = 41
		held, _, err := lease.Acquire(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if held.Epoch() != 42 {
			t.Errorf("after 41 comes %d", held.Epoch())
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := s.party("second")
		next.mustAcquire()
		if n := next.has().Epoch(); n != 43 {
			t.Errorf("after 42 comes %d", n)
		}
	})
}

// TestKeptReleased has those who come after a dead holder give the volume back
// unchanged, before they have kept something themselves, as a server does that cannot
// open the disk, or a guest that may not set the key: the next one finds what the dead
// one kept, however many came between.
func TestKeptReleased(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a := s.party("a")
		a.dies("1/7")
		for i := range 4 {
			p := s.party(fmt.Sprint("between ", i))
			begun := time.Now()
			if i == 2 {
				o := p.options()
				o.Store = keyless{o.Store}
				if _, _, err := lease.Acquire(t.Context(), o); !errors.Is(err, lease.ErrNotOwner) {
					t.Fatal(err)
				}
			} else {
				p.mustAcquire()
				p.former(p.name, "1/7")
			}
			if waited := time.Since(begun); waited > 0 {
				t.Errorf("%s waits for %v", p.name, waited)
			}
			if i == 1 {
				time.Sleep(5 * term) // more renewals than there are slots
			}
			if i != 2 {
				if err := p.held.ReleaseUnchanged(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if now := s.state(); now.Held() != nil || !slices.Equal(now.Kept[keyDurable], []string{"1/7"}) {
				t.Errorf("%s is gone: %+v", p.name, now)
			}
		}
		b, c := s.party("b"), s.party("c")
		b.mustAcquire()
		b.former("after all of them", "1/7")
		b.keeps("6/1")
		if err := b.held.ReleaseUnchanged(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.leases(); len(now) > 0 {
			t.Errorf("left behind: %v", now)
		}
		c.mustAcquire()
		c.former("after one who has kept something and given it back")
		if err := c.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestKeptWithoutRoot has a holder give the volume back who could not write down how
// it ended: what it kept last stays, and nobody waits for its lease.
func TestKeptWithoutRoot(t *testing.T) {
	inScene2(t, func(t *testing.T, s *scene) {
		a, b, c := s.party("a"), s.party("b"), s.party("c")
		a.mustAcquire()
		a.keeps("1/7")
		time.Sleep(term)
		a.keeps("1/9") // later than its last renewal
		if err := a.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.state(); now.Held() != nil || now.Meta.Last != a.held.Mark() {
			t.Errorf("given back: %+v", now)
		}
		begun := time.Now()
		b.mustAcquire()
		if waited := time.Since(begun); waited > 0 {
			t.Errorf("the next one waits for %v", waited)
		}
		if kept := b.has().Former()[keyDurable]; !slices.Contains(kept, "1/9") {
			t.Errorf("it finds %q", kept)
		}
		b.keeps("2/1")
		if err := b.held.ReleaseWith(t.Context(), map[string]string{volume.KeyRoot: "00000002-00000002"}); err != nil {
			t.Fatal(err)
		}
		if now := s.leases(); len(now) > 0 {
			t.Errorf("left behind: %v", now)
		}
		c.mustAcquire()
		c.former("after a clean end")
		if err := c.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestKeptUnlockedLate has an unlock whose last request is answered with an error, and
// takes effect, at once or later. Whoever comes next finds what the dead holder kept.
func TestKeptUnlockedLate(t *testing.T) {
	for _, late := range []time.Duration{0, 3 * term} {
		inScene2(t, func(t *testing.T, s *scene) {
			a, b, c := s.party("a"), s.party("b"), s.party("c")
			a.mustAcquire()
			a.keeps("1/7")
			time.Sleep(term)
			a.kill()
			var held func() error
			b.set(func(r request, call func() error) error {
				if r.Kind == store.OpSetMetadata && r.container == "v" {
					if held = call; late == 0 {
						if err := call(); err != nil {
							t.Error(err)
						}
					}
					return &store.TransportError{Op: r.String(), Sent: true, Err: errors.New("cut off")}
				}
				return call()
			})
			if _, err := lease.Unlock(t.Context(), b.options()); err == nil || held == nil {
				t.Fatalf("it is unlocked: %v", err)
			}
			if late > 0 {
				if kept := s.state().Kept[keyDurable]; !slices.Equal(kept, []string{"1/7"}) {
					t.Errorf("before it arrives: %q", kept)
				}
				time.Sleep(late)
				if err := held(); err != nil {
					t.Fatal(err)
				}
			}
			c.mustAcquire()
			c.former(fmt.Sprint("unlocked with an error, late by ", late), "1/7")
			if err := c.held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
