// SPDX-License-Identifier: MIT

package cache

import (
	"context"
	"fmt"
	"time"

	"swiftnbd/internal/geometry"
)

// sync returns when Swift holds the chunk's content of generation want, or a
// newer one. It waits for an upload that is under way, and for one more if the
// first one carries too little. Writes that come meanwhile do not make it wait
// longer. The error is the upload's.
func (c *Cache) sync(ctx context.Context, ch *chunk, want uint64) error {
	for {
		ch.mu.Lock()
		if ch.synced >= want {
			ch.mu.Unlock()
			return nil
		}
		if u := ch.up; u != nil {
			carries := !u.frozen || u.gen >= want
			ch.mu.Unlock()
			select {
			case <-u.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if u.err != nil && carries {
				return u.err
			}
			continue
		}
		u := c.announce(ch)
		queue := c.queue
		if !ch.allDirty(c.geo.ObjectSize()) {
			queue = nil
		}
		ch.mu.Unlock()
		// The upload runs in a goroutine of its own, with the cache's context.
		// It must not end because a caller stopped waiting for it.
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			defer c.recoverPanic()
			select {
			case c.slots <- struct{}{}:
				u.slot = c.slots
			case queue <- struct{}{}:
				u.slot = queue
			case <-c.ctx.Done():
				c.finish(ch, u, context.Cause(c.ctx))
				return
			}
			c.upload(ch, u)
			<-u.slot
		}()
	}
}

// announce begins an upload: from now on there is no other. ch.mu is held.
func (c *Cache) announce(ch *chunk) *upload {
	u := &upload{done: make(chan struct{})}
	ch.up = u
	c.dirty.begin(ch)
	return u
}

// upload does an announced upload. The caller holds a slot.
func (c *Cache) upload(ch *chunk, u *upload) {
	err := c.freeze(ch, u)
	switch {
	case err != nil:
	case u.frame == nil || isZero(u.frame.buf):
		c.stats.Deletes.Add(1)
		lap := c.pace.meter.begin()
		err = c.backend.Delete(c.ctx, ch.index)
		c.pace.meter.end(kindDelete, lap, err)
	default:
		c.stats.Uploads.Add(1)
		lap := c.pace.meter.begin()
		err = c.backend.Write(c.ctx, ch.index, u.frame.buf)
		c.pace.meter.end(kindPut, lap, err)
	}
	c.finish(ch, u, err)
}

// freeze completes the chunk and fixes its content for the upload. It fetches
// the parts that are in Swift only, unless they are written meanwhile. If it
// has to wait for memory, it gives up the slot and takes it again.
func (c *Cache) freeze(ch *chunk, u *upload) error {
	whole := geometry.ByteRange{Len: c.geo.ObjectSize()}
	var got int64 // reserved before, since no one waits for memory under ch.mu
	defer func() { c.budget.giveBack(got) }()
	reserve := func(n int64) error {
		c.budget.fill(-u.filling)
		c.budget.giveBack(got)
		u.filling, got = 0, 0
		if !c.budget.takeAtOnce(n, writeback) {
			// Wait without the slot: the upload that frees the memory may need
			// it.
			<-u.slot
			err := c.budget.get(c.ctx, n, writeback)
			u.slot <- struct{}{}
			if err != nil {
				return err
			}
		}
		u.filling, got = n, n
		c.budget.fill(n)
		return nil
	}
	for {
		ch.mu.Lock()
		gaps := ch.valid.gaps(whole)
		if len(gaps) > 0 && ch.rest == restSwift {
			r := c.align(gaps.hull())
			if pending := ch.fetching(r); pending != nil {
				ch.mu.Unlock()
				select {
				case <-pending.done:
				case <-c.ctx.Done(): // it may have ended in a panic
					return context.Cause(c.ctx)
				}
				if pending.err != nil {
					return fmt.Errorf("complete chunk %d: %w", ch.index, pending.err)
				}
				continue
			}
			if need := c.arena.need(nil, r); got < need {
				ch.mu.Unlock()
				if err := reserve(need); err != nil {
					return err
				}
				continue
			}
			f := c.startFetch(ch, r)
			got -= f.reserved
			ch.mu.Unlock()
			c.stats.Fills.Add(1)
			lap := c.pace.meter.begin()
			err := c.fetch(ch, f)
			c.pace.meter.end(kindFetch, lap, err)
			if err != nil {
				return fmt.Errorf("complete chunk %d: %w", ch.index, err)
			}
			continue
		}
		if len(gaps) > 0 && len(ch.valid) > 0 {
			// Zeroes around what was written.
			if need := c.arena.need(ch.frame, whole); got < need {
				ch.mu.Unlock()
				if err := reserve(need); err != nil {
					return err
				}
				continue
			}
			got -= c.arena.touch(ch.frame, whole)
			for _, g := range gaps {
				clear(ch.frame.buf[g.Off:g.End()])
			}
		}
		if len(ch.valid) == 0 && ch.frame != nil {
			c.budget.giveBack(c.arena.release(ch.frame))
			ch.frame = nil
		}
		u.frozen, u.frame, u.gen, u.lacked = true, ch.frame, ch.gen, ch.dirty
		c.budget.freeze(u.charged())
		ch.frame, ch.valid, ch.dirty, ch.zeroed = nil, nil, nil, false
		ch.rest = restFrozen
		c.recount(ch)
		if c.opts.Check {
			ch.check(c.geo.ObjectSize())
		}
		ch.mu.Unlock()
		return nil
	}
}

// finish ends an upload. It merges the frozen frame with what was written
// meanwhile.
func (c *Cache) finish(ch *chunk, u *upload, err error) {
	size := c.geo.ObjectSize()
	ch.mu.Lock()
	ch.up, u.err = nil, err
	c.budget.fill(-u.filling) // before any caller learns of the end
	if u.frozen {
		c.budget.freeze(-u.charged())
		if err == nil {
			ch.synced = u.gen
		}
		switch {
		case ch.rest != restFrozen:
			// The whole chunk was zeroed meanwhile and hides it.
			if u.frame != nil {
				c.budget.giveBack(c.arena.release(u.frame))
			}
		case u.frame == nil:
			ch.rest = restZero
			ch.zeroed = err != nil
		default:
			for _, r := range ch.valid {
				copy(u.frame.buf[r.Off:r.End()], ch.frame.buf[r.Off:r.End()])
			}
			if ch.frame != nil {
				c.budget.giveBack(c.arena.release(ch.frame))
			}
			ch.frame, ch.valid, ch.rest = u.frame, rangeSet{{Len: size}}, restSwift
			if err != nil {
				ch.dirty = rangeSet{{Len: size}}
			}
		}
	}
	if ch.isDirty() {
		c.dirty.end(ch, ch.allDirty(size), err != nil)
	} else {
		c.dirty.remove(ch)
	}
	close(u.done)
	c.release(ch)
	ch.mu.Unlock()

	switch {
	case err == nil:
		c.lastWin.Store(time.Now().UnixNano())
		c.pause.Store(0)
		c.pace.uploaded()
	case c.ctx.Err() == nil:
		c.stats.Failures.Add(1)
		c.opts.Log("write back: %v (kept in memory, and tried again: it is lost if this process is killed)", err)
		c.pause.Store(time.Now().Add(c.opts.Pause).UnixNano())
		c.budget.failed(err, time.Unix(0, c.lastWin.Load()), c.opts.Patience)
		c.pace.failed(err, time.Unix(0, c.lastWin.Load()), c.opts.Patience)
	}
	c.budget.freed()
	c.wakeWriteback()
}
