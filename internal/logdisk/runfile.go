// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// runFile is a run of blocks in Swift whose index is in memory.
type runFile struct {
	at    layout.Position // its name
	size  int64
	index *layout.RunIndex
	end   uint64 // the block after its last; 0: it has none
	whole []byte // the run, while the disk is opened and if it is small
}

// bytes is the memory that it takes.
func (r *runFile) bytes() int64 { return 128 + int64(len(r.index.Pages))*24 }

// runsOf returns the names of the runs that a root names.
func runsOf(root layout.Root) map[layout.Position]bool {
	named := make(map[layout.Position]bool, len(root.Runs.Blocks)+len(root.Runs.Objects))
	for _, at := range slices.Concat(root.Runs.Blocks, root.Runs.Objects) {
		named[at] = true
	}
	return named
}

// parseRun takes the bytes that Swift has under a run's name.
func parseRun(name layout.Position, b []byte, u layout.UUID) (*layout.Run, error) {
	run, err := layout.ParseRun(b, u)
	if err == nil {
		err = run.Check(name)
	}
	return run, err
}

// newRunFile takes a run that was written just now.
func newRunFile(at layout.Position, b []byte, end uint64, u layout.UUID) (*runFile, error) {
	run, err := layout.ParseRun(b, u)
	if err != nil {
		return nil, err
	}
	x := run.RunIndex
	return &runFile{at: at, size: int64(len(b)), index: &x, end: end}, nil
}

