// SPDX-License-Identifier: MIT

// Package cache stands between the device and the volume. It keeps chunks in
// memory within one budget, answers reads from them, and takes writes into them.
// It writes them back to Swift in parallel: by age, when memory is short, and
// when a flush asks for it.
//
// A write of a part of a chunk does not read the rest. The rest is read when the
// chunk has to be uploaded. An upload carries a frozen copy of the chunk, and
// writes go on beside it. A flush covers every write that was completed before
// it, on any connection, and waits for nothing newer.
//
// LOCK ORDER: chunk.mu first, and then one of shard.mu, policy.mu, dirtyList.mu,
// budget.mu, pace.mu, meter.mu, arena.mu and readahead.mu. These are leaves. A
// chunk has to be looked up (shard.mu) before it can be locked, and shard.mu is
// not held while chunk.mu is taken. If the chunk was evicted in between, it is
// found dead and is looked up again. What a Through calls (keep) runs under
// chunk.mu, or under shard.mu held for reading. No mutex is held across a request to Swift
// or while waiting for memory.
package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/geometry"
)

// Backend is what the cache needs of a volume. The cache has at most one Write
// or Delete of a chunk in flight at once, and at most Options.Connections +
// Queued of all chunks.
type Backend interface {
	// Hole says whether the chunk is known to hold zeroes only. It makes no
	// request.
	Hole(i geometry.ChunkIndex) bool
	// Holes returns the number of chunks from i on, n at most, that are holes
	// by Hole.
	Holes(i geometry.ChunkIndex, n int64) int64
	// Read fills p with the chunk's bytes from off, or says that the chunk is a
	// hole. After that Hole is true until the next Write.
	Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error)
	// Write stores the whole chunk. If it returns nil, the chunk is durable.
	Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error
	// Delete makes the chunk a hole. If it returns nil, the hole is durable.
	Delete(ctx context.Context, i geometry.ChunkIndex) error
	// Probe finds out whether the chunk is a hole. It asks Swift if it has to.
	// hole is true only with proof.
	Probe(ctx context.Context, i geometry.ChunkIndex) (hole bool, err error)
	// Listed says whether a listing has the chunk. The listing may be old. This
	// is a hint that a trim would free something.
	Listed(ctx context.Context, i geometry.ChunkIndex) (bool, error)
}

// Options say how the cache behaves. The zero value of a field takes the
// default given with it.
type Options struct {
	Size        int64         // the budget, bytes; at least MinSize(object size)
	Connections int           // uploads at once (16)
	Queued      int           // more uploads, of chunks that are dirty as a whole: they fetch nothing, and wait in the backend
	Readahead   int64         // the largest window for sequential readers, bytes; negative: none (see New)
	Age         time.Duration // dirty data older than this is written back (5 s)
	FlushTime   time.Duration // dirty data may take this long to upload (2 s); negative: there is no bound
	Patience    time.Duration // how long a write may wait while every upload fails (30 s)
	Pause       time.Duration // how long write-back rests after an upload has failed (1 s)
	Log         func(format string, args ...any)
	Check       bool // assert the invariants at each step; for tests
}

// MinSize returns the smallest budget for chunks of objectSize bytes: one
// being read, one being written and two on their way to Swift.
func MinSize(objectSize int64) int64 { return 4 * (newArena(objectSize).whole() + overhead) }

// overhead is counted for each chunk in the cache, beside its frame.
const overhead = 512

const shards = 64

// Cache is the cache of one volume. Its methods may be called by many
// goroutines at once.
type Cache struct {
	backend Backend
	beside  func(i geometry.ChunkIndex, r, wide geometry.ByteRange) geometry.ByteRange // a Reader's; nil: there is none
	partly  func(err error) bool                                                       // the same
	geo     geometry.Geometry
	end     atomic.Int64 // nothing is read ahead from here on, bytes: see SetEnd
	opts    Options
	arena   *arena
	budget  *budget
	pace    pace
	policy  *policy
	ahead   readahead
	slots   chan struct{} // one for each upload that may be under way
	queue   chan struct{} // one for each upload beyond them, of a chunk that is dirty as a whole

	ctx    context.Context // of uploads and readahead; never a request's
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	kick   chan struct{} // wakes the write-back loop

	lastWin atomic.Int64 // when the last upload succeeded, or the cache began, Unix ns
	pause   atomic.Int64 // after a failure write-back rests until this time, Unix ns

	stats Stats
	dirty dirtyList
	shard [shards]shard
}

