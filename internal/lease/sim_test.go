// SPDX-License-Identifier: MIT

package lease_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of the simulation; 0 takes one from the clock")
	opsFlag  = flag.Int("ops", 40, "runs of the simulation, of 30 minutes each")
)

// sim is many processes on one volume, in a world where requests fail, are
// carried out late, or by a process that is dead by then, and where processes
// are stopped and killed.
type sim struct {
	*scene
	signed   bool // the cluster checks signatures
	operator bool // somebody unlocks the volume now and then
	logged   bool // it is of version 2

	mu       sync.Mutex
	calm     bool // nothing goes wrong any more
	sessions []*session
	accepted int
	lost     int // sessions that lost the volume

	// Of version 2 (simlog_test.go): up to where the log is in a root, what a lease
	// keeps of it, and how often somebody had to find that.
	rooted, kept position
	found        int
}

// session is one process's holding of the volume.
type session struct {
	p       *party
	granted time.Time // when the volume's container said that it is theirs

	held *lease.Held
	at   position // of a volume of version 2: how far its log is in Swift; zero: it has none yet
}

// TestSimulation has each write that is accepted come from whoever was given
// the volume last, and never two who believe that it is theirs. (An operator's
// unlock takes it from one who does not know it yet: then the first alone.) Whoever
// is given a volume of version 2 finds what the one before has kept of a log that
// is in no root. When all has calmed down the volume can be had.
func TestSimulation(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	accepted, sessions, lost, found := 0, 0, 0, 0
	for n := range *opsFlag {
		logged, in := n%8 > 3, inScene
		if logged {
			in = inScene2
		}
		in(t, func(t *testing.T, s *scene) {
			m := &sim{scene: s, signed: n%4 > 0, operator: n%4 > 1, logged: logged}
			m.run(seed + uint64(n))
			accepted, sessions, lost, found = accepted+m.accepted, sessions+len(m.sessions), lost+m.lost, found+m.found
		})
		if t.Failed() {
			t.Fatalf("the first of it is with seed %d, in run %d of 8", seed+uint64(n), n%8)
		}
	}
	t.Logf("-seed=%d: %d sessions, %d of which lost the volume, and %d found what the one before had kept; %d writes accepted", seed, sessions, lost, found, accepted)
	if sessions < *opsFlag*10 || accepted < sessions || *opsFlag >= 8 && found < *opsFlag {
		t.Error("hardly anything has happened")
	}
}

func (m *sim) run(seed uint64) {
	var wg sync.WaitGroup
	end := time.Now().Add(30 * time.Minute)
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for n := 0; time.Now().Before(end) && !m.t.Failed(); n++ {
				m.life(rng, fmt.Sprintf("p%d.%d", i, n))
			}
		})
	}
	wg.Wait()
	m.mu.Lock()
	m.calm = true
	m.mu.Unlock()
	time.Sleep(5 * term) // what is late arrives, and all leases end
	last := m.party("last")
	defer func() { m.finds(&session{p: last, held: last.has()}) }()
	for begun := time.Now(); ; time.Sleep(time.Second) {
		_, err := last.acquire()
		if err == nil {
			break
		}
		if time.Since(begun) > term+2*grace {
			m.t.Fatalf("seed %d: it cannot be had: %v; %v; %v", seed, err, items(m.t, m.volume()), m.leases())
		}
	}
	last.writes("in the end")
}

