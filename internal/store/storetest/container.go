// SPDX-License-Identifier: MIT

package storetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/store"
)

// listed reads the whole listing, page by page.
func (f *fixture) listed(t *testing.T, o store.ListOptions) []store.ObjectInfo {
	t.Helper()
	var all []store.ObjectInfo
	for {
		page, err := f.List(t.Context(), o)
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if len(page) == 0 {
			return all
		}
		if o.Limit > 0 && len(page) > o.Limit {
			t.Fatalf("list: %d names, and the limit is %d", len(page), o.Limit)
		}
		if page[0].Name <= o.Marker {
			t.Fatalf("list: %q, and the marker is %q", page[0].Name, o.Marker)
		}
		all = append(all, page...)
		o.Marker = page[len(page)-1].Name
	}
}

// wantListed waits for the listing to have just these names, in their order: a
// listing may be late.
func (f *fixture) wantListed(t *testing.T, o store.ListOptions, names ...string) {
	t.Helper()
	slices.Sort(names)
	var got []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got = got[:0]
		for _, i := range f.listed(t, o) {
			got = append(got, i.Name)
		}
		if slices.Equal(got, names) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("list %+v: %q, want %q", o, got, names)
		}
	}
}

func testListing(t *testing.T, f *fixture) {
	if page, err := f.List(t.Context(), store.ListOptions{}); err != nil || len(page) != 0 {
		t.Errorf("list an empty container: %v, %v", page, err)
	}
	var parts []string
	for i := range 7 {
		parts = append(parts, fmt.Sprintf("disk.part/%08d", i))
		f.put(t, parts[i], Bytes(10+i, uint64(i)))
	}
	others := []string{"disk.pars", "swiftnbd/map", "é", "z", "~"}
	for _, name := range others {
		f.put(t, name, []byte("x"))
	}
	f.wantListed(t, store.ListOptions{}, append(slices.Clone(parts), others...)...)
	f.wantListed(t, store.ListOptions{Limit: 3}, append(slices.Clone(parts), others...)...)
	f.wantListed(t, store.ListOptions{Prefix: "disk.part/"}, parts...)
	f.wantListed(t, store.ListOptions{Prefix: "disk.part/", Limit: 1}, parts...)
	f.wantListed(t, store.ListOptions{Prefix: "disk.part/", Marker: parts[2]}, parts[3:]...)
	f.wantListed(t, store.ListOptions{Prefix: "disk.part/", EndMarker: parts[2]}, parts[:2]...)
	f.wantListed(t, store.ListOptions{Marker: parts[1], EndMarker: parts[5]}, parts[2:5]...)
	f.wantListed(t, store.ListOptions{Prefix: "none"})
	f.wantListed(t, store.ListOptions{Limit: 1 << 20, Prefix: "z"}, "z")
	for i, info := range f.listed(t, store.ListOptions{Prefix: "disk.part/"}) {
		if info.Size != int64(10+i) || info.ETag != Sum(Bytes(10+i, uint64(i))) || time.Since(info.LastModified).Abs() > time.Hour {
			t.Errorf("list: %+v", info)
		}
	}
}

func testBulkDelete(t *testing.T, f *fixture) {
	names := []string{"disk.part/00000000", "disk.part/00000001", "with space", "per%cent", "ünï?#", "new\nline", "a/b"}
	for _, name := range append(names, "stays") {
		f.put(t, name, []byte(name))
	}
	if err := f.BulkDelete(t.Context(), append(slices.Clone(names), "absent")); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		_, err := f.Head(t.Context(), name)
		wantError(t, name, err, store.ErrNotFound)
	}
	f.want(t, "stays", []byte("stays"))
	if err := f.BulkDelete(t.Context(), []string{"absent"}); err != nil {
		t.Errorf("bulk delete of what is not there: %v", err)
	}
	if err := f.BulkDelete(t.Context(), nil); err != nil {
		t.Errorf("bulk delete of nothing: %v", err)
	}
	if err := f.BulkDelete(t.Context(), []string{"stays", ""}); err == nil {
		t.Error("bulk delete of an empty name: no error")
	}
	f.want(t, "stays", []byte("stays"))
	// More names than one request takes.
	names = names[:0]
	for i := range 1050 {
		names = append(names, fmt.Sprintf("many/%05d", i))
	}
	put := []string{names[0], names[998], names[1001], names[1049]}
	for _, name := range put {
		f.put(t, name, nil)
	}
	if err := f.BulkDelete(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	for _, name := range put {
		_, err := f.Head(t.Context(), name)
		wantError(t, name, err, store.ErrNotFound)
	}
}

