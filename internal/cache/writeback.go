// SPDX-License-Identifier: MIT

package cache

import (
	"time"

	"swiftnbd/internal/geometry"
)

// wakeWriteback makes the write-back loop look whether there is work.
func (c *Cache) wakeWriteback() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// held returns the bytes that cannot be evicted: dirty and in flight.
func (c *Cache) held() int64 { return c.budget.used.Load() - c.policy.total.Load() }

// pressed says whether enough memory is dirty to write back without regard to
// age.
func (c *Cache) pressed() bool {
	return c.budget.starving() || c.pace.half() || c.held() > (c.budget.limit-c.budget.reserve)/2
}

// partlyDirty says whether chunks that are dirty in part hold the memory. If
// they do not, complete chunks will give enough memory, and the client that
// writes the others may be about to complete them.
func (c *Cache) partlyDirty() bool {
	_, complete, busy := c.dirty.lens()
	rest := c.held() - int64(complete+busy)*c.arena.whole()
	return rest > (c.budget.limit-c.budget.reserve)/2 || (complete+busy == 0 && c.budget.starving())
}

// partlyCostly says whether a flush would wait mostly for chunks that are dirty
// in part. It is to time what partlyDirty is to memory.
func (c *Cache) partlyCostly() bool {
	if !c.pace.half() {
		return false
	}
	part, complete, busy := c.dirty.lens()
	all := part + complete + busy
	return part > 0 && (complete+busy == 0 || c.pace.cost()*time.Duration(part)/time.Duration(all) > c.pace.target/4)
}

// writebackLoop starts uploads by age and by pressure, as many at once as
// there are slots.
func (c *Cache) writebackLoop() {
	defer c.wg.Done()
	defer c.recoverPanic()
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
	// fullRest is how long a chunk that is dirty as a whole is left alone, in
	// case it is written again at once. Its upload needs no read, so there is
	// no reason to wait for longer.
	fullRest = 200 * time.Millisecond
	// partRest is how long a chunk that is dirty in part is left alone although
	// a flush would cost too much: a client may be about to write all of it.
	partRest = 50 * time.Millisecond
)

// writeBackOne begins one upload in the background, if there is a slot for it
// and a chunk is due.
func (c *Cache) writeBackOne() bool {
	now := time.Now().UnixNano()
	if c.ctx.Err() != nil || now < c.pause.Load() {
		return false
	}
	slot := c.slots
	if !occupy(slot) {
		if slot = c.queue; !occupy(slot) {
			return false // the upload that ends will wake the loop
		}
	}
	full, partial := now-int64(fullRest), now-int64(c.opts.Age)
	if c.pressed() {
		full = now
		switch {
		case c.partlyDirty():
			partial = now
		case c.partlyCostly():
			// A chunk that has just become dirty may be complete in a moment.
			partial = now - int64(min(partRest, c.pace.target/8))
		}
	} else if c.held() > (c.budget.limit-c.budget.reserve)/8 {
		full = now
	}
	if slot == c.queue || c.budget.waiting[writeback].Load() > 0 {
		partial = 0 // one more upload would only wait, too
	}
	ch := c.dirty.next(full, partial)
	if ch == nil && c.budget.waiting[writeback].Load() > 0 {
		ch = c.completeDirty()
	}
	if ch == nil {
		<-slot
		return false
	}
	ch.mu.Lock()
	if ch.dead || ch.up != nil || !ch.isDirty() {
		ch.mu.Unlock()
		<-slot
		return true // somebody was quicker
	}
	u := c.announce(ch)
	u.slot = slot
	ch.mu.Unlock()
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer c.recoverPanic()
		c.upload(ch, u)
		<-slot
		c.wakeWriteback()
	}()
	return true
}

// completeDirty returns a chunk that is dirty in part and complete in memory,
// or nil. While uploads wait for memory, only such a dirty chunk can give
// memory back without needing any first. It may hold memory of the reserve, and
// a flush may wait for other chunks.
func (c *Cache) completeDirty() *chunk {
	whole := geometry.ByteRange{Len: c.geo.ObjectSize()}
	for _, ch := range c.dirty.all() {
		ch.mu.RLock()
		ok := !ch.dead && ch.up == nil && ch.isDirty() && (ch.frame == nil || ch.valid.covers(whole))
		ch.mu.RUnlock()
		if ok {
			return ch
		}
	}
	return nil
}

// occupy takes a place among slots, if there is one.
func occupy(slots chan<- struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}
