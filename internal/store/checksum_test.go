// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"

	"swiftnbd/internal/store"
)

// TestChecksum holds the Checksum to docs/FORMAT.md: it is kept in Swift, and
// must not become another.
func TestChecksum(t *testing.T) {
	for data, want := range map[string]store.Checksum{
		"123456789":              "e3069283", // the algorithm's check value
		"":                       "00000000",
		string(make([]byte, 32)): "8a9136aa", // RFC 3720, B.4
	} {
		if got := store.ChecksumOf([]byte(data)); got != want {
			t.Errorf("checksum of %q: %s, want %s", data, got, want)
		}
		if got := store.ParseChecksum(string(want)); got != want {
			t.Errorf("%s is read as %q", want, got)
		}
	}
	for _, s := range []string{"", "e306928", "e30692830", "E3069283", "e306928g", " e306928", "é3069283"} {
		if got := store.ParseChecksum(s); got != "" {
			t.Errorf("%q is read as %q", s, got)
		}
	}
}
