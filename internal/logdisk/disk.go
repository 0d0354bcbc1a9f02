// SPDX-License-Identifier: MIT

// Package logdisk is version 2 of the volume format at work: a disk that is a
// log of packed objects (docs/FORMAT-V2.md; its bytes are package layout's).
//
// Writes go into the open cut, which lies in memory. A cut is sealed when it is
// full, when it is old, or when a flush asks for it: it becomes one object, and
// the next cut opens. Sealed objects are uploaded beside each other, each under
// a name that was never used before. An object is durable when it and all
// objects before it are in Swift. So what is in Swift is at any moment the disk
// as it was at one moment.
//
// The map says for each block which object has its newest bytes. A checkpoint
// writes what has changed in it as a run, and then a root that names the runs.
// Opening reads the newest root, the indexes of its runs, and the log after it.
// A large map is read from the runs piece by piece, as it is needed.
//
// The cache is in front of the map and for reading only: it holds nothing that
// the log does not have.
//
// LOCK ORDER: a mutex of the cache (a chunk's, or a shard's), then Disk.mu, then that of its base's
// Disk. saving is taken before Disk.mu. room.mu and base.mu are leaves. saving is a channel, since it is held across
// requests to Swift; no mutex is, or while waiting for memory.
package logdisk

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/cache"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

const (
	// DefaultSeal is Options.Seal unless it is given: the frames of 4 MiB of data.
	// So requests that begin at a multiple of 4 MiB fill objects without a rest.
	DefaultSeal = 1024 * layout.FrameSize
	// sealExtents bounds the records of an object.
	sealExtents = 8192
	// ChunkSize is the unit of the cache, bytes: what a sequential reader
	// fetches at once.
	ChunkSize = 1 << 20

	chunkBlocks = ChunkSize / layout.BlockSize
)

// Options say how a disk is opened. A zero value takes the default given with it.
type Options struct {
	Store store.Store // the container, with retries and limits
	UUID  layout.UUID
	// Root is the name of a root, without its prefix, at which the search for
	// the newest one begins; it may be old, or empty.
	Root string
	// Epoch is the number of the lease under which the disk is written; 0 opens
	// it for reading only.
	Epoch uint32
	// Durable is what the former holder last said to be durable.
	Durable layout.Position
	// Snapshot is the name of a snapshot that is read, and not the disk; Epoch is
	// 0 then.
	Snapshot string
	// Newest is the newest lease's number, for who opens the disk for reading:
	// no root is of a later epoch.
	Newest uint32

	// Rewind, where it is not nil, lets the log be cut before what was acknowledged.
	Rewind *Rewind

	// Bases reaches what a clone has as its base; nil: nothing can be read there.
	Bases Bases

	Cache       int64         // the cache's size, bytes (64 MiB)
	Seal        int           // bytes of frames after which an object is sealed (those of 4 MiB of data)
	Tail        int64         // bytes that may be written and not durable, and as much again of the cache (32 MiB)
	Connections int           // uploads at once (16)
	Readahead   int64         // as cache.Options has it
	Age         time.Duration // a cut that is older is sealed (5 s)
	FlushTime   time.Duration // what is not durable may take this long to upload (2 s); negative: no bound
	Timeout     time.Duration // how long Swift may fail before a client sees it (30 s)
	Pause       time.Duration // the pause after a failed upload (1 s)
	Checkpoint  int           // objects of log between checkpoints (1000)
	Compress    bool          // what is written is compressed where that saves bytes
	Brief       bool          // it is opened for one change: nothing is collected
	GC          int           // percent: garbage is collected when less of the log is live; 0: never
	Every       time.Duration // the pause between looks at how much is garbage (1 s)
	Idle        time.Duration // how long no client has written when the disk counts as idle (10 s)
	Horizon     time.Duration // for how long what a root does not need is kept (10 min)
	MapMemory   int64         // bytes of memory for the map (64 MiB)

	near        *Disk // has an older moment of the same disk open, whose runs are looked at first
	regionShift uint  // log2 of a region's blocks; 0: the usual
	tableLimit  int   // bytes that a root has of the table of objects; 0: as many as it may
	keptLimit   int   // and of what pins need

	// Of a disk that is a clone's base:
	at      layout.Position // the root that is read
	baseURL string          // of its storage; empty: the account of the disk that was opened
	depth   int             // so many disks lie above it
	above   *Disk           // the clone; nil: the disk is no base

	Log func(format string, args ...any)
}

