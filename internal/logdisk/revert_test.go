// SPDX-License-Identifier: MIT

package logdisk

import (
	"errors"
	"slices"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// TestRevertClone has a clone that was flattened become what it was before: then
// it needs its parent again. And back.
func TestRevertClone(t *testing.T) {
	const blocks = 600
	f, m, _ := aFamily(t, blocks)
	c := f.clone(t, m, "s")
	s := &script{t: t, h: c.h, blocks: blocks, flushed: c.h.ops}
	snaps := snapshots{}
	in := func(brief bool, do func(d *Disk) error) {
		t.Helper()
		c.o.Brief = brief
		d, err := c.open(t.Context(), c.box)
		c.o.Brief = false
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if s.flushed == s.h.ops {
			s.check(d)
		}
		if err := errors.Join(do(d), d.Drain(t.Context()), d.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
		s.flushed = s.h.ops
	}
	snapshot := func(d *Disk, name string) error {
		snaps[name] = s.h.ops
		return d.Snapshot(t.Context(), name)
	}
	revert := func(name string, below bool) {
		t.Helper()
		s.h.revert(snaps[name], blocks)
		in(true, func(d *Disk) error {
			if err := d.Revert(t.Context(), name); err != nil {
				return err
			}
			list, written := d.Copies()
			for i, s := range list {
				if !written[i] {
					t.Errorf("reverted to %s, the disk is taken for the snapshot %s", name, s.Name)
				}
			}
			if (d.base != nil) != below || (d.root.Below != nil) != below || slices.Contains(d.root.Requires, layout.FeatureClone) != below || len(d.root.Bases) != 1 {
				t.Errorf("reverted to %s: the root is %+v", name, d.root)
			}
			return nil
		})
		in(false, func(d *Disk) error { s.same(d); return nil })
		r, err := Verify(t.Context(), Options{Store: c.box, UUID: c.uuid, Newest: c.epoch, Timeout: time.Second, Horizon: time.Hour, Bases: f.bases}, VerifyOptions{})
		if err != nil || len(r.Damage) > 0 || (r.Base != nil) != below {
			t.Errorf("verified: %+v, %v", r, err)
		}
	}
	in(false, func(d *Disk) error { return errors.Join(s.write(d, 1, 2, 300), s.zero(d, 4, 3), snapshot(d, "clone")) })
	s.h.resize(100, blocks)
	in(true, func(d *Disk) error { return d.Resize(t.Context(), 100*blockSize, true) })
	in(false, func(d *Disk) error { return errors.Join(s.write(d, 1, 50), snapshot(d, "small")) })
	in(false, func(d *Disk) error {
		return errors.Join(d.Flatten(t.Context(), func(int64) {}), s.write(d, 7), snapshot(d, "flat"), s.write(d, 8))
	})
	revert("clone", true)
	in(false, func(d *Disk) error { return s.write(d, 9, 500) })
	revert("flat", false)
	revert("small", true)
	for name := range snaps {
		snaps.check(t, c.opener, c.box, name, s.h, blocks)
	}
	in(false, func(d *Disk) error {
		b, needed, err := d.Base(t.Context())
		if b == nil || b.UUID != layout.UUID(m.uuid) || needed != nil {
			t.Errorf("the base is %+v, for snapshots %v", b, needed)
		}
		return err
	})
}

// TestCopiesAfter: a disk whose bytes have changed by no write is not taken for
// the snapshot that was made last.
func TestCopiesAfter(t *testing.T) {
	const blocks = 64
	v := newVolume(t, blocks*blockSize)
	s := newScript(t, blocks)
	in := func(brief bool, do func(d *Disk) error) {
		t.Helper()
		v.o.Brief = brief
		d, err := v.open(t.Context(), v.box)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := errors.Join(do(d), d.Drain(t.Context()), d.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	unlike := func(d *Disk, name string, want bool) {
		t.Helper()
		list, written := d.Copies()
		for i, snap := range list {
			if snap.Name == name && written[i] != want {
				t.Errorf("the disk is not what it was in snapshot %s: %v", name, written[i])
			}
		}
	}
	size := func(blocks int64) func(d *Disk) error {
		return func(d *Disk) error { return d.Resize(t.Context(), blocks*blockSize, true) }
	}
	in(false, func(d *Disk) error {
		return errors.Join(s.write(d, 1, 40), d.Snapshot(t.Context(), "a"), s.write(d, 2), d.Snapshot(t.Context(), "b"))
	})
	in(true, func(d *Disk) error { unlike(d, "b", false); return d.Revert(t.Context(), "a") })
	in(false, func(d *Disk) error { unlike(d, "b", true); return d.Snapshot(t.Context(), "c") })
	in(true, size(90))
	in(true, size(blocks)) // that was no data
	in(true, func(d *Disk) error { unlike(d, "c", false); return size(30)(d) })
	in(true, size(blocks))
	in(false, func(d *Disk) error { unlike(d, "c", true); return nil })
	in(true, func(d *Disk) error { // all in one session
		return errors.Join(s.write(d, 3), d.Snapshot(t.Context(), "d"), d.Revert(t.Context(), "a"))
	})
	in(false, func(d *Disk) error { unlike(d, "d", true); return nil })
}
