// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"sync"
	"time"
)

// Flush returns when every write that was completed before it is in Swift, or
// with the first error. Chunks that are not in Swift then stay dirty. They are
// tried again in the background, and the next Flush waits for them too. Flush
// does not go on after an error: the client has to hear of it, and in an outage
// each chunk would take the whole timeout.
func (c *Cache) Flush(ctx context.Context) error {
	c.stats.Flushes.Add(1)
	return c.syncAll(ctx, c.dirty.all(), nil)
}

// Drain is Flush for the end, when nobody will try again. One chunk that cannot
// be written must not cost the others. It goes on after an error for as long as
// uploads succeed, and returns the first error. It ends early when no upload
// has succeeded for half of Options.Patience: Swift is away then.
func (c *Cache) Drain(ctx context.Context) error {
	c.stats.Flushes.Add(1)
	began := time.Now()
	return c.syncAll(ctx, c.dirty.all(), func(error) bool {
		last := time.Unix(0, c.lastWin.Load())
		if last.Before(began) {
			last = began
		}
		return time.Since(last) < c.opts.Patience/2
	})
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
	return c.syncAll(ctx, list, nil)
}

// syncAll syncs each of the chunks up to what it holds now, and returns the
// first error. After an error it goes on with the other chunks only if goOn,
// which may be nil, says so.
func (c *Cache) syncAll(ctx context.Context, list []*chunk, goOn func(error) bool) error {
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
		mu    sync.Mutex // guards next and first
		next  int
		first error
		wg    sync.WaitGroup
	)
	for range min(len(goals), 2*c.opts.Connections) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.recoverPanic()
			for {
				mu.Lock()
				k := next
				next++
				mu.Unlock()
				if k >= len(goals) || ctx.Err() != nil {
					return
				}
				err := c.sync(ctx, goals[k].ch, goals[k].want)
				if err == nil {
					continue
				}
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
				if goOn == nil || !goOn(err) {
					cancel(err) // ends the waits for the other chunks
					return
				}
			}
		}()
	}
	wg.Wait()
	if first == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return first
}
