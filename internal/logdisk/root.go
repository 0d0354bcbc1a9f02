// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
)

// errNoRoot says that neither the container nor a listing has a root.
var errNoRoot = errors.New("the disk has no root: its setup was interrupted, or its objects are gone")

// newestRoot is findEarly, but it waits for a root of the former holder's epoch
// if that has told of one.
func (d *Disk) newestRoot(ctx context.Context) (at layout.Position, early []byte, err error) {
	for end := d.waitUntil(ctx); ; {
		at, early, err = d.findEarly(ctx)
		if err != nil || at.Epoch >= d.o.Durable.Epoch {
			return at, early, err
		}
		if time.Now().After(end) {
			first := layout.Position{Epoch: d.o.Durable.Epoch, N: 1}
			away := &AwayError{Name: layout.RootName(first) + ", or one after it,", By: "its former holder"}
			if d.rewind(away, 0) {
				return at, early, nil
			}
			return at, nil, away
		}
		select {
		case <-time.After(min(time.Second, time.Until(end)+time.Millisecond)):
		case <-ctx.Done():
			return at, nil, context.Cause(ctx)
		}
	}
}

// findRoot returns the position of the newest root. A root is found by the hint,
// by the listing, and by its name: each root's successor has the next number,
// and each epoch's first root the number 1.
func (d *Disk) findRoot(ctx context.Context) (layout.Position, error) {
	listed, _, err := d.listedRoot(ctx)
	if err != nil {
		return listed, err
	}
	return d.rootAfter(ctx, listed)
}

// findEarly is findRoot, and reads the root that the hint and the listing say is the
// newest while it looks for others: most of the time there are none. early is nil if
// there are, or if it could not be read at once.
func (d *Disk) findEarly(ctx context.Context) (at layout.Position, early []byte, err error) {
	listed, size, err := d.listedRoot(ctx)
	if err != nil {
		return listed, nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	if listed.N != 0 {
		g.Go(guarded(func() error {
			name := layout.RootName(listed)
			if size == 0 { // the listing does not have it
				size, _, _ = d.head(gctx, name)
			}
			if size > 0 && size < wholeLimit {
				b := make([]byte, size)
				if _, err := d.store.Get(gctx, name, b, store.GetOptions{}); err == nil {
					early = b
				}
			}
			return nil // what is wrong with it is said when it is read in earnest
		}))
	}
	g.Go(guarded(func() (err error) {
		at, err = d.rootAfter(gctx, listed)
		return err
	}))
	if err = g.Wait(); err != nil || at != listed {
		early = nil
	}
	return at, early, err
}

// listedRoot returns the newest root that the hint and the listing know, and its size
// if the listing has it; zero: none.
func (d *Disk) listedRoot(ctx context.Context) (best layout.Position, size int64, err error) {
	best, _ = layout.ParseRootText(d.o.Root)
	err = d.eachRoot(ctx, func(p layout.Position, bytes int64) {
		if !p.Less(best) {
			best, size = p, bytes
		}
	})
	return best, size, err
}

// eachRoot calls do for each root that is listed, with its size.
func (d *Disk) eachRoot(ctx context.Context, do func(at layout.Position, size int64)) error {
	return d.eachListed(ctx, "the roots", layout.RootPrefix, layout.ParseRootName, do)
}

// eachListed calls do for each object that is listed under the prefix and has a name
// that parse knows, with its size. what they are is for the error.
func (d *Disk) eachListed(ctx context.Context, what, prefix string, parse func(string) (layout.Position, bool), do func(at layout.Position, size int64)) error {
	for page, err := range store.Pages(ctx, d.store, store.ListOptions{Prefix: prefix}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", what, err)
		}
		for _, o := range page {
			if p, ok := parse(o.Name); ok {
				do(p, o.Size)
			}
		}
	}
	return nil
}

// olderRoot returns the newest root before at that is listed; zero: there is none. It
// is the one before, for ten minutes, or the last snapshot's: all that it needs is there.
func (d *Disk) olderRoot(ctx context.Context, at layout.Position) (older layout.Position, err error) {
	err = d.eachRoot(ctx, func(p layout.Position, _ int64) {
		if p.Less(at) && older.Less(p) {
			older = p
		}
	})
	return older, err
}

