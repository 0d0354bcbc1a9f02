// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// checkChunks checks those chunks of a disk that was of version 1 that it still
// needs: that each has its size, and what the map of version 1 says, and unless
// Quick every byte. What is neither listed nor in that map is a hole.
func (v *verification) checkChunks(ctx context.Context) error {
	if v.base == nil || v.base.lower == nil {
		return nil
	}
	c := v.base.lower
	vol, err := c.open(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.o.Connections)
	checked := map[geometry.ChunkIndex]bool{}
	blocks := v.slide(ctx)
	defer blocks.stop()
	for i := geometry.ChunkIndex(0); int64(i) < c.geo.Objects() && ctx.Err() == nil; i++ {
		if n := vol.Holes(i, c.geo.Objects()-int64(i)); n > 0 {
			i += geometry.ChunkIndex(n) - 1
			continue
		}
		if at := c.geo.Offset(i); at < v.baseSize {
			first, count := touchedBlocks(at, min(c.geo.ObjectSize(), v.baseSize-at))
			if v.m, err = blocks.from(uint64(first), uint64(first+count)); err != nil {
				break
			}
		}
		f := v.seenOf(c, i)
		if f.Blocks == 0 && len(v.root.Pins) == 0 { // a snapshot may need what the disk does not
			continue
		}
		info, listed := v.chunks[i]
		checked[i] = true
		g.Go(guarded(func() error {
			size, err := v.checkChunk(ctx, vol, i, info, listed)
			v.found.Lock()
			defer v.found.Unlock()
			if size > 0 {
				v.r.Chunks.add(size)
			}
			if err != nil && !chunkContent(err) {
				return fmt.Errorf("check object %s: %w", f.Object, err)
			}
			if err != nil {
				var changed *chunked.ChangedError
				f.Lost = errors.As(err, &changed) && changed.Got == "" && !listed
				f.Why = err.Error()
				v.r.Damage = append(v.r.Damage, f)
			}
			if listed {
				v.add(info.Size)
			}
			return nil
		}))
	}
	err = cmp.Or(g.Wait(), err)
	for i, info := range v.chunks {
		if err == nil && !checked[i] {
			v.add(info.Size) // nothing needs it
		}
	}
	return err
}

// slide is a look at the map in the order of blocks, a few at a time.
type slide struct {
	next func() (blockmap.Extent, bool)
	stop func()
	e    blockmap.Extent // the next one, if some
	some bool
	err  error // of reading the map
}

func (v *verification) slide(ctx context.Context) *slide {
	s := &slide{}
	s.next, s.stop = iter.Pull(func(yield func(blockmap.Extent) bool) {
		if err := v.current(ctx, nil, nil, yield); err != nil {
			s.err = fmt.Errorf("read the map: %w", err)
		}
	})
	s.e, s.some = s.next()
	return s
}

// from returns what the map has of the blocks from first to before end. The next call is
// for later blocks.
func (s *slide) from(first, end uint64) (*blockmap.Map, error) {
	m := blockmap.New()
	for s.some && s.e.First < end {
		if x := clip(s.e, first, end); x.Count > 0 {
			m.Set(x.First, x.Count, x.Value, nil)
		}
		if s.e.First+s.e.Count > end {
			break
		}
		s.e, s.some = s.next()
	}
	return m, s.err
}

// add notes that an object that the listing has with that size is done.
func (v *verification) add(size int64) {
	if v.v.Quick {
		size = 1
	}
	if v.v.Add != nil {
		v.v.Add(size)
	}
}

// seenOf returns a finding with those blocks of a chunk that the disk has.
func (v *verification) seenOf(c *chunks, i geometry.ChunkIndex) Finding {
	f := Finding{Object: chunked.ObjectName(i)}
	at := c.geo.Offset(i)
	end := min(at+c.geo.ObjectSize(), v.baseSize)
	if at >= end {
		return f
	}
	first, count := touchedBlocks(at, end-at)
	for e := range v.view(uint64(first), uint64(count)) {
		if e.Kind != inBase {
			continue
		}
		f.Blocks += int64(e.Count)
		if len(f.Ranges) < maxRanges {
			f.Ranges = append(f.Ranges, Range{int64(e.First) * layout.BlockSize, int64(e.Count) * layout.BlockSize})
		}
	}
	return f
}

// checkChunk checks one chunk, and returns how many bytes were, 0 of a hole.
func (v *verification) checkChunk(ctx context.Context, vol *chunked.Volume, i geometry.ChunkIndex, info store.ObjectInfo, listed bool) (size int64, err error) {
	size = vol.Geometry().ObjectSize()
	known := vol.Knowledge(i)
	if known == chunked.Unknown { // of a part of the map that is not read yet, too
		hole, err := vol.Probe(ctx, i)
		if err == nil && hole && !vol.Mapped() {
			v.found.Lock()
			v.r.Unmapped = true
			v.found.Unlock()
		}
		if err != nil || hole {
			return 0, err
		}
	}
	if listed && info.Size != size {
		return info.Size, &chunked.SizeError{Chunk: i, Size: info.Size, Want: size}
	}
	n := size
	if v.v.Quick {
		if listed {
			return size, nil
		}
		n = 1 // that it is there
	}
	hole, err := vol.Read(ctx, i, 0, make([]byte, n))
	if hole {
		return 0, err
	}
	return size, err
}

// foreignChunks sorts the objects of version 1 that the container has: as long as
// the root requires it, the disk, or a snapshot of it, may need them.
func (v *verification) foreignChunks(requires bool) {
	if requires {
		return
	}
	for i := range v.chunks {
		v.r.Foreign = append(v.r.Foreign, chunked.ObjectName(i))
	}
	v.r.Foreign = append(v.r.Foreign, v.maps...)
}
