// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"sync"

	"swiftnbd/internal/geometry"
)

// One call of Extents makes at most probesACall requests and looks at
// chunksACall chunks: the answer may end before the range does.
const (
	probesACall = 512
	chunksACall = 64 << 10
)

// Extents tells emit what the range is made of, in ascending order and without
// gaps, from off on: runs that are holes and read as zeroes, and runs that may
// hold data. It may end before the range does, but never before the first
// chunk's end. emit returns false to stop. Where neither the cache nor the
// backend knows, Swift is asked, chunk by chunk and in parallel.
func (c *Cache) Extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) error {
	var ask []geometry.ChunkIndex
	if first, _ := c.geo.ChunkOf(off); c.geo.Count(off, n) > chunksACall {
		n = c.geo.Offset(first+chunksACall) - off
	}
	end := off + n
	for piece := range c.geo.Pieces(off, n) {
		if c.stateUnknown(piece.Chunk) {
			if len(ask) == probesACall {
				end = c.geo.Offset(piece.Chunk)
				break
			}
			ask = append(ask, piece.Chunk)
		}
	}
	holes, err := c.probe(ctx, ask)
	if err != nil {
		return err
	}
	for piece := range c.geo.Pieces(off, end-off) {
		base := c.geo.Offset(piece.Chunk)
		hole, asked := holes[piece.Chunk]
		runs := c.runs(piece, hole && asked)
		for _, r := range runs {
			if !emit(base+r.In.Off, r.In.Len, r.hole) {
				return nil
			}
		}
	}
	return nil
}

// stateUnknown says whether only Swift can tell if the chunk is a hole.
func (c *Cache) stateUnknown(i geometry.ChunkIndex) bool {
	if ch := c.find(i); ch != nil {
		ch.mu.RLock()
		defer ch.mu.RUnlock()
		if !ch.dead && (ch.rest != restSwift || len(ch.valid) > 0) {
			return false
		}
	}
	return !c.backend.Hole(i)
}

// probe asks the backend about the chunks, several at once.
func (c *Cache) probe(ctx context.Context, ask []geometry.ChunkIndex) (map[geometry.ChunkIndex]bool, error) {
	holes := make(map[geometry.ChunkIndex]bool, len(ask))
	var (
		mu    sync.Mutex // guards holes, first and next
		first error
		next  int
		wg    sync.WaitGroup
	)
	for range min(len(ask), c.opts.Connections) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.survive()
			for {
				mu.Lock()
				k := next
				next++
				stop := first != nil || k >= len(ask)
				mu.Unlock()
				if stop {
					return
				}
				hole, err := c.backend.Probe(ctx, ask[k])
				mu.Lock()
				holes[ask[k]] = hole
				if err != nil && first == nil {
					first = err
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return holes, first
}

type extent struct {
	geometry.Piece
	hole bool
}

// runs describes one piece. proven says that the chunk was a hole in Swift
// when it was asked about.
func (c *Cache) runs(piece geometry.Piece, proven bool) []extent {
	one := func(hole bool) []extent { return []extent{{piece, hole}} }
	ch := c.find(piece.Chunk)
	if ch == nil {
		return one(proven || c.backend.Hole(piece.Chunk))
	}
	ch.mu.RLock()
	defer ch.mu.RUnlock()
	switch {
	case ch.dead || ch.rest == restSwift:
		// A chunk that was written since Swift was asked is data; saying
		// data of a hole is always right.
		return one(proven && !ch.dead && len(ch.valid) == 0)
	case ch.rest == restFrozen && ch.up.frame != nil:
		return one(false)
	}
	var out []extent
	add := func(lo, hi int64, hole bool) {
		if lo < hi {
			p := piece
			p.In = geometry.ByteRange{Off: lo, Len: hi - lo}
			out = append(out, extent{p, hole})
		}
	}
	at := piece.In.Off
	for i := ch.valid.after(piece.In.Off + 1); i < len(ch.valid) && ch.valid[i].Off < piece.In.End(); i++ {
		lo, hi := max(ch.valid[i].Off, piece.In.Off), min(ch.valid[i].End(), piece.In.End())
		add(at, lo, true)
		add(lo, hi, false)
		at = hi
	}
	add(at, piece.In.End(), true)
	return out
}
