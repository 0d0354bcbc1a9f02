// SPDX-License-Identifier: MIT

package cache

import (
	"context"

	"swiftnbd/internal/geometry"
)

// Reader is what the cache needs of a disk that keeps by itself what is dirty.
// The cache then has nothing to write back: everything in it may be evicted at
// any time.
type Reader interface {
	// Hole says whether the chunk holds zeroes only, without asking anybody.
	Hole(i geometry.ChunkIndex) bool
	// Holes returns for how many chunks from i on, n at most, Hole says so.
	Holes(i geometry.ChunkIndex, n int64) int64
	// Beside returns as much of wide, r included, as Read brings without more
	// requests than r takes. Both lie in the chunk.
	Beside(i geometry.ChunkIndex, r, wide geometry.ByteRange) geometry.ByteRange
	// Partly says whether some of the bytes may be read although a Read of more has
	// ended with err. They are read at once then, and the client waits for both.
	Partly(err error) bool
	// Read fills p with the chunk's bytes from off, or says that the chunk
	// is a hole. The result has every Through that ended before Read began. The
	// bytes behind p, up to its capacity, may be changed. Behind a whole chunk of
	// more than 64 KiB they are Room at least.
	Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error)
}

// Room is what a Reader's cache has behind the memory of a chunk of more than
// 64 KiB, bytes: for what Read brings with the chunk's bytes.
const Room = 4096

// NewReader returns a cache over r for reading. Of the changing methods only
// Through and Forget may be called, and neither Flush nor Drain.
func NewReader(r Reader, geo geometry.Geometry, o Options) (*Cache, error) {
	o.FlushTime = -1
	c, err := newCache(onlyReader{r}, geo, o, Room)
	if err != nil {
		return nil, err
	}
	c.beside, c.partly = r.Beside, r.Partly
	c.budget.reserve = 0
	c.ahead.limit = min(o.readahead(geo), c.budget.limit*3/4)
	return c, nil
}

// onlyReader makes a Backend of a Reader. A cache that is only read never calls
// its other methods.
type onlyReader struct{ Reader }

func (onlyReader) Write(context.Context, geometry.ChunkIndex, []byte) error { panic("not a writer") }
func (onlyReader) Delete(context.Context, geometry.ChunkIndex) error        { panic("not a writer") }
func (onlyReader) Probe(context.Context, geometry.ChunkIndex) (bool, error) { panic("not a writer") }
func (onlyReader) Listed(context.Context, geometry.ChunkIndex) (bool, error) {
	panic("not a writer")
}