func (f *fixture) wantItems(t *testing.T, want map[string]string) {
	t.Helper()
	m, err := f.Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(m.Items, want) {
		t.Errorf("metadata %v, want %v", m.Items, want)
	}
}

func testMetadata(t *testing.T, f *fixture) {
	f.wantItems(t, map[string]string{})
	set := func(items map[string]string) {
		t.Helper()
		if err := f.SetMetadata(t.Context(), items); err != nil {
			t.Fatalf("set %v: %v", items, err)
		}
	}
	set(map[string]string{"Swiftnbd-Version": "1", "swiftnbd_object_size": "65536", "A": "x", "B": "y z, ü"})
	f.wantItems(t, map[string]string{"Swiftnbd-Version": "1", "Swiftnbd-Object-Size": "65536", "A": "x", "B": "y z, ü"})
	set(map[string]string{"a": "", "B": "other"}) // merged key by key, an empty value removes
	f.wantItems(t, map[string]string{"Swiftnbd-Version": "1", "Swiftnbd-Object-Size": "65536", "B": "other"})
	set(map[string]string{"Never-There": ""})
	f.wantItems(t, map[string]string{"Swiftnbd-Version": "1", "Swiftnbd-Object-Size": "65536", "B": "other"})

	if created, err := f.CreateContainer(t.Context(), map[string]string{"C": "3", "B": ""}); err != nil || created {
		t.Errorf("create a container that exists: created %v, %v", created, err)
	}
	f.wantItems(t, map[string]string{"Swiftnbd-Version": "1", "Swiftnbd-Object-Size": "65536", "C": "3"})

	// The largest value that is allowed, and one too large.
	long := strings.Repeat("v", store.MaxMetaValue)
	set(map[string]string{"Long": long})
	if err := f.SetMetadata(t.Context(), map[string]string{"Long": long + "v"}); err == nil {
		t.Error("a value that is too long: no error")
	}
	// The sum is too large: no item is taken.
	many := make(map[string]string)
	for i := range 20 {
		many[fmt.Sprintf("Many-%02d", i)] = long
	}
	want := map[string]string{"Swiftnbd-Version": "1", "Swiftnbd-Object-Size": "65536", "C": "3", "Long": long}
	err := f.SetMetadata(t.Context(), many)
	switch {
	case f.differs(AnyMetadata):
		if err != nil {
			t.Errorf("more metadata than Swift allows: %v", err)
		}
		maps.Copy(want, many)
	case err == nil || store.Transient(err):
		t.Errorf("more metadata than is allowed: %v", err)
	}
	f.wantItems(t, want)

	f.put(t, "o", Bytes(1234, 1))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		m, err := f.Metadata(t.Context())
		if err == nil && m.Objects == 1 && m.Bytes == 1234 {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("counts: %+v, %v; want 1 object, 1234 bytes", m, err)
		}
	}
}

