// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// view yields what the range is made of, in order and without gaps: extents of
// the open cut over those of the map. What neither has is inBase, or Trimmed where
// there is no base. d.mu is held, for reading at least.
func (d *Disk) view(first, count uint64) iter.Seq[blockmap.Extent] {
	return func(yield func(blockmap.Extent) bool) {
		end := first + count
		if d.open == nil {
			d.below(first, end, yield)
			return
		}
		for e := range d.open.m.Lookup(first, count) {
			if !d.below(first, e.First, yield) || !yield(e) {
				return
			}
			first = e.First + e.Count
		}
		d.below(first, end, yield)
	}
}

// below is view without the open cut.
func (d *Disk) below(first, end uint64, yield func(blockmap.Extent) bool) bool {
	if first >= end {
		return true
	}
	seen := d.baseBlocks()
	nothing := func(until uint64) bool {
		if to := min(until, seen); first < to {
			if !yield(blockmap.Extent{First: first, Count: to - first, Value: blockmap.Value{Kind: inBase}}) {
				return false
			}
			first = to
		}
		return first >= until || yield(blockmap.Extent{First: first, Count: until - first, Value: blockmap.Value{Kind: layout.Trimmed}})
	}
	for e := range d.m.Lookup(first, end-first) {
		if !nothing(e.First) || !yield(e) {
			return false
		}
		first = e.First + e.Count
	}
	return nothing(end)
}

// holes says whether it is known that none of the blocks has data.
func (d *Disk) holes(first, count int64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.holesLocked(first, count)
}

func (d *Disk) holesLocked(first, count int64) bool {
	if !d.regions.all(uint64(first), uint64(count)) {
		return false
	}
	for e := range d.view(uint64(first), uint64(count)) {
		if d.hasData(e) {
			return false
		}
	}
	return true
}

// hasData says whether blocks that view has yielded have data, as far as is known
// of the base. d.mu is held, for reading at least.
func (d *Disk) hasData(e blockmap.Extent) bool {
	return stored(e.Kind) || e.Kind == inBase && !d.base.holes(e.First, e.Count)
}

// Extents tells emit what the range is made of, in ascending order and without
// gaps: runs that read as zeroes, and runs of data. It may end before the range
// does, but not before the first run's end. emit returns false to stop.
func (d *Disk) Extents(ctx context.Context, off, n int64, emit func(off, n int64, hole bool) bool) error {
	if n == 0 {
		return nil
	}
	const most = 64 << 10 // extents a call
	from, count := touchedBlocks(off, n)
	type run struct {
		off, n int64
		hole   bool
		base   *base // that has it; nil: the disk itself
	}
	var runs []run
	for first, end := uint64(from), uint64(from+count); first < end && len(runs) < most; {
		to := end
		look := func() {
			for e := range d.view(first, to-first) {
				lo := max(off, int64(e.First)*layout.BlockSize)
				hi := min(off+n, int64(e.First+e.Count)*layout.BlockSize)
				hole := !stored(e.Kind)
				var base *base
				if e.Kind == inBase {
					base = d.base
				}
				if k := len(runs); k > 0 && runs[k-1].hole == hole && runs[k-1].base == base {
					runs[k-1].n += hi - lo
					continue
				}
				if len(runs) == most {
					break
				}
				runs = append(runs, run{lo, hi - lo, hole, base})
			}
		}
		if !d.inView(first, end, look) {
			to = min(end, (first>>d.regions.shift+extentsAtOnce)<<d.regions.shift)
			if err := d.viewed(ctx, first, to-first, look); err != nil {
				if len(runs) > 0 {
					break // what is known is told; the next call has the error
				}
				return err
			}
		}
		first = to
	}
	going := true
	tell := func(off, n int64, hole bool) bool {
		going = emit(off, n, hole)
		return going
	}
	for _, r := range runs {
		if r.base != nil {
			r.base.extents(ctx, r.off, r.n, tell)
		} else {
			tell(r.off, r.n, r.hole)
		}
		if !going {
			break
		}
	}
	return nil
}

// reader is what the cache asks.
type reader struct{ d *Disk }

func (r reader) Hole(i geometry.ChunkIndex) bool {
	return r.d.holes(int64(i)*chunkBlocks, chunkBlocks)
}

func (r reader) Holes(i geometry.ChunkIndex, n int64) int64 {
	r.d.mu.RLock()
	defer r.d.mu.RUnlock()
	first := uint64(i) * chunkBlocks
	for n > 0 && !r.d.regions.all(first, uint64(n)*chunkBlocks) {
		n /= 2 // it says what is known
	}
	for e := range r.d.view(first, uint64(n)*chunkBlocks) {
		if r.d.hasData(e) {
			return int64((e.First - first) / chunkBlocks)
		}
	}
	return n
}

