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

// How many copies of a container's metadata are read after the first one: the
// first number at once, then the second number, unless enough replicas have
// been seen by then. With five replicas or fewer, any three of them contain one
// that has seen every change, since a change is acknowledged when half of the
// replicas have it. If replicas cannot be told apart, and one of three is
// behind, the chance to have met only this one is one in half a million.
var copyRounds = [...]int{4, 8}

const enoughReplicas = 3

// metadataCopy is a container's metadata as one replica has it.
type metadataCopy struct {
	store.Metadata
	modified time.Time // of the last change, in whole seconds; zero where it is not said
	replica  string    // when the replica was made, which can tell replicas apart
}

// Metadata implements store.Store. X-Newest does not help with containers:
// Swift compares the times at which the replicas were made. It therefore always
// asks the same replica, or any one, even if it is behind. Last-Modified is the
// time of the last change of the metadata. So several copies are read, each
// from the replica that the proxy chooses. The copy that changed last counts.
// Among copies that changed in the same second, the one that most replicas have
// counts.
func (c *container) Metadata(ctx context.Context) (store.Metadata, error) {
	first, err := c.firstMetadata(ctx)
	if err != nil {
		return store.Metadata{}, err
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

// MetadataHint implements store.Store.
func (c *container) MetadataHint(ctx context.Context) (store.Metadata, error) {
	first, err := c.firstMetadata(ctx)
	return first.Metadata, err
}

// firstMetadata reads a copy with a request that asks all replicas. It
// therefore finds the container if any replica has it.
func (c *container) firstMetadata(ctx context.Context) (metadataCopy, error) {
	if err := c.checkContainer("HEAD", nil); err != nil {
		return metadataCopy{}, err
	}
	return c.metadata(ctx, swift.Headers{"X-Newest": "true"})
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
	return m, c.nameRule(err)
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
		replicas int // replicas that have best
		times    int // copies that are like best
	)
	for _, c := range copies {
		if !c.modified.Equal(latest) {
			continue
		}
		have, n := make(map[string]bool), 0
		for _, other := range copies {
			if other.modified.Equal(latest) && maps.Equal(other.Items, c.Items) && other.Versions == c.Versions {
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