func testArguments(t *testing.T, f *fixture) {
	if err := f.SetMetadata(t.Context(), map[string]string{"Keep": "1"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "a\x00b", "\xff\xfe", "..", "a/../../other", strings.Repeat("n", store.MaxObjectName+1)} {
		if err := f.Put(t.Context(), name, []byte("x"), ""); err == nil {
			t.Errorf("put %q: no error", name)
		}
		if err := f.Delete(t.Context(), name); err == nil {
			t.Errorf("delete %q: no error", name)
		}
		if _, err := f.Head(t.Context(), name); err == nil {
			t.Errorf("head %q: no error", name)
		}
		if _, err := f.Get(t.Context(), name, make([]byte, 1), store.GetOptions{}); err == nil {
			t.Errorf("get %q: no error", name)
		}
	}
	if _, err := f.Get(t.Context(), "o", make([]byte, 1), store.GetOptions{Offset: -1}); err == nil {
		t.Error("get at a negative offset: no error")
	}
	if _, err := f.Get(t.Context(), "o", make([]byte, 1), store.GetOptions{Offset: 1, Whole: true}); err == nil {
		t.Error("get the whole at an offset: no error")
	}
	for _, items := range []map[string]string{{"": "x"}, {"a b": "x"}, {"A": "x\r\nX-Evil: 1"}, {"Ü": "x"}, {"A": "\xff"}} {
		if err := f.SetMetadata(t.Context(), items); err == nil || store.Transient(err) {
			t.Errorf("set %q: %v", items, err)
		}
	}
	f.wantItems(t, map[string]string{"Keep": "1"})
	f.wantListed(t, store.ListOptions{})
}

// testNoContainer checks the error of every operation if there is no container.
func testNoContainer(t *testing.T, s store.Store) {
	ctx := t.Context()
	_, err := s.Metadata(ctx)
	wantError(t, "metadata", err, store.ErrContainerNotFound)
	_, err = s.List(ctx, store.ListOptions{})
	wantError(t, "list", err, store.ErrContainerNotFound)
	wantError(t, "put", s.Put(ctx, "o", []byte("x"), ""), store.ErrContainerNotFound)
	wantError(t, "set metadata", s.SetMetadata(ctx, map[string]string{"A": "b"}), store.ErrContainerNotFound)
	wantError(t, "delete container", s.DeleteContainer(ctx), store.ErrContainerNotFound)
	_, err = s.Get(ctx, "o", make([]byte, 1), store.GetOptions{})
	wantError(t, "get", err, store.ErrNotFound)
	_, err = s.Head(ctx, "o")
	wantError(t, "head", err, store.ErrNotFound)
	wantError(t, "delete", s.Delete(ctx, "o"), store.ErrNotFound)
	for _, err := range []error{err, s.Delete(ctx, "o")} {
		if store.Transient(err) || store.Ambiguous(err) {
			t.Errorf("%v: transient or ambiguous", err)
		}
	}
}

// testContainer is a container's life.
func testContainer(t *testing.T, s store.Store) {
	ctx := t.Context()
	f := &fixture{Store: s}
	for range 2 {
		created, err := s.CreateContainer(ctx, map[string]string{"holder": "me"})
		if err != nil || !created {
			t.Fatalf("create: created %v, %v", created, err)
		}
		f.wantItems(t, map[string]string{"Holder": "me"})
		f.put(t, "o", []byte("x"))
		f.wantListed(t, store.ListOptions{}, "o")
		wantError(t, "delete with an object in it", s.DeleteContainer(ctx), store.ErrNotEmpty)
		if err := s.Delete(ctx, "o"); err != nil {
			t.Fatal(err)
		}
		f.wantListed(t, store.ListOptions{})
		if err := s.DeleteContainer(ctx); err != nil {
			t.Fatal(err)
		}
		wantError(t, "delete again", s.DeleteContainer(ctx), store.ErrContainerNotFound)
		_, err = s.Metadata(ctx)
		wantError(t, "metadata", err, store.ErrContainerNotFound)
	}
}

// testOneCreator lets 50 goroutines create one container. Only one of them may
// be told that it created it, since the lease depends on that.
func testOneCreator(t *testing.T, f *fixture) {
	t.Cleanup(func() { f.remove(t) })
	var creators atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			created, err := f.CreateContainer(t.Context(), nil)
			for try := 0; try < 100 && f.differs(BusyCreation) && store.Transient(err) && store.Ambiguous(err); try++ {
				created, err = f.CreateContainer(t.Context(), nil)
			}
			if err != nil {
				t.Errorf("create: %v", err)
			}
			if created {
				creators.Add(1)
			}
		})
	}
	wg.Wait()
	// A goroutine that got 500 may have been the creator.
	if n := creators.Load(); n > 1 || n < 1 && !f.differs(BusyCreation) {
		t.Errorf("%d of 50 were told that they created the container", n)
	}
}
