// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// forgetful is a container whose servers do not find some objects until a moment,
// and whose listing is what it once was.
type forgetful struct {
	store.Store
	away  map[string]bool
	until atomic.Int64       // Unix time, ns
	list  []store.ObjectInfo // instead of the listing
	old   bool               // list counts
}

func (f *forgetful) lost(name string) error {
	if f.away[name] && time.Now().UnixNano() < f.until.Load() {
		return &store.StatusError{Op: "GET " + name, Code: 404, Err: store.ErrNotFound}
	}
	return nil
}

func (f *forgetful) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	if err := f.lost(name); err != nil {
		return store.ObjectInfo{}, err
	}
	return f.Store.Head(ctx, name)
}

func (f *forgetful) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	if err := f.lost(name); err != nil {
		return store.ObjectInfo{}, err
	}
	return f.Store.Get(ctx, name, p, o)
}

func (f *forgetful) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	if !f.old {
		return f.Store.List(ctx, o)
	}
	var page []store.ObjectInfo
	for _, info := range f.list {
		if strings.HasPrefix(info.Name, o.Prefix) && info.Name > o.Marker && (o.EndMarker == "" || info.Name < o.EndMarker) {
			page = append(page, info)
		}
	}
	return page, nil
}

// TestReplicasAway has objects be away when a disk is opened, one after the other
// and several at once, with listings that are complete, old or empty, with and
// without the former holder's word.
func TestReplicasAway(t *testing.T) {
	rng := newRand(t)
	var ok, away int
	count := func(opened bool) {
		if opened {
			ok++
		} else {
			away++
		}
	}
	for _, listing := range []string{"complete", "without it", "old", "empty"} {
		for _, told := range []bool{true, false} {
			for _, for_ := range []time.Duration{time.Second, time.Hour} {
				for n, i := 1, 0; i < n; i++ {
					synctest.Test(t, func(t *testing.T) {
						n = replicasAway(t, rng, listing, told, for_, func(names []string) []string { return names[i : i+1] }, count)
					})
				}
				for range 30 {
					synctest.Test(t, func(t *testing.T) {
						replicasAway(t, rng, listing, told, for_, func(names []string) []string {
							rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
							return names[:1+rng.IntN(min(6, len(names)))]
						}, count)
					})
				}
			}
		}
	}
	t.Logf("opened %d times, %d times an object was away", ok, away)
	if ok == 0 || away == 0 {
		t.Error("this test shows little")
	}
}

// replicasAway opens a disk with those objects away that pick picks of all names,
// and returns how many there are.
func replicasAway(t *testing.T, rng *rand.Rand, listing string, told bool, for_ time.Duration, pick func([]string) []string, count func(bool)) int {
	const blocks = 64
	v, s, d := written(t, blocks)
	var once []store.ObjectInfo // the listing at some moment
	if listing == "old" {
		after := time.Duration(rng.Int64N(int64(11 * time.Minute)))
		go func() {
			time.Sleep(after)
			once, _ = v.box.List(context.Background(), store.ListOptions{})
		}()
	}
	if err := s.everything(d); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(d); err != nil {
		t.Fatal(err)
	}
	durable, root := d.Durable(), d.RootName()
	before := layout.RootName(layout.Position{N: 1})[len(layout.RootPrefix):]
	d.Close()
	if rng.IntN(2) == 0 { // the newest root is the first of another holder
		if d, err := v.open(t.Context(), v.box); err != nil {
			t.Fatal(err)
		} else if err := errors.Join(s.write(d, 5, 6, 7, 8, 60), s.flush(d)); err != nil {
			t.Fatal(err)
		} else {
			before, durable, root = root, d.Durable(), d.RootName()
			d.Close()
		}
	}
	synctest.Wait()

	list, err := v.box.List(t.Context(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range list {
		names = append(names, o.Name)
	}
	n := len(names)
	f := &forgetful{Store: v.box, away: map[string]bool{}, list: once, old: listing != "complete"}
	f.until.Store(time.Now().Add(for_).UnixNano())
	for _, name := range pick(names) {
		f.away[name] = true
	}
	if listing == "without it" {
		f.list = slices.DeleteFunc(list, func(o store.ObjectInfo) bool { return f.away[o.Name] })
	}
	listed := map[string]bool{}
	page, _ := f.List(t.Context(), store.ListOptions{})
	for _, o := range page {
		listed[o.Name] = true
	}
	v.o.Root, v.o.Durable = root, layout.Position{}
	old := rng.IntN(3) == 0 // the container's word of the newest root
	if old {
		v.o.Root = before
		if !told && !listed[layout.RootPrefix+root] {
			return n // nobody knows of the root
		}
	}
	if told {
		v.o.Durable = durable
	}
	what := fmt.Sprintf("away for %v: %v; told: %t; the listing is %s", for_, slices.Sorted(maps.Keys(f.away)), told, listing)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(what)
		}
	})
	if d, err = v.open(t.Context(), f); err != nil {
		var e *AwayError
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		if !f.away[e.Name] && !(old && strings.HasPrefix(e.Name, layout.RootPrefix)) { // or an older root that was deleted
			t.Error(err)
		}
		if for_ < v.o.Timeout && !old {
			t.Errorf("it was not waited for: %v", err)
		}
		count(false)
		return n
	}
	count(true)
	// What nobody tells of can be missed: not with the former holder's word, or
	// a listing that has it. But the disk is then what it was before.
	for name := range f.away {
		if at, ok := layout.ParseLogName(name); ok && at.Epoch == durable.Epoch && !told && !listed[name] {
			s.flushed = 0
		}
	}
	// As long as it is away, it cannot be read, or is read rightly.
	p := make([]byte, blocks*blockSize)
	if for_ > v.o.Timeout && s.flushed > 0 {
		if _, err := d.read(t.Context(), 0, p); err == nil {
			s.same(d)
		} else if !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	}
	f.until.Store(time.Now().UnixNano())
	synctest.Wait()
	s.check(d)
	return n
}

// written returns a disk that is open after a former holder's, whose log had to
// be read.
func written(t *testing.T, blocks uint64) (*opener, *script, *Disk) {
	v := (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, int64(blocks)*blockSize)
	v.o = smallOptions()
	v.o.Timeout, v.o.Every = 5*time.Second, 5*time.Second
	s := newScript(t, blocks)
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.write(d, 20, 21, 22, 23, 24, 25, 26, 20), s.flush(d)); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if d, err = v.open(t.Context(), v.box); err != nil {
		t.Fatal(err)
	}
	s.check(d)
	return v, s, d
}
