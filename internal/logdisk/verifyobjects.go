// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// checkObjects holds the map, the data objects that are needed, the table of objects
// and the list of what snapshots need against each other, window by window, and finds
// the data objects that nothing needs. whole says that the table is right.
func (v *verification) checkObjects(ctx context.Context) (whole bool, err error) {
	total := v.listed
	if v.base != nil && v.base.lower != nil {
		for _, info := range v.chunks {
			total.add(info.Size)
		}
	}
	if v.v.Begin != nil {
		if v.v.Quick {
			total.Bytes = total.Count
		}
		v.v.Begin(total.Bytes)
	}
	size := func(at layout.Position) int64 {
		if v.table == nil {
			return 0
		}
		h, _ := v.table.objects.get(at)
		return h.size
	}
	var table tableCheck
	var missing positions // that are needed and not kept
	for lo := uint64(0); lo < lastKey; {
		w := newWindow(lo, v.limit(), size)
		if err := v.fill(ctx, w); err != nil {
			return false, err
		}
		table.take(v.table, w)
		v.checkKept(w, &missing)
		if err := v.checkWindow(ctx, w); err != nil {
			return false, err
		}
		lo = w.hi
	}
	if err := v.notKept(ctx, &missing); err != nil {
		return false, err
	}
	if err := cmp.Or(table.another, table.lacks); err != nil {
		v.damaged(layout.RootName(v.rootAt), err)
		return false, nil
	}
	return true, nil
}

// tableCheck holds the table of objects against the counts that the runs of blocks give.
type tableCheck struct {
	another, lacks error // the first count that is another one, and the first object that the table lacks
}

// take compares the window's objects.
func (c *tableCheck) take(table *Disk, w *window) {
	if table == nil {
		return
	}
	for at, o := range table.objects.durable.since(w.lo) {
		if c.another != nil || layout.ObjectKey(at) >= w.hi {
			break
		}
		var counted int64
		if m := w.get(at); m != nil {
			counted = m.counted
		}
		if counted != o.live() {
			c.another = anotherCount(at, o.live(), counted)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.rows)) {
		if n := w.rows[key].counted; n != 0 && c.lacks == nil && !table.objects.has(keyAt(key)) {
			c.lacks = lacksObject(keyAt(key), n)
		}
	}
}

// sameTally says which count of the table is another one.
func (d *Disk) sameTally(counts *tally) error {
	c := cursor{t: counts}
	for at, o := range d.objects.all() {
		if n := c.take(layout.ObjectKey(at)); n != o.live {
			return anotherCount(at, o.live, n)
		}
	}
	for at, n := range counts.all() {
		if !d.objects.has(at) {
			return lacksObject(at, n)
		}
	}
	return nil
}

func anotherCount(at layout.Position, table, counted int64) error {
	return &layout.DamagedError{What: "root", Why: fmt.Sprintf("its table of objects has %d live blocks for %s, and its runs of blocks %d", table, layout.LogName(at), counted)}
}

func lacksObject(at layout.Position, counted int64) error {
	return &layout.DamagedError{What: "root", Why: fmt.Sprintf("its table of objects lacks %s, of which its runs of blocks have %d blocks", layout.LogName(at), counted)}
}

// checkWindow checks each data object of the window that the map, the log or a snapshot
// needs, and finds those that nothing needs. The listing has both in order.
func (v *verification) checkWindow(ctx context.Context, w *window) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.o.Connections)
	next, stop := iter.Pull(v.needed.from(w.lo, w.hi))
	defer stop()
	need, some := next()
	check := func(size int64, listed bool) {
		at := need
		g.Go(guarded(func() error { return v.checkOne(ctx, w, at, size, listed) }))
		need, some = next()
	}
	keeps, _ := v.keeps()
	o := store.ListOptions{Prefix: layout.LogPrefix}
	if w.lo > 0 {
		o.Marker = layout.LogName(keyAt(w.lo - 1))
	}
	if w.hi < lastKey {
		o.EndMarker = layout.LogName(keyAt(w.hi))
	}
	for page, err := range store.Pages(ctx, v.store, o) {
		if err != nil {
			return cmp.Or(g.Wait(), fmt.Errorf("list the data objects: %w", err))
		}
		for _, info := range page {
			at, ok := layout.ParseLogName(info.Name)
			if !ok {
				continue
			}
			for some && need.Less(at) { // a listing is late
				check(0, false)
			}
			if some && need == at {
				check(info.Size, true)
				continue
			}
			v.notNeeded(w, at, info, keeps)
			v.found.Lock()
			v.add(info.Size)
			v.found.Unlock()
		}
		if ctx.Err() != nil {
			break
		}
	}
	for some && ctx.Err() == nil {
		check(0, false)
	}
	return g.Wait()
}

