// SPDX-License-Identifier: MIT

package main

import "testing"

func TestGet(t *testing.T) {
	for n, want := range map[int]string{0: "0 clients get errors", 1: "1 client gets errors", 2: "2 clients get errors"} {
		if s := get(n); s != want {
			t.Errorf("%d: %q, want %q", n, s, want)
		}
	}
}
