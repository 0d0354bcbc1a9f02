// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store/faulty"
)

// faults are what goes wrong at random, none of which a client may see.
var faults = faulty.Rates{
	Refuse: 0.01, Fail: 0.01, Lose: 0.01, Ambiguous: 0.02, Hang: 0.0005, Short: 0.01, Stale: 0.1,
	Delay: 200 * time.Microsecond,
}

// TestModel runs random operations of several connections against an oracle,
// over a store with random faults, session after session on one volume. Each
// session ends in a crash at a random store operation, or cleanly. After a
// crash every byte must be one that the oracle allows; after a clean end Swift
// must hold exactly what was written.
func TestModel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name                string
		objectSize, objects int64
		cache               int64
		clients             int
		stripe              int64
		blank, through      bool
		part                int // of the operations that this run does, 1/part
	}{
		{"mem", 1000, 60, 10 << 10, 1, 60000, true, false, 1},
		{"mem", 4096, 256, 100 << 10, 4, 512, false, false, 1},
		{"mem", 65536, 32, 1 << 20, 6, 4096, true, false, 1},
		{"mem", 300000, 10, 8 << 20, 3, 10000, false, false, 2},
		{"mem", 16384, 40, 200 << 10, 4, 3000, true, true, 4},
		{"mem", 4096, 128, 60 << 10, 4, 10000, true, false, 1},
		{"mem", 150000, 30, 2 << 20, 4, 400000, false, false, 4},
		{"swift", 16384, 64, 200 << 10, 4, 2048, true, false, 4},
		{"swift", 200000, 8, 8 << 20, 5, 4096, false, false, 8},
		{"version 2", 16384, 64, logCache, 4, 4096, true, false, 4},
		{"version 2", 3 << 20, 2, logCache, 5, 200_000, true, false, 8},
		{"version 2", 16384, 16, logCache, 3, 3000, true, true, 8},
	} {
		t.Run(fmt.Sprintf("%s,%dx%d,cache=%d,clients=%d,through=%t", tc.name, tc.objectSize, tc.objects, tc.cache, tc.clients, tc.through), func(t *testing.T) {
			t.Parallel()
			seed := newSeed(t)
			m := &model{
				oracle:  newOracle(tc.objectSize * tc.objects),
				clients: tc.clients, stripe: tc.stripe, rates: faults,
			}
			switch tc.name {
			case "version 2":
				m.world = newLogWorld(t, overHTTP(t), tc.objectSize, tc.objects)
				m.policy = slowly
				m.oracle.mustBePrefix(tc.stripe, tc.clients)
			case "swift":
				c := overHTTP(t)
				m.world = newWorld(t, c.own, tc.objectSize, tc.objects, tc.blank)
				m.cloud, m.policy = c, slowly
			default:
				m.world = newWorld(t, inMemory(t), tc.objectSize, tc.objects, tc.blank)
			}
			m.opts.Cache, m.opts.WriteThrough, m.opts.Age = tc.cache, tc.through, 3*time.Millisecond
			m.run(seed, ops()/tc.part)
		})
	}
}

type model struct {
	*world
	oracle                   *oracle
	clients                  int
	stripe                   int64
	rates                    faulty.Rates // of what goes wrong between device and store
	crashes, clean, unopened int

	// long has sessions live longer: few of them end in a crash.
	long bool
	// insist has clients try what ended with an error again until it does
	// not; errors counts them.
	insist bool
	errors atomic.Int64
	// during, when not nil, runs beside the clients, until stop is closed.
	during func(stop <-chan struct{})
}

// run has one session follow the other until total operations are done.
func (m *model) run(seed uint64, total int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for done, n := 0, uint64(0); done < total && !m.t.Failed(); n++ {
		ops := min(total-done, 50+rng.IntN(1000))
		m.opts.Compress = rng.IntN(2) == 0 && m.logged
		m.runSession(rng, seed+n, ops)
		done += ops
	}
	m.t.Logf("%d operations, %d crashes, %d clean ends, %d failed opens", total, m.crashes, m.clean, m.unopened)
}

// try does what a client wants, again and again where it insists.
func (m *model) try(do func() error) error {
	for {
		err := do()
		if err == nil || !m.insist || errors.Is(err, faulty.ErrCrashed) || errors.Is(err, device.ErrClosed) {
			return err
		}
		m.errors.Add(1)
	}
}

