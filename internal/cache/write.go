// SPDX-License-Identifier: MIT

package cache

import (
	"context"

	"swiftnbd/internal/geometry"
)

// Write takes p as the disk's bytes from off. When it returns nil the bytes
// are what a read returns; they are in Swift after the next Flush. The range
// must lie on the disk.
func (c *Cache) Write(ctx context.Context, p []byte, off int64) error {
	for piece := range c.geo.Pieces(off, int64(len(p))) {
		data := p[piece.Buf : piece.Buf+piece.In.Len]
		if err := c.change(ctx, piece.Chunk, piece.In, func(b []byte) { move(b, data) }); err != nil {
			return err
		}
	}
	return nil
}

// Zero makes the range read as zeroes. Chunks that it covers whole are deleted
// in Swift by the next Flush, the edges are written. A chunk that is known to
// be a hole costs nothing. The range must lie on the disk.
func (c *Cache) Zero(ctx context.Context, off, n int64) error {
	for piece := range c.geo.Pieces(off, n) {
		var err error
		if piece.Whole(c.geo.ObjectSize()) {
			err = c.zeroChunk(ctx, piece.Chunk)
		} else if !c.zeroAlready(piece) {
			err = c.change(ctx, piece.Chunk, piece.In, func(b []byte) { clear(b) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Trim tells that the range is not needed any more. It reads as zeroes after
// it, except that a chunk which a listing does not show, and of which nothing
// else is known, is left as it is: there is hardly anything to free, and NBD
// promises nothing about what was trimmed. This is what makes mkfs of a large
// empty disk quick.
func (c *Cache) Trim(ctx context.Context, off, n int64) error {
	for piece := range c.geo.Pieces(off, n) {
		if c.find(piece.Chunk) == nil && !c.backend.Hole(piece.Chunk) {
			if listed, err := c.backend.Listed(ctx, piece.Chunk); err == nil && !listed {
				continue
			}
		}
		if err := c.Zero(ctx, c.geo.Offset(piece.Chunk)+piece.In.Off, piece.In.Len); err != nil {
			return err
		}
	}
	return nil
}

// zeroAlready says whether the piece is known to be zero and to stay so
// without doing anything.
func (c *Cache) zeroAlready(piece geometry.Piece) bool {
	ch := c.find(piece.Chunk)
	if ch == nil {
		return c.backend.Hole(piece.Chunk) && c.find(piece.Chunk) == nil
	}
	ch.mu.RLock()
	defer ch.mu.RUnlock()
	return !ch.dead && ch.rest == restZero && !ch.valid.overlaps(piece.In)
}

// FastZero says whether Zero of the range is faster than writing zeroes: it
// is where it covers a whole chunk, or what is zero already.
func (c *Cache) FastZero(off, n int64) bool {
	for piece := range c.geo.Pieces(off, n) {
		if piece.Whole(c.geo.ObjectSize()) {
			return true
		}
		if !c.zeroAlready(piece) {
			return false
		}
	}
	return true
}

// maxRuns is how many separate runs of valid bytes a chunk may have before its
// rest is fetched to join them: their bookkeeping lies outside the budget.
const maxRuns = 1024

// change lets fill set the bytes r of chunk i, and makes them dirty.
func (c *Cache) change(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange, fill func([]byte)) error {
	for {
		ch, err := c.chunk(ctx, i, foreground)
		if err != nil {
			return err
		}
		ch.mu.Lock()
		need := c.arena.need(ch.frame, c.pages(ch, r))
		runs := len(ch.valid)
		full := need == 0 || c.budget.waiting[foreground].Load() == 0 && c.budget.take(need, foreground)
		if !ch.dead && runs < maxRuns && full {
			err = c.put(ch, r, need, fill)
			ch.mu.Unlock()
			return err
		}
		if full {
			c.budget.put(need)
		}
		dead, gen := ch.dead, ch.gen
		ch.mu.Unlock()
		switch {
		case dead:
		case runs >= maxRuns:
			if err := c.sync(ctx, ch, gen); err != nil {
				return err
			}
		default:
			// Wait for memory without the lock. The chunk may be
			// another then, and need less, or more: try again. It may
			// also have been evicted to make room: bring it back.
			if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
				return err
			}
			ch = c.enter(i)
			ch.mu.Lock()
			if !ch.dead && len(ch.valid) < maxRuns {
				if now := c.arena.need(ch.frame, c.pages(ch, r)); now <= need {
					c.budget.put(need - now)
					err = c.put(ch, r, now, fill)
					ch.mu.Unlock()
					return err
				}
			}
			ch.mu.Unlock()
			c.budget.put(need)
		}
	}
}

// pages returns what is counted for a write of r: the whole chunk where the
// write looks like the first of many that fill it, else just r. ch.mu is held.
func (c *Cache) pages(ch *chunk, r geometry.ByteRange) geometry.ByteRange {
	if ch.frame == nil && r.Off == 0 && r.Len >= c.geo.ObjectSize()/16 && r.Len >= smallFrame {
		return geometry.ByteRange{Len: c.geo.ObjectSize()}
	}
	return r
}

// put sets the bytes r. need bytes have been reserved for the pages that it
// touches first. ch.mu is held.
func (c *Cache) put(ch *chunk, r geometry.ByteRange, need int64, fill func([]byte)) error {
	pages := c.pages(ch, r)
	if ch.frame == nil {
		f, err := c.arena.alloc(pages.Len == c.geo.ObjectSize())
		if err != nil {
			c.budget.put(need)
			return err
		}
		ch.frame = f
	}
	c.arena.touch(ch.frame, pages)
	fill(ch.frame.buf[r.Off:r.End()])
	ch.valid.add(r)
	ch.dirty.add(r)
	ch.gen++
	c.soil(ch)
	return nil
}

// soil notes that the chunk is dirty. ch.mu is held.
func (c *Cache) soil(ch *chunk) {
	if c.opts.Check {
		ch.check(c.geo.ObjectSize())
	}
	full := ch.allDirty(c.geo.ObjectSize())
	if added := c.dirty.add(ch, full); added {
		c.policy.remove(ch)
	}
	if full || c.pressed() {
		c.wakeWriteback()
	}
}

// zeroChunk makes the whole chunk zero.
func (c *Cache) zeroChunk(ctx context.Context, i geometry.ChunkIndex) error {
	for {
		if c.find(i) == nil && c.backend.Hole(i) && c.find(i) == nil {
			return nil
		}
		ch, err := c.chunk(ctx, i, foreground)
		if err != nil {
			return err
		}
		ch.mu.Lock()
		if ch.dead {
			ch.mu.Unlock()
			continue
		}
		if ch.frame != nil {
			c.budget.put(c.arena.release(ch.frame))
		}
		ch.frame, ch.valid, ch.dirty = nil, nil, nil
		ch.gen++
		// With an upload under way the backend may say hole and be wrong
		// a moment later.
		if ch.up == nil && c.backend.Hole(i) {
			ch.rest, ch.zeroed = restZero, false
			ch.synced = ch.gen
			c.dirty.remove(ch)
		} else {
			ch.rest, ch.zeroed = restZero, true
			c.soil(ch)
		}
		c.settle(ch)
		ch.mu.Unlock()
		return nil
	}
}
