// SPDX-License-Identifier: MIT

package logdisk

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// regions says which parts of the map are in memory. A region is a power of two
// of blocks: 16 MiB of disk, or more on a very large one.
type regions struct {
	shift   uint // log2 of a region's blocks
	n       uint64
	have    []uint64 // a bit for each region: it is in memory
	missing uint64   // regions that are not
	used    []atomic.Uint64
	hand    uint64 // where the search for one to evict goes on
}

const (
	regionShift = 12 // 4,096 blocks
	maxRegions  = 1 << 20
)

// newRegions returns the regions of a disk of so many blocks: none is in memory.
func newRegions(blocks uint64, shift uint) *regions {
	r := &regions{shift: shift}
	for blocks>>r.shift > maxRegions {
		r.shift++
	}
	r.grow(blocks)
	return r
}

// grow makes room for a disk of so many blocks.
func (r *regions) grow(blocks uint64) {
	n := max(1, (blocks+1<<r.shift-1)>>r.shift)
	if n <= r.n {
		return
	}
	words := int((n + 63) / 64)
	r.have = append(r.have, make([]uint64, words-len(r.have))...)
	used := make([]atomic.Uint64, words)
	for i := range r.used {
		used[i].Store(r.used[i].Load())
	}
	r.used = used
	r.missing += n - r.n
	r.n = n
}

// of returns the regions of a range of blocks: from first to before end.
func (r *regions) of(first, count uint64) (lo, end uint64) {
	return first >> r.shift, (first + count + 1<<r.shift - 1) >> r.shift
}

func (r *regions) has(k uint64) bool { return r.have[k/64]>>(k%64)&1 != 0 }

// set notes that a region is in memory, or is not.
func (r *regions) set(k uint64, have bool) {
	if r.has(k) == have {
		return
	}
	r.have[k/64] ^= 1 << (k % 64)
	if have {
		r.missing--
	} else {
		r.missing++
	}
}

// all says whether all of the blocks are in memory.
func (r *regions) all(first, count uint64) bool {
	lo, end := r.of(first, count)
	return r.missing == 0 && end <= r.n || r.next(lo, min(end, r.n), false) == end
}

// next returns the first region of [lo, end) of which have is true, or end.
func (r *regions) next(lo, end uint64, have bool) uint64 {
	for lo < end {
		w := r.have[lo/64]
		if !have {
			w = ^w
		}
		if w >>= lo % 64; w != 0 {
			return min(end, lo+uint64(bits.TrailingZeros64(w)))
		}
		lo = (lo/64 + 1) * 64
	}
	return end
}

// touch notes that the blocks were looked at.
func (r *regions) touch(first, count uint64) {
	if r.missing == 0 {
		return
	}
	lo, end := r.of(first, count)
	for end = min(end, lo+64); lo < end; lo++ {
		if w := &r.used[lo/64]; w.Load()>>(lo%64)&1 == 0 {
			w.Or(1 << (lo % 64))
		}
	}
}

// spans yields the parts of a range of blocks that are in memory as a whole, or
// not at all, in order.
func (r *regions) spans(first, count uint64) iter.Seq2[[2]uint64, bool] {
	return func(yield func([2]uint64, bool) bool) {
		end := first + count
		if count == 0 {
			return
		}
		if r.missing == 0 {
			yield([2]uint64{first, end}, true)
			return
		}
		_, last := r.of(first, count)
		for first < end {
			k := first >> r.shift
			have := r.has(k)
			to := min(end, r.next(k, last, !have)<<r.shift)
			if !yield([2]uint64{first, to}, have) {
				return
			}
			first = to
		}
	}
}

// victim returns a region that is in memory and was not used lately; false: none
// is in memory.
func (r *regions) victim() (uint64, bool) {
	if r.missing == r.n {
		return 0, false
	}
	for {
		k := r.next(r.hand, r.n, true)
		if k == r.n {
			r.hand = 0
			continue
		}
		r.hand = k + 1
		if w := &r.used[k/64]; w.Load()>>(k%64)&1 != 0 {
			w.And(^(uint64(1) << (k % 64)))
			continue
		}
		return k, true
	}
}
