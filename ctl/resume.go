// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/nbd"
	"swiftnbd/internal/words"
)

// otherMomentError says that FILE.partial is no part of the image that is asked
// for.
type otherMomentError struct{ path, why string }

const notAsRecorded = "is not what its record says, or is damaged"

func (e *otherMomentError) Error() string {
	return fmt.Sprintf("%s %s: without --resume it is dropped, and the download begins anew", e.path, e.why)
}

// goOn makes FILE.partial what an earlier download had complete, as the disk has it
// now. What has changed since is fetched again, if it can be told; otherwise it is
// an *otherMomentError, and nothing is changed.
func (t *tool) goOn(ctx context.Context, c *container, src source, im *image, o downloading) error {
	was := im.was
	switch {
	case was.moment.disk != im.now.moment.disk || was.unit != im.now.unit:
		return &otherMomentError{im.temp, "is of another disk, or of one that had another size"}
	case was.at > src.size():
		return &otherMomentError{im.temp, "has more than the disk"}
	}
	same, err := src.unchanged(was.moment, im.now.moment)
	if err != nil {
		return &otherMomentError{im.temp, fmt.Sprintf("is of the disk at another moment (%v)", err)}
	}
	bar := t.newProgress("Comparing "+c.name, was.at, true, o.quiet)
	defer func() { bar.end(false) }()
	d, changed, err := im.compare(ctx, src, same && was.sum != noSum, o.connections, bar)
	switch {
	case err != nil:
		return c.explain(ctx, err)
	case was.sum != noSum && d.sum() != was.sum:
		return &otherMomentError{im.temp, notAsRecorded}
	}
	bar.end(true)
	im.begun, im.noted = true, was.at
	if len(changed) > 0 {
		t.say("%s has changed since: %s fetched again", c.name, words.Count(int64(len(changed)), "chunk"))
		// From here on it is of no one moment. If this is cut off, each chunk is to
		// be compared with the disk's, whoever has opened that or not.
		r := im.now
		r.at, r.sum, r.moment.at, r.moment.mark = was.at, noSum, "", ""
		if err := im.note(r); err != nil {
			return err
		}
		if err := im.again(ctx, src, changed, o.connections); err != nil {
			return c.explain(ctx, err)
		}
		if d, _, err = im.compare(ctx, nil, true, 1, &progress{}); err != nil {
			return c.explain(ctx, err)
		}
	}
	im.digest, im.resumed = d, was.at
	if err := im.cut(ctx, was.at, src.size()); err != nil {
		return err
	}
	im.at, im.last = was.at, time.Now()
	r := im.now
	r.at, r.sum = was.at, d.sum()
	return im.note(r)
}

// reader opens FILE.partial for reading.
func (im *image) reader(ctx context.Context) (input, error) {
	if im.format != "" {
		// What its writer has left that died is whole as far as the record says.
		return newQemuInput(ctx, im.format, im.temp, false, false)
	}
	return openInput(ctx, im.temp, formatRaw, nil)
}

// compare reads what is complete of FILE.partial. It returns its digest, and the
// chunks that src has otherwise; with a src of nil there are none. same is
// source.same's.
func (im *image) compare(ctx context.Context, src source, same bool, connections int, bar *progress) (d digest, changed []int64, err error) {
	in, err := im.reader(ctx)
	if err != nil {
		return d, nil, err
	}
	defer in.close()
	d = newDigest()
	unit := im.was.unit
	free := make(chan []byte, max(2, min(int64(connections)+1, downloadMemory/unit)))
	for range cap(free) {
		free <- nil
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(connections)
	check := func(i int64, p []byte) error {
		if src == nil {
			return nil
		}
		ok, err := src.same(gctx, i, p, same)
		if err == nil && !ok {
			mu.Lock()
			changed = append(changed, i)
			mu.Unlock()
		}
		return err
	}
	for at := int64(0); at < im.was.at; {
		if gctx.Err() != nil {
			break
		}
		p := <-free
		if p == nil {
			p = make([]byte, unit)
		}
		n, hole, err := in.next(p, im.was.at-at)
		if errors.Is(err, io.EOF) {
			_ = g.Wait()
			return d, nil, &otherMomentError{im.temp, notAsRecorded}
		}
		if err != nil {
			_ = g.Wait()
			return d, nil, err
		}
		first, begin := at/unit, at
		at += n
		bar.add(n)
		if hole || zero(p[:n]) {
			free <- p
			g.Go(func() error {
				for i := first; i*unit < begin+n; i++ {
					if err := check(i, nil); err != nil {
						return err
					}
				}
				return nil
			})
			continue
		}
		d.add(begin, p[:n])
		g.Go(func() error {
			defer func() { free <- p }()
			return check(first, p[:n])
		})
	}
	err = g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	slices.Sort(changed)
	return d, changed, err
}

// again fetches chunks again, and writes them to their places.
func (im *image) again(ctx context.Context, src source, chunks []int64, connections int) error {
	var mu sync.Mutex // only one may write
	free := make(chan []byte, connections)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(int(max(1, min(int64(connections), downloadMemory/src.unit()))))
	for _, i := range chunks {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			f := fetch(ctx, src, i, free)
			if f.err != nil {
				return f.err
			}
			off := i * src.unit()
			n := min(src.unit(), im.was.at-off)
			p := f.data
			if p == nil {
				p = make([]byte, n)
			}
			mu.Lock()
			defer mu.Unlock()
			if f.data != nil {
				im.fetched += n
				defer func() { free <- p[:cap(p)] }()
			}
			_, err := im.writeAt(p[:n], off)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return im.settled()
}

// cut makes everything behind at a hole, in an image of size bytes.
func (im *image) cut(ctx context.Context, at, size int64) error {
	if im.format == "" {
		if err := im.file.Truncate(at); err != nil {
			return err
		}
		return im.file.Truncate(size)
	}
	in, err := im.reader(ctx)
	if err != nil {
		return err
	}
	var found [][2]int64
	for r := in.(*rawInput); at < size; {
		from, to := r.find(at)
		if from < to {
			found = append(found, [2]int64{from, to})
		}
		at = max(to, at+1)
	}
	if err := in.close(); err != nil {
		return err
	}
	for _, part := range found {
		for from := part[0]; from < part[1]; {
			n := min(part[1]-from, 1<<30)
			if err := im.serve(); err != nil {
				return err
			}
			if err := im.server.do(nbd.Request{Command: nbd.Zero, Offset: uint64(from), Length: uint32(n)}, nil, nil); err != nil {
				return err
			}
			from += n
		}
	}
	return nil
}