func (r reader) Read(ctx context.Context, i geometry.ChunkIndex, off int64, p []byte) (hole bool, err error) {
	if (off|int64(len(p)))%layout.BlockSize != 0 { // what is not read must not pass for the disk's bytes
		return false, fmt.Errorf("read %d bytes at %d of chunk %d: they are not whole blocks", len(p), off, i)
	}
	first := (int64(i)*ChunkSize + off) / layout.BlockSize
	hole, err = r.d.readRoomy(ctx, uint64(first), p, true)
	return hole && len(p) == ChunkSize, err // of the chunk, and not of a part
}

// Beside returns as much of wide around the blocks of r as lies in the objects that r
// is read from, and there next to it. On a disk that was written at random each other
// block would be a request of its own. What it returns is whole blocks: Read brings
// nothing else.
func (r reader) Beside(i geometry.ChunkIndex, need, wide geometry.ByteRange) geometry.ByteRange {
	type span struct {
		at     layout.Position
		lo, hi int64 // places of the first bytes and of the last
	}
	var (
		d      = r.d
		blocks [chunkBlocks]blockmap.Value // of wide
		spans  []span                      // what is fetched
		first  = wide.Off / layout.BlockSize
		end    = (wide.End() + layout.BlockSize - 1) / layout.BlockSize
		lo     = need.Off / layout.BlockSize
		hi     = (need.End() + layout.BlockSize - 1) / layout.BlockSize
	)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.regions.all(uint64(int64(i)*chunkBlocks+first), uint64(end-first)) {
		// The next one of the region knows more.
		return geometry.ByteRange{Off: lo * layout.BlockSize, Len: (hi - lo) * layout.BlockSize}
	}
	for e := range d.view(uint64(int64(i)*chunkBlocks+first), uint64(end-first)) {
		if e.Kind == layout.Data && d.inMemory(e.At) != nil {
			e.Kind = layout.Zeroes // costs nothing, as these
		}
		for k := range e.Count {
			blocks[int64(e.First+k)-int64(i)*chunkBlocks-first] = e.From(k)
		}
	}
	if b := d.besideInBase(i, lo, hi, func(block int64) bool {
		return block >= first && block < end && blocks[block-first].Kind == inBase
	}, need); b.Len > 0 {
		return b
	}
	// take says whether the block comes with the others, and counts it to them.
	take := func(block int64, needed bool) bool {
		v := blocks[block-first]
		if v.Kind == inBase { // with requests of its own, which may fail
			return needed
		}
		if !stored(v.Kind) {
			return true
		}
		// A compressed record comes with all of its blocks.
		place := int64(v.Place)
		last := place + int64(v.Bytes)
		for k := range spans {
			s := &spans[k]
			if s.at == v.At && place >= s.lo-joinGap && place <= s.hi+joinGap {
				s.lo, s.hi = min(s.lo, place), max(s.hi, last)
				return true
			}
		}
		if needed {
			spans = append(spans, span{v.At, place, last})
		}
		return needed
	}
	for k := lo; k < hi; k++ {
		take(k, true)
	}
	for lo > first && take(lo-1, false) {
		lo--
	}
	for hi < end && take(hi, false) {
		hi++
	}
	return geometry.ByteRange{Off: lo * layout.BlockSize, Len: min(hi*layout.BlockSize, ChunkSize) - lo*layout.BlockSize}
}

// Partly says yes of what is wrong with one object, or chunk, or with the disk's parent.
// Where nobody has answered, the next request would wait for as long again.
func (r reader) Partly(err error) bool {
	return content(err) || chunkContent(err) || errors.As(err, new(*store.StatusError)) || errors.As(err, new(*BaseError))
}

// want is a run of blocks whose frames lie beside each other in an object in
// Swift, or that are in one compressed record there.
type want struct {
	blockmap.Extent
	p   []byte // where the blocks go
	raw bool   // the bytes of the compressed record go there, and all of it is wanted
	// roomy says that p has room behind its end for the frames, up to its
	// capacity: they are read into it, and no other memory is needed.
	roomy bool
}

// record says whether it is a compressed record, which is read whole, and not
// frames.
func (w want) record() bool { return w.Kind == layout.Zstd }

func (w want) end() int64 { return placeEnd(w.Extent) }

// read fills p, which is whole blocks, with the blocks from first on.
func (d *Disk) read(ctx context.Context, first uint64, p []byte) (hole bool, err error) {
	return d.readRoomy(ctx, first, p, false)
}

