// SPDX-License-Identifier: MIT

package cache

import (
	"context"

	"swiftnbd/internal/geometry"
)

// Write takes p as the disk's bytes from off. After it has returned nil, a read
// returns these bytes. They are in Swift after the next Flush. The range must
// lie on the disk.
func (c *Cache) Write(ctx context.Context, p []byte, off int64) error {
	for piece := range c.geo.Pieces(off, int64(len(p))) {
		data := p[piece.Buf : piece.Buf+piece.In.Len]
		if err := c.change(ctx, piece.Chunk, piece.In, func(b []byte) { copySteps(b, data) }); err != nil {
			return err
		}
	}
	return nil
}

// Zero makes the range read as zeroes. The next Flush deletes the chunks that
// the range covers whole, and writes the edges. A chunk that is known to be a
// hole costs nothing. The range must lie on the disk.
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

// Trim says that the range is not needed any more. Afterwards the range reads
// as zeroes, with one exception: Trim leaves a chunk alone if the listing does
// not show it and nothing else is known of it. There is hardly anything to free
// then, and NBD promises nothing about trimmed bytes. This makes mkfs of a
// large empty disk quick.
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

// FastZero says whether Zero of the range is faster than writing zeroes. It is
// if the range covers a whole chunk, or is zero already.
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

// maxRuns is how many separate runs of valid bytes a chunk may have. Beyond
// that its rest is fetched to join them, since the memory of their list is
// outside the budget.
const maxRuns = 1024

// change lets fill set the bytes r of chunk i, and makes them dirty.
func (c *Cache) change(ctx context.Context, i geometry.ChunkIndex, r geometry.ByteRange, fill func([]byte)) error {
	var t ticket
	defer t.drop()
	for {
		ch, err := c.chunk(ctx, i, foreground)
		if err != nil {
			return err
		}
		ch.mu.Lock()
		if t.p == nil && !ch.dead && !ch.isDirty() {
			d := debt{kindPut: 1}
			if ch.rest == restSwift && r.Len < c.geo.ObjectSize() && !ch.valid.covers(geometry.ByteRange{Len: c.geo.ObjectSize()}) {
				d[kindFetch] = 1
			}
			var ok bool
			if t, ok = c.pace.try(d); !ok {
				ch.mu.Unlock()
				if t, err = c.pace.get(ctx, d, c.wakeWriteback); err != nil {
					return err
				}
				continue
			}
		}
		need := c.arena.need(ch.frame, c.pages(ch, r))
		runs := len(ch.valid)
		full := need == 0 || c.budget.waiting[foreground].Load() == 0 && c.budget.take(need, foreground)
		if !ch.dead && runs < maxRuns && full {
			err = c.setBytes(ch, r, need, fill)
			ch.mu.Unlock()
			return err
		}
		if full {
			c.budget.giveBack(need)
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
			// Wait for memory without ch.mu. Meanwhile the chunk may change and
			// need less memory or more, so try again. It may also be evicted to
			// make room: then bring it back.
			if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
				return err
			}
			ch = c.insert(i)
			ch.mu.Lock()
			if !ch.dead && len(ch.valid) < maxRuns {
				if now := c.arena.need(ch.frame, c.pages(ch, r)); now <= need {
					c.budget.giveBack(need - now)
					err = c.setBytes(ch, r, now, fill)
					ch.mu.Unlock()
					return err
				}
			}
			ch.mu.Unlock()
			c.budget.giveBack(need)
		}
	}
}

// pages returns the range that is counted for a write of r. If the write looks
// like the first of many that fill the chunk, this is the whole chunk,
// otherwise r. ch.mu is held.
func (c *Cache) pages(ch *chunk, r geometry.ByteRange) geometry.ByteRange {
	if ch.frame == nil && r.Off == 0 && r.Len >= c.geo.ObjectSize()/16 && r.Len >= smallFrame {
		return geometry.ByteRange{Len: c.geo.ObjectSize()}
	}
	return r
}

// touch counts the pages of r to the chunk, which gets a frame if it has none.
// need bytes have been reserved for those that it touches first; after an error
// they are given back. ch.mu is held.
func (c *Cache) touch(ch *chunk, r geometry.ByteRange, need int64) error {
	if ch.frame == nil {
		f, err := c.arena.alloc(r.Len == c.geo.ObjectSize())
		if err != nil {
			c.budget.giveBack(need)
			return err
		}
		ch.frame = f
	}
	c.arena.touch(ch.frame, r)
	return nil
}

// setBytes sets the bytes r. need bytes have been reserved for the pages that it
// touches first. ch.mu is held.
func (c *Cache) setBytes(ch *chunk, r geometry.ByteRange, need int64, fill func([]byte)) error {
	pages := c.pages(ch, r)
	if err := c.touch(ch, pages, need); err != nil {
		return err
	}
	fill(ch.frame.buf[r.Off:r.End()])
	ch.valid.add(r)
	ch.dirty.add(r)
	ch.gen++
	c.markDirty(ch)
	return nil
}

// markDirty notes that the chunk is dirty. ch.mu is held.
func (c *Cache) markDirty(ch *chunk) {
	c.recount(ch)
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

// recount makes pace count what the chunk owes. ch.mu is held.
func (c *Cache) recount(ch *chunk) {
	if now := ch.debt(c.geo.ObjectSize()); now != ch.owes {
		c.pace.recount(ch.owes, now)
		ch.owes = now
	}
}

// zeroChunk makes the whole chunk zero.
func (c *Cache) zeroChunk(ctx context.Context, i geometry.ChunkIndex) error {
	var t ticket
	defer t.drop()
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
		if t.p == nil && !ch.isDirty() && (ch.up != nil || !c.backend.Hole(i)) {
			d := debt{kindDelete: 1}
			var ok bool
			if t, ok = c.pace.try(d); !ok {
				ch.mu.Unlock()
				if t, err = c.pace.get(ctx, d, c.wakeWriteback); err != nil {
					return err
				}
				continue
			}
		}
		if ch.frame != nil {
			c.budget.giveBack(c.arena.release(ch.frame))
		}
		ch.frame, ch.valid, ch.dirty = nil, nil, nil
		ch.gen++
		// While an upload is under way, the backend may call the chunk a hole
		// and be wrong a moment later.
		if ch.up == nil && c.backend.Hole(i) {
			ch.rest, ch.zeroed = restZero, false
			ch.synced = ch.gen
			c.dirty.remove(ch)
		} else {
			ch.rest, ch.zeroed = restZero, true
			c.markDirty(ch)
		}
		c.release(ch)
		ch.mu.Unlock()
		c.pace.admit() // it may owe less
		return nil
	}
}