// life is a process that tries to take the volume, writes for a while if it can,
// and ends.
func (m *sim) life(rng *rand.Rand, name string) {
	p := m.party(name)
	p.plain = !m.signed
	var marked atomic.Int64
	m.disturb(p, rand.New(rand.NewPCG(rng.Uint64(), 1)), &marked)
	defer func() {
		// Killed: what it has on its way arrives.
		p.mu.Lock()
		p.dead = true
		p.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if m.operator && rng.IntN(10) == 0 {
		_, _ = lease.Unlock(ctx, p.options())
		return
	}
	o := p.options()
	h, _, err := lease.Acquire(ctx, o)
	if err != nil {
		time.Sleep(time.Duration(rng.IntN(20000)) * time.Millisecond)
		return
	}
	s := &session{p: p, granted: time.Unix(0, marked.Load()), held: h}
	p.mu.Lock()
	p.held = h
	p.mu.Unlock()
	m.mu.Lock()
	m.sessions = append(m.sessions, s)
	m.mu.Unlock()
	if m.logged {
		m.finds(s)
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
		if rng.IntN(3) == 0 || !m.opens(s) {
			time.Sleep(time.Duration(rng.IntN(60)) * time.Second)
			if rng.IntN(3) > 0 {
				_ = h.ReleaseUnchanged(ctx)
			}
			return
		}
	}
	for end := time.Now().Add(time.Duration(rng.IntN(200)) * time.Second); time.Now().Before(end); {
		m.write(s)
		if errors.Is(p.fences().Lost(), lease.ErrLost) {
			m.mu.Lock()
			m.lost++
			m.mu.Unlock()
			return
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	}
	switch end := rng.IntN(4); {
	case end == 0: // killed
	case end == 1 && m.logged:
		if m.roots(s) {
			_ = h.ReleaseWith(ctx, nil)
		}
	case end == 1:
		_ = h.ReleaseUnchanged(ctx)
	default:
		_ = h.Release(ctx)
	}
}

// write writes, and holds what comes of it against who has the volume.
func (m *sim) write(s *session) (accepted bool) {
	err := s.p.write()
	defer func() {
		if accepted = err == nil; accepted && m.logged {
			s.at.n++
			s.p.keeps(s.at.String())
		}
	}()
	at := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.accepted++
		for _, other := range m.sessions {
			if other.granted.After(s.granted) && other.granted.Before(at) {
				m.t.Errorf("a write of %s, which has it since %v, is accepted at %v: %s has it since %v",
					s.p.name, s.granted, at, other.p.name, other.granted)
			}
		}
	}
	if m.operator {
		return err == nil
	}
	holders := 0
	for _, other := range m.sessions {
		other.p.mu.Lock()
		dead := other.p.dead
		other.p.mu.Unlock()
		if !dead && other.p.holds() {
			holders++
		}
	}
	if holders > 1 {
		m.t.Errorf("%d believe at %v that they have it", holders, at)
	}
	return err == nil
}

// disturb makes things go wrong for p. marked is when its mark was set last.
func (m *sim) disturb(p *party, rng *rand.Rand, marked *atomic.Int64) {
	var mu sync.Mutex
	draw := func() (kind int, wait, pause time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		pauses := []time.Duration{time.Second, 6 * time.Second, 20 * time.Second, 2*term + 5*time.Second}
		return rng.IntN(300), time.Duration(rng.IntN(60)) * time.Millisecond, pauses[rng.IntN(len(pauses))]
	}
	calm := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.calm
	}
	p.set(func(r request, do func() error) error {
		if r.n == 0 || calm() {
			return do() // of objects, see under
		}
		call := func() error {
			err := do()
			if err == nil && r.container == "v" && r.Kind == store.OpSetMetadata {
				marked.Store(time.Now().UnixNano())
			}
			if err == nil && m.logged && r.container != "v" && r.Kind == store.OpSetMetadata {
				m.keeps(p, r.container)
			}
			return err
		}
		kind, wait, pause := draw()
		time.Sleep(wait)
		reset := &store.TransportError{Op: r.String(), Sent: true, Err: errReset}
		switch {
		case kind < 6:
			return reset
		case kind < 12:
			_ = call()
			return reset
		case kind < 15 && (r.Kind == store.OpSetMetadata || r.Kind == store.OpDeleteContainer):
			go func() { // carried out when nobody waits any more
				time.Sleep(pause)
				_ = call()
			}()
			return reset
		case kind < 18:
			time.Sleep(pause)
			return call()
		case kind < 21:
			err := call()
			time.Sleep(pause)
			return err
		}
		return call()
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.under = func() {
		// Where the cluster does not check them, writes must not be late.
		if kind, wait, pause := draw(); m.signed && !calm() {
			time.Sleep(wait)
			if kind < 3 {
				time.Sleep(pause)
			}
		}
	}
}
