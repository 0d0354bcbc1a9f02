// SPDX-License-Identifier: MIT

package cache

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestCopySteps copies around the sizes where copySteps cuts, and looks at the bytes on
// both sides too.
func TestCopySteps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	src := make([]byte, 4*copyStep)
	noise(rng, src)
	for _, n := range []int{0, 1, copyStep - 1, copyStep, copyStep + 1, 2*copyStep - 1, 2 * copyStep, 3*copyStep + 5} {
		dst := make([]byte, n+2)
		copySteps(dst[1:n+1], src[7:7+n])
		if !bytes.Equal(dst[1:n+1], src[7:7+n]) || dst[0] != 0 || dst[n+1] != 0 {
			t.Errorf("%d bytes were not moved as they are", n)
		}
	}
}
