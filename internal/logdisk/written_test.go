// SPDX-License-Identifier: MIT

package logdisk

import (
	"testing"

	"swiftnbd/internal/logdisk/layout"
)

// TestRecent: it has what came last, within its bytes, and what was dropped takes
// nothing.
func TestRecent(t *testing.T) {
	rng := newRand(t)
	var r recent
	at := func(n int) layout.Position { return layout.Position{Epoch: 1, N: uint64(n)} }
	const all = 20_000
	for n := range all {
		r.add(at(n), make([]byte, 4000+rng.IntN(1000)))
		if n%3 == 0 {
			r.drop(at(n - rng.IntN(10)))
		}
		bytes := int64(0)
		if n%1000 == 999 {
			for _, b := range r.of {
				bytes += int64(len(b))
			}
			if bytes != r.bytes || bytes > recentBytes || len(r.order) > 2*len(r.of)+64 {
				t.Fatalf("%d objects of %d bytes, counted as %d, in a list of %d", len(r.of), bytes, r.bytes, len(r.order))
			}
		}
	}
	if len(r.of) < recentBytes/5000/2 {
		t.Errorf("only %d objects are there", len(r.of))
	}
	for n := all - 100; n < all; n++ {
		r.drop(at(n))
		r.drop(at(n))
	}
	if r.of[at(all-1)] != nil || r.of[at(all-200)] == nil && r.of[at(all-201)] == nil && r.of[at(all-202)] == nil && r.of[at(all-203)] == nil {
		t.Error("what was dropped is there, or what was not is not")
	}
	for n := range all {
		r.drop(at(n))
	}
	if len(r.of) != 0 || r.bytes != 0 {
		t.Errorf("%d objects and %d bytes are left", len(r.of), r.bytes)
	}
}
