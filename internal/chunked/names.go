// SPDX-License-Identifier: MIT

package chunked

import (
	"fmt"
	"strconv"
	"strings"

	"swiftnbd/internal/geometry"
)

// The default object sizes of a new volume, bytes. DefaultObjectSize is the
// best choice by our measurements (nbdkit-swift-plugin(1), PERFORMANCE). A user
// who gives a number of objects and not a size expects swiftnbd 0.11's object
// size. With another one the disk would not have the expected size.
const (
	DefaultObjectSize  = 1 << 20
	SwiftnbdObjectSize = 64 << 10
)

// Prefix is the beginning of the names of all objects that hold chunks.
const Prefix = "disk.part/"

// ObjectName returns the name of the object that holds chunk i: decimal, at
// least eight digits.
func ObjectName(i geometry.ChunkIndex) string {
	return fmt.Sprintf("%s%08d", Prefix, int64(i))
}

// ParseObjectName is ObjectName's inverse; ok is false for any name that
// ObjectName does not return.
func ParseObjectName(name string) (i geometry.ChunkIndex, ok bool) {
	digits, found := strings.CutPrefix(name, Prefix)
	if !found || len(digits) < 8 {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || ObjectName(geometry.ChunkIndex(n)) != name {
		return 0, false
	}
	return geometry.ChunkIndex(n), true
}
