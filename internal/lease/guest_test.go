// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"errors"
	"maps"
	"testing"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// keyless is a container as Swift shows it to credentials that may write it and
// do not own the account: a TempURL key is dropped from what they set, and is not
// in what they read.
type keyless struct{ store.Store }

func (k keyless) Metadata(ctx context.Context) (store.Metadata, error) {
	md, err := k.Store.Metadata(ctx)
	md.Items = maps.Clone(md.Items)
	delete(md.Items, lease.KeyFence)
	return md, err
}

func (k keyless) SetMetadata(ctx context.Context, items map[string]string) error {
	items = maps.Clone(items)
	delete(items, lease.KeyFence)
	return k.Store.SetMetadata(ctx, items)
}

// TestNotOwner has a volume taken with credentials that Swift lets do everything
// but set the key: one attempt, a clear end, and all is as it was. A volume that
// its owner has used has a key already, which is not shown either.
func TestNotOwner(t *testing.T) {
	for _, used := range []bool{false, true} {
		inScene(t, func(t *testing.T, s *scene) {
			owner, guest := s.party("owner"), s.party("guest")
			if used {
				owner.mustAcquire()
				owner.writes("before")
				if err := owner.held.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			before := read(t, s.volume())
			o := guest.options()
			o.Store = keyless{o.Store}
			_, _, err := lease.Acquire(t.Context(), o)
			if !errors.Is(err, lease.ErrNotOwner) {
				t.Errorf("used=%t: %v, want ErrNotOwner", used, err)
			}
			if left := s.leases(); len(left) > 0 {
				t.Errorf("used=%t: left behind: %v", used, left)
			}
			if guest.n > 20 {
				t.Errorf("used=%t: %d requests", used, guest.n)
			}
			now := read(t, s.volume())
			if now.Client != "" || now.Last != before.Last || now.Blank != before.Blank {
				t.Errorf("used=%t: it was %+v, and is %+v", used, before, now)
			}
			// Without a lease there is no key, and with 0.11's mark alone it works.
			o.Term = 0
			h, _, err := lease.Acquire(t.Context(), o)
			if err != nil {
				t.Fatalf("used=%t: without a lease: %v", used, err)
			}
			if err := h.ReleaseUnchanged(t.Context()); err != nil {
				t.Error(err)
			}
			owner.mustAcquire()
			owner.writes("after the guest")
			if err := owner.held.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// recorder keeps what is set with the lock mark.
type recorder struct {
	store.Store
	marks []map[string]string
}

func (r *recorder) SetMetadata(ctx context.Context, items map[string]string) error {
	if items[volume.KeyClient] != "" {
		r.marks = append(r.marks, maps.Clone(items))
	}
	return r.Store.SetMetadata(ctx, items)
}

// TestKeyGoesWithMark takes a volume whose key may stay. It must be set again all
// the same: a replica that was away when it was new would have the mark without
// it, and look like Swift to a guest.
func TestKeyGoesWithMark(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		p := s.party("owner")
		var keys []string
		for range 2 {
			o := p.options()
			r := &recorder{Store: o.Store}
			o.Store = r
			held, _, err := lease.Acquire(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.marks) != 1 || r.marks[0][lease.KeyFence] == "" {
				t.Fatalf("with the mark go %v", r.marks)
			}
			keys = append(keys, r.marks[0][lease.KeyFence])
			if err := held.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if keys[0] != keys[1] {
			t.Error("the key has changed after a clean end: this test shows nothing")
		}
	})
}
