// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// processors gives Go more processors than the machine has while clients ask for
// much.
//
// A thread of nbdkit that comes back from a callback keeps one of Go's
// processors, though it runs nothing of Go's. Another thread that has none then
// waits until the runtime takes it back, 20 us or longer
// (https://go.dev/src/runtime/proc.go, retake). nbdkit has 16 threads for a
// connection: on a machine of two processors nearly each callback waits. With
// more than the machine has, a single flush takes a little longer. So there are
// more for as long as there are many requests.
type processors struct {
	// set has Go use more processors, or the usual number; nil: nothing is changed.
	set func(more bool)

	asked atomic.Int64 // what clients have asked for, see count

	mu    sync.Mutex // guards all below
	since time.Time  // when asked passed a multiple of lookEach
	more  bool
}

const (
	// manyRequests is how many requests a second are many. One of more than
	// requestSize bytes counts as several.
	manyRequests = 2000
	requestSize  = 64 << 10
	// lookEach is after how many requests there is a look at the clock.
	lookEach = manyRequests / 4
	// nbdkitThreads is how many threads nbdkit has for a connection if nobody
	// sets --threads.
	nbdkitThreads = 16
)

// newProcessors returns what changes Go's own number of processors, unless the
// user has set it, or it is large enough.
func newProcessors() *processors {
	usual := runtime.GOMAXPROCS(0)
	more := min(2*usual, nbdkitThreads)
	if os.Getenv("GOMAXPROCS") != "" || more <= usual {
		return &processors{}
	}
	return &processors{set: func(yes bool) {
		if yes {
			runtime.GOMAXPROCS(more)
		} else {
			runtime.SetDefaultGOMAXPROCS()
		}
	}}
}

// count counts a request of n bytes.
func (p *processors) count(n int) {
	if p.set == nil {
		return
	}
	add := int64(1 + n/requestSize)
	now := p.asked.Add(add)
	if now/lookEach != (now-add)/lookEach {
		p.look()
	}
}

// look finds out whether the last lookEach requests came quickly.
func (p *processors) look() {
	if !p.mu.TryLock() {
		return // another request does it
	}
	defer p.mu.Unlock()
	now := time.Now()
	took := now.Sub(p.since)
	p.since = now
	if p.more || took > time.Second*lookEach/manyRequests {
		return
	}
	p.more = true
	p.set(true)
	goLogged(p.untilFew)
}

// untilFew waits until there are few requests again.
func (p *processors) untilFew() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for before := p.asked.Load(); ; {
		<-t.C
		now := p.asked.Load()
		if now-before < manyRequests/2 {
			break
		}
		before = now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.more = false
	p.set(false)
}
