// SPDX-License-Identifier: MIT

package volume

import (
	"crypto/md5"
	"encoding/hex"
	"sync"
	"sync/atomic"

	md5simd "github.com/minio/md5-simd"

	"swiftnbd/internal/store"
)

// Every chunk is hashed on its way to Swift and back, and with fast clusters
// MD5 is most of what that costs. The vector units hash several chunks at once
// in the time of about one and a half; a single one is quicker without.
var (
	hashing atomic.Int32 // sums under way

	vector = sync.OnceValue(md5simd.NewServer)
)

const (
	vectorFrom  = 3        // sums at once from which vectors pay
	vectorBytes = 32 << 10 // and the bytes, of each
)

// sum returns p's ETag.
func sum(p []byte) store.ETag {
	n := hashing.Add(1)
	defer hashing.Add(-1)
	if n < vectorFrom || len(p) < vectorBytes {
		s := md5.Sum(p)
		return store.ETag(hex.EncodeToString(s[:]))
	}
	h := vector().NewHash()
	defer h.Close()
	_, _ = h.Write(p) // a hash never fails
	return store.ETag(hex.EncodeToString(h.Sum(nil)))
}
