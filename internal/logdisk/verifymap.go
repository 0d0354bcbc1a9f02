// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// A large map in little memory
//
// A disk of 10 TiB that was written at random has 2.6 billion blocks in its map,
// and Verify holds each of them against the records of its object. Nothing of it is in
// memory as a whole. The runs are read side by side, in the order of blocks, as
// merges do, and more than once:
//
//	first      each run by itself: it is there, and each of its pages is whole
//	windows    for each window of data objects, what the map has of them (window),
//	           as many objects as fit into windowMemory; then these objects are read
//	chunks     of a disk that was of version 1: which blocks are in chunks
//	last       only if an object is damaged: which blocks of the disk are concerned
//
// The map of a snapshot is read once, for the objects that it needs, and once more if
// an object is damaged. Small runs stay in memory, so a small disk is read once.
//
// In memory are, besides a window: 12 bytes for each object of the table, a few bits
// for each object that is needed, 3 KiB for each run of the newest root or of one
// snapshot, 1.5 MiB for each sorted run, the map of the log after the root, the list of
// what snapshots need, 12 bytes for each stray, and what is found of damage.

const (
	// windowMemory is VerifyOptions.window unless it is given.
	windowMemory = 64 << 20
	// runsShare is which share of the window's memory runs may have besides.
	runsShare = 4
	// lastKey is after the keys of all data objects.
	lastKey = math.MaxUint64
)

// limit is how large a window may be, bytes.
func (v *verification) limit() int64 { return cmp.Or(v.v.window, windowMemory) }

// checkRuns reads runs of blocks, and returns those that have something to read. bad is
// told what is wrong with one; it may end it all.
func (v *verification) checkRuns(ctx context.Context, names []layout.Position, by string, bad func(name string, err error) error) (tree []*runFile, err error) {
	room := v.limit() / runsShare
	for _, at := range names {
		r, err := v.checkRun(ctx, at, by, &room)
		if err != nil {
			if err := bad(layout.RunName(at), err); err != nil {
				return nil, err
			}
		}
		if r != nil {
			tree = append(tree, r)
		}
	}
	return tree, nil
}

// checkRun reads a run of blocks as a whole, unless another root has it, too, and keeps
// it in memory if there is room. What is returned beside an error has entries up to
// what is damaged.
func (v *verification) checkRun(ctx context.Context, at layout.Position, by string, room *int64) (*runFile, error) {
	if v.sound.has(at) {
		for _, r := range v.tree {
			if r.at == at {
				return r, nil
			}
		}
		return v.openRun(ctx, at, v.runs[at].Size)
	}
	b, err := v.readWhole(ctx, layout.RunName(at), by)
	if err != nil {
		return nil, err
	}
	run, err := parseRun(at, b, v.o.UUID)
	if err != nil {
		return nil, err
	}
	index := run.RunIndex
	r := &runFile{at: at, size: int64(len(b)), index: &index}
	for e, err := range run.Entries() {
		if err == nil {
			err = served(e)
		}
		if err != nil {
			return r, err
		}
		r.end = e.End()
	}
	v.sound.add(at)
	if r.size <= *room {
		r.whole = b
		*room -= r.size
	}
	return r, nil
}

// merged yields what the runs, the oldest first, are together, in the order of blocks.
// covered, which may be nil, is told of what lies under it and is counted still.
func (v *verification) merged(ctx context.Context, tree []*runFile, covered func(layout.Position, int64), yield func(layout.Entry) bool) error {
	d := newDisk(v.o)
	defer d.cancel(ErrClosed)
	d.tree, d.rootAt = tree, v.rootAt
	var layers []iter.Seq2[layout.Entry, error]
	groups := sortedRuns(tree)
	for i := len(groups) - 1; i >= 0; i-- {
		layers = append(layers, func(yield func(layout.Entry, error) bool) {
			for _, r := range groups[i] {
				for e, err := range d.runEntries(ctx, r) {
					if err != nil && content(err) && !v.sound.has(r.at) {
						break // this was said before
					}
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
		})
	}
	return mergeLayers(layers, true, covered, yield)
}

// current yields what the disk has, in the order of blocks: the log after the root, and
// under it the runs. covered is as in merged. saved is told what the runs alone have. Both may be nil.
func (v *verification) current(ctx context.Context, covered func(layout.Position, int64), saved func(layout.Entry), yield func(blockmap.Extent) bool) error {
	next, stop := iter.Pull(v.tail.All())
	defer stop()
	top, some := next() // of the log, and not yielded yet
	going := true
	err := v.merged(ctx, v.tree, covered, func(entry layout.Entry) bool {
		if saved != nil {
			saved(entry)
		}
		e := extentOf(entry)
		end := entry.End()
		for going && some && top.First < end {
			topEnd := top.First + top.Count
			switch {
			case top.First > e.First:
				going = yield(part(e, e.First, top.First))
				e = part(e, top.First, end)
			case topEnd >= end: // it may cover what comes next, too
				return true
			default:
				if topEnd > e.First {
					e = part(e, topEnd, end)
				}
				going = yield(top)
				top, some = next()
			}
		}
		going = going && yield(e)
		return going
	})
	for ; err == nil && going && some; top, some = next() {
		going = yield(top)
	}
	return err
}

// fill reads what the map has of the window's objects. The first time it finds out, too,
// of which objects the map has anything.
func (v *verification) fill(ctx context.Context, w *window) error {
	err := v.current(ctx, w.covered, w.saved, func(e blockmap.Extent) bool {
		if !stored(e.Kind) {
			return true
		}
		if w.lo == 0 {
			v.needed.add(e.At)
			v.r.Live += int64(e.Count)
		}
		w.add(e)
		return true
	})
	if err != nil {
		return fmt.Errorf("read the map: %w", err)
	}
	return nil
}
