// SPDX-License-Identifier: MIT

package cache

import (
	"time"
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
	defer c.survive()
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
	slot := c.slots
	if !occupy(slot) {
		if slot = c.queue; !occupy(slot) {
			return false // the upload that ends will wake the loop
		}
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
	if slot == c.queue || c.budget.waiting[writeback].Load() > 0 {
		partial = 0 // one more would only wait, too
	}
	ch := c.dirty.next(full, partial)
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
		defer c.survive()
		c.upload(ch, u)
		<-slot
		c.wakeWriteback()
	}()
	return true
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