// runSession is one life of the device.
func (m *model) runSession(rng *rand.Rand, seed uint64, ops int) {
	m.driver = faulty.Random(seed, m.rates)
	m.crashAt, m.effect = 0, rng.IntN(2) == 0
	switch {
	case m.long && rng.IntN(2) > 0:
	case rng.IntN(3) > 0:
		m.crashAt = 1 + rng.Int64N(int64(ops))
	}
	if !m.long && rng.IntN(8) == 0 {
		m.crashAt = 1 + rng.Int64N(12)
	}
	err := m.open()
	for locked := new(lease.LockedError); m.cloud != nil && errors.As(err, &locked); err = m.open() {
		// The mark of a session that was killed, which came late. It would
		// go by itself in a minute.
		m.kill()
	}
	if err != nil {
		if !errors.Is(err, faulty.ErrCrashed) {
			m.t.Fatalf("open: %v", err)
		}
		m.unopened++
		m.kill()
		m.check()
		return
	}
	var wg, beside sync.WaitGroup
	var dead atomic.Bool
	stop := make(chan struct{})
	if m.during != nil {
		beside.Go(func() { m.during(stop) })
	}
	for c := range m.clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(c)+10))
			for range max(1, ops/m.clients) {
				if dead.Load() || m.t.Failed() {
					return
				}
				if err := m.step(rng, c); err != nil {
					if !errors.Is(err, faulty.ErrCrashed) {
						m.t.Errorf("seed %d: %v", seed, err)
					}
					dead.Store(true)
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	beside.Wait()
	if m.t.Failed() {
		m.kill()
		return
	}
	if !dead.Load() {
		err := m.device.Close()
		if err == nil {
			m.device = nil
			m.clean++
			if got := m.raw(); !bytes.Equal(got, m.oracle.want) {
				m.t.Errorf("seed %d: after a clean end: %s", seed, firstDifference(got, m.oracle.want))
			}
			if meta := m.meta(); meta.Client != "" {
				m.t.Errorf("seed %d: closed, and locked by %q", seed, meta.Client)
			}
			m.oracle.flushed(m.oracle.flushing())
			return
		}
		if !errors.Is(err, faulty.ErrCrashed) {
			m.t.Errorf("seed %d: close: %v", seed, err)
		}
	}
	m.crashes++
	m.kill()
	m.check()
}

// check holds what a crash has left against the oracle.
func (m *model) check() {
	if err := m.oracle.crashed(m.raw()); err != nil {
		m.t.Errorf("after a crash: %v", err)
	}
}

// step does one operation on the stripes of client c.
func (m *model) step(rng *rand.Rand, c int) error {
	size, clients := m.geo.Size(), int64(m.clients)
	stripes := (size + m.stripe - 1) / m.stripe
	mine := (stripes - int64(c) + clients - 1) / clients
	start := (rng.Int64N(mine)*clients + int64(c)) * m.stripe
	end := min(start+m.stripe, size)
	off := start + rng.Int64N(end-start)
	n := 1 + rng.Int64N(end-off)
	if rng.IntN(3) == 0 {
		off, n = start, end-start
	}
	n = min(n, 3*m.geo.ObjectSize())
	d, fua := m.device, rng.IntN(20) == 0
	change := func(data []byte, do func() error) error {
		ch := m.oracle.begin(off, data)
		if err := m.try(do); err != nil {
			return err
		}
		m.oracle.end(ch, fua || m.opts.WriteThrough)
		return nil
	}
	switch k := rng.IntN(100); {
	case k < 45:
		b := make([]byte, n)
		if rng.IntN(10) > 0 {
			noise(rng, b)
		}
		return change(b, func() error { return d.WriteFUA(b, off, fua) })
	case k < 80:
		return m.read(off, n)
	case k < 86:
		return change(make([]byte, n), func() error { return d.Zero(off, n, fua, false) })
	case k < 88:
		return m.trim(off, n, fua)
	case k < 90:
		return m.extents(off, n)
	case k < 91:
		return m.try(func() error { return d.Prefetch(off, n) })
	case k < 92: // of anybody's stripes: whatever it returns is right
		b := make([]byte, min(size, 5*m.geo.ObjectSize()))
		at := rng.Int64N(size - int64(len(b)) + 1)
		return m.try(func() error { _, err := d.ReadAt(b, at); return err })
	default:
		upTo := m.oracle.flushing()
		if err := m.try(d.Sync); err != nil {
			return err
		}
		m.oracle.flushed(upTo)
		return nil
	}
}

func (m *model) read(off, n int64) error {
	b := make([]byte, n)
	if err := m.try(func() error { _, err := m.device.ReadAt(b, off); return err }); err != nil {
		return err
	}
	if want := m.oracle.read(off, n); !bytes.Equal(b, want) {
		m.t.Errorf("read of %d bytes at %d: %s", n, off, firstDifference(b, want))
	}
	return nil
}

// trim may leave a byte as it is, or make it zero.
func (m *model) trim(off, n int64, fua bool) error {
	old := m.oracle.read(off, n)
	zero := m.oracle.begin(off, make([]byte, n))
	if err := m.try(func() error { return m.device.Trim(off, n, fua) }); err != nil {
		return err
	}
	b := make([]byte, n)
	if err := m.try(func() error { _, err := m.device.ReadAt(b, off); return err }); err != nil {
		return err
	}
	for i := range b {
		if b[i] != 0 && b[i] != old[i] {
			m.t.Errorf("byte %d is %#x after a trim, and was %#x", off+int64(i), b[i], old[i])
			break
		}
	}
	copy(zero.data, b)
	m.oracle.end(zero, fua || m.opts.WriteThrough)
	return nil
}

// extents must not call a hole what holds data.
func (m *model) extents(off, n int64) error {
	want := m.oracle.read(off, n)
	return m.try(func() error {
		at := off
		return m.device.Extents(off, n, func(o, l int64, hole bool) bool {
			if o != at || l <= 0 {
				m.t.Errorf("extents of %d bytes at %d: %d at %d after %d", n, off, l, o, at)
				return false
			}
			if at += l; hole && at <= off+n && len(bytes.TrimLeft(want[o-off:o-off+l], "\x00")) > 0 {
				m.t.Errorf("extents: %d bytes at %d are called a hole and hold data", l, o)
			}
			return true
		})
	})
}
