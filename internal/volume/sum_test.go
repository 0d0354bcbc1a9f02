// SPDX-License-Identifier: MIT

package volume

import (
	"crypto/md5"
	"encoding/hex"
	"math/rand/v2"
	"sync"
	"testing"

	"swiftnbd/internal/store"
)

// TestSum holds sums that are done together against plain MD5.
func TestSum(t *testing.T) {
	var wg sync.WaitGroup
	for w := range 24 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for range 30 {
				p := make([]byte, []int{0, 1, 1000, 32 << 10, 65537, 200_000}[rng.IntN(6)])
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				want := md5.Sum(p)
				if got := sum(p); got != store.ETag(hex.EncodeToString(want[:])) {
					t.Errorf("sum of %d bytes is %s, want %x", len(p), got, want)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSum(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			sum(p)
		}
	})
}
