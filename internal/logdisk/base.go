// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// Clones
//
// A clone's root has a pinned root of another disk, its parent, as its base.
// Blocks that the clone's map does not have are read through the base's map from
// the parent's objects. The base is a Disk of its own, for reading only, and may
// have a base itself. Nothing of it ever changes.
//
// It is opened when a block of it is needed for the first time. So a clone whose
// parent is away is served, as far as its own blocks go. A block that cannot be
// read from the parent is an error, and never zeroes.

const (
	// inBase is the kind of blocks, in what view yields, that the base has. No map
	// and no object has it.
	inBase layout.Kind = 0xff

	// MaxDepth is how many disks may lie below one, one below the other.
	MaxDepth = 16

	// baseRest is for how long reads of the base fail at once after one that did.
	baseRest = time.Second
)

// Bases returns the container that a root names as its base. url is that of its
// storage, or empty for the account of the disk that is opened.
type Bases func(ctx context.Context, url, container string) (store.Store, error)

// BaseError says that a block that a clone has not written cannot be read from
// its parent.
type BaseError struct {
	Container, Snapshot string // the parent
	Err                 error
}

func (e *BaseError) Error() string {
	return fmt.Sprintf("the parent of this clone, %s, snapshot %s, cannot be read: %v", e.Container, e.Snapshot, e.Err)
}

func (e *BaseError) Unwrap() error { return e.Err }

// base is what lies below a clone, or below a disk that was one of version 1.
type base struct {
	of    *Disk // the clone
	from  layout.Base
	clone layout.Clone
	lower *chunks // of a disk that was one of version 1; nil: of is a clone
	url   string  // of the storage; empty: the account of the disk that was opened

	wg     sync.WaitGroup
	mu     sync.Mutex // a leaf; guards all below
	disk   *Disk      // nil: it is not open
	flight chan struct{}
	err    error     // of the last read that failed
	again  time.Time // before it reads fail with err
}

// setBase takes what a root has below. d.mu is held, or nobody else has d.
func (d *Disk) setBase(root layout.Root) error {
	d.base, d.baseSize = nil, 0
	if root.Below == nil {
		return nil
	}
	if disk := root.Below.Disk; disk != nil {
		return d.setChunks(root, *disk)
	}
	clone := root.Below.Clone
	if clone == nil || clone.Size == 0 || clone.Depth == 0 {
		return &layout.UnsupportedError{What: "root " + layout.RootName(root.Name), Why: "what lies below it is not a clone's base"}
	}
	if d.o.depth+clone.Depth > MaxDepth {
		return fmt.Errorf("the disk is a clone with %d disks below it, and %d is the most", d.o.depth+clone.Depth, MaxDepth)
	}
	i := slices.IndexFunc(root.Bases, func(b layout.Base) bool { return b.Number == clone.Base })
	b := &base{of: d, from: root.Bases[i], clone: *clone, url: d.o.baseURL}
	if b.from.URL != layout.SameAccount {
		b.url = b.from.URL
	}
	d.base, d.baseSize = b, clone.Size
	return nil
}

// without returns what a root requires, less one feature.
func without(requires []string, feature string) []string {
	return slices.DeleteFunc(slices.Clone(requires), func(f string) bool { return f == feature })
}

// baseBlocks returns how many blocks of the base are seen. d.mu is held.
func (d *Disk) baseBlocks() uint64 {
	if d.base == nil {
		return 0
	}
	return blocksOf(d.baseSize)
}

// cutBase notes that the disk has had the size: of the base, what lies behind it
// is not seen any more. d.mu is held.
func (d *Disk) cutBase(size int64) { d.baseSize = min(d.baseSize, size) }

func (b *base) wrap(err error) error {
	if err == nil || errors.As(err, new(*GoneError)) {
		return err // of the clone's moment
	}
	return &BaseError{b.from.Container, b.clone.Snapshot, err}
}

// open returns the base's disk, and opens it first if need be: one for all that
// want it.
func (b *base) open(ctx context.Context) (*Disk, error) {
	for {
		b.mu.Lock()
		if b.err != nil && time.Now().Before(b.again) {
			defer b.mu.Unlock()
			return nil, b.err
		}
		if b.disk != nil {
			defer b.mu.Unlock()
			return b.disk, nil
		}
		f := b.flight
		if f == nil {
			f = make(chan struct{})
			b.flight = f
			b.wg.Add(1)
			go b.fly(f)
		}
		b.mu.Unlock()
		select {
		case <-f:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-b.of.ctx.Done():
			return nil, context.Cause(b.of.ctx)
		}
	}
}

// fly opens the disk for those who wait for f.
func (b *base) fly(f chan struct{}) {
	defer b.wg.Done()
	defer b.of.recoverPanic()
	d, err := b.dial(b.of.ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.disk, b.err = d, nil
	} else {
		b.err, b.again = err, time.Now().Add(baseRest)
	}
	b.flight = nil
	close(f)
}

func (b *base) dial(ctx context.Context) (*Disk, error) {
	o := b.of.o
	if o.Bases == nil {
		return nil, errors.New("there is no way to its container here")
	}
	s, err := o.Bases(ctx, b.url, b.from.Container)
	if err != nil {
		return nil, err
	}
	o.Store, o.UUID, o.Epoch, o.Snapshot, o.Durable = s, b.from.UUID, 0, "", layout.Position{}
	o.at, o.near, o.baseURL, o.depth, o.Rewind = b.clone.Root, nil, b.url, o.depth+1, nil
	o.MapMemory, o.above = o.MapMemory/2, b.of
	d := newDisk(o)
	if err := d.recover(ctx); err != nil {
		d.cancel(ErrClosed)
		return nil, err
	}
	if d.size.Load() < b.clone.Size {
		d.cancel(ErrClosed)
		return nil, &layout.DamagedError{What: "root", Why: fmt.Sprintf("it has %d bytes, and its clone has %d of it", d.size.Load(), b.clone.Size)}
	}
	return d, nil
}

