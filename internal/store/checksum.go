// SPDX-License-Identifier: MIT

package store

import (
	"fmt"
	"hash/crc32"
	"strings"
)

// Checksum is the CRC-32C (Castagnoli) of an object's bytes, eight lower-case
// hexadecimal digits. A store keeps it beside each object. The ETag is an MD5,
// and to check bytes against it costs more than ten times as much: most
// processors have an instruction for CRC-32C. The empty Checksum means "not
// known": another program has written the object.
//
// A Checksum detects damage, and misses one case in four billion. It does not
// prove which object this is. The ETag does that.
type Checksum string

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChecksumOf returns p's Checksum.
func ChecksumOf(p []byte) Checksum {
	return Checksum(fmt.Sprintf("%08x", crc32.Checksum(p, castagnoli)))
}

// ParseChecksum returns s as a Checksum. If s is none, it returns the empty
// one, and the bytes are checked against the ETag.
func ParseChecksum(s string) Checksum {
	if len(s) != 8 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return Checksum(s)
}
