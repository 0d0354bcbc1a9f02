// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"iter"
	"sync"

	"swiftnbd/internal/geometry"
)

// One call of Extents makes at most probesACall requests and looks at at most
// chunksACall chunks one by one. The answer may therefore end before the range
// does.
const (
	probesACall = 512
	chunksACall = 64 << 10
)

// Extents calls emit for each run of the range, in ascending order and without
// gaps, from off on. A run is a hole, which reads as zeroes, or may hold data.
// Extents may end before the range does, but never before the first chunk's
// end. emit returns false to stop. If neither the cache nor the backend knows
// about a chunk, Extents asks Swift, chunk by chunk and in parallel.
func (c *Cache) Extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) error {
	if n == 0 {
		return nil
	}
	var ask []geometry.ChunkIndex
	end := off + n
	looked := 0
	for s := range c.spans(off, end) {
		if s.holes {
			continue
		}
		if looked++; looked > chunksACall {
			end = c.geo.Offset(s.first)
			break
		}
		if c.stateUnknown(s.first) {
			if len(ask) == probesACall {
				end = c.geo.Offset(s.first)
				break
			}
			ask = append(ask, s.first)
		}
	}
	holes, err := c.probe(ctx, ask)
	if err != nil {
		return err
	}
	for s := range c.spans(off, end) {
		lo, hi := max(off, c.geo.Offset(s.first)), min(end, c.geo.Offset(s.first+geometry.ChunkIndex(s.n)))
		if s.holes {
			if !emit(lo, hi-lo, true) {
				return nil
			}
			continue
		}
		for piece := range c.geo.Pieces(lo, hi-lo) {
			base := c.geo.Offset(piece.Chunk)
			hole, asked := holes[piece.Chunk]
			for _, r := range c.runs(piece, hole && asked) {
				if !emit(base+r.In.Off, r.In.Len, r.hole) {
					return nil
				}
			}
		}
	}
	return nil
}

// span is one chunk, or n chunks that are holes and not in the cache.
type span struct {
	first geometry.ChunkIndex
	n     int64
	holes bool
}

// spans yields the spans that the bytes from off to end are in. If a chunk
// comes into the cache or is written meanwhile, its earlier state may count.
func (c *Cache) spans(off, end int64) iter.Seq[span] {
	return func(yield func(span) bool) {
		if off >= end {
			return
		}
		i, _ := c.geo.ChunkOf(off)
		last, _ := c.geo.ChunkOf(end - 1)
		// The cache is asked first, and then the backend. A chunk leaves the
		// cache only after the backend knows its new state.
		present := c.present(i, last)
		for i <= last {
			for len(present) > 0 && present[0] < i {
				present = present[1:]
			}
			free := int64(last-i) + 1
			if len(present) > 0 {
				free = int64(present[0] - i)
			}
			s := span{i, 1, false}
			if free > 0 {
				if n := c.backend.Holes(i, free); n > 0 {
					s = span{i, n, true}
				}
			}
			if !yield(s) {
				return
			}
			i += geometry.ChunkIndex(s.n)
		}
	}
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
			defer c.recoverPanic()
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
		// A chunk that was written after Swift was asked is data. It is always
		// right to call a hole data.
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