// closeBase ends the base, and those below it. Nobody reads any more.
func (d *Disk) closeBase() {
	d.mu.RLock()
	b := d.base
	d.mu.RUnlock()
	if b == nil {
		return
	}
	b.wg.Wait()
	if b.lower != nil {
		b.lower.wg.Wait()
	}
	if below := b.opened(); below != nil {
		below.cancel(ErrClosed)
		below.closeBase()
	}
}

// read fills p with blocks of the base from first on, of which size bytes are
// seen.
func (b *base) read(ctx context.Context, first uint64, p []byte, size int64) (hole bool, err error) {
	if b.lower != nil {
		return b.lower.read(ctx, first, p, size)
	}
	d, err := b.open(ctx)
	if err == nil {
		hole, err = d.read(ctx, first, p)
		b.failed(err)
	} else if d := b.opened(); d != nil && d.holes(int64(first), int64(len(p)/layout.BlockSize)) {
		clear(p)
		return true, nil
	}
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		return false, b.wrap(err)
	}
	if seen := size - int64(first)*layout.BlockSize; seen < int64(len(p)) {
		clear(p[max(seen, 0):])
	}
	return hole, nil
}

// failed notes how a read of the base ended. If Swift does not find an object, or
// does not answer, others do not wait for the same. What is damaged says nothing
// about other blocks.
func (b *base) failed(err error) {
	if err != nil && (errors.As(err, new(*layout.DamagedError)) || errors.Is(err, context.Canceled)) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.err = nil
	} else {
		b.err, b.again = err, time.Now().Add(baseRest)
	}
}

// opened returns the base's disk if it is open, or nil.
func (b *base) opened() *Disk {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.disk
}

// holes says whether it is known that none of the base's blocks has data.
func (b *base) holes(first, count uint64) bool {
	if b.lower != nil {
		return b.lower.holes(first, count)
	}
	d := b.opened()
	return d != nil && d.holes(int64(first), int64(count))
}

// extents is Extents for a range that the base has, which is told until emit
// returns false. A base that cannot be asked counts as data: whoever reads there
// gets the error.
func (b *base) extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) {
	if b.lower != nil {
		b.lower.extents(ctx, off, n, emit)
		return
	}
	d, err := b.open(ctx)
	for err == nil && n > 0 {
		going := true
		err = d.Extents(ctx, off, n, func(at, count int64, hole bool) bool {
			off, n = at+count, n-count
			going = emit(at, count, hole)
			return going
		})
		if !going {
			return
		}
	}
	if n > 0 {
		emit(off, n, false)
	}
}

// besideInBase is reader.Beside for blocks of a chunk, from lo to before hi, that
// are all the base's, as in says of each. It is empty where they are not. d.mu is
// held, for reading at least.
func (d *Disk) besideInBase(i geometry.ChunkIndex, lo, hi int64, in func(block int64) bool, need geometry.ByteRange) geometry.ByteRange {
	if d.base == nil {
		return geometry.ByteRange{}
	}
	for k := lo; k < hi; k++ {
		if !in(k) {
			return geometry.ByteRange{}
		}
	}
	below := d.base.opened()
	if below == nil {
		return geometry.ByteRange{}
	}
	for in(lo - 1) {
		lo--
	}
	for in(hi) {
		hi++
	}
	wide := geometry.ByteRange{Off: lo * layout.BlockSize, Len: min(hi*layout.BlockSize, ChunkSize) - lo*layout.BlockSize}
	return reader{below}.Beside(i, need, wide)
}

// BaseInfo is what a disk is a clone of.
type BaseInfo struct {
	URL                 string // of its storage; layout.SameAccount
	Container, Snapshot string
	Depth               int // so many disks lie below the clone
}

// baseInfo returns what the disk is a clone of, or nil.
func (d *Disk) baseInfo() *BaseInfo {
	if d.base == nil || d.base.lower != nil {
		return nil
	}
	return &BaseInfo{d.base.from.URL, d.base.from.Container, d.base.clone.Snapshot, d.base.clone.Depth}
}

// checkBase finds out whether what the disk is a clone of is there.
func (v *verification) checkBase(ctx context.Context) error {
	v.r.Base = v.baseInfo()
	if v.base == nil || v.base.lower != nil {
		return nil
	}
	_, err := v.base.open(ctx)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	f := Finding{Object: v.base.from.Container + "/" + layout.RootName(v.base.clone.Root), Lost: away(err), Why: v.base.wrap(err).Error()}
	v.r.Damage = append(v.r.Damage, f)
	return nil
}

// low is a run of blocks that the base has.
type low struct {
	first uint64
	p     []byte
}

// readLows reads them, and says whether they are all zeroes.
func (d *Disk) readLows(ctx context.Context, b *base, size int64, lows []low) (hole bool, err error) {
	if len(lows) == 1 {
		return b.read(ctx, lows[0].first, lows[0].p, size)
	}
	holes := make([]bool, len(lows))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for i, l := range lows {
		g.Go(guarded(func() (err error) {
			holes[i], err = b.read(gctx, l.first, l.p, size)
			return err
		}))
	}
	err = g.Wait() // before holes is looked at
	return err == nil && !slices.Contains(holes, false), err
}