func (o *Options) fill() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if o.Cache == 0 {
		o.Cache = 64 << 20
	}
	if o.Seal == 0 {
		o.Seal = DefaultSeal
	}
	if o.Tail == 0 {
		o.Tail = 32 << 20
	}
	if o.Connections == 0 {
		o.Connections = 16
	}
	if o.Checkpoint == 0 {
		o.Checkpoint = 1000
	}
	if o.MapMemory == 0 {
		o.MapMemory = defaultMapMemory
	}
	if o.regionShift == 0 {
		o.regionShift = regionShift
	}
	if o.tableLimit == 0 {
		o.tableLimit = layout.MaxTable
	}
	if o.keptLimit == 0 {
		o.keptLimit = layout.MaxKeptMore
	}
	set(&o.Age, 5*time.Second)
	set(&o.FlushTime, 2*time.Second)
	set(&o.Timeout, 30*time.Second)
	set(&o.Pause, time.Second)
	set(&o.Every, collectEvery)
	set(&o.Idle, idleAfter)
	set(&o.Horizon, horizon)
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
}

// Disk is an open disk. Its methods may be called by many goroutines at once.
type Disk struct {
	o     Options
	store store.Store
	cache *cache.Cache
	room  room
	ways  *manners // of the collector

	ctx    context.Context // of uploads and of what runs behind the clients
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	behind  context.Context // of the collector and the merges: see Rest
	rest    context.CancelCauseFunc
	resting sync.WaitGroup // for them
	kick    chan struct{}  // wakes the loop

	over      atomic.Bool  // of a reader: its moment is not in Swift any more
	sealAt    atomic.Int64 // bytes of frames after which an object is sealed
	size      atomic.Int64 // bytes; it changes with mu held, and every request asks for it without
	lastWrite atomic.Int64 // when a client last changed something, Unix ns

	mergeKick chan struct{} // wakes the merging of runs

	saidUpload, saidGather said // what the log has of uploads that fail, and of gathering

	saving chan struct{} // has an item while a checkpoint is made; guards sent
	sent   *checkpoint   // whose root was sent, and perhaps has not arrived; nil: none

	mu       sync.RWMutex // guards all below
	base     *base        // what lies below the map; nil: zeroes
	baseSize int64        // bytes of it that are seen
	open     *cut         // nil: nothing is in it

	m         *blockmap.Map // what the sealed objects say, of the regions that are in memory
	regions   *regions
	delta     *delta
	frozen    *delta     // what a checkpoint writes; nil: none does
	tree      []*runFile // the newest root's runs, the oldest first; a new list for each root
	treeBytes int64      // of memory
	flights   []*flight
	merged    *merged         // for the next root; nil: nothing
	merges    uint64          // merges that a root has
	phantoms  bool            // the collector has found counts that are too high
	watches   []*blockmap.Map // blocks that are being moved, as long as nobody else writes them

	zeroing   []*zeroing         // by requests that make blocks zero just now
	objects   objects            // those with live blocks, and those in memory
	next      uint64             // the number of the open cut
	durable   uint64             // every number up to it is in Swift
	acked     map[uint64]*object // in Swift, with something missing before
	queue     []*object          // sealed, and no upload has begun
	flying    int                // uploads under way
	wanted    bool               // a flush waits for the open cut
	crowd     crowd              // of flushes
	hashes    hashes
	spareBufs spare
	rate      float64  // bytes a second that Swift takes; 0: not known
	failing   *failure // the next failure of an upload

	root      layout.Root // the newest durable root
	rootAt    layout.Position
	at        layout.Position // as far as the log was read when the disk was opened
	former    layout.Position // the end of the epoch whose log that was
	unsure    []unsure        // found when the disk was opened, and not known to be durable
	tails     tails           // of a disk that is read: the log after the root
	dying     dyingObjects
	garbage   garbageList // what the newest root does not name
	waste     int64       // bytes of both
	recent    recent
	gathering chan gathered
	missed    missed
	moving    chan struct{} // has one while somebody moves blocks; it comes before mu
	pins      pins
	going     map[layout.Position]bool // roots of pins that are being deleted
	savedN    uint64                   // of this epoch: as far as the newest root has the log
	savedAt   time.Time
	collected uint64 // objects of the collector in this epoch
	roots     uint64 // the number of the newest root of this epoch
	runs      uint64 // the number of the newest run of this epoch
	swept     int    // names that one hold of mu has looked at, at most

	tableBase   int64 // bytes of the table of objects when it was last written as a whole
	tableDeltas int64 // and of what was written of it since

	stats Stats
}

