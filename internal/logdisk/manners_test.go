// SPDX-License-Identifier: MIT

package logdisk

import (
	"testing"
	"time"
)

// TestManners: the bound becomes half at a slow PUT, rises with those that are not,
// and is forgotten when nobody flushes.
func TestManners(t *testing.T) {
	m := newManners(16)
	now := time.Now()
	allowed := func(want int, what string) {
		t.Helper()
		if n := m.allowed(now); n != want {
			t.Errorf("%s: %d requests are allowed, want %d", what, n, want)
		}
	}
	put := func(took time.Duration, beside bool) {
		m.under = 0
		if beside { // as many as are allowed
			m.under = m.allowed(now)
		}
		m.timed(now, took, beside)
		now = now.Add(took + time.Millisecond)
	}
	allowed(12, "at the beginning")
	for range 50 {
		put(10*time.Millisecond, false)
	}
	put(13*time.Millisecond, true)
	allowed(12, "a quarter longer, and the clock's noise")
	put(40*time.Millisecond, true)
	allowed(6, "four times as long")
	m.timed(now.Add(-30*time.Millisecond), 40*time.Millisecond, true)
	allowed(6, "one that was sent before")
	now = now.Add(time.Second)
	for range 10 {
		put(40*time.Millisecond, true)
	}
	allowed(1, "always slow")
	m.atLeast(3)
	allowed(3, "with as many at least")
	m.atLeast(100)
	allowed(12, "and not more than ever")
	m.atLeast(0)
	for range 6 {
		put(11*time.Millisecond, true)
	}
	allowed(4, "six that were quick")
	for range 200 { // the cluster itself is slower now
		put(40*time.Millisecond, false)
	}
	allowed(4, "more were not tried")
	for range 16 {
		put(45*time.Millisecond, true)
	}
	allowed(12, "a slower cluster")
	put(400*time.Millisecond, true)
	allowed(6, "slow again")
	now = now.Add(quietFor)
	allowed(12, "nobody has flushed")
}

// TestMannersNeeded: what is left to collect says how many requests there are at
// least.
func TestMannersNeeded(t *testing.T) {
	m := newManners(16)
	const mib = 1 << 20
	for _, c := range []struct {
		bytes, live, small int64
		want               int
	}{
		{100 * mib, 72 * mib, 0, 1},
		{100 * mib, 60 * mib, 0, 1},
		{100 * mib, 50 * mib, 0, 3},
		{100 * mib, 30 * mib, 0, 12},
		{10 * mib, 1 * mib, 0, 1}, // too little to be collected at all
		{10 * mib, 9 * mib, 20000, 3},
		{300 * mib, 290 * mib, 100000, 12},
	} {
		if n := m.needed(c.bytes, c.live, c.small, 70); n != c.want {
			t.Errorf("%d MiB of %d live, %d small: %d, want %d", c.live/mib, c.bytes/mib, c.small, n, c.want)
		}
	}
}
