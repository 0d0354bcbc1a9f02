// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"iter"
	"time"

	"swiftnbd/internal/logdisk/layout"
)

// Merging
//
// Each checkpoint adds a run to the tree. Behind the clients, runs that are
// neighbours in it are merged: read side by side, a few pages at a time, and
// written as one, in pieces. The next root has the pieces in the place of what
// they were made from. Until then nothing has changed.
//
// A sorted run is what such pieces are together: neighbours that follow one
// another in the order of blocks.

const (
	// fewRuns is how many sorted runs are left alone while they are small, and
	// smallRuns how small, bytes of all but the first.
	fewRuns   = 4
	smallRuns = 1 << 20
	// bottomShare says when the oldest sorted run is merged too: when the others
	// have this share of its bytes. It bounds how much garbage nobody knows of.
	bottomShare = 4
	// mergePause is how long the pause after merges that failed becomes.
	mergePause = 5 * time.Minute
)

// merged is the result of a merge, for the next root.
type merged struct {
	old   []*runFile // neighbours in the tree
	runs  []*runFile // what stands in their place
	drops *tally     // what is to be taken off the counts of objects
	all   bool       // the oldest run was one of them
}

// sortedRuns returns the sorted runs of a tree.
func sortedRuns(tree []*runFile) (groups [][]*runFile) {
	for i, r := range tree {
		if k := len(groups); k > 0 && len(r.index.Pages) > 0 && tree[i-1].end <= r.index.Pages[0].First && tree[i-1].end > 0 {
			groups[k-1] = append(groups[k-1], r)
			continue
		}
		groups = append(groups, []*runFile{r})
	}
	return groups
}

// pickMerge returns from which sorted run on, the oldest is 0, all are merged, by
// their bytes; false: none.
func pickMerge(sizes []int64) (from int, ok bool) {
	var newer int64
	for i := len(sizes) - 1; i >= 0; i-- {
		limit := newer
		if i == 0 {
			limit *= bottomShare
		}
		if newer > 0 && sizes[i] < limit {
			from, ok = i, true
		}
		newer += sizes[i]
	}
	if ok && len(sizes) <= fewRuns && newer-sizes[0] < smallRuns {
		return 0, false
	}
	return from, ok
}

// merging merges runs when there is something to merge.
func (d *Disk) merging() {
	defer d.resting.Done()
	defer d.recoverPanic()
	for {
		select {
		case <-d.mergeKick:
		case <-d.behind.Done():
			return
		}
		for pause := d.o.Pause; ; pause = min(2*pause, mergePause) {
			err := d.mergeRuns(d.behind)
			if err == nil {
				break
			}
			if d.behind.Err() != nil {
				return
			}
			d.o.Log("merge the map's runs: %v (tried again; no data is concerned)", err)
			select {
			case <-time.After(pause):
			case <-d.behind.Done():
				return
			}
		}
	}
}

// wakeMerging makes it look.
func (d *Disk) wakeMerging() {
	select {
	case d.mergeKick <- struct{}{}:
	default:
	}
}

// mergeRuns merges what is to be merged now.
func (d *Disk) mergeRuns(ctx context.Context) error {
	d.mu.Lock()
	groups := sortedRuns(d.tree)
	if d.merged != nil || len(groups) < 2 {
		d.mu.Unlock()
		return nil
	}
	sizes := make([]int64, len(groups))
	for i, g := range groups {
		for _, r := range g {
			sizes[i] += r.size
		}
	}
	from, ok := pickMerge(sizes)
	if d.phantoms && d.idle() {
		from, ok = 0, true
	}
	d.mu.Unlock()
	if !ok {
		return nil
	}
	m := &merged{drops: &tally{}, all: from == 0}
	for _, g := range groups[from:] {
		m.old = append(m.old, g...)
	}
	var failed error
	entries := func(yield func(layout.Entry) bool) {
		failed = d.mergeEntries(ctx, groups[from:], m.all, m.drops.add, yield)
	}
	var err error
	if m.runs, err = d.writeRuns(ctx, entries); err == nil {
		err = failed
	}
	if err != nil {
		d.giveUp(m.runs)
		return err
	}
	d.mu.Lock()
	d.merged = m
	d.mu.Unlock()
	d.stats.Merges.Add(1)
	return nil
}

