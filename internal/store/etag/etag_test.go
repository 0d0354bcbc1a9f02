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
	for _, useLanes := range []bool{false, true} {
		t.Run(fmt.Sprintf("lanes=%t", useLanes), func(t *testing.T) {
			if useLanes && !hasLanes {
				t.Skip("the processor has no AVX-512VL")
			}
			testSum(t, newVectors(useLanes))
		})
	}
}

func testSum(t *testing.T, v *Vectors) {
	rng := rand.NewChaCha8([32]byte{})
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

// TestSumLong has lanes that are as long as in use, of the same length and not, and
// more than one stride long.
func TestSumLong(t *testing.T) {
	v := NewVectors()
	defer v.Close()
	rng := rand.NewChaCha8([32]byte{1})
	for _, n := range []int{1, 2, 7, 8, 9, Batch} {
		for _, differ := range []int{0, 1, 64, 5000} {
			all := make([][]byte, n)
			for i := range all {
				all[i] = make([]byte, 200_000+differ*i)
				_, _ = rng.Read(all[i])
			}
			for i, got := range v.Sum(all) {
				if want := fmt.Sprintf("%x", md5.Sum(all[i])); string(got) != want {
					t.Errorf("%d of %d, %d bytes: %s, want %s", i, n, len(all[i]), got, want)
				}
			}
		}
	}
}

// BenchmarkSum is what hashing costs with so many objects together.
func BenchmarkSum(b *testing.B) {
	for _, useLanes := range []bool{false, true} {
		if useLanes && !hasLanes {
			continue
		}
		for _, n := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("lanes=%t/%d", useLanes, n), func(b *testing.B) {
				v := newVectors(useLanes)
				defer v.Close()
				all := make([][]byte, n)
				for i := range all {
					all[i] = make([]byte, 4<<20)
				}
				b.SetBytes(int64(n) * 4 << 20)
				for b.Loop() {
					v.Sum(all)
				}
			})
		}
	}
}
