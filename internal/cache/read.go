// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"slices"
	"time"

	"swiftnbd/internal/geometry"
)

// granule is the least number of bytes that a read fetches from a large chunk.
// The range is aligned to it. A request costs Swift so much more than its bytes
// that 64 KiB come as fast as 4.
const granule = 64 << 10

// Read fills p with the disk's bytes from off. The range must lie on the disk.
// The context bounds the waiting. A fetch goes on when it ends, since others
// may share the fetch.
func (c *Cache) Read(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if c.geo.Count(off, n) <= 1 {
		for piece := range c.geo.Pieces(off, n) {
			return c.readPiece(ctx, p, piece)
		}
		return nil
	}
	// Start all missing fetches first, so that the pieces come in parallel.
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
		pinned *chunk // pinned so that it is not evicted before its bytes are copied
		much   bool
		failed int
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
		if first {
			c.stats.Misses.Add(1)
			much = c.readAhead(c.geo.Offset(piece.Chunk)+piece.In.Off, piece.In.Len)
		}
		c.unpin(pinned) // nothing is held while waiting for memory
		pinned = nil
		var err error
		if pinned, err = c.bring(ctx, piece.Chunk, want, much, &failed); err != nil {
			return err
		}
	}
}

// mostFailed bounds how many fetches that others began, of more than it needs, a
// request waits for.
const mostFailed = 3

// bring waits for a fetch of the bytes r of chunk i, or of some of them: of the whole
// chunk with much, and else of as much as is worth a request. A Reader may have r and not
// what is fetched with it, by us or for somebody else. When such a fetch fails, bring
// returns no error and counts it in failed, and r is fetched alone the next time. If the
// chunk is not nil, the caller has a pin on it, with or without an error.
func (c *Cache) bring(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange, much bool, failed *int) (*chunk, error) {
	want := geometry.ByteRange{Len: c.geo.ObjectSize()}
	switch {
	case *failed > 0:
		want = c.beside(i, r, r)
	case !much:
		want = c.worth(i, r)
	}
	ch, got, err := c.await(ctx, i, want)
	if err == nil || c.beside == nil || ctx.Err() != nil || c.ctx.Err() != nil {
		return ch, err
	}
	alone := c.beside(i, r, r)
	if more := got.Off < alone.Off || got.End() > alone.End(); more && c.partly(err) {
		if *failed++; *failed < mostFailed {
			return ch, nil
		}
	}
	return ch, err
}

// unpin removes the pin of a read. ch may be nil.
func (c *Cache) unpin(ch *chunk) {
	if ch != nil && ch.pins.Add(-1) == 0 {
		ch.mu.Lock()
		c.release(ch)
		ch.mu.Unlock()
	}
}

// align widens a range of a chunk to a size that is worth a request.
func (c *Cache) align(r geometry.ByteRange) geometry.ByteRange {
	size := c.geo.ObjectSize()
	if size <= 2*granule {
		return geometry.ByteRange{Len: size}
	}
	lo := r.Off / granule * granule
	hi := min(roundUp(r.End(), granule), size)
	return geometry.ByteRange{Off: lo, Len: hi - lo}
}

// worth is align, less what a Reader would have to make further requests for.
func (c *Cache) worth(i geometry.ChunkIndex, r geometry.ByteRange) geometry.ByteRange {
	wide := c.align(r)
	if c.beside == nil || wide == r {
		return wide
	}
	return c.beside(i, r, wide)
}

// await waits for a fetch that brings the bytes r of chunk i, or some of them, and
// returns what it fetches. The fetch is under way already, or await starts it. If the
// chunk is not nil, the caller has a pin on it, with or without an error.
func (c *Cache) await(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange) (ch *chunk, got geometry.ByteRange, err error) {
	var f *fetch
	ch = c.find(i)
	if ch != nil {
		ch.mu.RLock()
		if f = ch.fetching(r); f != nil {
			ch.pins.Add(1)
		}
		ch.mu.RUnlock()
	}
	if f == nil {
		// One read asks for memory for all. If many reads that want a part of a
		// large chunk each made room for it, they would evict what is wanted
		// next.
		a, first := c.ask(i)
		if !first {
			select {
			case <-a.done:
				return nil, got, a.err // nil: the caller looks again
			case <-ctx.Done():
				return nil, got, context.Cause(ctx)
			}
		}
		if ch, f, err = c.room(ctx, i, r, a); f == nil {
			return nil, got, err
		}
		// The fetch runs in another goroutine. The goroutine of a callback from
		// C is bound to its thread. Each of its many waits within an HTTP
		// request would cost a change of threads.
		c.background(task{ch, f})
	}
	select {
	case <-f.done:
		return ch, f.r, f.err
	case <-ctx.Done():
		return ch, got, context.Cause(ctx)
	}
}

