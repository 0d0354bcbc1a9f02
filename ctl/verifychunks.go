// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// verifyChunks checks a disk of version 1: the objects that the listing names or
// that the map of the last session has, each by its size and its checksum. With
// quick it looks at the sizes in the listing only.
func (t *tool) verifyChunks(ctx context.Context, c *container, meta volume.Meta, v verifying) (*verified, error) {
	s := store.NewLimiter(v.connections).Store(c)
	vol, warning := chunked.Open(ctx, s, meta, false)
	if warning != nil {
		t.warn("%s: the map of the last session cannot be used: %v", c.name, oneLine{warning})
	}
	g := meta.Geometry
	out := &verified{Container: c.name, Version: meta.Version, Size: g.Size(), Quick: v.quick, Damage: []damageFound{}, Foreign: []string{}, Judged: true,
		LostKnown: vol.Mapped() || meta.Blank}
	listed := make(map[geometry.ChunkIndex]int64) // and sizes
	for page, err := range store.Pages(ctx, s, store.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		for _, o := range page {
			switch i, ok := chunked.ParseObjectName(o.Name); {
			case ok && int64(i) < g.Objects():
				listed[i] = o.Size
			case !strings.HasPrefix(o.Name, volume.ExtraPrefix):
				out.Foreign = append(out.Foreign, o.Name)
			}
		}
	}
	if _, _, err := vol.Count(ctx); err != nil { // loads all of the map
		return nil, err
	}
	var check []geometry.ChunkIndex
	for i := range listed {
		check = append(check, i)
	}
	for i := geometry.ChunkIndex(0); vol.Mapped() && int64(i) < g.Objects(); i++ {
		i += geometry.ChunkIndex(vol.Holes(i, g.Objects()-int64(i)))
		if _, ok := listed[i]; !ok && int64(i) < g.Objects() && vol.Knowledge(i) == chunked.Known {
			check = append(check, i)
		}
	}
	var mu sync.Mutex // guards out
	bad := func(i geometry.ChunkIndex, lost bool, why string) {
		mu.Lock()
		defer mu.Unlock()
		out.Damage = append(out.Damage, damageFound{Object: chunked.ObjectName(i), Lost: lost, Why: why, Bytes: g.ObjectSize(),
			Ranges: []rangeFound{{int64(i) * g.ObjectSize(), g.ObjectSize()}}})
	}
	total := int64(len(check))
	if !v.quick {
		total *= g.ObjectSize()
	}
	bar := t.newProgress("Verifying "+c.name, max(total, 1), !v.quick, v.quiet)
	defer func() { bar.end(false) }()
	free := sync.Pool{New: func() any { return make([]byte, g.ObjectSize()) }}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(int(min(int64(v.connections), max(2, downloadMemory/g.ObjectSize()))))
	for _, i := range check {
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error {
			size, is := listed[i]
			known := vol.Knowledge(i)
			switch {
			case is && size != g.ObjectSize():
				// The listing has the size of a symlink or a manifest, not of what
				// it stands for.
				why := (&chunked.SizeError{Chunk: i, Size: size, Want: g.ObjectSize()}).Error()
				if info, err := s.Head(gctx, chunked.ObjectName(i)); err == nil && info.Elsewhere != "" {
					why = (&chunked.ForeignError{Chunk: i, Is: info.Elsewhere}).Error()
				} else if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				bad(i, false, why)
			case known == chunked.Hole || !is:
				// The map and the listing differ. The listing may be late.
				info, err := s.Head(gctx, chunked.ObjectName(i))
				switch {
				case errors.Is(err, store.ErrNotFound) && known == chunked.Known:
					bad(i, true, "it is not there, and the map of the last session has it")
				case err != nil:
				case known == chunked.Hole:
					bad(i, false, "it is there, and the map of the last session has a hole in its place")
				case info.Size != g.ObjectSize():
					bad(i, false, (&chunked.SizeError{Chunk: i, Size: info.Size, Want: g.ObjectSize()}).Error())
				default:
					size = info.Size
					if !v.quick {
						err = verifyChunk(gctx, vol, i, &free, bad)
					}
				}
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
			case !v.quick:
				if err := verifyChunk(gctx, vol, i, &free, bad); err != nil {
					return err
				}
			}
			mu.Lock()
			out.Objects++
			out.Bytes += size
			mu.Unlock()
			if v.quick {
				bar.add(1)
			} else {
				bar.add(g.ObjectSize())
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	bar.end(true)
	slices.SortFunc(out.Damage, func(a, b damageFound) int { return strings.Compare(a.Object, b.Object) })
	out.judge()
	return out, nil
}

// verifyChunk reads the whole chunk, which compares it with its checksum and
// with what the map has.
func verifyChunk(ctx context.Context, vol *chunked.Volume, i geometry.ChunkIndex, free *sync.Pool, bad func(i geometry.ChunkIndex, lost bool, why string)) error {
	p := free.Get().([]byte)
	_, err := vol.Read(ctx, i, 0, p)
	var (
		changed *chunked.ChangedError
		size    *chunked.SizeError
		foreign *chunked.ForeignError
	)
	switch {
	case err == nil:
		//lint:ignore SA6002 a slice's header is small beside a chunk
		free.Put(p)
		return nil
	case errors.As(err, &changed):
		bad(i, false, changed.Error())
	case errors.As(err, &size):
		bad(i, false, size.Error())
	case errors.As(err, &foreign):
		bad(i, false, foreign.Error())
	default:
		return fmt.Errorf("check chunk %d: %w", i, err)
	}
	return nil
}
