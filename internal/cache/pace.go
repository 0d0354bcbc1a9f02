// SPDX-License-Identifier: MIT

package cache

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// pace bounds the dirty data by the time that its upload takes, so that no
// flush takes long. The number of dirty bytes says nothing about this time: a
// chunk of which 4 KiB are dirty is fetched and uploaded as a whole.
//
// At the bound, a write that makes a clean chunk dirty waits, in order of
// arrival. Each upload that ends lets the next write in. Writers therefore go
// at the speed of the uploads, and none of them waits for long.
//
// The cost of the dirty data is the sum of the requests that the chunks owe.
// Each request costs the share of Swift's time that such a request took lately
// (see meter).
type pace struct {
	target time.Duration // the bound on the cost; 0: there is none
	meter  meter

	owed    [kinds]atomic.Int64 // requests that the dirty chunks need
	chunks  atomic.Int64        // chunks that owe any
	granted atomic.Int64        // ns: the cost of the writes that were let in and have not written yet
	tickets atomic.Int64        // the number of these writes
	waiting atomic.Int32

	mu      sync.Mutex // guards all below
	waiters list.List  // of *paced
	halves  int        // uploads that ended above the bound and have let no write in yet
}

// kind is a kind of request to Swift.
type kind int

const (
	kindFetch kind = iota
	kindPut
	kindDelete
	kinds
)

// debt is how many requests of each kind a chunk needs to become clean.
type debt [kinds]int8

// fewest is how many chunks may be dirty at any cost: one that is uploaded, and
// one that is written meanwhile.
const fewest = 2

type paced struct {
	cost  time.Duration
	since time.Time
	done  chan error // buffered; nil: it was let in
}

// ticket is the right to make one chunk dirty. The zero value is none.
type ticket struct {
	p    *pace
	cost time.Duration
}

// drop gives the ticket back: the chunk is dirty and counted now, or will not
// become dirty.
func (t *ticket) drop() {
	if t.p == nil {
		return
	}
	t.p.granted.Add(-int64(t.cost))
	t.p.tickets.Add(-1)
	t.p.admit()
	t.p = nil
}

// price returns what d costs.
func (p *pace) price(d debt) time.Duration {
	var sum int64
	for k, n := range d {
		sum += int64(n) * p.meter.share[k].Load()
	}
	return time.Duration(sum)
}

// cost returns how long it takes to upload all that is dirty.
func (p *pace) cost() time.Duration {
	var sum int64
	for k := range p.owed {
		sum += p.owed[k].Load() * p.meter.share[k].Load()
	}
	return time.Duration(sum)
}

// fits says whether there is room for one more chunk at this cost.
func (p *pace) fits(cost time.Duration) bool {
	return p.target == 0 || p.chunks.Load()+p.tickets.Load() < fewest ||
		p.cost()+time.Duration(p.granted.Load())+cost <= p.target
}

// half says whether the cost has reached half of the bound, where write-back
// should begin.
func (p *pace) half() bool {
	return p.target > 0 && (p.waiting.Load() > 0 || p.cost() > p.target/2)
}

// try returns a ticket for a chunk with this debt, if there is room and no
// write waits for a ticket.
func (p *pace) try(d debt) (ticket, bool) {
	cost := p.price(d)
	if p.waiting.Load() > 0 || !p.fits(cost) {
		return ticket{}, false
	}
	return p.grant(cost), true
}

func (p *pace) grant(cost time.Duration) ticket {
	p.granted.Add(int64(cost))
	p.tickets.Add(1)
	return ticket{p, cost}
}

// get waits for a ticket. It calls wake when it begins to wait. The error is
// the context's, or the uploads' error if they fail and leave no room.
func (p *pace) get(ctx context.Context, d debt, wake func()) (ticket, error) {
	w := &paced{cost: p.price(d), since: time.Now(), done: make(chan error, 1)}
	p.mu.Lock()
	e := p.waiters.PushBack(w)
	p.waiting.Add(1)
	p.admitLocked() // this write may be the first: room may have come just before
	p.mu.Unlock()
	wake()
	select {
	case err := <-w.done:
		if err != nil {
			return ticket{}, err
		}
		return ticket{p, w.cost}, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case err := <-w.done: // just now
		if err == nil {
			return ticket{p, w.cost}, nil
		}
	default:
		p.remove(e)
	}
	return ticket{}, context.Cause(ctx)
}

// remove takes a waiter out of the line. p.mu is held.
func (p *pace) remove(e *list.Element) {
	p.waiters.Remove(e)
	p.waiting.Add(-1)
}

// admit lets in as many writes as there is room for.
func (p *pace) admit() {
	if p.waiting.Load() == 0 {
		return
	}
	p.mu.Lock()
	p.admitLocked()
	p.mu.Unlock()
}

