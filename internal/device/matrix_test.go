// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// quick is a policy for faults that end soon. A hang costs an attempt's time.
var quick = store.Policy{Timeout: time.Minute, Attempt: 300 * time.Millisecond, Base: time.Millisecond, Max: 10 * time.Millisecond, RetryAfter: 10 * time.Millisecond}

// slowly is quick for where there is much to do: a server that is starved of its
// processor for longer than an attempt makes whoever writes wait until the
// attempt's signature has run out.
var slowly = store.Policy{Timeout: time.Minute, Attempt: 700 * time.Millisecond, Base: time.Millisecond, Max: 10 * time.Millisecond, RetryAfter: 10 * time.Millisecond}

// TestFaultMatrix has every other request of one kind go wrong in one way, for
// each kind and each way, through the whole life of a volume. Nobody may see
// anything of it, and no byte may be wrong.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			t.Parallel()
			faultMatrix(t, version)
		})
	}
}

// neverUsed are the kinds of requests that a volume's life does not have in each
// version of the format.
var neverUsed = map[int][]kind{2: {getWhole, del}}

func faultMatrix(t *testing.T, version int) {
	t.Run("none", func(t *testing.T) {
		var mu sync.Mutex
		seen := make(map[kind]bool)
		wholeLife(t, version, func(r *devswift.Request) *devswift.Action {
			mu.Lock()
			defer mu.Unlock()
			seen[kindOf(r)] = true
			return nil
		})
		for _, k := range kinds {
			if seen[k] == slices.Contains(neverUsed[version], k) {
				t.Errorf("%s is part of the life that all faults are tried on: %t", k, seen[k])
			}
		}
	})
	for _, h := range harms {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			for _, k := range kinds {
				if !h.on(k) || slices.Contains(neverUsed[version], k) {
					continue
				}
				t.Run(string(k), func(t *testing.T) {
					var hits atomic.Int64
					wholeLife(t, version, everyOther(k, h.action, func() { hits.Add(1) }))
					if hits.Load() == 0 {
						t.Error("no request was harmed")
					}
				})
			}
		})
	}
}

// newCloudWorld makes a volume of a cloud's; the test's own way is inner.
func newCloudWorld(t *testing.T, c *embedded, version int, objectSize, objects int64) *world {
	var w *world
	if version == 2 {
		w = newLogWorld(t, c, objectSize, objects)
	} else {
		w = newWorld(t, c.own, objectSize, objects, false)
	}
	w.apart, w.policy, w.cloud = true, quick, c
	return w
}

// wholeLife sets a volume up, opens, writes, reads and closes it, opens it
// again by its map, and deletes it, with harm done to the requests.
func wholeLife(t *testing.T, version int, harm devswift.FaultFunc) {
	const size, objects = 160 << 10, 6 // larger, and parts of chunks are read
	c := newCloud(t, devswift.Options{Journal: -1}, swiftstore.Options{Timeout: quick.Attempt})
	way := store.Retry(c.store, quick)
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// A container that was there before, of whose chunks nothing is known.
	_, err := c.own.CreateContainer(ctx, nil)
	must("create", err)
	c.harm(harm)
	geo, err := geometry.New(size, objects)
	must("geometry", err)
	var w *world
	if version == 2 {
		w = newCloudWorld(t, c, 2, size, objects)
		w.setupLog(way)
	} else {
		must("setup", volume.Create(ctx, way, geo))
		w = newCloudWorld(t, c, 1, size, objects)
	}
	rng, want := rand.New(rand.NewPCG(1, 1)), make([]byte, geo.Size())
	write := func(off, n int64, fua bool) {
		t.Helper()
		b := make([]byte, n)
		noise(rng, b)
		must("write", w.device.WriteFUA(b, off, fua))
		copy(want[off:], b)
	}
	read := func(off, n int64) {
		t.Helper()
		b := make([]byte, n)
		_, err := w.device.ReadAt(b, off)
		must("read", err)
		if !bytes.Equal(b, want[off:off+n]) {
			t.Fatalf("read of %d bytes at %d: %s", n, off, firstDifference(b, want[off:]))
		}
	}
	zero := func(i int64) {
		t.Helper()
		must("zero", w.device.Zero(i*size, size, false, false))
		clear(want[i*size : (i+1)*size])
	}
	extents := func() {
		t.Helper()
		must("extents", w.device.Extents(0, geo.Size(), func(off, n int64, hole bool) bool {
			if hole && len(bytes.TrimLeft(want[off:off+n], "\x00")) > 0 {
				t.Errorf("%d bytes at %d are called a hole", n, off)
			}
			return true
		}))
	}
	must("open", w.open())
	write(0, size, false)
	write(3*size, 2*size, false)
	extents()
	write(size+1000, 512, false)
	must("flush", w.device.Sync())
	write(2*size+5, 3000, true)
	zero(0)
	read(0, geo.Size())
	must("flush", w.device.Sync())
	must("close", w.device.Close())

	c.server.RevokeTokens()
	must("open again", w.open())
	read(3*size+100, 4096)
	write(4*size+100, 512, false)
	extents()
	zero(2)
	must("flush", w.device.Sync())
	read(0, geo.Size())
	must("close again", w.device.Close())
	if got := w.raw(); !bytes.Equal(got, want) {
		t.Errorf("Swift holds something else: %s", firstDifference(got, want))
	}
	if m := w.meta(); m.Client != "" {
		t.Errorf("closed, and locked by %q", m.Client)
	}

	var names []string
	page, err := way.List(ctx, store.ListOptions{})
	must("list", err)
	for _, o := range page {
		names = append(names, o.Name)
	}
	must("delete all", way.BulkDelete(ctx, names))
	must("delete", way.DeleteContainer(ctx))
}
