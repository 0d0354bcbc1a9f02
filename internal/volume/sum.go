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

// Every chunk is hashed on its way to Swift and back, and with a fast cluster
// MD5 is most of what that costs. The vector units hash many chunks in little
// more time than one, but one alone takes them longer than plain MD5 does. So
// the first sum is done at once; those that come meanwhile queue up, and are
// done together, as many as there are by then. The busier the CPU, the more
// there are.

const (
	batchBytes = 32 << 10 // smaller sums are done at once
	batchMost  = 16       // the lanes of AVX-512
)

var (
	alone atomic.Bool // somebody is doing a sum by himself

	batches = sync.OnceValue(func() chan<- *batched {
		queue := make(chan *batched, 4*batchMost)
		go sumBatches(queue)
		return queue
	})
)

// batched is a sum that waits for its batch.
type batched struct {
	p    []byte
	sum  [md5.Size]byte
	done chan struct{}
}

// sum returns p's ETag.
func sum(p []byte) store.ETag {
	if len(p) < batchBytes {
		return etag(md5.Sum(p))
	}
	if alone.CompareAndSwap(false, true) {
		defer alone.Store(false)
		return etag(md5.Sum(p))
	}
	b := &batched{p: p, done: make(chan struct{})}
	batches() <- b
	<-b.done
	return etag(b.sum)
}

func etag(s [md5.Size]byte) store.ETag { return store.ETag(hex.EncodeToString(s[:])) }

// sumBatches does what queues up, for the life of the process.
func sumBatches(queue <-chan *batched) {
	server := md5simd.NewServer()
	batch := make([]*batched, 0, batchMost)
	for first := range queue {
		batch = append(batch[:0], first)
		for more := true; more && len(batch) < batchMost; {
			select {
			case b := <-queue:
				batch = append(batch, b)
			default:
				more = false
			}
		}
		if len(batch) == 1 {
			first.sum = md5.Sum(first.p)
			close(first.done)
			continue
		}
		var wg sync.WaitGroup
		for _, b := range batch {
			wg.Go(func() {
				h := server.NewHash()
				_, _ = h.Write(b.p) // a hash never fails
				h.Sum(b.sum[:0])
				h.Close()
				close(b.done)
			})
		}
		wg.Wait()
	}
}
