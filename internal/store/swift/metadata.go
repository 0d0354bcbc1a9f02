// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// How many copies of a container's metadata are read: so many at once, then so
// many more, unless that many replicas have been seen by then. Of
// five replicas and less, any three hold one that has seen every change, since
// a change is acknowledged when half of them have it. Where replicas cannot be
// told apart, the chance to have met only the one of three that is behind is
// one in half a million.
var copyRounds = [...]int{4, 8}

const enoughReplicas = 3

// metadataCopy is a container's metadata as one replica has it.
type metadataCopy struct {
	store.Metadata
	modified time.Time // of the last change, in whole seconds; zero where it is not said
	replica  string    // when the replica was made, which tells some from others
}

// Metadata implements store.Store. X-Newest is no help with containers: Swift
// compares the times at which the replicas were made, so it asks always the
// same one, or any, be it behind or not. The container's Last-Modified is the
// last change of the metadata. So some copies are read, each of whatever replica
// the proxy comes upon, and the one that changed last counts; among those that
// changed in the same second, what most replicas have.
func (c *container) Metadata(ctx context.Context) (store.Metadata, error) {
	if err := c.checkContainer("HEAD", nil); err != nil {
		return store.Metadata{}, err
	}
	// This one asks all replicas, and so finds the container if any has it.
	first, err := c.metadata(ctx, swift.Headers{"X-Newest": "true"})
	if err != nil || store.IsHint(ctx) {
		return first.Metadata, err
	}
	copies := []metadataCopy{first}
	replicas := map[string]bool{first.replica: true}
	for _, n := range copyRounds {
		var (
			g  sync.WaitGroup
			mu sync.Mutex
		)
		for range n {
			g.Go(func() {
				another, err := c.metadata(ctx, nil)
				if err != nil {
					return // a replica's trouble; there is an answer already
				}
				mu.Lock()
				defer mu.Unlock()
				copies = append(copies, another)
				replicas[another.replica] = true
			})
		}
		g.Wait()
		if len(replicas) >= enoughReplicas {
			break
		}
	}
	return newestCopy(copies), nil
}

// metadata reads one copy.
func (c *container) metadata(ctx context.Context, headers swift.Headers) (metadataCopy, error) {
	var m metadataCopy
	r := request{method: "HEAD", container: c.name, headers: headers}
	err := c.client.do(ctx, r, containerCodes, func(x *exchange) error {
		m.Metadata = parseMetadata(x.header)
		m.modified, _ = http.ParseTime(x.header.Get("Last-Modified"))
		m.replica = x.header.Get("X-Timestamp")
		return nil
	})
	return m, err
}

// newestCopy chooses among copies, of which there is one at least.
func newestCopy(copies []metadataCopy) store.Metadata {
	latest := copies[0].modified
	for _, c := range copies {
		if c.modified.After(latest) {
			latest = c.modified
		}
	}
	var (
		best     metadataCopy
		replicas int // that have best
		times    int // that it was read
	)
	for _, c := range copies {
		if !c.modified.Equal(latest) {
			continue
		}
		have, n := make(map[string]bool), 0
		for _, other := range copies {
			if other.modified.Equal(latest) && maps.Equal(other.Items, c.Items) {
				have[other.replica] = true
				n++
			}
		}
		if len(have) > replicas || len(have) == replicas && n > times {
			best, replicas, times = c, len(have), n
		}
	}
	return best.Metadata
}
