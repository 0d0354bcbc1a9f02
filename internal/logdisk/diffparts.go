// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// verdict is what is known of a part of the disk.
type verdict int

const (
	changed verdict = iota
	same
	askFrom // what From has decides, and that is in the shared runs
	askTo   // To has what the shared runs have
	trace   // the collector has perhaps only moved it
)

// diffPart is a part of the disk that is compared.
type diffPart struct {
	first, end uint64
	a, b       blockmap.Extent // Count is 0: what the shared runs have
	// was are the places that b was copied from, the newest first.
	was     []blockmap.Extent
	verdict verdict
}

// cut returns the part of p that is [first, end).
func (p diffPart) cut(first, end uint64) diffPart {
	q := diffPart{first: first, end: end, a: clip(p.a, first, end), b: clip(p.b, first, end), verdict: p.verdict}
	for _, w := range p.was {
		q.was = append(q.was, part(w, first, end))
	}
	return q
}

// compare calls tell for each extent of To that may differ from what From has, in
// order.
func (x *Diff) compare(ctx context.Context, tell func(blockmap.Extent) error) error {
	emit := func(a, b blockmap.Extent) error { return x.below.resolve(ctx, x.To.Size, a, b, tell) }
	var batch []diffPart
	wide := uint64(0) // blocks in it that only the shared runs may have
	for s, err := range x.walk(ctx) {
		if err != nil {
			return err
		}
		p := diffPart{first: s.first, end: s.end, a: s.a, b: s.b}
		if p.verdict = x.judge(p); p.verdict == same {
			continue
		}
		if p.a.Count == 0 && p.b.Count == 0 {
			wide += p.end - p.first
		}
		if batch = append(batch, p); len(batch) == diffBatch || wide >= gapBlocks {
			if err := x.settle(ctx, batch, emit); err != nil {
				return err
			}
			batch, wide = batch[:0], 0
		}
	}
	return x.settle(ctx, batch, emit)
}

// judge says what is known of a part by what is over the shared runs.
func (x *Diff) judge(p diffPart) verdict {
	hasA := p.a.Count > 0
	switch {
	case p.b.Count == 0 && len(x.prefix) == 0:
		p.b = x.below.to.nothing(p.first, p.end)
		return x.judge(p)
	case p.b.Count == 0:
		return askTo
	case !hasA && len(x.prefix) == 0:
		p.a = x.below.from.nothing(p.first, p.end)
		return x.judge(p)
	case hasA && x.equal(p.a, p.b):
		return same
	case x.pin == nil || !x.exact:
		return changed
	case !stored(p.b.Kind):
		if hasA {
			return changed
		}
		return askFrom
	case p.b.At.N >= layout.FirstCollected && !(hasA && !stored(p.a.Kind)):
		return trace
	case !hasA && x.pin.HasObject(p.b.At):
		return askFrom
	}
	return changed
}

// equal says whether two extents of the same blocks are known to read the same.
func (x *Diff) equal(a, b blockmap.Extent) bool {
	if a.Kind == inBase || b.Kind == inBase {
		return a.Kind == b.Kind && x.below.same
	}
	if !stored(a.Kind) && !stored(b.Kind) {
		return true
	}
	return samePlace(a, b)
}

// samePlace says whether two extents of the same blocks are at the same place. At
// the place of a compressed record each block is at most once.
func samePlace(a, b blockmap.Extent) bool {
	return a.Kind == b.Kind && a.At == b.At && a.Place == b.Place
}

