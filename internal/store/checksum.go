// SPDX-License-Identifier: MIT

package store

import (
	"fmt"
	"hash/crc32"
	"strings"
)

// Checksum is the CRC-32C (Castagnoli) of an object's bytes, eight lower-case
// hexadecimal digits. A store keeps it beside what it is given to store, since
// the ETag, an MD5, costs ten times and more as much to hold bytes against, and
// CRC-32C is an instruction of most processors. The empty Checksum is "not
// known": the object is another program's.
//
// It tells damage, of which it lets one in four billion pass; it is no proof of
// which object this is. That is what the ETag is for.
type Checksum string

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChecksumOf returns p's Checksum.
func ChecksumOf(p []byte) Checksum {
	return Checksum(fmt.Sprintf("%08x", crc32.Checksum(p, castagnoli)))
}

// ParseChecksum returns s as a Checksum, or the empty one where s is none: the
// ETag has to do then.
func ParseChecksum(s string) Checksum {
	if len(s) != 8 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return Checksum(s)
}