// object is a data object that this process writes.
type object struct {
	at      layout.Position
	size    int64  // bytes in Swift; 0: it is not there yet
	live    int64  // blocks of it that the map has, or more: see delta
	changed bool   // live has, since the last checkpoint began
	kept    bool   // it is durable: objects has all that is to be known of it
	buf     []byte // its frames while they are in memory; nil: they are in Swift
	density uint8  // see objects

	records  []layout.Record // of buf
	packed   []layout.Record // as they are in Swift; nil: as in buf
	reserved int64           // of room
	opened   time.Time       // when its first change came
	done     chan struct{}   // closed when it is durable
	flushes  int             // how many wait for it
}

// failure is broadcast to all that wait for uploads.
type failure struct {
	ch  chan struct{} // closed when an upload has failed
	err error         // valid after that
}

func newFailure() *failure { return &failure{ch: make(chan struct{})} }

// Size returns the disk's size, bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// ErrClosed is the cause of requests that end because the disk was closed.
var ErrClosed = errors.New("disk is closed")

// ErrReadOnly says that the disk was opened for reading.
var ErrReadOnly = errors.New("read-only")

// newDisk returns a disk without anything in it, of which nothing runs yet.
func newDisk(o Options) *Disk {
	o.fill()
	d := &Disk{
		o: o,
		m: blockmap.New(), delta: newDelta(), mergeKick: make(chan struct{}, 1),
		objects: newObjects(o.Seal, o.GC), acked: make(map[uint64]*object),
		next: 1, kick: make(chan struct{}, 1), saving: make(chan struct{}, 1), failing: newFailure(),
	}
	d.gathering, d.moving = make(chan gathered, gatherMost), make(chan struct{}, 1)
	d.ways = newManners(o.Connections)
	d.store = d.ways.polite(o.Store)
	d.regions = newRegions(0, o.regionShift)
	d.room.own, d.room.want = o.Tail, o.Tail
	if o.FlushTime < 0 {
		d.room.want = math.MaxInt64
	}
	d.sealAt.Store(int64(o.Seal))
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	d.behind, d.rest = context.WithCancelCause(d.ctx)
	return d
}

// openCache starts the cache, when the size is known.
func (d *Disk) openCache() error {
	geo, err := geometry.New(ChunkSize, MaxSize/ChunkSize) // the disk may grow
	if err != nil {
		return err
	}
	d.cache, err = cache.NewReader(reader{d}, geo, cache.Options{
		Size: d.o.Cache, Connections: d.o.Connections, Readahead: d.o.Readahead, Log: d.o.Log,
	})
	if err == nil {
		d.cache.SetEnd(wholeChunks(d.size.Load()))
	}
	return err
}

