// SPDX-License-Identifier: MIT

// Package storetest holds every store.Store to the same behaviour. Its one suite
// runs on the store in memory, on the embedded Swift and on the real Swift. A
// stand-in that differs from the real thing fails.
package storetest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/store"
)

// Difference is a known difference of a store from Swift. The suite then
// expects it.
type Difference string

const (
	// AnyMetadata is a store that takes more metadata than Swift does.
	AnyMetadata Difference = "there is no limit to a container's metadata"
	// BusyCreation is a store that answers 500 to some of the clients that
	// create one container at the same time. One of them may have created it.
	BusyCreation Difference = "creating a container that others create may fail for a while"
)

// Run checks that stores keep the interface's promises. newStore returns a
// container that does not exist, under a name of its own (Name). The suite
// creates and removes it.
func Run(t *testing.T, newStore func(t *testing.T) store.Store, differences ...Difference) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"round trip", testRoundTrip},
		{"ranges", testRanges},
		{"conditions", testConditions},
		{"names", testNames},
		{"overwrite", testOverwrite},
		{"wrong ETag", testWrongETag},
		{"delete", testDelete},
		{"listing", testListing},
		{"bulk delete", testBulkDelete},
		{"metadata", testMetadata},
		{"bad arguments", testArguments},
		{"cancelled", testCancelled},
		{"many at once", testManyAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{Store: newStore(t), differences: differences}
			created, err := f.CreateContainer(t.Context(), nil)
			if err != nil || !created {
				t.Fatalf("create container: created %v, %v", created, err)
			}
			t.Cleanup(func() { f.remove(t) })
			c.test(t, f)
		})
	}
	t.Run("no container", func(t *testing.T) { testNoContainer(t, newStore(t)) })
	t.Run("container", func(t *testing.T) { testContainer(t, newStore(t)) })
	t.Run("one creator", func(t *testing.T) { testOneCreator(t, &fixture{Store: newStore(t), differences: differences}) })
}

// Name returns a container name that no other test uses.
func Name(t testing.TB) string {
	var b [6]byte
	rand.Read(b[:])
	return "storetest-" + hex.EncodeToString(b[:])
}

// fixture is a store whose container exists.
type fixture struct {
	store.Store
	differences []Difference
}

func (f *fixture) differs(d Difference) bool { return slices.Contains(f.differences, d) }

// remove deletes the container and everything in it. A listing may be late, so
// remove tries until the container is gone.
func (f *fixture) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		page, err := f.List(ctx, store.ListOptions{})
		if err != nil {
			t.Errorf("clean up: %v", err)
			return
		}
		for _, o := range page {
			if err := f.Delete(ctx, o.Name); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("clean up: %v", err)
				return
			}
		}
		err = f.DeleteContainer(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, store.ErrNotEmpty) {
			t.Errorf("clean up: %v", err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// put stores data and fails the test if that fails.
func (f *fixture) put(t *testing.T, name string, data []byte) store.ETag {
	t.Helper()
	tag := Sum(data)
	if err := f.Put(t.Context(), name, data, tag); err != nil {
		t.Fatalf("put %q: %v", name, err)
	}
	return tag
}

// want reads the whole object and compares.
func (f *fixture) want(t *testing.T, name string, data []byte) {
	t.Helper()
	p := make([]byte, len(data))
	info, err := f.Get(t.Context(), name, p, store.GetOptions{Newest: true, Whole: true})
	if err != nil {
		t.Fatalf("get %q: %v", name, err)
	}
	if !bytes.Equal(p, data) {
		t.Fatalf("get %q: other bytes than were put", name)
	}
	if info.Name != name || info.Size != int64(len(data)) || info.ETag != Sum(data) || info.Checksum != store.ChecksumOf(data) {
		t.Fatalf("get %q: %+v, want size %d, ETag %s and checksum %s", name, info, len(data), Sum(data), store.ChecksumOf(data))
	}
	age := time.Since(info.LastModified)
	if age < -time.Minute || age > time.Hour {
		t.Errorf("get %q: last modified %v ago", name, age)
	}
}

// Sum returns data's ETag.
func Sum(data []byte) store.ETag {
	sum := md5.Sum(data)
	return store.ETag(hex.EncodeToString(sum[:]))
}

// Bytes returns n bytes that depend on seed.
func Bytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	c := mathrand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = c.Read(b)
	return b
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("%s: the error has more than one line: %q", what, err)
	}
}

