// SPDX-License-Identifier: MIT

package etag

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"

	"swiftnbd/internal/store"
)

const (
	// lanes is how many streams are hashed by the same instructions.
	lanes     = 8
	blockSize = md5.BlockSize
)

// sumLanes returns the ETags of up to eight byte slices. What is as long as the
// shortest of them is hashed in lanes. The standard library goes on from there.
func sumLanes(all [][]byte, tags []store.ETag) {
	n := len(all[0])
	for _, p := range all {
		n = min(n, len(p))
	}
	n = n / blockSize * blockSize
	state := sumBlocks(all, n)
	for i, p := range all {
		h := md5.New()
		// What crypto/md5 writes of a hash: a mark, the state, an unfinished
		// block (there is none), and how many bytes came.
		saved := append(make([]byte, 0, 4+md5.Size+blockSize+8), "md5\x01"...)
		for w := range state {
			saved = binary.BigEndian.AppendUint32(saved, state[w][i])
		}
		saved = append(saved, make([]byte, blockSize)...)
		saved = binary.BigEndian.AppendUint64(saved, uint64(n))
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved); err != nil {
			tags[i] = Sum(p)
			continue
		}
		_, _ = h.Write(p[n:]) // a hash.Hash never returns an error
		tags[i] = store.ETag(hex.EncodeToString(h.Sum(nil)))
	}
}