// wholeChunks rounds a number of bytes up to chunks of the cache.
func wholeChunks(n int64) int64 { return (n + ChunkSize - 1) / ChunkSize * ChunkSize }

// MinCache returns the smallest Options.Cache, bytes.
func MinCache() int64 { return cache.MinSize(ChunkSize) }

// Durable returns the position up to which the log is in Swift. When nothing was
// written yet its N is 0: it then says that there is a root of the epoch.
func (d *Disk) Durable() layout.Position {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return layout.Position{Epoch: d.o.Epoch, N: d.durable}
}

// UUID returns the volume's identity.
func (d *Disk) UUID() layout.UUID { return d.o.UUID }

// RootName returns the name of the newest root without its prefix.
func (d *Disk) RootName() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return layout.RootText(d.rootAt)
}

// FlushTime returns how long a flush would take now, as far as is known.
func (d *Disk) FlushTime() time.Duration {
	bytes, _ := d.Dirty()
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.rate == 0 {
		return 0
	}
	return time.Duration(float64(bytes) / d.rate * float64(time.Second))
}

// Context is done once the disk is closed or aborted; its cause says why.
func (d *Disk) Context() context.Context { return d.ctx }

// Abort makes every request to Swift that is under way, and every later one, end
// with cause: the right to write was lost.
func (d *Disk) Abort(cause error) {
	d.cancel(cause)
	if d.cache != nil { // else it is being opened, or only looked at
		d.cache.Abort(cause)
	}
}

// Rest ends what the disk does for itself, the collector and the merges, and
// waits for it. It comes before the last Save: whoever gives the right to write
// back after that has no request of theirs under way. Requests of clients go on.
func (d *Disk) Rest() {
	d.rest(ErrClosed)
	d.resting.Wait()
}

// Close ends the disk. What is not durable is lost: call Save before.
func (d *Disk) Close() {
	d.cancel(ErrClosed)
	d.wg.Wait()
	d.resting.Wait()
	d.cache.Close()
	d.closeBase()
	d.freeBuffers()
}

// guarded returns f for a group of goroutines: a panic in it is a bug, which is the
// error of what the group does.
func guarded(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("internal error in the log: %v", r)
			}
		}()
		return f()
	}
}

// recoverPanic is deferred in every goroutine of the disk: a panic there is a
// bug, which must end this disk and not the process with all its other disks.
func (d *Disk) recoverPanic() {
	if r := recover(); r != nil {
		err := fmt.Errorf("internal error in the log: %v", r)
		d.o.Log("%v: the disk is given up: clients get errors, and nothing more is written; what was flushed is in Swift\n%s", err, debug.Stack())
		d.Abort(err)
	}
}

// Cache returns the disk's cache, for its counters.
func (d *Disk) Cache() *cache.Cache { return d.cache }

// Read fills p with the disk's bytes from off. The range must lie on the disk.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	return d.cache.Read(ctx, p, off)
}

// Advise begins to bring the range into the cache.
func (d *Disk) Advise(off, n int64) { d.cache.Advise(off, n) }

// Prefetch brings the range into the cache, and returns when it is there.
func (d *Disk) Prefetch(ctx context.Context, off, n int64) error {
	return d.cache.Prefetch(ctx, off, n)
}

// Write takes p as the disk's bytes from off. They are durable after the next
// Flush. The range must lie on the disk.
func (d *Disk) Write(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	_, blocks := touchedBlocks(off, int64(len(p)))
	left := blocks * layout.FrameSize
	if err := d.admit(ctx, left); err != nil {
		return err
	}
	defer func() { d.room.release(left) }()
	end := off + int64(len(p))
	return d.cache.Through(ctx, p, off, layout.BlockSize, func(wide []byte, at int64) {
		n := int64(len(wide)) / layout.BlockSize * layout.FrameSize
		left -= n
		d.keep(wide, at, n, at < off, at+int64(len(wide)) > end)
	})
}