func testRoundTrip(t *testing.T, f *fixture) {
	for i, n := range []int{0, 1, 511, 65536, 1<<20 + 1, 4 << 20} {
		name := fmt.Sprintf("disk.part/%08d", i)
		data := Bytes(n, uint64(i))
		f.put(t, name, data)
		f.want(t, name, data)
		info, err := f.Head(t.Context(), name)
		if err != nil || info.Size != int64(n) || info.ETag != Sum(data) || info.Name != name ||
			info.Checksum != store.ChecksumOf(data) {
			t.Errorf("head %s: %+v, %v", name, info, err)
		}
	}
	// The store keeps a copy.
	data := Bytes(1000, 99)
	before := bytes.Clone(data)
	f.put(t, "copy", data)
	clear(data)
	f.want(t, "copy", before)
}

func testRanges(t *testing.T, f *fixture) {
	data := Bytes(100_003, 7)
	tag := f.put(t, "o", data)
	size := int64(len(data))
	for _, r := range []struct{ off, n int64 }{
		{0, size}, {0, 1}, {0, size - 1}, {1, size - 1}, {size - 1, 1}, {4096, 65536}, {99_999, 4}, {5, 0}, {0, 0}, {size, 0},
	} {
		for _, o := range []store.GetOptions{{}, {IfMatch: tag}, {Newest: true}} {
			o.Offset = r.off
			p := make([]byte, r.n)
			told := -1
			o.Arrived = func(n int) {
				if n < told || told < 0 && n != 0 || n > len(p) || !bytes.Equal(p[:n], data[r.off:][:n]) {
					t.Errorf("get at %d, %d bytes: %d are said to have arrived, after %d", r.off, r.n, n, told)
				}
				told = n
			}
			info, err := f.Get(t.Context(), "o", p, o)
			o.Arrived = nil
			if err != nil {
				t.Errorf("get %+v, %d bytes: %v", o, r.n, err)
				continue
			}
			if int64(told) != r.n {
				t.Errorf("get %+v, %d bytes: %d have arrived", o, r.n, told)
			}
			if !bytes.Equal(p, data[r.off:r.off+r.n]) {
				t.Errorf("get %+v, %d bytes: wrong bytes", o, r.n)
			}
			if info.Size != size || info.ETag != tag || info.Checksum != store.ChecksumOf(data) {
				t.Errorf("get %+v, %d bytes: %+v, want the whole object's size, ETag and checksum", o, r.n, info)
			}
		}
	}
	for _, r := range []struct{ off, n int64 }{{0, size + 1}, {size, 1}, {size - 1, 2}, {size + 10, 1}, {1 << 40, 5}, {size + 1, 0}} {
		_, err := f.Get(t.Context(), "o", make([]byte, r.n), store.GetOptions{Offset: r.off})
		wantError(t, fmt.Sprintf("get %d bytes at %d of %d", r.n, r.off, size), err, io.ErrUnexpectedEOF)
		if store.Transient(err) {
			t.Errorf("get behind the end: %v is transient, and the object will not grow", err)
		}
	}
	// Whole is about the request and not about the result.
	p := make([]byte, 10)
	if info, err := f.Get(t.Context(), "o", p, store.GetOptions{Whole: true}); err != nil || !bytes.Equal(p, data[:10]) || info.Size != size {
		t.Errorf("get the beginning without a range: %+v, %v", info, err)
	}
	_, err := f.Get(t.Context(), "o", make([]byte, size+1), store.GetOptions{Whole: true})
	wantError(t, "get too much without a range", err, io.ErrUnexpectedEOF)
	f.want(t, "o", data) // the connection is still good
}

func testConditions(t *testing.T, f *fixture) {
	first := Bytes(1000, 1)
	old := f.put(t, "o", first)
	p := make([]byte, 1000)
	if _, err := f.Get(t.Context(), "o", p, store.GetOptions{IfMatch: old}); err != nil || !bytes.Equal(p, first) {
		t.Errorf("get with the right ETag: %v", err)
	}
	f.put(t, "o", Bytes(1000, 2))
	for _, o := range []store.GetOptions{
		{IfMatch: old}, {IfMatch: old, Whole: true}, {IfMatch: old, Newest: true}, {IfMatch: old, Offset: 10},
	} {
		_, err := f.Get(t.Context(), "o", p[:900], o)
		wantError(t, fmt.Sprintf("get with an old ETag, %+v", o), err, store.ErrPrecondition)
	}
	_, err := f.Get(t.Context(), "o", nil, store.GetOptions{IfMatch: old})
	wantError(t, "get nothing with an old ETag", err, store.ErrPrecondition)
	_, err = f.Get(t.Context(), "absent", p, store.GetOptions{IfMatch: old})
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrPrecondition) {
		t.Errorf("get an absent object with an ETag: %v", err)
	}
}

