// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"slices"
	"time"

	"swiftnbd/internal/geometry"
)

// granule is the least that a read fetches from a large chunk, and what its
// range is aligned to, bytes. A request costs Swift so much more than its
// bytes that 64 KiB come as fast as 4.
const granule = 64 << 10

// Read fills p with the disk's bytes from off. The range must lie on the disk.
// The context bounds waiting; a fetch that others may share goes on.
func (c *Cache) Read(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if c.geo.Count(off, n) <= 1 {
		for piece := range c.geo.Pieces(off, n) {
			return c.readPiece(ctx, p, piece)
		}
		return nil
	}
	// Start what is missing first, so that the pieces come in parallel.
	c.prefetch(off, n, false)
	for piece := range c.geo.Pieces(off, n) {
		if err := c.readPiece(ctx, p[piece.Buf:piece.Buf+piece.In.Len], piece); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) readPiece(ctx context.Context, p []byte, piece geometry.Piece) error {
	var (
		pinned *chunk // so that nobody makes room of what it has just got
		much   bool
	)
	defer func() { c.unpin(pinned) }()
	for first := true; ; first = false {
		want := piece.In
		ch := c.find(piece.Chunk)
		if ch == nil {
			if c.backend.Hole(piece.Chunk) && c.find(piece.Chunk) == nil {
				clear(p)
				if first {
					c.stats.Hits.Add(1)
				}
				return nil
			}
		} else {
			ch.mu.RLock()
			if ch.dead {
				ch.mu.RUnlock()
				continue
			}
			missing := ch.copyOut(p, piece.In)
			ch.mu.RUnlock()
			if missing.Len == 0 {
				if !c.ahead.arrived(ch, piece.In.Len) {
					c.policy.hit(ch, piece.In)
				}
				if first {
					c.stats.Hits.Add(1)
				}
				if ch.ahead.Load() && ch.ahead.CompareAndSwap(true, false) {
					c.readAhead(c.geo.Offset(piece.Chunk)+piece.In.Off, piece.In.Len)
				}
				return nil
			}
			want = missing
		}
		want = c.align(want)
		if first {
			c.stats.Misses.Add(1)
			much = c.readAhead(c.geo.Offset(piece.Chunk)+piece.In.Off, piece.In.Len)
		}
		if much {
			want = geometry.ByteRange{Len: c.geo.ObjectSize()}
		}
		c.unpin(pinned) // nothing is held while waiting for memory
		pinned = nil
		var err error
		if pinned, err = c.await(ctx, piece.Chunk, want); err != nil {
			return err
		}
	}
}

// unpin takes the pin of a read away. ch may be nil.
func (c *Cache) unpin(ch *chunk) {
	if ch != nil && ch.pins.Add(-1) == 0 {
		ch.mu.Lock()
		c.settle(ch)
		ch.mu.Unlock()
	}
}

// align widens a range of a chunk to what is worth a request.
func (c *Cache) align(r geometry.ByteRange) geometry.ByteRange {
	size := c.geo.ObjectSize()
	if size <= 2*granule {
		return geometry.ByteRange{Len: size}
	}
	lo := r.Off / granule * granule
	hi := min(roundUp(r.End(), granule), size)
	return geometry.ByteRange{Off: lo, Len: hi - lo}
}

// await returns when the bytes r of chunk i have been fetched, or some of them,
// by a fetch that is under way or by one that it starts. The chunk has a pin of
// the caller's then, unless it is nil, whatever the error.
func (c *Cache) await(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange) (*chunk, error) {
	var f *fetch
	ch := c.find(i)
	if ch != nil {
		ch.mu.RLock()
		if f = ch.fetching(r); f != nil {
			ch.pins.Add(1)
		}
		ch.mu.RUnlock()
	}
	if f == nil {
		// One asks for all: many who want a part of a large chunk would
		// each make room for it, and evict what is wanted next.
		a, first := c.ask(i)
		if !first {
			select {
			case <-a.done:
				return nil, a.err // nil: the caller looks again
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		var err error
		if ch, f, err = c.room(ctx, i, r, a); f == nil {
			return nil, err
		}
		// Not here: the goroutine of a callback from C is bound to its
		// thread, and each of its many waits within an HTTP request would
		// cost a change of threads.
		c.background(task{ch, f})
	}
	select {
	case <-f.done:
		return ch, f.err
	case <-ctx.Done():
		return ch, context.Cause(ctx)
	}
}

// asking is a read that asks for memory for a part of a chunk.
type asking struct {
	done chan struct{} // closed when its fetch is announced, or it has given up
	err  error         // valid after done: there is no memory to be had
}

// ask says whether nobody else asks for memory for a part of chunk i; the
// caller has to call room then. Otherwise it returns who does.
func (c *Cache) ask(i geometry.ChunkIndex) (a *asking, first bool) {
	s := c.shardOf(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking[i]; a != nil {
		return a, false
	}
	a = &asking{done: make(chan struct{})}
	s.asking[i] = a
	return a, true
}

// room waits for memory for the bytes r of chunk i, announces their fetch and
// pins the chunk, unless there is no need of that any more.
func (c *Cache) room(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange, a *asking) (*chunk, *fetch, error) {
	defer func() {
		s := c.shardOf(i)
		s.mu.Lock()
		delete(s.asking, i)
		s.mu.Unlock()
		close(a.done)
	}()
	// Memory first, all of it, and the chunk after: an announced fetch must
	// not wait for memory, since an upload may wait for the fetch; and making
	// room must not evict the very chunk that it is for.
	need := c.arena.need(nil, r)
	if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
		if ctx.Err() == nil {
			a.err = err // theirs too; the end of our context is not
		}
		return nil, nil, err
	}
	ch := c.enter(i)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.fetching(r) == nil && !ch.dead && ch.rest == restSwift && !ch.valid.covers(r) {
		ch.pins.Add(1)
		return ch, c.startFetch(ch, r), nil
	}
	c.budget.put(need)
	return nil, nil, nil
}

// startFetch announces a fetch of r, for whose pages the caller has reserved
// the memory. ch.mu is held.
func (c *Cache) startFetch(ch *chunk, r geometry.ByteRange) *fetch {
	f := &fetch{r: r, reserved: c.arena.need(nil, r), done: make(chan struct{})}
	ch.fetches = append(ch.fetches, f)
	ch.lastEnd.Store(r.Off)
	return f
}

// fetch carries an announced fetch out, with the cache's own context: others
// may wait for it.
func (c *Cache) fetch(ch *chunk, f *fetch) error {
	c.stats.Fetches.Add(1)
	var hole bool
	fr, err := c.arena.alloc(f.reserved == c.arena.whole())
	if err != nil {
		c.budget.put(f.reserved)
	} else {
		c.arena.touch(fr, f.r)
		hole, err = c.backend.Read(c.ctx, ch.index, f.r.Off, fr.buf[f.r.Off:f.r.End()])
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.fetches = slices.DeleteFunc(ch.fetches, func(other *fetch) bool { return other == f })
	switch {
	case ch.rest != restSwift || ch.valid.covers(f.r):
		err = nil // written or zeroed meanwhile: nobody needs what came, or did not
	case err != nil:
	case hole:
		ch.rest = restZero
	default:
		fr = c.merge(ch, fr, f.r)
	}
	if fr != nil {
		c.budget.put(c.arena.release(fr))
	}
	f.err = err
	close(f.done)
	c.settle(ch)
	return err
}

// merge puts the bytes r of fr, as they are in Swift, under what the chunk
// holds already. It keeps one frame of the two and returns the other, or nil.
// ch.mu is held.
func (c *Cache) merge(ch *chunk, fr *frame, r geometry.ByteRange) (spare *frame) {
	switch {
	case ch.frame == nil:
		ch.frame = fr
		ch.valid.add(r)
		return nil
	case c.arena.need(fr, geometry.ByteRange{Len: c.geo.ObjectSize()}) == 0:
		// A whole chunk was read: copy the few bytes that are newer.
		for _, v := range ch.valid {
			copy(fr.buf[v.Off:v.End()], ch.frame.buf[v.Off:v.End()])
		}
		ch.frame, spare = fr, ch.frame
		ch.valid.add(r)
		return spare
	}
	// What this counts anew is at most what fr counts and gives back at once.
	for _, g := range ch.valid.gaps(r) {
		copy(ch.frame.buf[g.Off:g.End()], fr.buf[g.Off:g.End()])
		c.budget.used.Add(c.arena.touch(ch.frame, g))
	}
	ch.valid.add(r)
	return fr
}

// Prefetch brings the range into the cache, as much of it as fits in half of
// what a client may use, and returns when it is there.
func (c *Cache) Prefetch(ctx context.Context, off, n int64) error {
	n = min(n, (c.budget.limit-c.budget.reserve)/2)
	var wait []*fetch
	tasks, _ := c.missing(off, n)
	for _, t := range tasks {
		wait = append(wait, t.f)
		c.background(t)
	}
	for _, f := range wait {
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Advise is Prefetch that does not wait: it begins to bring the range in.
func (c *Cache) Advise(off, n int64) {
	c.prefetch(off, min(n, (c.budget.limit-c.budget.reserve)/2), false)
}

// task is a fetch that was announced and has to be carried out.
type task struct {
	ch *chunk
	f  *fetch
}

// prefetch starts fetches of what the range lacks and does not wait. It returns
// how many of its n bytes, from the first, need no more fetches than those.
func (c *Cache) prefetch(off, n int64, ahead bool) int64 {
	tasks, done := c.missing(off, n)
	now := time.Now().UnixNano()
	for _, t := range tasks {
		if ahead {
			c.stats.Ahead.Add(1)
			t.ch.ahead.Store(true) // whoever comes here has it topped up
			t.ch.freshAt.Store(now)
			t.ch.fresh.Add(t.f.r.Len)
			c.ahead.unread.Add(t.f.r.Len)
		}
		c.background(t)
	}
	return done
}

func (c *Cache) background(t task) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer c.survive()
		// The error is in the fetch, for whoever waits for it.
		_ = c.fetch(t.ch, t.f)
	}()
}

// missing announces fetches for those bytes of the range that are in Swift
// only and that nobody fetches yet. It never waits: where there is no memory
// for a chunk, it stops. It returns how far it came, bytes.
func (c *Cache) missing(off, n int64) (tasks []task, done int64) {
	for piece := range c.geo.Pieces(off, n) {
		ch := c.find(piece.Chunk)
		if ch == nil {
			if c.backend.Hole(piece.Chunk) {
				continue
			}
			if ch = c.tryChunk(piece.Chunk); ch == nil {
				return tasks, piece.Buf
			}
		}
		need := c.arena.need(nil, c.align(piece.In))
		if !c.budget.try(need) {
			return tasks, piece.Buf
		}
		ch.mu.Lock()
		if !ch.dead && ch.rest == restSwift {
			if gaps := ch.valid.gaps(piece.In); len(gaps) > 0 {
				if r := c.align(gaps.hull()); ch.fetching(r) == nil {
					f := c.startFetch(ch, r)
					need -= f.reserved
					tasks = append(tasks, task{ch, f})
				}
			}
		}
		ch.mu.Unlock()
		c.budget.put(need)
	}
	return tasks, n
}
