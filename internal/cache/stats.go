// SPDX-License-Identifier: MIT

package cache

import "sync/atomic"

// Stats counts what the cache did. The fields may be read at any time.
type Stats struct {
	Hits     atomic.Int64 // pieces of reads answered from memory
	Misses   atomic.Int64 // pieces of reads that had to wait for Swift
	Fetches  atomic.Int64 // reads of Swift, readahead and filling included
	Fills    atomic.Int64 // of them: the rest of a chunk that was to be uploaded
	Ahead    atomic.Int64 // of them: readahead
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

// Dirty returns the bytes that Swift lacks, and in how many chunks. It walks
// the list of dirty chunks.
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