// asking is a read that asks for memory for a part of a chunk.
type asking struct {
	done chan struct{} // closed when its fetch is announced, or when it has given up
	err  error         // valid after done: there is no memory to be had
}

// ask returns the read that asks for memory for a part of chunk i. If first is
// true, this is the caller, who has to call room.
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
// pins the chunk. If the fetch is not needed any more, it does none of this.
func (c *Cache) room(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange, a *asking) (*chunk, *fetch, error) {
	defer func() {
		s := c.shardOf(i)
		s.mu.Lock()
		delete(s.asking, i)
		s.mu.Unlock()
		close(a.done)
	}()
	// All memory comes first, and the chunk afterwards. An announced fetch must
	// not wait for memory, since an upload may wait for the fetch. And making
	// room must not evict the same chunk.
	need := c.arena.need(nil, r)
	if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
		if ctx.Err() == nil {
			a.err = err // the others' error too; the end of our context is not
		}
		return nil, nil, err
	}
	ch := c.insert(i)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.fetching(r) == nil && !ch.dead && ch.rest == restSwift && !ch.valid.covers(r) {
		ch.pins.Add(1)
		return ch, c.startFetch(ch, r), nil
	}
	c.budget.giveBack(need)
	return nil, nil, nil
}

// startFetch announces a fetch of r. The caller has reserved memory for its
// pages. ch.mu is held.
func (c *Cache) startFetch(ch *chunk, r geometry.ByteRange) *fetch {
	f := &fetch{r: r, reserved: c.arena.need(nil, r), before: ch.forgotten, done: make(chan struct{})}
	ch.fetches = append(ch.fetches, f)
	ch.lastEnd.Store(r.Off)
	return f
}

// fetch does an announced fetch. It uses the cache's own context, since others
// may wait for it.
func (c *Cache) fetch(ch *chunk, f *fetch) error {
	c.stats.Fetches.Add(1)
	var hole bool
	fr, err := c.arena.alloc(f.reserved == c.arena.whole())
	if err != nil {
		c.budget.giveBack(f.reserved)
	} else {
		c.arena.touch(fr, f.r)
		p := fr.buf[f.r.Off:f.r.End():f.r.End()]
		if f.r.Len == c.geo.ObjectSize() {
			p = fr.buf // with the room behind it
		}
		hole, err = c.backend.Read(c.ctx, ch.index, f.r.Off, p)
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.fetches = slices.DeleteFunc(ch.fetches, func(other *fetch) bool { return other == f })
	switch {
	case ch.rest != restSwift || ch.valid.covers(f.r):
		err = nil // written or zeroed meanwhile: nobody needs the answer
	case ch.forgotten != f.before:
		err = nil // the bytes may be old: readers that wait look again
	case err != nil:
	case hole:
		ch.rest = restZero
	default:
		fr = c.merge(ch, fr, f.r)
	}
	if fr != nil {
		c.budget.giveBack(c.arena.release(fr))
	}
	f.err = err
	close(f.done)
	c.release(ch)
	return err
}

// merge puts the bytes r of fr, which came from Swift, under the bytes that the
// chunk holds already. It keeps one frame of the two and returns the other, or
// nil. ch.mu is held.
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
	// This counts at most the bytes that are counted for fr, and fr is given
	// back at once.
	for _, g := range ch.valid.gaps(r) {
		copy(ch.frame.buf[g.Off:g.End()], fr.buf[g.Off:g.End()])
		c.budget.used.Add(c.arena.touch(ch.frame, g))
	}
	ch.valid.add(r)
	return fr
}

// Prefetch brings the range into the cache and returns when it is there. It
// brings no more than half of what clients may use.
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

// Advise begins what Prefetch does, and does not wait.
func (c *Cache) Advise(off, n int64) {
	c.prefetch(off, min(n, (c.budget.limit-c.budget.reserve)/2), false)
}

// task is a fetch that was announced and has to be done.
type task struct {
	ch *chunk
	f  *fetch
}

// prefetch starts fetches of the missing bytes of the range and does not wait.
// It returns how many of the n bytes, from the first on, need no further fetch.
func (c *Cache) prefetch(off, n int64, ahead bool) int64 {
	tasks, done := c.missing(off, n)
	now := time.Now().UnixNano()
	for _, t := range tasks {
		if ahead {
			c.stats.Ahead.Add(1)
			t.ch.ahead.Store(true) // a reader that comes here makes the window grow on
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
		defer c.recoverPanic()
		// The error is in the fetch. Readers that wait for it find it there.
		_ = c.fetch(t.ch, t.f)
	}()
}

// missing announces fetches for the bytes of the range that are in Swift only
// and that no fetch brings yet. It never waits. It stops at a chunk for which
// there is no memory, and returns the number of bytes before it.
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
		c.budget.giveBack(need)
	}
	return tasks, n
}
