// SPDX-License-Identifier: MIT

package faulty

import (
	"context"
	"errors"
	"slices"
	"strings"

	"swiftnbd/internal/store"
)

// pastOf returns the object's past, which begins with what the inner store has
// now. writing is held when it returns.
func (f *Store) pastOf(ctx context.Context, name string) (*past, error) {
	f.mu.Lock()
	p, ok := f.past[name]
	if !ok {
		p = new(past)
		f.past[name] = p
	}
	f.mu.Unlock()
	p.writing.Lock()
	if len(p.versions) > 0 {
		return p, nil
	}
	first, err := f.read(ctx, name)
	if err != nil {
		p.writing.Unlock()
		return nil, err
	}
	f.mu.Lock()
	p.versions = append(p.versions, first)
	f.mu.Unlock()
	return p, nil
}

// read returns the object as it is in the inner store.
func (f *Store) read(ctx context.Context, name string) (version, error) {
	info, err := f.inner.Head(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return version{}, nil
	}
	if err != nil {
		return version{}, err
	}
	v := version{exists: true, info: info, data: make([]byte, info.Size)}
	_, err = f.inner.Get(ctx, name, v.data, store.GetOptions{IfMatch: info.ETag})
	return v, err
}

// write does a write and remembers the new state of the object: absent, or
// data.
func (f *Store) write(ctx context.Context, name string, exists bool, data []byte, do func() error) error {
	if f.past == nil || store.CheckObjectName(name) != nil {
		return do()
	}
	p, err := f.pastOf(ctx, name)
	if err != nil {
		return err
	}
	defer p.writing.Unlock()
	if err := do(); err != nil {
		return err
	}
	v := version{exists: exists}
	if exists {
		v.data = slices.Clone(data)
		if v.info, err = f.inner.Head(ctx, name); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.versions = append(p.versions, v)
	if len(p.versions) > 1+kept {
		p.versions = slices.Delete(p.versions, 1, 2) // the first is for List
	}
	return nil
}

// version returns the object as it was back versions ago, or its first state if
// there are fewer. It returns false if the object was not written through the
// decorator.
func (f *Store) version(name string, back int) (version, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.past[name]
	if p == nil || len(p.versions) == 0 {
		return version{}, false
	}
	return p.versions[max(0, len(p.versions)-1-back)], true
}

// BulkDelete implements store.Store: one fault for all the names.
func (f *Store) BulkDelete(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := store.CheckObjectName(name); err != nil {
			return err
		}
	}
	return f.around(ctx, store.Op{Kind: store.OpBulkDelete}, nil, func(Fault) error {
		for _, name := range names {
			err := f.write(ctx, name, false, nil, func() error { return f.inner.Delete(ctx, name) })
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		return nil
	})
}

// List implements store.Store.
func (f *Store) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	var page []store.ObjectInfo
	err := f.around(ctx, store.Op{Kind: store.OpList}, nil, func(fault Fault) error {
		if fault.Stale == 0 {
			var err error
			page, err = f.inner.List(ctx, o)
			return err
		}
		all, err := f.listAll(ctx, o)
		if err != nil {
			return err
		}
		page = f.asItWas(all, o)
		return nil
	})
	return page, err
}

// listAll returns what o selects, without its limit.
func (f *Store) listAll(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	var all []store.ObjectInfo
	o.Limit = 0
	for {
		page, err := f.inner.List(ctx, o)
		if err != nil || len(page) == 0 {
			return all, err
		}
		all = append(all, page...)
		o.Marker = page[len(page)-1].Name
	}
}

// asItWas returns the listing without what has been written since.
func (f *Store) asItWas(all []store.ObjectInfo, o store.ListOptions) []store.ObjectInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	all = slices.DeleteFunc(all, func(i store.ObjectInfo) bool {
		p := f.past[i.Name]
		return p != nil && len(p.versions) > 0
	})
	for name, p := range f.past {
		if len(p.versions) > 0 && p.versions[0].exists && strings.HasPrefix(name, o.Prefix) &&
			name > o.Marker && (o.EndMarker == "" || name < o.EndMarker) {
			all = append(all, p.versions[0].info)
		}
	}
	slices.SortFunc(all, func(a, b store.ObjectInfo) int { return strings.Compare(a.Name, b.Name) })
	if limit := o.Limit; limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all
}
