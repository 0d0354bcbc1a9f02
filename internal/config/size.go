// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseSize reads a number of bytes as nbdkit's nbdkit_parse_size does: a
// decimal number with an optional unit, "b" for bytes, "s" for sectors of 512,
// and "k", "m", "g", "t", "p", "e" for the powers of 1024, in either case.
// Beyond nbdkit's forms "KiB", "MiB" and so on are taken too. "KB", which
// some read as 1000, is not.
func ParseSize(s string) (int64, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if digits == 0 {
		return 0, fmt.Errorf("size %q: not a number like 65536, 64K, 1M or 10G", s)
	}
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	unit, ok := sizeUnit(strings.ToLower(s[digits:]))
	if !ok {
		return 0, fmt.Errorf("size %q: unknown unit %q (K, M, G, T, P or E)", s, s[digits:])
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	return n * unit, nil
}

// sizeUnit returns the bytes that a lower-case unit stands for.
func sizeUnit(u string) (int64, bool) {
	switch u {
	case "", "b":
		return 1, true
	case "s":
		return 512, true
	}
	const powers = "kmgtpe"
	i := strings.IndexByte(powers, u[0])
	if i < 0 || (len(u) > 1 && u[1:] != "ib") {
		return 0, false
	}
	return 1 << (10 * (i + 1)), true
}
