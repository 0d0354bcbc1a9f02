// SPDX-License-Identifier: MIT

package cache

import (
	"slices"
	"sync/atomic"
	"time"
)

// Stats counts what the cache did. The fields may be read at any time.
type Stats struct {
	Hits     atomic.Int64 // pieces of reads answered from memory
	Misses   atomic.Int64 // pieces of reads that had to wait for Swift
	Fetches  atomic.Int64 // reads of Swift, readahead and filling included
	Fills    atomic.Int64 // of these: the rest of a chunk that was to be uploaded
	Ahead    atomic.Int64 // of these: readahead
	Uploads  atomic.Int64 // chunks written to Swift
	Deletes  atomic.Int64 // chunks deleted there
	Failures atomic.Int64 // uploads that failed and are tried again
	Evicted  atomic.Int64 // clean chunks that made room
	Flushes  atomic.Int64
}

// Stats returns the counters.
func (c *Cache) Stats() *Stats { return &c.stats }

// Used returns the bytes that the cache holds, clean, dirty and in flight.
func (c *Cache) Used() int64 { return c.budget.used.Load() }

// FlushTime returns an estimate of how long a flush would take now: the time
// that Swift took lately for such requests.
func (c *Cache) FlushTime() time.Duration { return c.pace.cost() }

// OldestDirty returns since when the oldest byte that Swift lacks is dirty, or
// the zero time if Swift lacks none. It walks the list of dirty chunks.
func (c *Cache) OldestDirty() time.Time { return c.dirty.oldest() }

// Dirty returns the bytes of the disk that Swift lacks, and the number of
// chunks that they are in. A chunk that was zeroed or is being uploaded counts
// as a whole. Dirty walks the list of dirty chunks.
func (c *Cache) Dirty() (bytes int64, chunks int) {
	for _, ch := range c.dirty.all() {
		ch.mu.RLock()
		n := ch.dirty.bytes()
		if ch.zeroed || (ch.up != nil && ch.up.frozen) {
			n = c.geo.ObjectSize()
		}
		ch.mu.RUnlock()
		if n > 0 {
			bytes, chunks = bytes+n, chunks+1
		}
	}
	return bytes, chunks
}

// DirtyMemory returns the number of bytes that the cache holds and Swift lacks.
// A chunk that was zeroed holds none. If a chunk is being uploaded, the bytes
// that made it dirty count, and those that were fetched to complete it do not.
// DirtyMemory walks the list of dirty chunks.
func (c *Cache) DirtyMemory() int64 {
	var bytes int64
	for _, ch := range c.dirty.all() {
		ch.mu.RLock()
		lacked := ch.dirty
		if ch.up != nil && ch.up.frozen && ch.rest == restFrozen {
			// Bytes that were written again meanwhile count once.
			lacked = slices.Clone(lacked)
			for _, r := range ch.up.lacked {
				lacked.add(r)
			}
		}
		bytes += lacked.bytes()
		ch.mu.RUnlock()
	}
	return bytes
}
