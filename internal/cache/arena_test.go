// SPDX-License-Identifier: MIT

package cache

import "testing"

// TestSetAside: the room behind frames costs no spare frame, and all frames with
// their rooms stay within the budget.
func TestSetAside(t *testing.T) {
	const size = 1 << 20
	for _, mib := range []int64{4, 8, 16, 32, 64, 100, 128, 256, 1024} {
		n := mib << 20
		plain, roomy := newArena(size), newArena(size)
		roomy.room = Room
		plain.setAside(n)
		limit := roomy.setAside(n)
		if roomy.spares != plain.spares {
			t.Errorf("%d MiB: %d spare frames, and %d without room", mib, roomy.spares, plain.spares)
		}
		frames := limit/(roomy.whole()+overhead) + int64(roomy.spares)
		if all := frames * (roomy.whole() + Room); all > n {
			t.Errorf("%d MiB: %d frames with their rooms are %d bytes", mib, frames, all)
		}
	}
}