// settle decides about parts, which are in order, and emits those that may have
// changed.
func (x *Diff) settle(ctx context.Context, parts []diffPart, emit func(a, b blockmap.Extent) error) error {
	parts, err := x.follow(ctx, parts)
	if err != nil {
		return err
	}
	var ranges [][2]uint64
	for _, p := range parts {
		if p.verdict == askFrom || p.verdict == askTo {
			ranges = append(ranges, [2]uint64{p.first, p.end})
		}
	}
	m, err := x.lookup(ctx, ranges)
	if err != nil {
		return err
	}
	for _, p := range parts {
		switch p.verdict {
		case changed:
			err = x.emit(p, emit)
		case askFrom, askTo:
			err = x.answered(m, p, emit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *Diff) emit(p diffPart, emit func(a, b blockmap.Extent) error) error {
	if p.b.Count == 0 {
		p.b = x.below.to.nothing(p.first, p.end)
	}
	if p.a.Count == 0 && len(x.prefix) == 0 {
		p.a = x.below.from.nothing(p.first, p.end)
	}
	return emit(p.a, p.b)
}

// answered compares a part with what the shared runs have of it.
func (x *Diff) answered(m *blockmap.Map, p diffPart, emit func(a, b blockmap.Extent) error) error {
	at := p.first
	one := func(a, b blockmap.Extent) error {
		q := p.cut(b.First, b.First+b.Count)
		if q.b.Count == 0 {
			q.b = b
		}
		if q.a.Count == 0 {
			q.a = a
		}
		if x.equal(q.a, q.b) {
			return nil
		}
		for _, w := range q.was {
			if samePlace(w, q.a) {
				return nil
			}
		}
		return emit(q.a, q.b)
	}
	nothing := func(first, end uint64) error {
		return one(x.below.from.nothing(first, end), x.below.to.nothing(first, end))
	}
	var found []blockmap.Extent
	for e := range m.Lookup(p.first, p.end-p.first) {
		found = append(found, e)
	}
	for _, e := range found {
		if at < e.First {
			if err := nothing(at, e.First); err != nil {
				return err
			}
		}
		if err := one(e, e); err != nil {
			return err
		}
		at = e.First + e.Count
	}
	if at < p.end {
		return nothing(at, p.end)
	}
	return nil
}

// lookup reads what the shared runs have of the ranges, which are in order.
func (x *Diff) lookup(ctx context.Context, ranges [][2]uint64) (*blockmap.Map, error) {
	m := blockmap.New()
	if len(ranges) == 0 || len(x.prefix) == 0 {
		return m, nil
	}
	if x.shared == nil {
		runs, err := x.openRuns(ctx, x.prefix)
		if err != nil {
			return nil, err
		}
		x.shared = runs
	}
	take := func(e blockmap.Extent) {
		k := sort.Search(len(ranges), func(k int) bool { return ranges[k][1] > e.First })
		for ; k < len(ranges) && ranges[k][0] < e.First+e.Count; k++ {
			if c := clip(e, ranges[k][0], ranges[k][1]); c.Count > 0 {
				m.Set(c.First, c.Count, c.Value, nil)
			}
		}
	}
	var pieces []*somePages
	for _, run := range x.shared {
		own := len(pieces)
		for _, r := range ranges {
			i, j := run.pages(r[0], r[1])
			if k := len(pieces); k > own {
				i = max(i, pieces[k-1].j)
			}
			for ; i < j; i++ { // neighbours are joined
				if k := len(pieces); k > own && pieces[k-1].j == i && i-pieces[k-1].i < pagesAtOnce {
					pieces[k-1].j++
				} else {
					pieces = append(pieces, &somePages{run: run, i: i, j: i + 1})
				}
			}
		}
	}
	return m, x.d.readPieces(ctx, pieces, take)
}

// records are the records of the collector's objects that were looked at.
type records struct {
	of    map[layout.Position][]layout.Record // in the order of their places; nil: it is not known
	count int
}

// follow replaces the parts that the collector may have moved by parts with all
// places that are known that their bytes were copied from.
func (x *Diff) follow(ctx context.Context, parts []diffPart) ([]diffPart, error) {
	for range diffHops {
		var missing []layout.Position
		seen := map[layout.Position]bool{}
		todo := false
		for _, p := range parts {
			if p.verdict != trace {
				continue
			}
			todo = true
			at := p.place().At
			if _, ok := x.origin.of[at]; !ok && !seen[at] {
				seen[at] = true
				missing = append(missing, at)
			}
		}
		if !todo {
			return parts, nil
		}
		if err := x.readRecords(ctx, missing); err != nil {
			return nil, err
		}
		next := make([]diffPart, 0, len(parts))
		for _, p := range parts {
			if p.verdict == trace {
				next = append(next, x.step(p)...)
			} else {
				next = append(next, p)
			}
		}
		parts = next
	}
	for i := range parts {
		if parts[i].verdict == trace {
			parts[i].verdict = x.ending(parts[i])
		}
	}
	return parts, nil
}

// place returns the oldest place that is known of a part's bytes.
func (p diffPart) place() blockmap.Extent {
	if n := len(p.was); n > 0 {
		return p.was[n-1]
	}
	return p.b
}

// ending returns the verdict on a part that cannot be followed further.
func (x *Diff) ending(p diffPart) verdict {
	if p.a.Count > 0 {
		return changed // or step would have found it
	}
	for _, w := range p.was {
		if x.pin.HasObject(w.At) {
			return askFrom
		}
	}
	if x.pin.HasObject(p.b.At) {
		return askFrom
	}
	return changed
}

// step follows a part by one copy.
func (x *Diff) step(p diffPart) (parts []diffPart) {
	list := x.origin.of[p.place().At]
	for at := p.first; at < p.end; {
		e := part(p.place(), at, p.end)
		// The record that has the place.
		i := sort.Search(len(list), func(i int) bool { return uint64(list[i].Place)+uint64(list[i].Bytes) > uint64(e.Place) })
		end := p.end
		ok := i < len(list) && list[i].Kind == e.Kind && !list[i].Source.IsZero()
		if ok && e.Kind == layout.Data {
			ok = list[i].Place <= e.Place && list[i].First+uint64((e.Place-list[i].Place)/layout.FrameSize) == at
		} else if ok {
			ok = list[i].Place == e.Place && list[i].First <= at && at < list[i].End()
		}
		if !ok {
			q := p.cut(at, end)
			q.verdict = x.ending(q)
			return append(parts, q)
		}
		r := list[i]
		end = min(end, r.End())
		q := p.cut(at, end)
		was := blockmap.Extent{First: at, Count: end - at, Value: blockmap.Value{Kind: r.Kind, At: r.Source, Place: r.SourcePlace}}
		if r.Unpacked {
			was.Kind = layout.Zstd
		} else {
			was.Place += e.Place - r.Place
		}
		q.was = append(q.was, was)
		switch {
		case q.a.Count > 0 && samePlace(q.a, q.place()):
			q.verdict = same
		case r.Source.N >= layout.FirstCollected:
			q.verdict = trace
		default:
			q.verdict = x.ending(q)
		}
		parts = append(parts, q)
		at = end
	}
	return parts
}

// readRecords reads the records of the collector's objects. One that is gone is
// noted as not known.
func (x *Diff) readRecords(ctx context.Context, list []layout.Position) error {
	if x.origin.of == nil {
		x.origin.of = map[layout.Position][]layout.Record{}
	}
	var mu sync.Mutex // guards x.origin
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchLimit)
	for _, at := range list {
		g.Go(guarded(func() error {
			mu.Lock()
			full := x.origin.count >= diffRecords
			mu.Unlock()
			var tail logged
			var err error
			if !full {
				// What cannot be read is not known, and counts as changed.
				if tail, err = x.d.readTail(gctx, at, 0); err != nil && !unreadable(err) {
					return fmt.Errorf("follow what the collector has moved: %w", err)
				}
			}
			slices.SortFunc(tail.records, func(a, b layout.Record) int { return cmp.Compare(a.Place, b.Place) })
			mu.Lock()
			defer mu.Unlock()
			x.origin.of[at] = tail.records
			x.origin.count += len(tail.records)
			return nil
		}))
	}
	return g.Wait()
}
