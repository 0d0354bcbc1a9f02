// SPDX-License-Identifier: MIT

// Package cache stands between the device and the volume: it keeps chunks in
// memory within one budget, answers reads from them, takes writes into them,
// and writes them back to Swift, in parallel, by age, by pressure, and when a
// flush asks for it.
//
// A write of part of a chunk does not read the rest until the chunk has to be
// uploaded. An upload carries a frozen copy of the chunk while writes go on
// beside it. A flush covers every write that was completed before it, on any
// connection, and waits for nothing newer.
//
// LOCK ORDER: chunk.mu, then one of shard.mu, policy.mu, dirtyList.mu,
// budget.mu, arena.mu, readahead.mu, which are leaves. A chunk may have to be
// looked up (shard.mu) before it can be locked, so shard.mu is never held
// while chunk.mu is taken: a chunk that was evicted in between is found dead
// and looked up again. No mutex is held across a request to Swift or while
// waiting for memory.
package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/geometry"
)

// Backend is what the cache needs of a volume. The cache has at most one Write
// or Delete of a chunk in flight at once, and Options.Connections + Queued in all.
type Backend interface {
	// Hole says whether the chunk is known to hold zeroes only, without
	// asking anybody.
	Hole(i geometry.ChunkIndex) bool
	// Read fills p with the chunk's bytes from off, or says that the chunk
	// is a hole; Hole says so then until the next Write.
	Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error)
	// Write stores the whole chunk, durably when it returns nil.
	Write(ctx context.Context, i geometry.ChunkIndex, p []byte) error
	// Delete makes the chunk a hole, durably when it returns nil.
	Delete(ctx context.Context, i geometry.ChunkIndex) error
	// Probe finds out whether the chunk is a hole, asking Swift where need
	// be. It says so only with proof.
	Probe(ctx context.Context, i geometry.ChunkIndex) (hole bool, err error)
	// Listed says whether a listing, perhaps an old one, has the chunk: a
	// hint that a trim would free something.
	Listed(ctx context.Context, i geometry.ChunkIndex) (bool, error)
}

// Options say how the cache behaves. The zero value of a field takes the
// default given with it.
type Options struct {
	Size        int64         // the budget, bytes; at least MinSize(object size)
	Connections int           // uploads at once (16)
	Queued      int           // uploads beyond them, of chunks that are dirty as a whole: they have nothing to fetch and wait in the backend
	Readahead   int64         // the largest window for sequential readers, bytes; negative: none (see New)
	Age         time.Duration // dirty data older than this is written back (5 s)
	Patience    time.Duration // how long a write may wait for memory while every upload fails (30 s)
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
	geo     geometry.Geometry
	opts    Options
	arena   *arena
	budget  *budget
	policy  *policy
	ahead   readahead
	slots   chan struct{} // one for each upload that may be under way
	queue   chan struct{} // one for each beyond them, of a chunk that is dirty as a whole

	ctx    context.Context // of uploads and readahead; never a request's
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	kick   chan struct{} // wakes the write-back loop

	lastWin atomic.Int64 // when the last one did, or the cache began, Unix ns
	pause   atomic.Int64 // write-back rests until then after a failure, Unix ns

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

// New returns a cache over backend. Close ends it.
func New(backend Backend, geo geometry.Geometry, o Options) (*Cache, error) {
	if o.Connections == 0 {
		o.Connections = 16
	}
	if o.Age == 0 {
		o.Age = 5 * time.Second
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
	if o.Readahead == 0 {
		o.Readahead = int64(o.Connections) * geo.ObjectSize()
	}
	a := newArena(geo.ObjectSize())
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
	// Not all that a client may use: reading ahead must not push out what was
	// read ahead before anybody came for it.
	c.ahead.limit = min(o.Readahead, (limit-c.budget.reserve)*3/4)
	c.lastWin.Store(time.Now().UnixNano())
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	for i := range c.shard {
		c.shard[i].m = make(map[geometry.ChunkIndex]*chunk)
		c.shard[i].asking = make(map[geometry.ChunkIndex]*asking)
	}
	c.wg.Add(1)
	go c.writebackLoop()
	return c, nil
}

// ErrClosed is the cause of requests that end because the cache was closed.
var ErrClosed = errors.New("cache is closed")

// Close ends the cache without writing anything back: call Flush before. What
// is still dirty is lost. No other method may be called after it, or be under
// way.
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

// survive is deferred in every goroutine of the cache: a panic there is a bug,
// which must end this cache and not the process with all its other disks.
func (c *Cache) survive() {
	if r := recover(); r != nil {
		err := fmt.Errorf("internal error in the cache: %v", r)
		c.opts.Log("%v: the disk is given up\n%s", err, debug.Stack())
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

// chunk returns the chunk, putting an empty one into the cache where there is
// none. It waits for memory.
func (c *Cache) chunk(ctx context.Context, i geometry.ChunkIndex, cl class) (*chunk, error) {
	if ch := c.find(i); ch != nil {
		return ch, nil
	}
	if err := c.budget.get(ctx, overhead, cl); err != nil {
		return nil, err
	}
	return c.enter(i), nil
}

// tryChunk is chunk for what need not be: it returns nil rather than wait for
// memory.
func (c *Cache) tryChunk(i geometry.ChunkIndex) *chunk {
	if ch := c.find(i); ch != nil {
		return ch
	}
	if !c.budget.try(overhead) {
		return nil
	}
	return c.enter(i)
}

// enter puts an empty chunk into the cache, for which overhead was counted, or
// returns the one that is there.
func (c *Cache) enter(i geometry.ChunkIndex) *chunk {
	ch := &chunk{index: i}
	s := c.shardOf(i)
	s.mu.Lock()
	if other := s.m[i]; other != nil {
		s.mu.Unlock()
		c.budget.put(overhead)
		return other
	}
	// Asked under the lock: what the backend says is true until somebody
	// writes the chunk, and they need it in the map for that.
	if c.backend.Hole(i) {
		ch.rest = restZero
	}
	s.m[i] = ch
	s.mu.Unlock()
	c.policy.insert(ch, overhead)
	return ch
}

// settle is called with ch.mu held after something has ended: it queues an
// idle chunk for eviction, and drops one that holds nothing.
func (c *Cache) settle(ch *chunk) {
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
	c.budget.put(n)
	return n
}

// reclaim evicts clean chunks until n bytes are free or none is left, with
// spare none that was fetched ahead and not read yet. It returns the bytes
// freed.
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
