// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"swiftnbd/internal/logdisk/blockmap"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

const (
	// copyWindow is how many changed extents are put into the order of the log at
	// once: what was written at random lies together there.
	copyWindow = 1 << 19
	// copyBytes is how many bytes of an object one request of a copy reads at
	// most.
	copyBytes = 4 << 20
)

// Copy reads what has changed, with up to so many requests under way, and calls
// put for each range, in any order, from one goroutine: p has its bytes, or is nil
// for a range that reads as zeroes. No range comes twice. p is put's until it
// returns.
func (x *Diff) Copy(ctx context.Context, connections int, put func(off, n int64, p []byte) error) error {
	var window []blockmap.Extent
	err := x.compare(ctx, func(e blockmap.Extent) error {
		if !hasBytes(e.Kind) {
			off, n := x.bytesOf(e)
			return put(off, n, nil)
		}
		if window = append(window, e); len(window) < copyWindow {
			return nil
		}
		err := x.copyWindow(ctx, window, connections, put)
		window = window[:0]
		return err
	})
	if err == nil {
		err = x.copyWindow(ctx, window, connections, put)
	}
	if err != nil {
		return x.d.explainGone(ctx, err, x.From, x.To)
	}
	return nil
}

// copied is what one request of a copy brings.
type copied struct {
	extents []blockmap.Extent
	p       []byte // their blocks, one extent's behind the other's
	done    chan error
}

// copyWindow copies some extents.
func (x *Diff) copyWindow(ctx context.Context, window []blockmap.Extent, connections int, put func(off, n int64, p []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan *copied, connections)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	readers.Go(func() {
		defer close(queue)
		slots := make(chan struct{}, connections)
		for group := range groupsOf(window) {
			c := &copied{extents: group, done: make(chan error, 1)}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			readers.Go(func() {
				defer func() {
					if r := recover(); r != nil {
						c.done <- fmt.Errorf("internal error in the copy: %v", r)
					}
					<-slots
				}()
				c.done <- x.fetchCopy(ctx, c)
			})
			select {
			case queue <- c:
			case <-ctx.Done():
				return
			}
		}
	})
	for c := range queue {
		if err := <-c.done; err != nil {
			return err
		}
		p := c.p
		for i := 0; i < len(c.extents); {
			e := c.extents[i]
			// What follows on the disk, too, is one range.
			for i++; i < len(c.extents) && c.extents[i].First == e.First+e.Count; i++ {
				e.Count += c.extents[i].Count
			}
			off, n := x.bytesOf(e)
			if err := put(off, n, p[:n]); err != nil {
				return err
			}
			p = p[e.Count*layout.BlockSize:]
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// groupsOf puts extents into the order of the log, and yields those that one
// request reads.
func groupsOf(window []blockmap.Extent) func(yield func([]blockmap.Extent) bool) {
	slices.SortFunc(window, func(a, b blockmap.Extent) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Place, b.Place), cmp.Compare(a.First, b.First))
	})
	const most = copyBytes / layout.FrameSize // blocks
	return func(yield func([]blockmap.Extent) bool) {
		for i := 0; i < len(window); {
			e := window[i]
			i++
			for ; e.Kind != layout.Zstd && e.Count > most; e = part(e, e.First+most, e.First+e.Count) {
				if !yield([]blockmap.Extent{part(e, e.First, e.First+most)}) {
					return
				}
			}
			group := []blockmap.Extent{e}
			begin, end := int64(e.Place), placeEnd(e)
			for ; i < len(window) && e.Kind != inBase && window[i].At == e.At; i++ {
				next := max(end, placeEnd(window[i]))
				if int64(window[i].Place)-end > joinGap || next-begin > copyBytes {
					break
				}
				group, end = append(group, window[i]), next
			}
			if !yield(group) {
				return
			}
		}
	}
}

// fetchCopy reads the extents of a group.
func (x *Diff) fetchCopy(ctx context.Context, c *copied) error {
	var blocks uint64
	for _, e := range c.extents {
		blocks += e.Count
	}
	c.p = make([]byte, blocks*layout.BlockSize)
	if e := c.extents[0]; e.Kind == inBase { // alone
		_, err := x.below.to.base.read(ctx, e.First, c.p, x.below.to.size)
		return err
	}
	pause := 50 * time.Millisecond
	for end := time.Now().Add(x.d.o.Timeout); ; {
		wants, p := make([]want, 0, len(c.extents)), c.p
		for _, e := range c.extents {
			n := e.Count * layout.BlockSize
			wants = append(wants, want{Extent: e, p: p[:n]})
			p = p[n:]
		}
		err := x.d.fetch(ctx, wants)
		if err == nil || !errors.Is(err, store.ErrNotFound) || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, time.Second)
	}
}
