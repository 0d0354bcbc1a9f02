// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"sync"
)

// Flush returns when every write that was completed before it is in Swift, or
// with the first error: what is not in Swift then stays dirty, is tried again
// in the background, and is the next Flush's too. It does not go on after an
// error, since in an outage each chunk would take the whole timeout.
func (c *Cache) Flush(ctx context.Context) error {
	c.stats.Flushes.Add(1)
	return c.syncAll(ctx, c.dirty.all())
}

// FlushRange is Flush for the chunks that the range touches.
func (c *Cache) FlushRange(ctx context.Context, off, n int64) error {
	if off == 0 && n == c.geo.Size() {
		return c.Flush(ctx)
	}
	var list []*chunk
	if c.geo.Count(off, n) > 1024 {
		first, _ := c.geo.ChunkOf(off)
		last, _ := c.geo.ChunkOf(off + n - 1)
		for _, ch := range c.dirty.all() {
			if ch.index >= first && ch.index <= last {
				list = append(list, ch)
			}
		}
	} else {
		for piece := range c.geo.Pieces(off, n) {
			if ch := c.find(piece.Chunk); ch != nil {
				list = append(list, ch)
			}
		}
	}
	return c.syncAll(ctx, list)
}

// syncAll syncs each of the chunks up to what it holds now.
func (c *Cache) syncAll(ctx context.Context, list []*chunk) error {
	type goal struct {
		ch   *chunk
		want uint64
	}
	goals := make([]goal, 0, len(list))
	for _, ch := range list {
		ch.mu.RLock()
		if ch.synced < ch.gen {
			goals = append(goals, goal{ch, ch.gen})
		}
		ch.mu.RUnlock()
	}
	if len(goals) == 1 {
		return c.sync(ctx, goals[0].ch, goals[0].want)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu   sync.Mutex // guards next
		next int
		wg   sync.WaitGroup
	)
	for range min(len(goals), 2*c.opts.Connections) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.survive()
			for {
				mu.Lock()
				k := next
				next++
				mu.Unlock()
				if k >= len(goals) || ctx.Err() != nil {
					return
				}
				if err := c.sync(ctx, goals[k].ch, goals[k].want); err != nil {
					cancel(err) // the first one counts; the others stop waiting
					return
				}
			}
		}()
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
