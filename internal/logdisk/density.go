// SPDX-License-Identifier: MIT

package logdisk

import (
	"math"

	"swiftnbd/internal/logdisk/layout"
)

// Density
//
// Live bytes are counted by blocks. In an object with compressed records a block
// takes fewer bytes than a frame. How many, about, is the object's density: what the
// collector needs to tell an object that is mostly garbage from one that is well
// compressed. It is a power of two in tenths, so that it fits into a row. It is
// rounded so that an object that is all live never seems to have garbage.

// weights are the bytes of a block by density, times weightUnit.
var weights = func() (w [layout.MaxDensity + 1]int64) {
	for d := range w {
		w[d] = int64(math.Ceil(layout.FrameSize * weightUnit * math.Pow(2, -float64(max(d-1, 0))/10)))
	}
	return w
}()

const weightUnit = 1 << 8

// densityOf returns the density of an object of size bytes with compressed records,
// in which so many blocks are. It is at least 1.
func densityOf(blocks, size int64) uint8 {
	d := 1
	for d < layout.MaxDensity && blocks*weights[d+1] >= size*weightUnit {
		d++
	}
	return uint8(d)
}

// densityOfRecords is densityOf by the records; 0 if none of them is compressed.
func densityOfRecords(records []layout.Record, size int64) uint8 {
	var blocks int64
	compressed := false
	for _, r := range records {
		if r.Kind.Stored() {
			blocks += int64(r.Count)
		}
		compressed = compressed || r.Kind == layout.Zstd
	}
	if !compressed {
		return 0
	}
	return densityOf(blocks, size)
}

// weigh returns about how many bytes blocks of that density have.
func weigh(blocks int64, density uint8) int64 { return blocks * weights[density] / weightUnit }

// asFrames returns about how large an object of size bytes would be with frames.
func asFrames(size int64, density uint8) int64 { return size * weights[0] / weights[density] }
