// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
)

// checkObjects checks each data object that the map or the log needs.
func (v *verification) checkObjects(ctx context.Context) error {
	for at, o := range v.objects.all() {
		if o.live > 0 {
			v.needed[at] = true
			v.r.Live += o.live
		}
	}
	var total int64
	for at := range v.needed {
		total += v.logs[at].Size
	}
	if v.v.Quick {
		total = int64(len(v.needed))
	}
	if v.base != nil && v.base.lower != nil {
		for _, info := range v.chunks {
			if v.v.Quick {
				total++
			} else {
				total += info.Size
			}
		}
	}
	if v.v.Begin != nil {
		v.v.Begin(total)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.o.Connections)
	for at := range v.needed {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			size, frames, err := v.checkObject(ctx, at)
			var bad *badFrames
			switch {
			case err == nil:
			case errors.As(err, &bad):
				v.found.Lock()
				v.bad[at] = &Finding{Object: layout.LogName(at), Why: bad.Error()}
				v.parts[at] = bad.blocks
				v.found.Unlock()
			case content(err):
				f := &Finding{Object: layout.LogName(at), Why: reason(err)}
				if f.Lost = away(err); f.Lost {
					f.Why = "it is not there"
				}
				v.found.Lock()
				v.bad[at] = f
				v.found.Unlock()
			default:
				return fmt.Errorf("check object %s: %w", layout.LogName(at), err)
			}
			v.found.Lock()
			defer v.found.Unlock()
			v.r.Data.add(size)
			v.r.Frames += frames
			v.add(v.logs[at].Size)
			return nil
		})
	}
	return g.Wait()
}

// badFrames are blocks that the map has in an object, and whose frames there are
// wrong.
type badFrames struct {
	blocks map[uint64]bool
	first  error
}

func (b *badFrames) Error() string { return reason(b.first) }

// checkObject checks one data object: that its epoch counts it, its records, the
// map's blocks against them, and the frames.
func (v *verification) checkObject(ctx context.Context, at layout.Position) (size, frames int64, err error) {
	name := layout.LogName(at)
	info, listed := v.logs[at]
	if size = info.Size; !listed {
		// A listing is late.
		b, err := v.headKnown(ctx, name, "the map")
		if err != nil {
			return 0, 0, err
		}
		size = b
	}
	l, err := v.readTail(ctx, at, size)
	if err != nil {
		return size, 0, err
	}
	if l.footer.Collected != (at.N >= layout.FirstCollected) {
		return size, 0, &layout.DamagedError{What: "data object", Why: "its footer and its number do not agree on whether it is the collector's"}
	}
	if !l.footer.Collected && at.Epoch != v.from.Epoch && !v.counts(at) {
		return size, 0, &layout.DamagedError{What: "map", Why: "it needs an object that lies after the end of its epoch"}
	}
	var live int64
	if o, ok := v.objects.get(at); ok {
		live = o.live
	}
	live -= v.still(at, l.records)
	if live != 0 {
		return size, 0, &layout.DamagedError{What: "map", Why: fmt.Sprintf("it has %d blocks in this object where it has no frames of theirs", live)}
	}
	if v.v.Quick {
		return size, 0, nil
	}
	bad := &badFrames{blocks: map[uint64]bool{}}
	// wrong notes that what is kept of a block is damaged.
	wrong := func(e blockmap.Extent, err error) {
		value, ok := v.m.Get(e.First)
		if ok && value == e.Value {
			bad.blocks[e.First] = true
			bad.first = cmp.Or(bad.first, err)
			return
		}
		if v.inSnapshot(e) {
			bad.first = cmp.Or(bad.first, err)
			return
		}
		v.found.Lock()
		defer v.found.Unlock()
		v.r.DeadFrames++
	}
	for _, r := range l.records {
		if !stored(r.Kind) {
			continue
		}
		all := extentOfRecord(at, r)
		if r.Kind == layout.Zstd {
			p := make([]byte, r.Bytes)
			if err := v.getKnown(ctx, name, "the map", int64(r.Place), p); err != nil {
				return size, frames, err
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
				return size, frames, err
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
	if bad.first != nil {
		return size, frames, bad
	}
	return size, frames, nil
}
