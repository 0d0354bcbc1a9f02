// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sync/errgroup"
)

// Pages yields the pages of a listing, one request each, until there is an empty
// one. It ends with the first error.
func Pages(ctx context.Context, s Store, o ListOptions) iter.Seq2[[]ObjectInfo, error] {
	return func(yield func([]ObjectInfo, error) bool) {
		for {
			page, err := s.List(ctx, o)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(page) == 0 || !yield(page, nil) {
				return
			}
			o.Marker = page[len(page)-1].Name
		}
	}
}

// DeleteOptions say how DeleteAll goes about it.
type DeleteOptions struct {
	Batch   int         // names in one bulk delete
	Batches int         // bulk deletes beside each other
	Singly  int         // deletes beside each other, in a store without bulk delete
	All     bool        // one that fails there does not end the others
	Done    func(n int) // is told how many more objects are gone; may be nil
}

// DeleteAll deletes the objects, which need not be there: by bulk delete if the
// store has it, and otherwise one by one.
func DeleteAll(ctx context.Context, s Store, names []string, o DeleteOptions) error {
	done := func(n int) {
		if o.Done != nil {
			o.Done(n)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.Batches)
	for rest := names; len(rest) > 0; {
		n := min(len(rest), o.Batch)
		batch := rest[:n]
		rest = rest[n:]
		g.Go(func() error {
			if err := s.BulkDelete(gctx, batch); err != nil {
				return err
			}
			done(len(batch))
			return nil
		})
	}
	err := g.Wait()
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}

	g, gctx = errgroup.WithContext(ctx)
	if o.All {
		g, gctx = &errgroup.Group{}, ctx
	}
	g.SetLimit(o.Singly)
	for _, name := range names {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := s.Delete(gctx, name)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("delete object %s: %w", name, err)
			}
			done(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
