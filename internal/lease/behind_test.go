// SPDX-License-Identifier: MIT

package lease_test

import (
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// TestReleaseDiscarded has Swift answer the removal of the mark as if it had
// been made, and not make it, as it does when the change comes through a proxy
// whose clock is slow: it is made until it is seen.
func TestReleaseDiscarded(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.party("a")
		p.mustAcquire()
		discarded := 0
		p.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && r.container == "v" && discarded < 3 {
				discarded++
				return nil
			}
			return call()
		})
		if err := p.held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if md := items(t, s.volume()); md[volume.KeyClient] != "" || discarded != 3 {
			t.Errorf("discarded %d times; left %v", discarded, md)
		}
		// Where that goes on, it is an error, and the volume is free when the
		// lease has run out.
		q := s.party("b")
		q.mustAcquire()
		q.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && r.container == "v" {
				return nil
			}
			return call()
		})
		if err := q.held.Release(t.Context()); err == nil {
			t.Errorf("a mark that stays: %v", err)
		}
		time.Sleep(term + grace)
		s.party("c").mustAcquire()
	})
}

// TestRefusedThoughOurs has a good signature refused, as by a proxy that reads
// the key from a replica that is behind. When that has lasted for longer than a
// proxy's cache does, the writes go without a signature until it is taken again.
func TestRefusedThoughOurs(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.party("a")
		p.mustAcquire()
		g, err := p.fence.Grant()
		if err != nil || g.Key == "" {
			t.Fatalf("%+v, %v", g, err)
		}
		p.behind(true)
		p.fence.Doubt()
		time.Sleep(time.Minute)
		if g, err := p.fence.Grant(); err != nil || g.Key == "" {
			t.Errorf("refused for a minute, and not signed any more: %v", err)
		}
		time.Sleep(term)
		if g, err := p.fence.Grant(); err != nil || g.Key != "" {
			t.Errorf("refused, and still signed: %v, %v", g.Key != "", err)
		}
		p.behind(false)
		time.Sleep(term)
		if g, err := p.fence.Grant(); err != nil || g.Key == "" {
			t.Errorf("taken again, and not signed: %v, %v", g.Key != "", err)
		}
	})
}

// TestCopyBehind has one copy of the volume's metadata, in a renewal, say that
// somebody else holds it: the others are asked before that is believed.
func TestCopyBehind(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.party("a")
		p.stale = map[string]string{volume.KeyClient: "other:1@1700000000"}
		p.mustAcquire()
		time.Sleep(3 * term)
		if err := p.fence.Check(); err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.hints == 0 {
			t.Error("no copy was behind")
		}
	})
}

// TestOnlyBehind has the one copy that is reached show the volume as it was
// before the holder came: those that have its mark are away. The holder goes on
// while its lease lasts, and when the others are back, however late. Such a copy
// may have got the number of a later lease of ours.
func TestOnlyBehind(t *testing.T) {
	for _, long := range []bool{false, true} {
		for _, number := range []string{"", "3"} {
			inScene(t, func(t *testing.T, s *scene) {
				first := s.party("first") // leaves a key and a number
				first.mustAcquire()
				if err := first.held.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				before := items(t, s.volume())
				p := s.party("a")
				p.mustAcquire()
				if n := p.held.Epoch(); n != 2 {
					t.Fatalf("it has lease %d", n)
				}
				old := make(map[string]string)
				for _, key := range []string{volume.KeyClient, lease.KeyEpoch, lease.KeyFence} {
					old[key] = before[key]
				}
				p.shows(old)
				time.Sleep(term / 2)
				p.writes("behind for half a lease")
				if long {
					time.Sleep(2 * term)
					if p.holds() || p.fences().Lost() != nil {
						t.Errorf("behind for two leases: it holds the volume: %v, or has lost it: %v", p.holds(), p.fences().Lost())
					}
				}
				if long && number != "" {
					// All come back for a moment, and a lease is taken again.
					p.shows(nil)
					time.Sleep(term / 4)
					if n := p.held.Epoch(); n != 3 {
						t.Fatalf("it has lease %d", n)
					}
					old[lease.KeyEpoch] = number
					p.shows(old)
					time.Sleep(term / 2)
					p.writes("behind again")
				}
				p.shows(nil)
				time.Sleep(3 * term)
				p.writes("all are back")
				// A mark that was removed is none that was missed.
				p.shows(map[string]string{volume.KeyClient: ""})
				time.Sleep(term)
				if long {
					return // the number is a later one: it cannot be told
				}
				p.isLost("the mark was removed")
			})
		}
	}
}

// TestTakeoverLate has the first attempt to take a dead holder's volume last too
// long, so that it is given up, and made again. It is a takeover all the same.
func TestTakeoverLate(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		dead := s.party("dead")
		dead.mustAcquire()
		dead.kill()
		time.Sleep(term + grace)
		p, slow := s.party("a"), 0
		p.set(func(r request, call func() error) error {
			if r.Kind == store.OpSetMetadata && r.container == "v" && slow == 0 {
				slow++
				time.Sleep(10 * time.Second)
			}
			return call()
		})
		p.mustAcquire()
		if !s.logged("a: took the volume over from dead: its lease ended at ") {
			t.Errorf("it does not say so: %q", s.log)
		}
		if p.held.Epoch() < 3 {
			t.Error("the first attempt was not given up: this test shows nothing")
		}
	})
}
