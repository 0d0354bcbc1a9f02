// SPDX-License-Identifier: MIT

package etag

import (
	"math"

	"golang.org/x/sys/cpu"
)

// hasLanes says whether the processor has what blocks8 needs.
var hasLanes = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL

// sines are the constants of the 64 steps of MD5 (RFC 1321, 3.4).
var sines = func() (k [64]uint32) {
	for i := range k {
		k[i] = uint32(math.Abs(math.Sin(float64(i+1))) * (1 << 32))
	}
	return k
}()

// blocks8 takes n blocks of 64 bytes of each stream into its state. Word w of the
// state of stream i is state[w][i]. k is sines.
//
//go:noescape
func blocks8(state *[4][lanes]uint32, data *[lanes]*byte, k *[64]uint32, n int)

// stride is how much of each stream is hashed in one call, bytes: the scheduler
// cannot interrupt a call.
const stride = 64 << 10

// sumBlocks hashes the first n bytes of up to eight streams, n a multiple of 64, and
// returns their states.
func sumBlocks(all [][]byte, n int) (state [4][lanes]uint32) {
	for i := range lanes {
		state[0][i], state[1][i], state[2][i], state[3][i] = 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476
	}
	for at := 0; at < n; at += stride {
		var data [lanes]*byte
		for i := range data {
			data[i] = &all[min(i, len(all)-1)][at] // a lane without a stream costs nothing
		}
		blocks8(&state, &data, &sines, min(stride, n-at)/blockSize)
	}
	return state
}
