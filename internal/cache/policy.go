// SPDX-License-Identifier: MIT

package cache

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/geometry"
)

// policy chooses the clean chunk that is evicted when memory is needed. It is
// S3-FIFO (Yang et al., SOSP 2023). Every chunk passes once through a small
// queue. A main queue holds chunks that were used again. A scan of the disk
// therefore passes through the small queue only. A hit costs one atomic store
// and no mutex.
//
// Only clean, idle chunks are queued. If a chunk is dirty or busy when its turn
// comes, it leaves the queues, and comes back when it is clean.
type policy struct {
	mu      sync.Mutex // guards all below and chunk.elem, .bytes, .inMain
	small   list.List  // of *chunk, oldest at the front
	main    list.List
	sizes   [2]int64     // bytes in small, in main
	total   atomic.Int64 // both, readable without mu
	ghosts  map[geometry.ChunkIndex]*list.Element
	history list.List // of geometry.ChunkIndex, oldest at the front
}

const maxFreq = 3

// freshLife is how long a chunk that was fetched ahead is spared for its
// reader. After that it counts like any other, since the reader may have gone
// elsewhere.
const freshLife = 30 * time.Second

func newPolicy() *policy {
	return &policy{ghosts: make(map[geometry.ChunkIndex]*list.Element)}
}

// insert queues a chunk of n bytes that has become clean and idle. If the chunk
// is queued already, insert does nothing.
func (p *policy) insert(ch *chunk, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ch.elem != nil {
		p.sizes[ch.inMain] += n - ch.bytes
		p.total.Add(n - ch.bytes)
		ch.bytes = n
		return
	}
	ch.bytes = n
	if e, ok := p.ghosts[ch.index]; ok {
		p.history.Remove(e)
		delete(p.ghosts, ch.index)
		ch.inMain, ch.elem = 1, p.main.PushBack(ch)
	} else {
		ch.inMain, ch.elem = 0, p.small.PushBack(ch)
	}
	p.sizes[ch.inMain] += n
	p.total.Add(n)
}

// remove takes the chunk out of its queue, if it is in one.
func (p *policy) remove(ch *chunk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ch.elem != nil {
		p.unlink(ch)
	}
}

func (p *policy) unlink(ch *chunk) {
	if ch.inMain == 1 {
		p.main.Remove(ch.elem)
	} else {
		p.small.Remove(ch.elem)
	}
	p.sizes[ch.inMain] -= ch.bytes
	p.total.Add(-ch.bytes)
	ch.elem = nil
}

// victim takes the chunk that should be evicted out of the queues and returns
// it, or nil if there is none. Chunks that were fetched ahead and not read yet
// come last, and among them the one that will be read last comes first. With
// spare they are not evicted at all.
func (p *policy) victim(spare bool) *chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	var (
		spared int
		latest *chunk // of the spared chunks
		young  = time.Now().Add(-freshLife).UnixNano()
	)
	for p.small.Len()+p.main.Len() > 0 {
		if p.main.Len() == 0 || (p.small.Len() > 0 && p.sizes[0]*10 >= p.sizes[0]+p.sizes[1]) {
			ch := p.small.Front().Value.(*chunk)
			if ch.fresh.Load() > 0 && ch.freshAt.Load() > young {
				// Its reader is still to come.
				if spared < p.small.Len() {
					if latest == nil || ch.freshAt.Load() > latest.freshAt.Load() {
						latest = ch
					}
					p.small.MoveToBack(ch.elem)
					spared++
					continue
				}
				if spare {
					return nil
				}
				p.unlink(latest)
				return latest
			}
			p.unlink(ch)
			if ch.freq.Load() == 0 {
				p.remember(ch.index)
				return ch
			}
			ch.freq.Store(0)
			ch.inMain, ch.elem = 1, p.main.PushBack(ch)
			p.sizes[1] += ch.bytes
			p.total.Add(ch.bytes)
			continue
		}
		ch := p.main.Front().Value.(*chunk)
		f := ch.freq.Load()
		if f == 0 {
			p.unlink(ch)
			return ch
		}
		ch.freq.Store(f - 1)
		p.main.MoveToBack(ch.elem)
	}
	return nil
}

// remember notes that i was evicted after one use. It keeps about as many notes
// as the queues have chunks.
func (p *policy) remember(i geometry.ChunkIndex) {
	if _, ok := p.ghosts[i]; ok {
		return
	}
	p.ghosts[i] = p.history.PushBack(i)
	for p.history.Len() > max(64, p.small.Len()+p.main.Len()) {
		e := p.history.Front()
		p.history.Remove(e)
		delete(p.ghosts, e.Value.(geometry.ChunkIndex))
	}
}

// hit notes a use of the chunk at r. Uses that follow each other forward within
// a chunk are one sweep over it, and count once.
func (p *policy) hit(ch *chunk, r geometry.ByteRange) {
	last := ch.lastEnd.Load()
	ch.lastEnd.Store(r.End())
	if r.Off >= last && r.Off-last <= sweep {
		return
	}
	if f := ch.freq.Load(); f < maxFreq {
		ch.freq.Store(f + 1)
	}
}

// sweep is how far apart two forward reads of a chunk may be to count as one
// pass over it, bytes.
const sweep = 256 << 10