// Through hands p, the disk's new bytes from off, to keep, and has them in the
// cache too. keep is called for one piece after another with a range that is
// widened to multiples of align bytes; the bytes that this adds are what the
// disk has there, and are read from the Reader where need be. keep runs with
// the chunk locked, or kept out of the cache: it must not wait. So of two changes of the same bytes the
// cache and keep have the same one last. The range must lie on the disk, align
// must divide the chunks' size.
//
// When memory is short, the cache takes nothing new in (see around).
func (c *Cache) Through(ctx context.Context, p []byte, off, align int64, keep func(p []byte, off int64)) error {
	for piece := range c.geo.Pieces(off, int64(len(p))) {
		if err := c.through(ctx, piece, p[piece.Buf:piece.Buf+piece.In.Len], align, keep); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) through(ctx context.Context, piece geometry.Piece, data []byte, align int64, keep func([]byte, int64)) error {
	r := piece.In
	wide := geometry.ByteRange{Off: r.Off / align * align}
	wide.Len = min(roundUp(r.End(), align), c.geo.ObjectSize()) - wide.Off
	if r == wide && c.around(piece, data, keep) {
		return nil
	}
	var (
		pinned *chunk // so that nobody makes room of what it has just got
		failed int
	)
	defer func() { c.unpin(pinned) }()
	for {
		ch, err := c.chunk(ctx, piece.Chunk, foreground)
		if err != nil {
			return err
		}
		ch.mu.Lock()
		if ch.dead {
			ch.mu.Unlock()
			continue
		}
		if missing := ch.lacks(r, wide); missing.Len > 0 {
			ch.mu.Unlock()
			c.unpin(pinned) // nothing is held while waiting for memory
			if pinned, err = c.bring(ctx, piece.Chunk, missing, false, &failed); err != nil {
				return err
			}
			continue
		}
		need := c.arena.need(ch.frame, wide)
		if need == 0 || c.budget.waiting[foreground].Load() == 0 && c.budget.take(need, foreground) {
			err = c.setClean(ch, wide, r, need, data, keep)
			ch.mu.Unlock()
			return err
		}
		ch.mu.Unlock()
		c.unpin(pinned)
		pinned = nil
		if err := c.budget.get(ctx, need+overhead, foreground); err != nil {
			return err
		}
		// The chunk may be another now, and need less, or more. It may also
		// have been evicted to make room: bring it back.
		ch = c.insert(piece.Chunk)
		ch.mu.Lock()
		if now := c.arena.need(ch.frame, wide); !ch.dead && now <= need && ch.lacks(r, wide).Len == 0 {
			c.budget.giveBack(need - now)
			err = c.setClean(ch, wide, r, now, data, keep)
			ch.mu.Unlock()
			return err
		}
		ch.mu.Unlock()
		c.budget.giveBack(need)
	}
}

// around is through without new memory: what the cache has of the bytes is
// renewed, and nothing is evicted for the others. Written bytes may never be read
// here, and the Reader has them. It returns false, and has done nothing, if there
// is memory, or if a fetch is under way that may bring old bytes. The piece begins
// and ends at multiples of align.
func (c *Cache) around(piece geometry.Piece, data []byte, keep func([]byte, int64)) bool {
	off := c.geo.Offset(piece.Chunk) + piece.In.Off
	s := c.shardOf(piece.Chunk)
	for {
		s.mu.RLock()
		ch := s.m[piece.Chunk]
		if ch == nil {
			full := !c.budget.hasRoom(c.arena.need(nil, piece.In) + overhead)
			if full {
				// As long as shard.mu is held, the chunk cannot come into the
				// cache, and so no fetch of it begins.
				keep(data, off)
			}
			s.mu.RUnlock()
			return full
		}
		s.mu.RUnlock()
		ch.mu.Lock()
		if ch.dead {
			ch.mu.Unlock()
			continue
		}
		need := c.arena.need(ch.frame, piece.In)
		around := need > 0 && !c.budget.hasRoom(need) && ch.fetching(piece.In) == nil
		if around {
			c.renew(ch, piece.In, data)
			keep(data, off)
			c.release(ch)
		}
		ch.mu.Unlock()
		return around
	}
}

// renew puts data into those of the bytes r that the chunk has. The others are
// the Reader's. ch.mu is held.
func (c *Cache) renew(ch *chunk, r geometry.ByteRange, data []byte) {
	if ch.rest == restZero {
		ch.rest = restSwift // the others are zeroes no more
	}
	for i := ch.valid.after(r.Off + 1); i < len(ch.valid) && ch.valid[i].Off < r.End(); i++ {
		lo, hi := max(ch.valid[i].Off, r.Off), min(ch.valid[i].End(), r.End())
		copySteps(ch.frame.buf[lo:hi], data[lo-r.Off:hi-r.Off])
	}
}

// lacks returns the smallest range that holds those bytes of wide outside of r
// that are in Swift only. mu is held.
func (ch *chunk) lacks(r, wide geometry.ByteRange) geometry.ByteRange {
	if ch.rest != restSwift || r == wide {
		return geometry.ByteRange{}
	}
	head := ch.valid.gaps(geometry.ByteRange{Off: wide.Off, Len: r.Off - wide.Off})
	tail := ch.valid.gaps(geometry.ByteRange{Off: r.End(), Len: wide.End() - r.End()})
	return append(head, tail...).hull()
}

// setClean puts data into the bytes r of the chunk and hands wide to keep. need
// bytes have been reserved. ch.mu is held.
func (c *Cache) setClean(ch *chunk, wide, r geometry.ByteRange, need int64, data []byte, keep func([]byte, int64)) error {
	if err := c.touch(ch, wide, need); err != nil {
		return err
	}
	if r != wide {
		for _, g := range ch.valid.gaps(wide) { // zeroes, or about to be set
			clear(ch.frame.buf[g.Off:g.End()])
		}
	}
	copySteps(ch.frame.buf[r.Off:r.End()], data)
	ch.valid.add(wide)
	keep(ch.frame.buf[wide.Off:wide.End()], c.geo.Offset(ch.index)+wide.Off)
	c.release(ch)
	return nil
}

// Borrow takes n bytes of the cache's memory for its owner, who has the Return of
// them. Clean chunks are evicted for it, but not what was fetched for a reader who
// is still to come. It does not wait, and says whether it has got them.
func (c *Cache) Borrow(n int64) bool { return c.budget.try(n) }

// Return gives n borrowed bytes back.
func (c *Cache) Return(n int64) { c.budget.giveBack(n) }

// Forget drops what the cache has of the range, and what fetches under way
// bring of it: the Reader has something else there now. The range must lie on
// the disk.
func (c *Cache) Forget(off, n int64) {
	if n == 0 {
		return
	}
	first, _ := c.geo.ChunkOf(off)
	last, _ := c.geo.ChunkOf(off + n - 1)
	for _, i := range c.present(first, last) {
		ch := c.find(i)
		if ch == nil {
			continue
		}
		base := c.geo.Offset(i)
		lo, hi := max(off-base, 0), min(off+n-base, c.geo.ObjectSize())
		ch.mu.Lock()
		if !ch.dead {
			ch.forgotten++
			if ch.rest == restZero {
				// What is left must not read as zeroes only because the
				// whole chunk once did.
				ch.rest = restSwift
			}
			ch.valid.remove(geometry.ByteRange{Off: lo, Len: hi - lo})
			if len(ch.valid) == 0 && ch.frame != nil {
				c.budget.giveBack(c.arena.release(ch.frame))
				ch.frame = nil
			}
			c.release(ch)
		}
		ch.mu.Unlock()
	}
}
