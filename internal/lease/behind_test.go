// SPDX-License-Identifier: MIT

package lease_test

import (
	"testing"
	"time"

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