type shard struct {
	mu sync.RWMutex
	m  map[geometry.ChunkIndex]*chunk
	// asking has the chunks for which a read asks for memory.
	asking map[geometry.ChunkIndex]*asking
	_      [24]byte
}

// New returns a cache over backend that takes writes and writes them back. Close
// ends it.
func New(backend Backend, geo geometry.Geometry, o Options) (*Cache, error) {
	c, err := newCache(backend, geo, o, 0)
	if err != nil {
		return nil, err
	}
	c.wg.Add(1)
	go c.writebackLoop()
	return c, nil
}

// SetEnd says where the disk ends, bytes. Before it is called, this is the end of
// the geometry, which must reach as far as the disk ever will.
func (c *Cache) SetEnd(end int64) { c.end.Store(end) }

// readahead returns the largest window for sequential readers, bytes.
func (o *Options) readahead(geo geometry.Geometry) int64 {
	if o.Readahead == 0 {
		return int64(o.Connections) * geo.ObjectSize()
	}
	return o.Readahead
}

// newCache returns a cache that writes nothing back yet. room is how much of it lies
// behind a chunk's memory, bytes.
func newCache(backend Backend, geo geometry.Geometry, o Options, room int64) (*Cache, error) {
	if o.Connections == 0 {
		o.Connections = 16
	}
	if o.Age == 0 {
		o.Age = 5 * time.Second
	}
	if o.FlushTime == 0 {
		o.FlushTime = 2 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	if o.Pause == 0 {
		o.Pause = time.Second
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if m := MinSize(geo.ObjectSize()); o.Size < m {
		return nil, fmt.Errorf("cache of %d bytes is too small for objects of %d bytes: at least %d", o.Size, geo.ObjectSize(), m)
	}
	o.Readahead = o.readahead(geo)
	a := newArena(geo.ObjectSize())
	a.room = room
	c := &Cache{
		backend: backend,
		geo:     geo,
		opts:    o,
		arena:   a,
		policy:  newPolicy(),
		slots:   make(chan struct{}, o.Connections),
		queue:   make(chan struct{}, o.Queued),
		kick:    make(chan struct{}, 1),
	}
	limit := a.setAside(o.Size)
	c.budget = &budget{
		limit:   limit,
		reserve: max(a.whole(), min(limit/2, int64(o.Connections)*a.whole())),
		reclaim: c.reclaim,
		starved: c.wakeWriteback,
	}
	// A fifth is left for the uploads of what is written during the flush.
	c.pace.target = max(0, o.FlushTime/5*4)
	// This many chunks can be completed at once.
	c.pace.meter.init(min(int64(o.Connections), c.budget.reserve/a.whole()), geo.ObjectSize())
	// Readahead may not use all the memory that clients may use. It would evict
	// what it has fetched before its reader comes.
	c.ahead.limit = min(o.Readahead, (limit-c.budget.reserve)*3/4)
	c.end.Store(geo.Size())
	c.lastWin.Store(time.Now().UnixNano())
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	for i := range c.shard {
		c.shard[i].m = make(map[geometry.ChunkIndex]*chunk)
		c.shard[i].asking = make(map[geometry.ChunkIndex]*asking)
	}
	return c, nil
}

// ErrClosed is the cause of requests that end because the cache was closed.
var ErrClosed = errors.New("cache is closed")

// Close ends the cache without writing anything back: call Flush before. Data
// that is still dirty is lost. No other method may be under way, or be called
// afterwards.
func (c *Cache) Close() {
	c.cancel(ErrClosed)
	c.wg.Wait()
	c.arena.destroy()
}

// Abort makes every request to Swift that is under way, and every later one,
// end with cause: the right to write was lost.
func (c *Cache) Abort(cause error) { c.cancel(cause) }

// Context is done once the cache is closed or aborted; its cause says why. The
// requests of clients should end with it.
func (c *Cache) Context() context.Context { return c.ctx }

// recoverPanic is deferred in every goroutine of the cache: a panic there is a bug,
// which must end this cache and not the process with all its other disks.
func (c *Cache) recoverPanic() {
	if r := recover(); r != nil {
		err := fmt.Errorf("internal error in the cache: %v", r)
		c.opts.Log("%v: the disk is given up: clients get errors, and nothing more is written; what was flushed is in Swift\n%s", err, debug.Stack())
		c.Abort(err)
	}
}

func (c *Cache) shardOf(i geometry.ChunkIndex) *shard {
	return &c.shard[uint64(i)%shards]
}

// find returns the chunk, or nil when it is not in the cache.
func (c *Cache) find(i geometry.ChunkIndex) *chunk {
	s := c.shardOf(i)
	s.mu.RLock()
	ch := s.m[i]
	s.mu.RUnlock()
	return ch
}

// present returns the chunks from first to last that are in the cache, in
// order. It looks few chunks up one by one. For many it goes through the whole
// cache.
func (c *Cache) present(first, last geometry.ChunkIndex) []geometry.ChunkIndex {
	var list []geometry.ChunkIndex
	if last-first < 1024 {
		for i := first; i <= last; i++ {
			if c.find(i) != nil {
				list = append(list, i)
			}
		}
		return list
	}
	for k := range c.shard {
		s := &c.shard[k]
		s.mu.RLock()
		for i := range s.m {
			if i >= first && i <= last {
				list = append(list, i)
			}
		}
		s.mu.RUnlock()
	}
	slices.Sort(list)
	return list
}

// chunk returns the chunk. If it is not in the cache, it puts an empty one
// there. It waits for memory.
func (c *Cache) chunk(ctx context.Context, i geometry.ChunkIndex, cl class) (*chunk, error) {
	if ch := c.find(i); ch != nil {
		return ch, nil
	}
	if err := c.budget.get(ctx, overhead, cl); err != nil {
		return nil, err
	}
	return c.insert(i), nil
}

// tryChunk is chunk for work that can be left out: if there is no memory, it
// returns nil and does not wait.
func (c *Cache) tryChunk(i geometry.ChunkIndex) *chunk {
	if ch := c.find(i); ch != nil {
		return ch
	}
	if !c.budget.try(overhead) {
		return nil
	}
	return c.insert(i)
}

// insert puts an empty chunk into the cache, or returns the one that is there.
// The caller has counted overhead for it.
func (c *Cache) insert(i geometry.ChunkIndex) *chunk {
	ch := &chunk{index: i}
	s := c.shardOf(i)
	s.mu.Lock()
	if other := s.m[i]; other != nil {
		s.mu.Unlock()
		c.budget.giveBack(overhead)
		return other
	}
	// The backend is asked while shard.mu is held. Its answer is true until the
	// chunk is written, and a writer needs the chunk in this map first.
	if c.backend.Hole(i) {
		ch.rest = restZero
	}
	s.m[i] = ch
	s.mu.Unlock()
	c.policy.insert(ch, overhead)
	return ch
}

// release is called with ch.mu held when a use of the chunk has ended. It
// queues an idle chunk for eviction, and drops one that holds nothing.
func (c *Cache) release(ch *chunk) {
	c.recount(ch)
	if c.opts.Check {
		ch.check(c.geo.ObjectSize())
	}
	if !ch.idle() {
		return
	}
	if ch.frame == nil {
		c.drop(ch)
		return
	}
	c.policy.insert(ch, overhead+ch.frame.charged)
	c.budget.freed()
}

// drop takes an idle chunk out of the cache and returns the bytes that this
// freed. ch.mu is held.
func (c *Cache) drop(ch *chunk) int64 {
	n := int64(overhead)
	if ch.frame != nil {
		n += c.arena.release(ch.frame)
		ch.frame, ch.valid = nil, nil
	}
	ch.dead = true
	c.ahead.arrived(ch, c.geo.ObjectSize())
	s := c.shardOf(ch.index)
	s.mu.Lock()
	delete(s.m, ch.index)
	s.mu.Unlock()
	c.policy.remove(ch)
	c.budget.giveBack(n)
	return n
}

// reclaim evicts clean chunks until n bytes are free or no chunk is left. With
// spare it leaves chunks that were fetched ahead and not read yet. It returns
// the bytes that it has freed.
func (c *Cache) reclaim(n int64, spare bool) int64 {
	var freed int64
	for freed < n {
		ch := c.policy.victim(spare)
		if ch == nil {
			break
		}
		ch.mu.Lock()
		if ch.idle() {
			freed += c.drop(ch)
			c.stats.Evicted.Add(1)
		}
		ch.mu.Unlock()
	}
	return freed
}