func testNames(t *testing.T, f *fixture) {
	names := []string{
		"plain", "with space", "per%cent", "%41", "qu?estion", "ha#sh", "a&b=c+d;e,f:g@h!$'()*", "ünï/cödé/日本語", "a//b", "/first", "last/",
		`quo"te`, `back\slash`, "tilde~", "[x]{y}|^`<z>", "new\nline", "..a", "a..", strings.Repeat("n", store.MaxObjectName),
	}
	for i, name := range names {
		f.put(t, name, Bytes(100, uint64(i)))
	}
	for i, name := range names {
		f.want(t, name, Bytes(100, uint64(i)))
	}
	f.wantListed(t, store.ListOptions{}, names...)
	for _, name := range names {
		if err := f.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %q: %v", name, err)
		}
	}
	_, err := f.Head(t.Context(), "new\nline")
	wantError(t, "head", err, store.ErrNotFound)
}

func testOverwrite(t *testing.T, f *fixture) {
	for i := range 10 {
		data := Bytes(1000*(10-i), uint64(i))
		f.put(t, "o", data)
		f.want(t, "o", data)
	}
}

func testWrongETag(t *testing.T, f *fixture) {
	data := Bytes(1000, 1)
	f.put(t, "o", data)
	err := f.Put(t.Context(), "o", Bytes(1000, 2), Sum(data))
	var se *store.StatusError
	if !errors.As(err, &se) || se.Code != 422 {
		t.Errorf("put with a wrong ETag: %v, want 422", err)
	}
	f.want(t, "o", data)
	// Without an ETag the data is taken as it is.
	if err := f.Put(t.Context(), "o", Bytes(10, 3), ""); err != nil {
		t.Error(err)
	}
	f.want(t, "o", Bytes(10, 3))
}

func testDelete(t *testing.T, f *fixture) {
	f.put(t, "o", Bytes(10, 1))
	if err := f.Delete(t.Context(), "o"); err != nil {
		t.Fatal(err)
	}
	wantError(t, "delete again", f.Delete(t.Context(), "o"), store.ErrNotFound)
	_, err := f.Head(t.Context(), "o")
	wantError(t, "head", err, store.ErrNotFound)
	_, err = f.Get(t.Context(), "o", make([]byte, 10), store.GetOptions{Newest: true})
	wantError(t, "get", err, store.ErrNotFound)
	f.put(t, "o", Bytes(10, 2))
	f.want(t, "o", Bytes(10, 2))
}

func testCancelled(t *testing.T, f *fixture) {
	f.put(t, "o", Bytes(10, 1))
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the lease is lost")
	cancel(gone)
	data := Bytes(10, 2)
	for what, err := range map[string]error{
		"put":    f.Put(ctx, "o", data, Sum(data)),
		"delete": f.Delete(ctx, "o"),
		"set":    f.SetMetadata(ctx, map[string]string{"A": "b"}),
	} {
		wantError(t, what, err, gone)
		if store.Ambiguous(err) {
			t.Errorf("%s: %v is ambiguous, and was never sent", what, err)
		}
	}
	f.want(t, "o", Bytes(10, 1))
}

// testManyAtOnce lets 50 goroutines write, read, overwrite and delete, each its
// own objects, and one object that all of them read.
func testManyAtOnce(t *testing.T, f *fixture) {
	shared := Bytes(50_000, 1)
	tag := f.put(t, "shared", shared)
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			ctx := t.Context()
			name := fmt.Sprintf("own/%02d", g)
			p := make([]byte, 20_000)
			for i := range 4 {
				data := Bytes(20_000, uint64(100*g+i))
				if err := f.Put(ctx, name, data, Sum(data)); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if _, err := f.Get(ctx, name, p, store.GetOptions{IfMatch: Sum(data), Whole: i%2 == 0}); err != nil || !bytes.Equal(p, data) {
					t.Errorf("get what was put: %v", err)
				}
				if _, err := f.Get(ctx, "shared", p, store.GetOptions{Offset: 777, IfMatch: tag}); err != nil || !bytes.Equal(p, shared[777:777+len(p)]) {
					t.Errorf("get the shared object: %v", err)
				}
				if i < 3 {
					continue
				}
				if err := f.Delete(ctx, name); err != nil {
					t.Errorf("delete: %v", err)
				}
				if _, err := f.Get(ctx, name, p, store.GetOptions{Newest: true}); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("get what was deleted: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
