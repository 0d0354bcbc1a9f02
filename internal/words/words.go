// SPDX-License-Identifier: MIT

// Package words puts numbers into sentences for people.
package words

import "fmt"

// Count returns "1 chunk", "2 chunks": n things whose name in the singular is
// noun, and whose plural has an s.
func Count[N ~int | ~int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
