// SPDX-License-Identifier: MIT

package device_test

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// newStormy returns a model whose device works over a cloud, and where all that
// goes wrong does so in the cloud.
func newStormy(t *testing.T, o devswift.Options, version int, objectSize, objects, cache, stripe int64, clients int) (*model, *embedded) {
	o.Journal = -1
	c := newCloud(t, o, swiftstore.Options{Timeout: slowly.Attempt})
	m := &model{
		world:  newCloudWorld(t, c, version, objectSize, objects),
		oracle: newOracle(objectSize * objects), clients: clients, stripe: stripe,
	}
	if version == 2 {
		m.oracle.mustBePrefix(stripe, clients)
	}
	m.policy, m.opts.Cache, m.opts.Age = slowly, cache, 3*time.Millisecond
	return m, c
}

// TestModelStorm is TestModel over HTTP with every fault of the matrix at
// random, on requests of all kinds, while tokens end every other second. No
// client may see any of it.
func TestModelStorm(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		objectSize, objects, cache, stripe int64
		clients, every                     int
		part                               int
		version                            int
	}{
		{16 << 10, 64, 200 << 10, 2048, 4, 20, 2, 1},
		{100_000, 16, 1 << 20, 4096, 6, 10, 4, 1},
		{200_000, 8, 8 << 20, 250_000, 3, 5, 8, 1},
		{16 << 10, 64, logCache, 4096, 4, 20, 2, 2},
		{100_000, 16, logCache, 10_000, 6, 10, 4, 2},
		{3 << 20, 2, logCache, 400_000, 3, 5, 8, 2},
	} {
		t.Run(fmt.Sprintf("version=%d,%dx%d,cache=%d,clients=%d,every=%d", tc.version, tc.objectSize, tc.objects, tc.cache, tc.clients, tc.every), func(t *testing.T) {
			t.Parallel()
			seed := newSeed(t)
			o := devswift.Options{TokenLife: 2 * time.Second}
			m, c := newStormy(t, o, tc.version, tc.objectSize, tc.objects, tc.cache, tc.stripe, tc.clients)
			var harmed atomic.Int64
			weather := storm(seed, tc.every)
			c.harm(func(r *devswift.Request) *devswift.Action {
				a := weather(r)
				if a != nil {
					harmed.Add(1)
				}
				return a
			})
			m.run(seed, ops()/tc.part)
			for again := uint64(1); again < 20 && harmed.Load() == 0 && !t.Failed(); again++ {
				m.run(seed+again<<32, ops()/tc.part) // the storm has passed by so few requests
			}
			t.Logf("%d requests were harmed of %d", harmed.Load(), c.server.Count(""))
			if harmed.Load() == 0 {
				t.Error("no request was harmed")
			}
		})
	}
}

// TestModelOutages is TestModel over HTTP with every kind of fault on every
// kind of request for longer than the device's patience, again and again. The
// clients see errors, and try again: what was asked must be possible when the
// outage is over, and nothing may be lost.
func TestModelOutages(t *testing.T) {
	t.Parallel()
	const patience = 600 * time.Millisecond
	for _, tc := range []struct {
		objectSize, objects, cache, stripe int64
		clients                            int
		version                            int
	}{
		{16 << 10, 64, 200 << 10, 2048, 4, 1},
		{150_000, 16, 2 << 20, 400_000, 4, 1},
		{16 << 10, 64, logCache, 4096, 4, 2},
		{3 << 20, 2, logCache, 400_000, 4, 2},
	} {
		t.Run(fmt.Sprintf("version=%d,%dx%d,cache=%d,clients=%d", tc.version, tc.objectSize, tc.objects, tc.cache, tc.clients), func(t *testing.T) {
			t.Parallel()
			seed := newSeed(t)
			m, c := newStormy(t, devswift.Options{}, tc.version, tc.objectSize, tc.objects, tc.cache, tc.stripe, tc.clients)
			m.opts.Timeout = patience
			m.policy = store.Policy{Timeout: patience, Attempt: patience / 3, Base: time.Millisecond, Max: 10 * time.Millisecond, RetryAfter: 10 * time.Millisecond}
			m.insist, m.long = true, true
			rng := rand.New(rand.NewPCG(seed, 3))
			outages := 0
			m.during = func(stop <-chan struct{}) {
				defer c.harm(nil)
				for {
					outages++
					h := harms[rng.IntN(len(harms))]
					for _, phase := range []struct {
						harm        devswift.FaultFunc
						least, more time.Duration
					}{{nil, 0, patience / 5}, {outage(h), patience, 2 * patience}} {
						c.harm(phase.harm)
						select {
						case <-stop:
							return
						case <-time.After(phase.least + time.Duration(rng.Int64N(int64(phase.more)))):
						}
					}
				}
			}
			// A session may end before its first outage: by a crash, or since
			// all was done.
			for round := uint64(0); m.errors.Load() < 10 && !t.Failed(); round++ {
				if round == 1000 {
					t.Error("clients saw hardly anything of the outages")
				}
				m.run(seed+round<<32, ops()/8)
			}
			t.Logf("%d outages, %d errors seen", outages, m.errors.Load())
		})
	}
}

// outage harms every request that can be harmed so.
func outage(h harm) devswift.FaultFunc {
	return func(r *devswift.Request) *devswift.Action {
		if !h.on(kindOf(r)) {
			return nil
		}
		return &h.action
	}
}
