// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
)

// route sends a request to the container that its name begins with.
type route struct {
	store.Store
	first, second store.Store
}

func (r route) of(name string) (store.Store, string) {
	if name[0] == '1' {
		return r.first, name[1:]
	}
	return r.second, name[1:]
}

func (r route) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	s, name := r.of(name)
	return s.Get(ctx, name, p, o)
}

func (r route) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	s, name := r.of(name)
	return s.Head(ctx, name)
}

func (r route) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	s, name := r.of(name)
	return s.Put(ctx, name, data, etag)
}

func (r route) Delete(ctx context.Context, name string) error {
	s, name := r.of(name)
	return s.Delete(ctx, name)
}

func (r route) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	s, prefix := r.of(o.Prefix)
	o.Prefix = prefix
	return s.List(ctx, o)
}

// named is one of the two containers, seen through a route.
type named struct {
	store.Store
	route store.Store
	digit string
}

func (n named) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	return n.route.Get(ctx, n.digit+name, p, o)
}
func (n named) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	return n.route.Head(ctx, n.digit+name)
}
func (n named) Put(ctx context.Context, name string, data []byte, etag store.ETag) error {
	return n.route.Put(ctx, n.digit+name, data, etag)
}
func (n named) Delete(ctx context.Context, name string) error {
	return n.route.Delete(ctx, n.digit+name)
}
func (n named) List(ctx context.Context, o store.ListOptions) ([]store.ObjectInfo, error) {
	o.Prefix = n.digit + o.Prefix
	page, err := n.route.List(ctx, o)
	return page, err
}

// setUp stands for the metadata that make a disk of the clone's container.
type setUp struct {
	uuid layout.UUID
	root string
}

const metaName = "metadata" // an object in the place of the container's metadata

func (s setUp) bytes() []byte { return append(s.uuid[:], s.root...) }

// makeClone is swiftnbd-ctl's clone, as far as its requests are concerned.
func makeClone(ctx context.Context, parent, child store.Store, o Options) error {
	p, err := FindParent(ctx, parent, "s", o)
	if err != nil {
		return err
	}
	c := &Child{Parent: p, Notes: parent, Base: parent, ParentURL: layout.SameAccount, ParentName: "parent", URL: layout.SameAccount, Name: "child", Store: child, Again: true}
	for page, err := range store.Pages(ctx, child, store.ListOptions{Prefix: layout.RootPrefix}) {
		if err != nil {
			return err
		}
		for _, info := range page {
			at, _ := layout.ParseRootName(info.Name)
			c.Roots = at.N
		}
	}
	root, _, err := c.Clone(ctx, o)
	if err == nil {
		b := setUp{c.UUID, root}.bytes()
		err = child.Put(ctx, metaName, b, etagOf(b))
	}
	return err
}

// TestCloneEveryRequest ends the process that makes a clone at each of its
// requests, and makes the clone once more. What the first has sent, and was not
// answered, arrives before that, meanwhile or after. The clone is then what the
// snapshot was, whoever writes to the parent and collects there, and the snapshot
// is protected.
func TestCloneEveryRequest(t *testing.T) {
	var n int64
	synctest.Test(t, func(t *testing.T) { n = cloneEvery(t, 1<<40, "late", 0) })
	if n < 6 || n > 12 {
		t.Errorf("%d requests", n)
	}
	for k := int64(1); k <= n; k++ {
		for i, way := range []string{"without effect", "with effect", "late", "late", "late", "late"} {
			synctest.Test(t, func(t *testing.T) { cloneEvery(t, k, way, uint64(i)) })
			if t.Failed() {
				t.Fatalf("request %d, %s", k, way)
			}
		}
	}
}

func cloneEvery(t *testing.T, k int64, way string, seed uint64) (requests int64) {
	const blocks = 64
	rng := rand.New(rand.NewPCG(uint64(k), seed))
	do := doer(t)
	cluster := mem.NewCluster()
	parent, child := cluster.Container("parent"), cluster.Container("child")
	_, err := child.CreateContainer(t.Context(), nil)
	do(err)
	o := Options{
		Seal: 3 * layout.FrameSize, Cache: 8 << 20, Connections: 8, Checkpoint: 6, Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70, Every: time.Minute,
		Bases: func(_ context.Context, _, name string) (store.Store, error) { return cluster.Container(name), nil },
	}
	compress := rng.IntN(4) // the parent, the clone, both or neither
	o.Compress = compress&1 != 0
	v := (&opener{box: parent, uuid: layout.UUID{1}, t: t, o: o}).create(t, blocks*blockSize)
	w := newWitness(t, parent, horizon)
	s := newScript(t, blocks)
	d, err := v.open(t.Context(), w)
	do(err)
	do(s.everything(d))
	do(d.Snapshot(t.Context(), "s"))
	at := s.h.ops

	// The one that is ended at request k.
	line := newWire(route{Store: parent, first: w, second: child})
	gate := faulty.NewGate(line)
	if way == "late" {
		line.holdAt = k
	} else {
		gate.CrashAt(k, way == "with effect")
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	err = makeClone(ctx, named{gate, gate, "1"}, named{gate, gate, "2"}, o)
	stop()
	if k > 1<<30 {
		do(err)
	}
	requests = gate.Ops()
	line.die()
	synctest.Wait()
	some, rest := line.arrivals(rng)
	some()
	if rng.IntN(2) == 0 { // the parent goes on, and collects
		do(s.write(d, 1, 2, 3, 40, 41, 42, 50))
		do(s.flush(d))
		time.Sleep(time.Duration(rng.IntN(60)) * time.Minute)
	}
	time.Sleep(time.Second) // nobody is quicker

	// It is done once more.
	do(makeClone(t.Context(), w, child, o))
	rest()
	b := get(t, child, metaName)
	c := &opener{box: child, t: t, o: o}
	copy(c.uuid[:], b)
	c.o.Compress = compress&2 != 0
	check := func() {
		t.Helper()
		co := c.o
		c.o.Root = string(b[16:])
		cd, err := c.open(t.Context(), child)
		c.o = co
		do(err)
		defer cd.Close()
		p, want := make([]byte, blocks*blockSize), make([]byte, blockSize)
		_, err = cd.read(t.Context(), 0, p)
		do(err)
		for i := range uint64(blocks) {
			s.h.at(i, at, want)
			if string(p[i*blockSize:][:blockSize]) != string(want) {
				t.Fatalf("block %d of the clone is not what it was", i)
			}
		}
	}
	check()
	var all []uint64
	for i := range uint64(blocks) {
		all = append(all, i)
	}
	do(s.write(d, all...))
	do(s.flush(d))
	time.Sleep(26 * time.Hour)
	check()
	var children *ChildrenError
	if err := d.DeleteSnapshot(t.Context(), "s", false); !errors.As(err, &children) || len(children.Notes) != 1 || children.Notes[0].Container != "child" {
		t.Errorf("the snapshot is deleted: %v", err)
	}
	time.Sleep(26 * time.Hour)
	check()
	do(d.DeleteSnapshot(t.Context(), "s", true))
	do(DropNotes(t.Context(), w, layout.SameAccount, "child"))
	time.Sleep(26 * time.Hour)
	atRest(t, d, parent)
	d.Close()
	if t.Failed() {
		t.Log(fmt.Sprint(children))
	}
	return requests
}
