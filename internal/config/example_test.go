// SPDX-License-Identifier: MIT

package config_test

import (
	"fmt"

	"swiftnbd/internal/config"
)

// Sizes are written as nbdkit's are.
func ExampleParseSize() {
	for _, s := range []string{"512", "64K", "1M", "1.5M"} {
		n, err := config.ParseSize(s)
		fmt.Println(n, err != nil)
	}
	// Output:
	// 512 false
	// 65536 false
	// 1048576 false
	// 0 true
}

// A secret is not shown, however it is printed.
func ExampleSecret() {
	password := config.Secret("xyzzy")
	fmt.Printf("%v %s %d\n", password, password, len(string(password)))
	// Output: [redacted] [redacted] 5
}