// Zero makes the range read as zeroes.
func (d *Disk) Zero(ctx context.Context, off, n int64) error {
	return d.zero(ctx, off, n, layout.Zeroes)
}

// Trim tells that the range is not needed any more. It reads as zeroes after it,
// as in version 1: whole blocks become holes, and parts of blocks are written.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	return d.zero(ctx, off, n, layout.Trimmed)
}

// FastZero says whether Zero of the range is faster than writing zeroes: it is
// unless it has to write a part of a block.
func (d *Disk) FastZero(off, n int64) bool {
	lo, hi := wholeBlocks(off, n)
	if lo < hi {
		return true
	}
	return n == 0 || d.holes(touchedBlocks(off, n))
}

// wholeBlocks returns the blocks that lie in the range as a whole: from first to
// before end.
func wholeBlocks(off, n int64) (first, end int64) {
	return (off + layout.BlockSize - 1) / layout.BlockSize, (off + n) / layout.BlockSize
}

// blocksOf returns how many blocks a disk of size bytes has.
func blocksOf(size int64) uint64 { return uint64(size+layout.BlockSize-1) / layout.BlockSize }

// touchedBlocks returns the blocks of which the range, which is not empty, has
// any part.
func touchedBlocks(off, n int64) (first, count int64) {
	first = off / layout.BlockSize
	return first, (off+n-1)/layout.BlockSize - first + 1
}

func (d *Disk) zero(ctx context.Context, off, n int64, kind layout.Kind) error {
	end := off + n
	lo, hi := wholeBlocks(off, n)
	if end == d.Size() && n > 0 { // the rest of the last block is zeroes anyway
		hi = (end + layout.BlockSize - 1) / layout.BlockSize
	}
	if lo >= hi {
		return d.zeroPart(ctx, off, n)
	}
	if err := d.zeroPart(ctx, off, lo*layout.BlockSize-off); err != nil {
		return err
	}
	if err := d.zeroPart(ctx, hi*layout.BlockSize, end-hi*layout.BlockSize); err != nil {
		return err
	}
	if d.readsZero(lo, hi-lo) {
		return nil
	}
	const cost = 256 // a record, and its place in the maps
	if err := d.admit(ctx, cost); err != nil {
		return err
	}
	// Between the log and the cache a write of a part of a block may take the
	// rest of the block from the cache, and bring old bytes back. Such blocks are
	// made zero once more: the write is not older than this request, and not
	// newer, and either order will do.
	again := d.keepZero(lo, hi-lo, end, kind, cost)
	if again == nil { // the disk has grown, and the last block's rest may be somebody's
		d.room.release(cost)
		return d.zero(ctx, off, n, kind)
	}
	d.cache.Forget(lo*layout.BlockSize, min(hi*layout.BlockSize, end)-lo*layout.BlockSize)
	for _, block := range d.zeroed(again) {
		at := int64(block) * layout.BlockSize
		if err := d.zero(ctx, at, min(layout.BlockSize, end-at), kind); err != nil {
			return err
		}
	}
	return nil
}

// readsZero says whether it is known that the blocks read as zeroes. Between the log
// and the cache a request that makes blocks zero has changed the log only: who relied
// on the log then would leave old bytes to the next read.
func (d *Disk) readsZero(first, count int64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, z := range d.zeroing {
		if z.first < uint64(first+count) && uint64(first) < z.end {
			return false
		}
	}
	return d.holesLocked(first, count)
}

// zeroPart zeroes a part of a block, or two.
func (d *Disk) zeroPart(ctx context.Context, off, n int64) error {
	if n <= 0 || d.readsZero(touchedBlocks(off, n)) {
		return nil
	}
	return d.Write(ctx, make([]byte, n), off)
}
