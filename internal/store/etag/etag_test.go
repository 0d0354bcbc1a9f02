// SPDX-License-Identifier: MIT

package etag

import (
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestSum compares batches of every number of objects, of several lengths, with
// MD5 as Go has it. The same hashers do all of them.
func TestSum(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{})
	v := NewVectors()
	defer v.Close()
	for n := range Batch + 1 {
		all := make([][]byte, n)
		for i := range all {
			all[i] = make([]byte, []int{0, 1, 55, 56, 64, 4100, 32 << 10, 100_003}[(n+i)%8])
			_, _ = rng.Read(all[i])
		}
		for i, got := range v.Sum(all) {
			want := fmt.Sprintf("%x", md5.Sum(all[i]))
			if string(got) != want || string(Sum(all[i])) != want {
				t.Errorf("%d of %d, %d bytes: %s, alone %s; want %s", i, n, len(all[i]), got, Sum(all[i]), want)
			}
		}
	}
}