// giveUp has runs deleted that no root names and none will: at once, since what they take
// may be all that a quota has left for clients, and again when no PUT of them can be
// under way any more.
func (d *Disk) giveUp(runs []*runFile) {
	for _, r := range runs {
		d.giveUpRun(r.at, r.size)
	}
}

// giveUpRun is giveUp of a run that has so many bytes; 0: they are not counted.
func (d *Disk) giveUpRun(at layout.Position, size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.discard(garbage{name: layout.RunName(at), after: now, size: size})
	d.discard(garbage{name: layout.RunName(at), after: now.Add(d.o.Horizon)})
}

// head is where a merge is in one sorted run.
type head struct {
	e    layout.Entry
	ok   bool
	next func() (layout.Entry, error, bool)
}

func (h *head) advance() (err error) {
	h.e, err, h.ok = h.next()
	return err
}

// mergeEntries yields what the sorted runs, the oldest first, are together. all
// says that nothing lies under them. drop is told the blocks of each object that
// are to be taken off its count. It may be nil.
func (d *Disk) mergeEntries(ctx context.Context, groups [][]*runFile, all bool, drop func(layout.Position, int64), yield func(layout.Entry) bool) error {
	return mergeLayers(d.layers(ctx, groups), all, drop, yield)
}

// layers returns the entries of each of the sorted runs, the oldest of which is the
// first of groups, and the last of what is returned.
func (d *Disk) layers(ctx context.Context, groups [][]*runFile) (layers []iter.Seq2[layout.Entry, error]) {
	for i := len(groups) - 1; i >= 0; i-- {
		layers = append(layers, func(yield func(layout.Entry, error) bool) {
			for _, r := range groups[i] {
				for e, err := range d.runEntries(ctx, r) {
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
		})
	}
	return layers
}

// mergeLayers is mergeEntries of layers, the newest first.
func mergeLayers(layers []iter.Seq2[layout.Entry, error], all bool, drop func(layout.Position, int64), yield func(layout.Entry) bool) error {
	heads := make([]*head, 0, len(layers)) // the newest first
	for _, layer := range layers {
		next, stop := iter.Pull2(layer)
		defer stop()
		h := &head{next: next}
		if err := h.advance(); err != nil {
			return err
		}
		heads = append(heads, h)
	}
	var last layout.Entry // not yielded yet, if Count is not 0
	for {
		// From at to before end no entry begins or ends.
		at, end := uint64(layout.MaxBlocks), uint64(layout.MaxBlocks)
		for _, h := range heads {
			if h.ok {
				at = min(at, h.e.First)
			}
		}
		for _, h := range heads {
			switch {
			case !h.ok:
			case h.e.First > at:
				end = min(end, h.e.First)
			default:
				end = min(end, h.e.End())
			}
		}
		var top layout.Entry
		for _, h := range heads {
			if !h.ok || h.e.First != at {
				continue
			}
			p := entryPart(h.e, at, end)
			if top.Count == 0 {
				top = p
			} else {
				if top.Blind && stored(p.Kind) && drop != nil {
					drop(p.At, int64(p.Count))
				}
				top.Blind = p.Blind
			}
			if h.e.End() > end {
				h.e = entryPart(h.e, end, h.e.End())
			} else if err := h.advance(); err != nil {
				return err
			}
		}
		if top.Count == 0 {
			break
		}
		top.Blind = top.Blind && !all
		if last.Count > 0 && continues(last, top) {
			last.Count += top.Count
			continue
		}
		if last.Count > 0 && !yield(last) {
			return nil
		}
		last = top
	}
	if last.Count > 0 {
		yield(last)
	}
	return nil
}

// entryPart cuts an entry to the blocks [first, end), which lie in it.
func entryPart(e layout.Entry, first, end uint64) layout.Entry {
	switch e.Kind {
	case layout.Data:
		e.Place += uint32(first-e.First) * layout.FrameSize
	case layout.Zstd:
		e.Skip += uint32(first - e.First)
	}
	e.First, e.Count = first, end-first
	return e
}

// continues says whether next goes on where e ends, in the same way.
func continues(e, next layout.Entry) bool {
	if e.End() != next.First {
		return false
	}
	e = entryPart(e, next.First, next.End())
	return e == next
}
