// SPDX-License-Identifier: MIT

// Package layout owns the bytes of version 2 of the volume format, as
// docs/FORMAT-V2.md describes them: names, data objects with their records and
// footers, frames, runs of the map, and roots. Its functions are pure. They do
// no I/O and know nothing of the rest of the project.
//
// A parser takes only what a writer of this package makes. Whatever else it
// gets is an error: [DamagedError] if the bytes cannot be right, and
// [UnsupportedError] if they are whole, but need a later program. No parser
// panics or allocates more than a small multiple of its input.
package layout

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Sizes and limits of the format.
const (
	BlockSize  = 4096          // bytes of a block
	FrameSize  = BlockSize + 4 // bytes of a block with its CRC
	FooterSize = 128           // bytes of a data object's footer
	TailSize   = 64 << 10      // bytes at the end of a data object that a program asks for first

	MaxRecords     = 65536     // records of a data object
	MaxObjectSize  = 1<<32 - 1 // bytes of a data object
	MaxCompressed  = 16        // blocks of a record of kind Zstd
	MaxN           = 1<<32 - 1 // N of a position: objects, runs or roots of one epoch
	FirstCollected = 1 << 31   // N of an epoch's first data object that the collector writes
	MaxBlocks      = 1 << 51   // blocks of a disk, whose size is less than 2^63 bytes
)

const crcSize = 4

// A DamagedError says that bytes are not what a writer of the format makes, or
// not what was asked for: cut off, changed, or of another name or volume.
type DamagedError struct {
	What string // the structure, for instance "data object" or "page 3 of a run"
	Why  string // what is wrong, and where
}

func (e *DamagedError) Error() string { return "damaged " + e.What + ": " + e.Why }

func damaged(what, format string, args ...any) error {
	return &DamagedError{What: what, Why: fmt.Sprintf(format, args...)}
}

// An UnsupportedError says that bytes are whole, but that a later program has
// written them, and that this one does not know how to read them.
type UnsupportedError struct {
	What string // the structure
	Why  string // what of it is not known
}

func (e *UnsupportedError) Error() string { return e.What + " of a later program: " + e.Why }

func unsupported(what, format string, args ...any) error {
	return &UnsupportedError{What: what, Why: fmt.Sprintf(format, args...)}
}

// Kind says what a record or an entry keeps of its blocks. Its numbers are those
// of the format.
type Kind uint8

// The kinds.
const (
	Data      Kind = iota // frames
	Zeroes                // no bytes: the blocks are zeroes
	Trimmed               // no bytes: the blocks were given up by the client, and read as zeroes
	Zstd                  // compressed bytes of up to MaxCompressed blocks
	Encrypted             // reserved; no program writes it yet
)

// Stored reports whether blocks of this kind have bytes in an object.
func (k Kind) Stored() bool { return k == Data || k >= Zstd }

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Zeroes:
		return "zeroes"
	case Trimmed:
		return "trimmed"
	case Zstd:
		return "zstd"
	case Encrypted:
		return "encrypted"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

var le = binary.LittleEndian

// castagnoli is the table for all CRCs of the format. Package crc32 has machine
// code for this table.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// slices8 are the tables that take a CRC over 8 bytes at once. Package crc32 has
// such tables, too, but passes its bytes on through a variable, so that an array
// on the caller's stack would have to be allocated for each frame.
var slices8 = func() (t [8][256]uint32) {
	t[0] = *castagnoli
	for i := range t[0] {
		crc := t[0][i]
		for j := 1; j < 8; j++ {
			crc = t[0][byte(crc)] ^ crc>>8
			t[j][i] = crc
		}
	}
	return t
}()

// step takes the inverted CRC over 8 bytes, which are v in little-endian order.
func step(crc uint32, v uint64) uint32 {
	v ^= uint64(crc)
	return slices8[7][byte(v)] ^ slices8[6][byte(v>>8)] ^ slices8[5][byte(v>>16)] ^ slices8[4][byte(v>>24)] ^
		slices8[3][byte(v>>32)] ^ slices8[2][byte(v>>40)] ^ slices8[1][byte(v>>48)] ^ slices8[0][byte(v>>56)]
}

// dataCRC is the CRC of b, followed by a block's number and the volume's uuid.
func dataCRC(b []byte, number uint64, u *UUID) uint32 {
	crc := ^crc32.Update(0, castagnoli, b)
	crc = step(crc, number)
	crc = step(crc, le.Uint64(u[:8]))
	crc = step(crc, le.Uint64(u[8:]))
	return ^crc
}
