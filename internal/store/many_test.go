// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// limited is a store whose bulk delete and errors are as a test wants them.
type limited struct {
	store.Store
	bulk  bool
	bulks atomic.Int64
	lists int
	fail  error // of the second page
}

func (l *limited) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	if l.lists++; l.fail != nil && l.lists == 2 {
		return nil, l.fail
	}
	return l.Store.List(ctx, o)
}

func (l *limited) BulkDelete(ctx context.Context, names []string) error {
	l.bulks.Add(1)
	if !l.bulk {
		return errors.ErrUnsupported
	}
	return l.Store.BulkDelete(ctx, names)
}

func full(t *testing.T, n int) (*limited, []string) {
	t.Helper()
	s := &limited{Store: mem.New(), bulk: true}
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("a/%04d", i))
		if err := s.Put(t.Context(), names[i], []byte("x"), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(t.Context(), "b", []byte("x"), ""); err != nil {
		t.Fatal(err)
	}
	return s, names
}

func TestPages(t *testing.T) {
	s, want := full(t, 25)
	read := func(stop int) (names []string, pages int, err error) {
		for page, err := range store.Pages(t.Context(), s, store.ListOptions{Prefix: "a/", Marker: "a/0001", Limit: 10}) {
			if err != nil {
				return names, pages, err
			}
			for _, o := range page {
				names = append(names, o.Name)
			}
			if pages++; pages == stop {
				break
			}
		}
		return names, pages, nil
	}
	if names, pages, err := read(0); err != nil || !slices.Equal(names, want[2:]) || pages != 3 || s.lists != 4 {
		t.Errorf("%d pages by %d requests, %v: %v", pages, s.lists, err, names)
	}
	s.lists = 0
	if names, _, err := read(1); err != nil || !slices.Equal(names, want[2:12]) || s.lists != 1 {
		t.Errorf("the first page by %d requests, %v: %v", s.lists, err, names)
	}
	s.lists, s.fail = 0, errors.New("away")
	if names, _, err := read(0); !errors.Is(err, s.fail) || !slices.Equal(names, want[2:12]) || s.lists != 2 {
		t.Errorf("after an error %d requests, %v: %v", s.lists, err, names)
	}
}

func TestDeleteAll(t *testing.T) {
	for _, bulk := range []bool{true, false} {
		s, names := full(t, 25)
		s.bulk = bulk
		var gone atomic.Int64
		err := store.DeleteAll(t.Context(), s, append([]string{"never/was"}, names...),
			store.DeleteOptions{Batch: 10, Batches: 2, Singly: 3, Done: func(n int) { gone.Add(int64(n)) }})
		left, lerr := s.Store.List(t.Context(), store.ListOptions{})
		if err != nil || lerr != nil || len(left) != 1 || left[0].Name != "b" || gone.Load() != 26 || bulk && s.bulks.Load() != 3 {
			t.Errorf("bulk %v: %v, %v, left %v, %d gone by %d bulk deletes", bulk, err, lerr, left, gone.Load(), s.bulks.Load())
		}
	}
	s, names := full(t, 5)
	s.bulk = false
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.DeleteAll(ctx, s, names, store.DeleteOptions{Batch: 10, Batches: 1, Singly: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