// notNeeded sorts a data object that neither the map nor the log nor a snapshot's map
// needs.
func (v *verification) notNeeded(w *window, at layout.Position, info store.ObjectInfo, keeps func(layout.Position) bool) {
	switch {
	case keeps(at), v.diedInLog(w, at):
	case at.Epoch == v.from.Epoch && v.end.Less(at) && at.N < layout.FirstCollected:
		v.unfinished.add(info.Size)
	case !v.oldEnough(info):
		v.waiting.add(info.Size)
	default:
		v.strays.add(info.Size)
		v.strayLogs.add(at, info.Size)
	}
}

// diedInLog says whether the log after the root has covered the last blocks of an object
// that a snapshot needs: the next root's list will have it.
func (v *verification) diedInLog(w *window, at layout.Position) bool {
	m := w.get(at)
	return m != nil && m.saved && m.live == 0 && objectNeeded(v.root.Pins, layout.KeptObject{At: at, Last: v.rootAt})
}

// checkOne checks a data object and notes what is wrong with it.
func (v *verification) checkOne(ctx context.Context, w *window, at layout.Position, size int64, listed bool) error {
	name := layout.LogName(at)
	size, frames, bad, err := v.checkObject(ctx, w, at, size, listed)
	if err != nil && !content(err) {
		return fmt.Errorf("check object %s: %w", name, err)
	}
	if err != nil {
		bad = &badObject{f: Finding{Why: reason(err)}}
		if bad.f.Lost = away(err); bad.f.Lost {
			bad.f.Why = "it is not there"
		}
	}
	v.found.Lock()
	defer v.found.Unlock()
	if bad != nil {
		bad.f.Object = name
		v.bad[at] = bad
	}
	v.r.Data.add(size)
	v.r.Frames += frames
	if listed {
		v.add(size)
	}
	return nil
}

// badObject is a data object with which something is wrong. What parts of the disk it
// has, place finds out. One of three things is wrong:
//
//	records  the map has blocks where these have none of theirs
//	wrong    frames are damaged, and perhaps nothing needs them
//	neither  it is of no use as a whole
type badObject struct {
	f       Finding
	records []layout.Record
	live    int64 // blocks that the map has in it
	still   int64 // blocks of records that the map has there
	wrong   []wrongBlock
	of      map[uint64][]int // in wrong, by block
}

// wrongBlock is a block whose frame, or compressed record, is damaged.
type wrongBlock struct {
	blockmap.Extent
	err           error
	inMap, needed bool
}

// at returns the wrong ones of what a map has.
func (b *badObject) at(e blockmap.Extent, yield func(w *wrongBlock)) {
	if b.of == nil {
		b.of = map[uint64][]int{}
		for i, w := range b.wrong {
			b.of[w.First] = append(b.of[w.First], i)
		}
	}
	for i := range e.Count {
		for _, k := range b.of[e.First+i] {
			if w := &b.wrong[k]; w.Value == e.From(i) {
				yield(w)
			}
		}
	}
}