// readRoomy is read. roomy says that the bytes behind p, up to its capacity, are
// nobody's and may be changed.
func (d *Disk) readRoomy(ctx context.Context, first uint64, p []byte, roomy bool) (hole bool, err error) {
	pause := 50 * time.Millisecond
	for end := d.waitUntil(ctx); ; {
		var (
			wants []want
			lows  []low
			base  *base
			size  int64
		)
		err := d.viewed(ctx, first, uint64(len(p))/layout.BlockSize, func() {
			wants, lows, hole = d.look(first, p)
			base, size = d.base, d.baseSize
		})
		if err != nil {
			return false, err
		}
		if len(lows) > 0 {
			zero, err := d.readLows(ctx, base, size, lows)
			if err != nil {
				return false, err
			}
			hole = hole && zero
		}
		if len(wants) == 0 {
			return hole, nil
		}
		wants[0].roomy = roomy && len(wants) == 1 && len(wants[0].p) == len(p)
		// That an object is not found has two reasons. The collector may have
		// moved the blocks meanwhile: then they are elsewhere. Or the servers
		// that have it are away: a 404 is no proof.
		if err = d.fetch(ctx, wants); err == nil {
			d.scattered(first, len(p), wants)
			return false, nil
		}
		if !errors.Is(err, store.ErrNotFound) || time.Now().After(end) {
			return false, err
		}
		if e := d.gone(ctx, err); e != nil {
			return false, e
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		pause = min(2*pause, time.Second)
	}
}

// look fills p with those of the blocks from first on that are in memory, or
// zeroes, and returns the others, and those that the base has. hole does not
// count the latter. d.mu is held, for reading at least.
func (d *Disk) look(first uint64, p []byte) (wants []want, lows []low, hole bool) {
	hole = true
	for e := range d.view(first, uint64(len(p))/layout.BlockSize) {
		to := p[(e.First-first)*layout.BlockSize:][:e.Count*layout.BlockSize]
		if e.Kind == inBase {
			lows = append(lows, low{e.First, to})
			continue
		}
		if !stored(e.Kind) {
			clear(to)
			continue
		}
		hole = false
		buf := d.inMemory(e.At)
		if buf == nil { // see relabel: nothing compressed is in memory
			wants = append(wants, want{Extent: e, p: to})
			continue
		}
		for i := range e.Count {
			copy(to[i*layout.BlockSize:][:layout.BlockSize], buf[uint64(e.Place)+i*layout.FrameSize:])
		}
	}
	return wants, lows, hole
}

// inMemory returns the frames of the object while they are in memory, or nil.
// d.mu is held.
func (d *Disk) inMemory(at layout.Position) []byte {
	if d.open != nil && at == d.open.at {
		return d.open.buf
	}
	if o := d.objects.writing[at]; o != nil {
		return o.buf
	}
	return nil
}

const (
	// joinGap is how many bytes between two wants are read rather than a
	// second request made.
	joinGap = 64 << 10
	// fetchLimit is how many requests one read makes at once.
	fetchLimit = 16
)

// fetch reads the frames from Swift, checks them, and puts the blocks where they
// are wanted.
func (d *Disk) fetch(ctx context.Context, wants []want) error {
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Place, b.Place), cmp.Compare(a.First, b.First))
	})
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for i := 0; i < len(wants); {
		j := joined(wants, i)
		group := wants[i:j]
		i = j
		if j == len(wants) && len(group) == len(wants) {
			return d.fetchGroup(ctx, group)
		}
		g.Go(guarded(func() (err error) {
			return d.fetchGroup(ctx, group)
		}))
	}
	return g.Wait()
}

// joined returns the end of those sorted wants that come with one request, the first
// of which is i.
func joined(wants []want, i int) int {
	j, end := i+1, wants[i].end()
	for ; j < len(wants) && wants[j].At == wants[i].At && int64(wants[j].Place)-end <= joinGap; j++ {
		end = max(end, wants[j].end())
	}
	return j
}

// getLog reads a part of a data object, as o says. If a replica does not know it,
// all are asked.
func (d *Disk) getLog(ctx context.Context, at layout.Position, p []byte, o store.GetOptions) error {
	d.stats.Gets.Add(1)
	d.stats.GetBytes.Add(int64(len(p)))
	_, err := d.store.Get(ctx, layout.LogName(at), p, o)
	if errors.Is(err, store.ErrNotFound) {
		o.Newest = true
		_, err = d.store.Get(ctx, layout.LogName(at), p, o)
	}
	if err != nil {
		err = fmt.Errorf("read object %s: %w", layout.LogName(at), err)
	}
	if errors.Is(err, store.ErrNotFound) {
		return notFound(layout.LogName(at), err)
	}
	return err
}

// getKnown reads a part of an object that was written, as by says. A 404 is no
// proof that it is gone: it is asked for again.
func (d *Disk) getKnown(ctx context.Context, name, by string, off int64, p []byte) error {
	o := store.GetOptions{Offset: off}
	pause := 50 * time.Millisecond
	for end := d.waitUntil(ctx); ; {
		_, err := d.store.Get(ctx, name, p, o)
		if err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("read object %s: %w", name, err)
		}
		if gone := d.gone(ctx, notFound(name, fmt.Errorf("read object %s: %w", name, err))); gone != nil {
			return gone
		}
		if time.Now().After(end) {
			return &AwayError{Name: name, By: by}
		}
		o.Newest = true
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, time.Second)
	}
}
