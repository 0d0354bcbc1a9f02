// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"testing"

	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// TestSameMark has somebody take the volume at the moment at which the one before gives
// it back, in the same second and with the same name: two runs of one verb of
// swiftnbd-ctl have that, on whatever machines. Both marks are the same then. The first
// must not take it for its own, which Swift has not removed yet, and remove it.
func TestSameMark(t *testing.T) {
	inScene(t, func(t *testing.T, s *scene) {
		first, second := s.party("ctl-snapshot"), s.party("ctl-snapshot")
		first.plain, second.plain = true, true
		first.mustAcquire()
		first.set(func(r request, call func() error) error {
			err := call()
			if r.container == "v" && r.Kind == store.OpSetMetadata && second.has() == nil {
				second.mustAcquire()
			}
			return err
		})
		if err := first.has().Release(context.Background()); err != nil {
			t.Error(err)
		}
		if first.has().Mark() != second.has().Mark() {
			t.Fatal("it takes longer than a second: this test shows nothing")
		}
		if mark := items(t, s.volume())[volume.KeyClient]; mark != second.has().Mark() {
			t.Errorf("the volume has the mark %q", mark)
		}
		second.writes("after that")
		if err := second.has().Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
}