func (p *pace) admitLocked() {
	for {
		e := p.waiters.Front()
		if e == nil {
			p.halves = 0
			return
		}
		w := e.Value.(*paced)
		switch {
		case p.fits(w.cost):
		case p.halves >= 2:
			// Swift has become slower, and the dirty data costs more than the
			// bound now. Writers go on at half of Swift's speed.
			p.halves = 0
		default:
			return
		}
		p.remove(e)
		p.grant(w.cost)
		w.done <- nil
	}
}

// uploaded notes that an upload has succeeded. The caller has counted its chunk
// before.
func (p *pace) uploaded() {
	if p.waiting.Load() == 0 {
		return
	}
	p.mu.Lock()
	p.halves++
	p.admitLocked()
	p.mu.Unlock()
}

// failed notes that an upload has failed, like budget.failed.
func (p *pace) failed(err error, lastWin time.Time, patience time.Duration) {
	if time.Since(lastWin) < patience {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.waiters.Front(); e != nil; {
		w, next := e.Value.(*paced), e.Next()
		if time.Since(w.since) >= patience {
			p.remove(e)
			w.done <- err
		}
		e = next
	}
}

// recount notes that a chunk, which owed old, owes now.
func (p *pace) recount(old, now debt) {
	for k := range old {
		if n := now[k] - old[k]; n != 0 {
			p.owed[k].Add(int64(n))
		}
	}
	switch none := (debt{}); {
	case old == none && now != none:
		p.chunks.Add(1)
	case old != none && now == none:
		p.chunks.Add(-1)
	}
}

// meter measures the share of Swift's time that a request takes. This is the
// time of one request among many, divided by the number that run at once.
//
// If a request took d beside k-1 others, its share is at most d/k: more
// requests at once might have gone at the same speed. It is at least d/n, where
// n is the most that can run at once. With all n at work the two are the same,
// whether latency or bandwidth bounds them. The estimate moves only as far as
// this range makes it. The meter therefore does not forget a busy Swift while
// there is little to do, and learns when Swift becomes faster or slower.
type meter struct {
	most  float64             // requests at once
	share [kinds]atomic.Int64 // ns: the larger one of short and long

	mu     sync.Mutex // guards all below
	active int
	area   float64        // the integral of active over time, ns
	at     time.Time      // up to then
	short  [kinds]float64 // the share over shortMemory, ns
	long   [kinds]float64 // and over longMemory
}

// lap is a request under way.
type lap struct {
	start time.Time
	area  float64
}

// At first the meter assumes that Swift answers in guessLatency and takes
// guessRate bytes a second. Measurements replace this estimate like any other.
// The first answers of many requests that began together come sooner than later
// ones.
const (
	guessLatency = 50 * time.Millisecond
	guessRate    = 50 << 20
)

// init makes m a meter for objects of size bytes and at most most requests at
// once.
func (m *meter) init(most int64, size int64) {
	m.most = float64(most)
	latency := int64(guessLatency) / most
	bytes := size * int64(time.Second) / guessRate
	m.share[kindFetch].Store(max(latency, bytes))
	m.share[kindPut].Store(max(latency, bytes))
	m.share[kindDelete].Store(latency)
	for k := range m.share {
		m.short[k] = float64(m.share[k].Load())
		m.long[k] = m.short[k]
	}
}

// tick brings area up to date. m.mu is held.
func (m *meter) tick() time.Time {
	now := time.Now()
	m.area += float64(m.active) * float64(now.Sub(m.at))
	m.at = now
	return now
}

// begin notes that a request begins.
func (m *meter) begin() lap {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.tick()
	m.active++
	return lap{now, m.area}
}

// How far back the two estimates reach while Swift is busy. The higher one
// counts. The meter therefore believes a slower Swift at once, and a faster one
// after a while, since the next flush may meet the slow one again.
const (
	shortMemory = 250 * time.Millisecond
	longMemory  = 2 * time.Second
)

// end notes that the request has ended. Failures teach nothing.
func (m *meter) end(k kind, l lap, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.tick()
	m.active--
	if err != nil {
		return
	}
	took := float64(now.Sub(l.start))
	beside := 1.0
	if took > 0 {
		beside = max(1, (m.area-l.area)/took)
	}
	learn := func(have *float64, memory time.Duration) {
		aim := min(max(*have, took/max(m.most, beside)), took/beside)
		weight := min(*have/float64(memory), 1./4)
		*have = max(*have+(aim-*have)*weight, float64(time.Microsecond))
	}
	learn(&m.short[k], shortMemory)
	learn(&m.long[k], longMemory)
	m.share[k].Store(int64(max(m.short[k], m.long[k])))
}