// place finds out which parts of the disk the damaged data objects have, and whether
// anything needs what is damaged.
func (v *verification) place(ctx context.Context) error {
	if len(v.bad) == 0 {
		return nil
	}
	err := v.current(ctx, nil, nil, func(e blockmap.Extent) bool {
		b := v.bad[e.At]
		switch {
		case !stored(e.Kind) || b == nil:
		case b.wrong != nil:
			b.at(e, func(w *wrongBlock) {
				w.inMap, w.needed = true, true
				b.f.has(w.First, 1)
			})
		default:
			b.live += int64(e.Count)
			b.still += stillIn(b.records, e)
			b.f.has(e.First, e.Count)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("read the map: %w", err)
	}
	err = v.overSnapshots(ctx, func(_ layout.Pin, e blockmap.Extent) {
		if b := v.bad[e.At]; b != nil && b.wrong != nil {
			b.at(e, func(w *wrongBlock) { w.needed = true })
		}
	})
	if err != nil {
		return err
	}
	for _, b := range v.bad {
		if b.records != nil {
			b.f.Why = reason(&layout.DamagedError{What: "map", Why: fmt.Sprintf("it has %d blocks in this object where it has no frames of theirs", b.live-b.still)})
		}
		for _, w := range b.wrong {
			if !w.needed {
				v.r.DeadFrames++
			} else if b.f.Why == "" {
				b.f.Why = reason(w.err)
			}
		}
		if b.f.Why != "" {
			v.r.Damage = append(v.r.Damage, b.f)
		}
	}
	return nil
}

// has notes that blocks of the disk cannot be read because of it.
func (f *Finding) has(first, count uint64) {
	f.Blocks += int64(count)
	r := Range{int64(first) * layout.BlockSize, int64(count) * layout.BlockSize}
	if k := len(f.Ranges); k > 0 && f.Ranges[k-1].Off+f.Ranges[k-1].Len == r.Off {
		f.Ranges[k-1].Len += r.Len
	} else if k < maxRanges {
		f.Ranges = append(f.Ranges, r)
	}
}

// stillIn returns how many blocks of an extent of the map are in records of its object.
func stillIn(records []layout.Record, e blockmap.Extent) (blocks int64) {
	for _, r := range records {
		if !stored(r.Kind) {
			continue
		}
		if x := clip(extentOfRecord(e.At, r), e.First, e.First+e.Count); x.Count > 0 && x.Value == e.From(x.First-e.First) {
			blocks += int64(x.Count)
		}
	}
	return blocks
}

// checkObject checks one data object: that its epoch counts it, its records, the
// map's blocks against them, and the frames.
func (v *verification) checkObject(ctx context.Context, w *window, at layout.Position, listed int64, known bool) (size, frames int64, bad *badObject, err error) {
	name := layout.LogName(at)
	if size = listed; !known {
		// A listing is late.
		b, err := v.headKnown(ctx, name, "the map")
		if err != nil {
			return 0, 0, nil, err
		}
		size = b
	}
	l, err := v.readTail(ctx, at, size)
	if err != nil {
		return size, 0, nil, err
	}
	if l.footer.Collected != (at.N >= layout.FirstCollected) {
		return size, 0, nil, &layout.DamagedError{What: "data object", Why: "its footer and its number do not agree on whether it is the collector's"}
	}
	if !l.footer.Collected && at.Epoch != v.from.Epoch && !v.counts(at) {
		return size, 0, nil, &layout.DamagedError{What: "map", Why: "it needs an object that lies after the end of its epoch"}
	}
	if !w.agrees(at, l.records) {
		return size, 0, &badObject{records: append([]layout.Record{}, l.records...)}, nil
	}
	if v.v.Quick {
		return size, 0, nil, nil
	}
	bad = &badObject{}
	wrong := func(e blockmap.Extent, err error) { bad.wrong = append(bad.wrong, wrongBlock{Extent: e, err: err}) }
	for _, r := range l.records {
		if !stored(r.Kind) {
			continue
		}
		all := extentOfRecord(at, r)
		if r.Kind == layout.Zstd {
			p := make([]byte, r.Bytes)
			if err := v.getKnown(ctx, name, "the map", int64(r.Place), p); err != nil {
				return size, frames, nil, err
			}
			frames += int64(r.Count)
			if err := checkRecord(p, r, &v.o.UUID); err != nil {
				for b := r.First; b < r.End(); b++ {
					wrong(part(all, b, b+1), err)
				}
			}
			continue
		}
		for first, left := r.First, uint64(r.Count); left > 0; {
			n := min(left, ChunkSize/layout.FrameSize)
			p := make([]byte, n*layout.FrameSize)
			place := int64(r.Place) + int64(first-r.First)*layout.FrameSize
			if err := v.getKnown(ctx, name, "the map", place, p); err != nil {
				return size, frames, nil, err
			}
			for i := range n {
				frames++
				if err := layout.CheckFrame(p[i*layout.FrameSize:][:layout.FrameSize], first+i, &v.o.UUID); err != nil {
					wrong(part(all, first+i, first+i+1), err)
				}
			}
			first, left = first+n, left-n
		}
	}
	if bad.wrong == nil {
		bad = nil
	}
	return size, frames, bad, nil
}
