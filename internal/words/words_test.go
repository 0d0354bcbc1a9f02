// SPDX-License-Identifier: MIT

package words

import "testing"

func TestCount(t *testing.T) {
	for n, want := range map[int64]string{0: "0 chunks", 1: "1 chunk", 2: "2 chunks", -1: "-1 chunks", 11: "11 chunks", 101: "101 chunks"} {
		if got := Count(n, "chunk"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
