// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestMove copies around the sizes where move cuts, and looks at the bytes on
// both sides too.
func TestMove(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	src := make([]byte, 4*moveStep)
	noise(rng, src)
	for _, n := range []int{0, 1, moveStep - 1, moveStep, moveStep + 1, 2*moveStep - 1, 2 * moveStep, 3*moveStep + 5} {
		dst := make([]byte, n+2)
		move(dst[1:n+1], src[7:7+n])
		if !bytes.Equal(dst[1:n+1], src[7:7+n]) || dst[0] != 0 || dst[n+1] != 0 {
			t.Errorf("%d bytes were not moved as they are", n)
		}
	}
}
