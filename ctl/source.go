// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// source is a disk of either version, for who reads all of it once.
type source interface {
	size() int64 // bytes
	unit() int64 // bytes of a chunk; the last one may reach over the end
	// holes returns, without a request, how many chunks from i on, n at most, are
	// known to read as zeroes. There may be more.
	holes(i, n int64) int64
	// read fills p, of unit bytes, with a chunk, or leaves it alone and returns
	// hole. After an error p must not be used again.
	read(ctx context.Context, i int64, p []byte) (hole bool, err error)

	// moment says which disk this is, and at which moment, as far as it knows.
	moment() moment
	// unchanged says whether the disk is at now as it was at an earlier moment of
	// the same disk. It is an error if that makes all of the image worthless;
	// otherwise each chunk can be compared.
	unchanged(was, now moment) (bool, error)
	// same says whether the disk has p as chunk i; nil is all zeroes. The disk as
	// a whole is unchanged, or not.
	same(ctx context.Context, i int64, p []byte, unchanged bool) (bool, error)
	close()
}

// source opens the disk for reading. held is nil where it could not be locked;
// state is how it was held before.
func (t *tool) source(ctx context.Context, c *container, meta volume.Meta, held *lease.Held, state lease.State, connections int) (source, error) {
	if meta.Version == volume.Version2 {
		d, err := logdisk.Open(ctx, c.logOptions(t, meta, held, state, connections))
		if err != nil {
			return nil, c.explain(ctx, err)
		}
		return logSource{d}, nil
	}
	if err := meta.Need(volume.Version1); err != nil {
		return nil, c.explain(ctx, err)
	}
	// With the lock, a chunk is what the last session left, or damaged.
	v, warning := chunked.Open(ctx, c, meta, held == nil)
	if warning != nil {
		t.log.DebugContext(ctx, "reading without the map of the last session", "container", c.name, "error", warning)
	}
	return chunkSource{v}, nil
}

// logOptions returns how a disk of version 2 is read.
func (c *container) logOptions(t *tool, meta volume.Meta, held *lease.Held, state lease.State, connections int) logdisk.Options {
	epoch, kept := state.Epoch, state.Kept
	if held != nil {
		epoch, kept = held.Epoch(), held.Former()
	}
	return logdisk.Options{
		Store: store.NewLimiter(connections).Store(c), UUID: meta.UUID, Root: meta.Root, Bases: c.bases,
		Durable: logdisk.DurableIn(kept), Newest: uint32(min(epoch, math.MaxUint32)),
		Cache: logdisk.MinCache(), Connections: connections, Timeout: t.pace.work.Timeout,
		Log: t.warner(c.name),
	}
}

// chunkSource is a disk of version 1.
type chunkSource struct{ v *chunked.Volume }

func (s chunkSource) size() int64            { return s.v.Geometry().Size() }
func (s chunkSource) unit() int64            { return s.v.Geometry().ObjectSize() }
func (s chunkSource) holes(i, n int64) int64 { return s.v.Holes(geometry.ChunkIndex(i), n) }
func (s chunkSource) close()                 {}

func (s chunkSource) read(ctx context.Context, i int64, p []byte) (bool, error) {
	return s.v.Read(ctx, geometry.ChunkIndex(i), 0, p)
}

func (s chunkSource) moment() moment {
	return moment{disk: fmt.Sprintf("1/%d/%d", s.size(), s.unit())}
}

func (s chunkSource) unchanged(was, now moment) (bool, error) { return now.since(was), nil }

// same asks Swift about a chunk of which nothing is known only if the disk may have
// changed. If nobody has opened it, it is as it was: what the next session learns
// from the map, too, is true for this reason alone.
func (s chunkSource) same(ctx context.Context, i int64, p []byte, unchanged bool) (bool, error) {
	if unchanged && s.v.Knowledge(geometry.ChunkIndex(i)) == chunked.Unknown {
		return true, nil
	}
	return s.v.Holds(ctx, geometry.ChunkIndex(i), p)
}

// logSource is a disk of version 2.
type logSource struct{ d *logdisk.Disk }

const logUnit = logdisk.ChunkSize

func (s logSource) size() int64 { return s.d.Size() }
func (s logSource) unit() int64 { return logUnit }
func (s logSource) close()      { s.d.Close() }

func (s logSource) holes(i, n int64) int64 {
	const blocks = logUnit / layout.BlockSize
	return holesFrom(i, n, func(first, count int64) bool { return s.d.Hole(first*blocks, count*blocks) })
}

// holesFrom returns how many chunks from i on, n at most, are holes, where hole says it
// of a range. A long hole takes a few steps: each looks at twice as much as the one
// before while that is all holes, and then the end is searched for in halves.
func holesFrom(i, n int64, hole func(first, count int64) bool) (found int64) {
	end := n + 1 // so many are no holes any more
	for step := int64(1); found < n; step *= 2 {
		to := min(found+step, n)
		if !hole(i+found, to-found) {
			end = to
			break
		}
		found = to
	}
	for end-found > 1 {
		middle := found + (end-found)/2
		if hole(i+found, middle-found) {
			found = middle
		} else {
			end = middle
		}
	}
	return found
}

func (s logSource) read(ctx context.Context, i int64, p []byte) (bool, error) {
	return s.d.Fetch(ctx, uint64(i)*(logUnit/layout.BlockSize), p)
}

func (s logSource) moment() moment {
	disk, at := s.d.Moment()
	return moment{disk: fmt.Sprintf("2/%s/%d", disk, s.size()), at: at}
}

func (s logSource) unchanged(was, now moment) (bool, error) {
	if was.at != now.at {
		return false, errors.New("the disk has changed since, or the snapshot is another one")
	}
	return true, nil
}

func (s logSource) same(context.Context, int64, []byte, bool) (bool, error) { return true, nil }