// rootAfter returns the newest root, which is best or one after it.
func (d *Disk) rootAfter(ctx context.Context, best layout.Position) (layout.Position, error) {
	for {
		if d.o.Epoch != 0 && best.Epoch >= d.o.Epoch {
			return best, fmt.Errorf("object %s is of lease number %d, and ours is %d: somebody has taken the disk over, or has written it with our number",
				layout.RootName(best), best.Epoch, d.o.Epoch)
		}
		var (
			next    = layout.Position{Epoch: best.Epoch, N: best.N + 1}
			later   layout.Position
			hasNext bool
		)
		g, gctx := errgroup.WithContext(ctx)
		g.Go(guarded(func() (err error) {
			_, hasNext, err = d.head(gctx, layout.RootName(next))
			return err
		}))
		g.Go(guarded(func() (err error) {
			later, err = d.laterRoot(gctx, best.Epoch)
			return err
		}))
		if err := g.Wait(); err != nil {
			return best, err
		}
		switch {
		case !later.IsZero():
			best = later
		case hasNext:
			best = next
		case best.N == 0:
			return best, errNoRoot
		default:
			return best, nil
		}
	}
}

// laterRoot looks for the first root of an epoch after epoch, up to ours, which
// has none yet, or to the newest that is known. It returns the last that is there, or zero.
func (d *Disk) laterRoot(ctx context.Context, epoch uint32) (layout.Position, error) {
	end := d.o.Newest
	if d.o.Epoch != 0 {
		end = d.o.Epoch
	}
	if end <= epoch {
		return layout.Position{}, nil
	}
	found := make([]bool, end-epoch)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(d.o.Connections)
	for i := range found {
		g.Go(guarded(func() (err error) {
			_, found[i], err = d.head(ctx, layout.RootName(layout.Position{Epoch: epoch + 1 + uint32(i), N: 1}))
			return err
		}))
	}
	if err := g.Wait(); err != nil {
		return layout.Position{}, err
	}
	for i := len(found) - 1; i >= 0; i-- {
		if found[i] {
			return layout.Position{Epoch: epoch + 1 + uint32(i), N: 1}, nil
		}
	}
	return layout.Position{}, nil
}

// head asks for an object's size; ok is false when Swift says that there is none.
func (d *Disk) head(ctx context.Context, name string) (size int64, ok bool, err error) {
	info, err := d.store.Head(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("look for object %s: %w", name, err)
	}
	return info.Size, true, nil
}

// wholeLimit is how large an object may be, bytes, that is read as a whole. Roots
// and runs are much smaller.
const wholeLimit = 1 << 30

// headKnown asks for the size of an object that was written, as by says. A 404 is
// no proof that it is gone: it is asked for again.
func (d *Disk) headKnown(ctx context.Context, name, by string) (int64, error) {
	for end, pause := d.waitUntil(ctx), 50*time.Millisecond; ; pause = min(2*pause, time.Second) {
		size, ok, err := d.head(ctx, name)
		if err != nil || ok {
			return size, err
		}
		if gone := d.gone(ctx, notFound(name, fmt.Errorf("object %s: %w", name, store.ErrNotFound))); gone != nil {
			return 0, gone
		}
		if time.Now().After(end) {
			return 0, &AwayError{Name: name, By: by}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// readWhole reads a root or a run, which was written, as by says.
func (d *Disk) readWhole(ctx context.Context, name, by string) ([]byte, error) {
	size, err := d.headKnown(ctx, name, by)
	if err != nil {
		return nil, err
	}
	if size > wholeLimit {
		return nil, fmt.Errorf("object %s: %w", name, &layout.DamagedError{What: "root or run", Why: fmt.Sprintf("it has %d bytes", size)})
	}
	b := make([]byte, size)
	return b, d.getKnown(ctx, name, by, 0, b)
}

// readNewest finds the newest root and reads it.
func (d *Disk) readNewest(ctx context.Context) (at layout.Position, root layout.Root, err error) {
	if at, err = d.findRoot(ctx); err == nil {
		root, err = d.readRoot(ctx, at)
	}
	return at, root, err
}

func (d *Disk) readRoot(ctx context.Context, at layout.Position) (layout.Root, error) {
	b, err := d.readWhole(ctx, layout.RootName(at), "the list of the roots, or the container's metadata,")
	if err != nil {
		return layout.Root{}, err
	}
	return d.parseRoot(at, b)
}

// setRoot takes the root that is read, and the disk's size from it. d.mu is held, or
// nobody else has d.
func (d *Disk) setRoot(at layout.Position, root layout.Root) {
	d.root, d.rootAt = root, at
	d.size.Store(root.Size)
}

func (d *Disk) parseRoot(at layout.Position, b []byte) (layout.Root, error) {
	root, err := layout.ParseRoot(b)
	if err == nil {
		err = root.Check(d.o.UUID, at)
	}
	if err != nil {
		return root, fmt.Errorf("object %s: %w", layout.RootName(at), err)
	}
	return root, nil
}
