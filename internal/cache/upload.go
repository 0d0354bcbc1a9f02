// SPDX-License-Identifier: MIT

package cache

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"swiftnbd/internal/geometry"
)

// dirtyList knows every chunk that Swift lacks something of.
type dirtyList struct {
	mu      sync.Mutex // guards all below and chunk.dirtyElem, .queue, .since
	waiting list.List  // of *chunk, longest dirty at the front
	full    list.List  // of *chunk that are dirty as a whole: nothing to fetch
	busy    list.List  // of *chunk that are being uploaded
}

// add notes that the chunk is dirty, and says whether it was not in the list.
// A chunk that is being uploaded stays among the busy.
func (d *dirtyList) add(ch *chunk, full bool) (added bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case ch.dirtyElem == nil:
		ch.since = time.Now().UnixNano()
		d.push(ch, full)
		return true
	case full && ch.queue == &d.waiting:
		d.waiting.Remove(ch.dirtyElem)
		d.push(ch, true)
	}
	return false
}

func (d *dirtyList) push(ch *chunk, full bool) {
	ch.queue = &d.waiting
	if full {
		ch.queue = &d.full
	}
	ch.dirtyElem = ch.queue.PushBack(ch)
}

// remove takes the chunk out: it is clean.
func (d *dirtyList) remove(ch *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch.dirtyElem != nil {
		ch.queue.Remove(ch.dirtyElem)
		ch.dirtyElem, ch.queue = nil, nil
	}
}

// begin moves the chunk to the busy, end back to those that wait.
func (d *dirtyList) begin(ch *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch.dirtyElem != nil {
		ch.queue.Remove(ch.dirtyElem)
	}
	ch.queue = &d.busy
	ch.dirtyElem = d.busy.PushBack(ch)
}

func (d *dirtyList) end(ch *chunk, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch.queue.Remove(ch.dirtyElem)
	ch.since = time.Now().UnixNano()
	d.push(ch, full)
}

// lens returns how many chunks are dirty as a whole, and being uploaded.
func (d *dirtyList) lens() (full, busy int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full.Len(), d.busy.Len()
}

// next returns the chunk that should be uploaded next, or nil: one that is
// dirty as a whole and has been dirty since before full, or one that is dirty
// in part and has been since before partial (Unix nanoseconds).
func (d *dirtyList) next(full, partial int64) *chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.full.Front(); e != nil && e.Value.(*chunk).since <= full {
		return e.Value.(*chunk)
	}
	if e := d.waiting.Front(); e != nil && e.Value.(*chunk).since <= partial {
		return e.Value.(*chunk)
	}
	return nil
}

// all returns every chunk in the list: those being uploaded first.
func (d *dirtyList) all() []*chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*chunk, 0, d.busy.Len()+d.full.Len()+d.waiting.Len())
	for _, l := range []*list.List{&d.busy, &d.full, &d.waiting} {
		for e := l.Front(); e != nil; e = e.Next() {
			out = append(out, e.Value.(*chunk))
		}
	}
	return out
}

// sync returns when Swift holds the chunk's content of generation want, or a
// newer one. It waits for an upload that is under way, and for one more where
// that one carries too little; how much is written meanwhile does not matter.
// The error is the upload's.
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
		ch.mu.Unlock()
		// In a goroutine of its own, with the cache's context: an upload
		// must not end because somebody stopped waiting for it.
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			select {
			case c.slots <- struct{}{}:
				c.upload(ch, u)
				<-c.slots
			case <-c.ctx.Done():
				c.finish(ch, u, context.Cause(c.ctx))
			}
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

// upload carries an announced upload out. The caller holds a slot.
func (c *Cache) upload(ch *chunk, u *upload) {
	err := c.freeze(ch, u)
	switch {
	case err != nil:
	case u.frame == nil || isZero(u.frame.buf):
		c.stats.Deletes.Add(1)
		err = c.backend.Delete(c.ctx, ch.index)
	default:
		c.stats.Uploads.Add(1)
		err = c.backend.Write(c.ctx, ch.index, u.frame.buf)
	}
	c.finish(ch, u, err)
}