// openRuns reads the indexes of a root's runs of blocks.
func (d *Disk) openRuns(ctx context.Context, names []layout.Position) ([]*runFile, error) {
	runs := make([]*runFile, len(names))
	var sizes map[string]int64
	if len(names) > d.o.Connections {
		var err error
		if sizes, err = d.sizes(ctx, layout.RunPrefix); err != nil {
			return nil, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(d.o.Connections)
	for i, at := range names {
		if runs[i] = d.o.near.run(at); runs[i] != nil {
			continue
		}
		g.Go(guarded(func() (err error) {
			runs[i], err = d.openRun(gctx, at, sizes[layout.RunName(at)])
			return err
		}))
	}
	return runs, g.Wait()
}

// run returns a run of the newest root that is known, if d has it. d may be nil.
func (d *Disk) run(at layout.Position) *runFile {
	if d == nil {
		return nil
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, r := range d.tree {
		if r.at == at {
			same := *r
			return &same
		}
	}
	return nil
}

// openRun reads a run's index, and its last page, which says where the run ends.
// A size of 0 is not known.
func (d *Disk) openRun(ctx context.Context, at layout.Position, size int64) (r *runFile, err error) {
	name := layout.RunName(at)
	if size == 0 {
		if size, err = d.headKnown(ctx, name, "the root"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = inObject(name, err)
		}
	}()
	if size > wholeLimit {
		return nil, &layout.DamagedError{What: "root or run", Why: fmt.Sprintf("it has %d bytes", size)}
	}
	r = &runFile{at: at, size: size}
	for n := min(size, 2*layout.MaxPage); ; {
		tail := make([]byte, n)
		if err := d.getKnown(ctx, name, "the root", size-n, tail); err != nil {
			return nil, err
		}
		x, need, err := layout.ParseRunIndex(tail, size, d.o.UUID)
		if err != nil {
			return nil, err
		}
		if need > 0 {
			n = min(size, need+layout.MaxPage)
			continue
		}
		if err := x.Check(at); err != nil {
			return nil, err
		}
		r.index = x
		if n == size {
			r.whole = tail
		}
		last := len(x.Pages) - 1
		if last < 0 {
			if x.Kind != layout.RunBlocks {
				return nil, &layout.DamagedError{What: "run", Why: "it is " + x.Kind.String() + ", expected " + layout.RunBlocks.String()}
			}
			return r, nil
		}
		p := x.Pages[last]
		if p.Place < size-n { // the index is long
			n = min(size, n+layout.MaxPage)
			continue
		}
		for e, err := range r.entries(last, tail[p.Place-(size-n):][:p.Bytes]) {
			if err != nil {
				return nil, err
			}
			r.end = e.End()
		}
		return r, nil
	}
}

// inObject adds the object's name to an error that lacks it.
func inObject(name string, err error) error {
	if errors.As(err, new(*layout.DamagedError)) || errors.As(err, new(*layout.UnsupportedError)) {
		return fmt.Errorf("object %s: %w", name, err)
	}
	return err
}

// entries yields the entries of a page, as far as we know their kinds.
func (r *runFile) entries(page int, b []byte) iter.Seq2[layout.Entry, error] {
	return func(yield func(layout.Entry, error) bool) {
		for e, err := range r.index.Page(page, b) {
			if err == nil {
				err = served(e)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// served says whether we know what to do with an entry.
func served(e layout.Entry) error {
	if e.Remove || e.Base != 0 || e.Kind == layout.Encrypted {
		return &layout.UnsupportedError{What: "run", Why: fmt.Sprintf("block %d: kind %v, base %d", e.First, e.Kind, e.Base)}
	}
	return nil
}

// pages returns which pages can have entries of the blocks [first, end): from i
// to before j.
func (r *runFile) pages(first, end uint64) (i, j int) {
	p := r.index.Pages
	if first >= r.end || first >= end {
		return 0, 0
	}
	i = max(0, r.index.Find(first))
	j = i + sort.Search(len(p)-i, func(k int) bool { return p[i+k].First >= end })
	return i, j
}

// errMoved says that a run is not the newest root's any more.
var errMoved = errors.New("the map was written anew meanwhile")

// readPages reads the pages from i to before j.
func (d *Disk) readPages(ctx context.Context, r *runFile, i, j int) ([]byte, error) {
	from := r.index.Pages[i].Place
	last := r.index.Pages[j-1]
	n := last.Place + int64(last.Bytes) - from
	if r.whole != nil {
		return r.whole[from:][:n], nil
	}
	p := make([]byte, n)
	name := layout.RunName(r.at)
	d.stats.MapGets.Add(1)
	d.stats.MapBytes.Add(n)
	pause := 50 * time.Millisecond
	for o, end := (store.GetOptions{Offset: from}), d.waitUntil(ctx); ; o.Newest = true {
		_, err := d.store.Get(ctx, name, p, o)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("read object %s: %w", name, err)
		}
		if !d.names(r) {
			return nil, errMoved
		}
		if e := d.gone(ctx, fmt.Errorf("read object %s: %w", name, err)); e != nil {
			return nil, e
		}
		if time.Now().After(end) {
			return nil, &AwayError{Name: name, By: "the root"}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		pause = min(2*pause, time.Second)
	}
}

// names says whether the newest root names the run.
func (d *Disk) names(r *runFile) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, f := range d.tree {
		if f == r {
			return true
		}
	}
	return false
}

// pagesAtOnce is how many pages of a run one request reads.
const pagesAtOnce = 8

// runEntries yields the entries of a run from the block on, in order. It reads
// some pages ahead.
func (d *Disk) runEntries(ctx context.Context, r *runFile) iter.Seq2[layout.Entry, error] {
	return func(yield func(layout.Entry, error) bool) {
		type chunk struct {
			i, j int
			b    []byte
			err  error
		}
		ctx, stop := context.WithCancel(ctx)
		n := len(r.index.Pages)
		ahead := make(chan chunk, 1)
		defer func() { // whoever stops early has no request under way after it
			stop()
			for range ahead {
			}
		}()
		go func() {
			defer close(ahead)
			defer d.recoverPanic()
			for i := 0; i < n; i += pagesAtOnce {
				c := chunk{i: i, j: min(n, i+pagesAtOnce)}
				c.b, c.err = d.readPages(ctx, r, c.i, c.j)
				select {
				case ahead <- c:
				case <-ctx.Done():
					return
				}
				if c.err != nil {
					return
				}
			}
		}()
		done := 0
		for c := range ahead {
			if c.err != nil {
				yield(layout.Entry{}, c.err)
				return
			}
			for i := c.i; i < c.j; i++ {
				p := r.index.Pages[i]
				for e, err := range r.entries(i, c.b[p.Place-r.index.Pages[c.i].Place:][:p.Bytes]) {
					if err != nil {
						err = inObject(layout.RunName(r.at), err)
					}
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
			done = c.j
		}
		if done < n {
			err := context.Cause(ctx)
			if err == nil {
				err = ErrClosed
			}
			yield(layout.Entry{}, err)
		}
	}
}
