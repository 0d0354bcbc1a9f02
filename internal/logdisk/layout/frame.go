// SPDX-License-Identifier: MIT

package layout

// PutFrame makes the frame of a block: dst gets the block's bytes and their CRC.
// dst has FrameSize bytes, and block BlockSize; block may be dst[:BlockSize]
// itself. PutFrame allocates nothing.
func PutFrame(dst, block []byte, number uint64, u *UUID) {
	_ = dst[FrameSize-1]
	block = block[:BlockSize]
	if &dst[0] != &block[0] {
		copy(dst, block)
	}
	le.PutUint32(dst[BlockSize:], dataCRC(dst[:BlockSize], number, u))
}

// CheckFrame returns a [DamagedError] if frame is not the frame of block number
// of volume u. The block is the frame's first BlockSize bytes.
func CheckFrame(frame []byte, number uint64, u *UUID) error {
	if len(frame) != FrameSize {
		return damaged("frame", "block %d: %d bytes, expected %d", number, len(frame), FrameSize)
	}
	if le.Uint32(frame[BlockSize:]) != dataCRC(frame[:BlockSize], number, u) {
		return damaged("frame", "block %d: wrong checksum", number)
	}
	return nil
}

// AppendCompressed appends the bytes of a record of kind [Zstd] to dst: the
// compressed bytes, and their CRC with the number of the record's first block.
// Compressed bytes that with their CRC are not shorter than the frames of the
// blocks are not to be kept in this form; see [WorthCompressed].
func AppendCompressed(dst, compressed []byte, first uint64, u *UUID) []byte {
	dst = append(dst, compressed...)
	return le.AppendUint32(dst, dataCRC(compressed, first, u))
}

// WorthCompressed reports whether n compressed bytes of count blocks may be kept
// as a record of kind [Zstd].
func WorthCompressed(n int, count uint32) bool {
	return n > 0 && fitsCompressed(uint64(n)+crcSize, uint64(count))
}

// fitsCompressed reports whether count blocks may be kept in so many bytes, the
// CRC included.
func fitsCompressed(bytes, count uint64) bool {
	return bytes > crcSize && count <= MaxCompressed && bytes < count*FrameSize
}

// CheckCompressed returns the compressed bytes in b, which are those of a record
// of kind [Zstd] whose first block is first, or a [DamagedError].
func CheckCompressed(b []byte, first uint64, u *UUID) ([]byte, error) {
	if len(b) <= crcSize {
		return nil, damaged("compressed data", "block %d: %d bytes", first, len(b))
	}
	compressed := b[:len(b)-crcSize]
	if le.Uint32(b[len(compressed):]) != dataCRC(compressed, first, u) {
		return nil, damaged("compressed data", "block %d: wrong checksum", first)
	}
	return compressed, nil
}
