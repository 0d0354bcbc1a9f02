// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// manners bounds how many requests of the collector are under way at once, so that
// it makes room for clients who flush. Nobody waits for the collector, but a
// cluster that has sixteen of its requests to answer answers a flush's PUT late.
//
// What a cluster can take is not known, so it is found out as TCP finds out what a
// network can take (additive increase, multiplicative decrease): the bound becomes
// half when the PUT of a small object took clearly longer than without the
// collector, and rises by a half with each that did not. When no such PUT was made
// for a while, nobody waits, and all requests are allowed.
//
// A collector that falls behind the clients would let garbage grow without end. So
// there is a least bound, which rises with what is left to collect.
type manners struct {
	most int // requests at once

	mu      sync.Mutex
	limit   float64 // requests at once that clients bear
	least   int     // requests at once, whatever clients feel
	under   int     // requests under way
	waiting []chan struct{}
	alone   time.Duration // how long a small PUT takes without the collector; 0: not known
	last    time.Time     // when the last one ended
	lowered time.Time     // when limit became less
}

const (
	// quietFor is how long nobody has flushed when the collector need not care.
	quietFor = 2 * time.Second
	// slowerBy is what a PUT may take longer than alone: a quarter, and slowerNoise,
	// which is what the clock and the machine add.
	slowerBy    = 4
	slowerNoise = time.Millisecond
)

func newManners(connections int) *manners {
	most := max(1, connections*3/4) // the others are the clients' at any time
	return &manners{most: most, limit: float64(most), least: 1}
}

// politeKey marks the context of requests that manners bounds.
type politeKey struct{}

// polite returns s with the bound of m for requests whose context has politeKey.
func (m *manners) polite(s store.Store) store.Store {
	return store.Wrap(s, func(ctx context.Context, _ store.Op, call func(context.Context) error) error {
		if ctx.Value(politeKey{}) == nil {
			return call(ctx)
		}
		if err := m.enter(ctx); err != nil {
			return err
		}
		defer m.leave()
		return call(ctx)
	})
}

// enter returns when one more request may begin, or the context's cause. leave
// comes after it.
func (m *manners) enter(ctx context.Context) error {
	m.mu.Lock()
	granted := make(chan struct{})
	m.waiting = append(m.waiting, granted)
	m.grant()
	m.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.waiting, granted); i >= 0 {
		m.waiting = slices.Delete(m.waiting, i, i+1)
	} else { // granted at the same moment
		m.under--
		m.grant()
	}
	return context.Cause(ctx)
}

func (m *manners) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.under--
	m.grant()
}

// grant lets in who may begin. m.mu is held.
func (m *manners) grant() {
	for len(m.waiting) > 0 && m.under < m.allowed(time.Now()) {
		close(m.waiting[0])
		m.waiting = m.waiting[1:]
		m.under++
	}
}

// allowed returns how many requests may be under way. m.mu is held.
func (m *manners) allowed(now time.Time) int {
	if now.Sub(m.last) > quietFor {
		m.limit = float64(m.most)
	}
	return max(m.least, int(m.limit))
}

// needed returns how many requests at once the collector needs, whatever clients
// feel, when live of so many bytes of objects are, with so many small objects, and
// gc percent are wanted: more as the garbage, or the number of objects, grows beyond
// what was asked for.
func (m *manners) needed(bytes, live, small int64, gc int) int {
	wasting := bytes-live > collectLeast
	percent := live * 100
	switch {
	case wasting && percent*2 < bytes*int64(gc) || small >= 64*manySmall:
		return m.most
	case wasting && percent*4 < bytes*3*int64(gc) || small >= 8*manySmall:
		return m.most / 4
	}
	return 1
}

// atLeast sets how many requests may be under way whatever clients feel: from 1 on,
// and not more than are ever allowed.
func (m *manners) atLeast(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.least = min(max(1, n), m.most)
	m.grant()
}

// crowded says whether more than one request of the collector is under way: one
// alone is what clients have to bear.
func (m *manners) crowded() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.under > 1
}

// timed learns from a PUT of a small object that was sent at a moment and took so
// long; beside says that the collector was crowded when it began.
func (m *manners) timed(sent time.Time, took time.Duration, beside bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := sent.Add(took)
	m.allowed(now) // forgets what was long ago
	m.last = now
	beside = beside || m.under > 1
	switch {
	case m.alone == 0 && !beside, took < m.alone/2:
		m.alone = took
	case took < m.alone:
		m.alone += (took - m.alone) / 2
	case !beside:
		m.alone += (took - m.alone) / 8
	}
	if beside && (m.alone == 0 || took > m.alone+m.alone/slowerBy+slowerNoise) {
		// Those that were sent before know nothing of the last time.
		if sent.After(m.lowered) {
			m.limit = max(1, m.limit/2)
			m.lowered = now
		}
		return
	}
	if m.under >= int(m.limit) { // otherwise nothing is known of as many
		m.limit = min(float64(m.most), m.limit+0.5)
		m.grant()
	}
}