// freeze completes the chunk and fixes its content for the upload. Where part
// of it is in Swift only, that is fetched, unless it is written meanwhile. It
// gives up the slot and retakes it where it waits for memory.
func (c *Cache) freeze(ch *chunk, u *upload) error {
	whole := geometry.ByteRange{Len: c.geo.ObjectSize()}
	var got int64 // reserved: nobody waits for memory under ch.mu
	defer func() { c.budget.put(got) }()
	reserve := func(n int64) error {
		c.budget.put(got)
		got = 0
		if !c.budget.now(n, writeback) {
			// Without the slot: what frees the memory may need it.
			<-c.slots
			err := c.budget.get(c.ctx, n, writeback, c.wins.Load())
			c.slots <- struct{}{}
			if err != nil {
				return err
			}
		}
		got = n
		return nil
	}
	for {
		ch.mu.Lock()
		gaps := ch.valid.gaps(whole)
		if len(gaps) > 0 && ch.rest == restSwift {
			r := c.align(gaps.hull())
			if pending := ch.fetching(r); pending != nil {
				ch.mu.Unlock()
				<-pending.done
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
			if err := c.fetch(ch, f); err != nil {
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
			c.budget.put(c.arena.release(ch.frame))
			ch.frame = nil
		}
		u.frozen, u.frame, u.gen = true, ch.frame, ch.gen
		ch.frame, ch.valid, ch.dirty, ch.zeroed = nil, nil, nil, false
		ch.rest = restFrozen
		if c.opts.Check {
			ch.check(c.geo.ObjectSize())
		}
		ch.mu.Unlock()
		return nil
	}
}

// finish ends an upload: what was frozen and what was written meanwhile become
// one again.
func (c *Cache) finish(ch *chunk, u *upload, err error) {
	size := c.geo.ObjectSize()
	ch.mu.Lock()
	ch.up, u.err = nil, err
	if u.frozen {
		if err == nil {
			ch.synced = u.gen
		}
		switch {
		case ch.rest != restFrozen:
			// The whole chunk was zeroed meanwhile and hides it.
			if u.frame != nil {
				c.budget.put(c.arena.release(u.frame))
			}
		case u.frame == nil:
			ch.rest = restZero
			ch.zeroed = err != nil
		default:
			for _, r := range ch.valid {
				copy(u.frame.buf[r.Off:r.End()], ch.frame.buf[r.Off:r.End()])
			}
			if ch.frame != nil {
				c.budget.put(c.arena.release(ch.frame))
			}
			ch.frame, ch.valid, ch.rest = u.frame, rangeSet{{Len: size}}, restSwift
			if err != nil {
				ch.dirty = rangeSet{{Len: size}}
			}
		}
	}
	if ch.isDirty() {
		c.dirty.end(ch, len(ch.dirty) == 1 && ch.dirty[0].Len == size)
	} else {
		c.dirty.remove(ch)
	}
	close(u.done)
	c.settle(ch)
	ch.mu.Unlock()

	switch {
	case err == nil:
		c.wins.Add(1)
		c.lastWin.Store(time.Now().UnixNano())
		c.pause.Store(0)
	case c.ctx.Err() == nil:
		c.stats.Failures.Add(1)
		c.opts.Log("write back: %v (kept, and tried again)", err)
		c.pause.Store(time.Now().Add(c.opts.Pause).UnixNano())
		c.budget.failed(err, c.wins.Load(), time.Unix(0, c.lastWin.Load()), c.opts.Patience)
	}
	c.budget.freed()
	c.wakeWriteback()
}

// Flush returns when every write that was completed before it is in Swift. It
// tries all of them even when one fails, and returns the first error; what
// failed stays dirty.
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
	var (
		mu    sync.Mutex
		first error
		next  int
		wg    sync.WaitGroup
	)
	for range min(len(goals), 2*c.opts.Connections) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				mu.Lock()
				k := next
				next++
				mu.Unlock()
				if k >= len(goals) {
					return
				}
				if err := c.sync(ctx, goals[k].ch, goals[k].want); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		}()
	}
	wg.Wait()
	return first
}

// wakeWriteback makes the write-back loop look whether there is work.
func (c *Cache) wakeWriteback() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// held returns the bytes that cannot be evicted: dirty and in flight.
func (c *Cache) held() int64 { return c.budget.used.Load() - c.policy.total.Load() }

// pressed says whether so much is dirty that it should be written back without
// regard to its age.
func (c *Cache) pressed() bool {
	return c.budget.starving() || c.held() > (c.budget.limit-c.budget.reserve)/2
}

// partlyDirty says whether it is chunks dirty in part that hold the memory. If
// it is not, whoever writes them may be about to complete them, and the chunks
// that are complete will give memory enough.
func (c *Cache) partlyDirty() bool {
	complete, busy := c.dirty.lens()
	rest := c.held() - int64(complete+busy)*c.arena.whole()
	return rest > (c.budget.limit-c.budget.reserve)/2 || (complete+busy == 0 && c.budget.starving())
}

// writebackLoop starts uploads by age and by pressure, as many at once as
// there are slots.
func (c *Cache) writebackLoop() {
	defer c.wg.Done()
	tick := time.NewTicker(writebackTick)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.kick:
		case <-tick.C:
		}
		for c.writeBackOne() {
		}
	}
}

const (
	writebackTick = 100 * time.Millisecond
	// fullRest is how long a chunk that is dirty as a whole is left alone
	// in case it is written again at once. It costs no read to upload, so
	// there is no reason to wait for longer.
	fullRest = 200 * time.Millisecond
)

// writeBackOne begins one upload in the background, if there is a slot for it
// and a chunk whose time has come.
func (c *Cache) writeBackOne() bool {
	now := time.Now().UnixNano()
	if c.ctx.Err() != nil || now < c.pause.Load() {
		return false
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return false // the upload that ends will wake the loop
	}
	full, partial := now-int64(fullRest), now-int64(c.opts.Age)
	if c.pressed() {
		full = now
		if c.partlyDirty() {
			partial = now
		}
	} else if c.held() > (c.budget.limit-c.budget.reserve)/8 {
		full = now
	}
	if c.budget.waiting[writeback].Load() > 0 {
		partial = 0 // one more would only wait, too
	}
	ch := c.dirty.next(full, partial)
	if ch == nil {
		<-c.slots
		return false
	}
	ch.mu.Lock()
	if ch.dead || ch.up != nil || !ch.isDirty() {
		ch.mu.Unlock()
		<-c.slots
		return true // somebody was quicker
	}
	u := c.announce(ch)
	ch.mu.Unlock()
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.upload(ch, u)
		<-c.slots
		c.wakeWriteback()
	}()
	return true
}
