// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"slices"

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
				c.policy.hit(ch, piece.In)
				c.ahead.arrived(ch, piece.In.Len)
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
			if c.readAhead(c.geo.Offset(piece.Chunk)+piece.In.Off, piece.In.Len) {
				want = geometry.ByteRange{Len: c.geo.ObjectSize()}
			}
		}
		if err := c.await(ctx, piece.Chunk, want); err != nil {
			return err
		}
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
// by a fetch that is under way or by one that it starts.
func (c *Cache) await(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange) error {
	var f *fetch
	if ch := c.find(i); ch != nil {
		ch.mu.RLock()
		f = ch.fetching(r)
		ch.mu.RUnlock()
	}
	if f == nil {
		// Memory first, all of it, and the chunk after: an announced fetch
		// must not wait for memory, since an upload may wait for the fetch;
		// and making room must not evict the very chunk that it is for.
		need := c.arena.need(nil, r)
		if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
			return err
		}
		ch := c.enter(i)
		ch.mu.Lock()
		if f = ch.fetching(r); f == nil && !ch.dead && ch.rest == restSwift && !ch.valid.covers(r) {
			f = c.startFetch(ch, r)
			ch.mu.Unlock()
			return c.fetch(ch, f)
		}
		ch.mu.Unlock()
		c.budget.put(need)
	}
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
	ch.mu.Unlock()
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
	for _, t := range c.missing(off, n) {
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

// prefetch starts fetches of what the range lacks and does not wait.
func (c *Cache) prefetch(off, n int64, ahead bool) {
	for _, t := range c.missing(off, n) {
		if ahead {
			c.stats.Ahead.Add(1)
			t.ch.fresh.Add(t.f.r.Len)
			c.ahead.unread.Add(t.f.r.Len)
		}
		c.background(t)
	}
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
// for a chunk, it stops.
func (c *Cache) missing(off, n int64) []task {
	var tasks []task
	for piece := range c.geo.Pieces(off, n) {
		ch := c.find(piece.Chunk)
		if ch == nil {
			if c.backend.Hole(piece.Chunk) {
				continue
			}
			if ch = c.tryChunk(piece.Chunk); ch == nil {
				break
			}
		}
		need := c.arena.need(nil, c.align(piece.In))
		if !c.budget.try(need) {
			break
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
	return tasks
}
