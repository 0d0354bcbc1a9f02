// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// process is one process's way to the account: all of its containers.
type process struct {
	cluster *mem.Cluster
	fence   *store.Fence

	mu     sync.Mutex
	n      int64
	endAt  int64 // the request at which it ends; 0: none
	effect bool  // that request has its effect
	holdAt int64 // from this one on writes are under way; 0: none
	dead   bool
	held   []func()
	asked  bool // the conversion's change of the metadata is among them
}

func (p *process) container(name string) store.Store {
	return marked{store.Wrap(p.cluster.Container(name), p.around)}
}

// marked tells around which change of the metadata is the conversion's. What the
// lease sends and is not answered never arrives: its own tests have that arrive
// late, and whoever holds the disk may then lose it.
type marked struct{ store.Store }

type markKey struct{}

func (m marked) SetMetadata(ctx context.Context, items map[string]string) error {
	if items[volume.KeyUUID] != "" {
		ctx = context.WithValue(ctx, markKey{}, true)
	}
	return m.Store.SetMetadata(ctx, items)
}

func (p *process) around(ctx context.Context, op store.Op, call func(context.Context) error) error {
	p.mu.Lock()
	p.n++
	last := p.endAt > 0 && p.n == p.endAt
	dead := p.dead || p.endAt > 0 && p.n > p.endAt || last && !p.effect
	if last {
		p.dead = true
	}
	hold := !dead && p.holdAt > 0 && p.n >= p.holdAt && op.Kind.Writes() && op.Kind != "METADATA HINT"
	if hold && (op.Name != "" || ctx.Value(markKey{}) != nil) {
		p.held = append(p.held, func() { _ = call(context.Background()) })
		p.asked = p.asked || op.Name == ""
	}
	p.mu.Unlock()
	switch {
	case dead:
		return fmt.Errorf("%s: %w", op, faulty.ErrCrashed)
	case hold:
		<-ctx.Done()
		return &store.TransportError{Op: op.String(), Sent: true, Err: context.Cause(ctx)}
	case last:
		_ = call(ctx)
		return fmt.Errorf("%s: %w", op, faulty.ErrCrashed)
	}
	return call(ctx)
}

// end ends the process, and returns what it has under way.
func (p *process) end(rng *rand.Rand) []func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	held := p.held
	p.held = nil
	rng.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
	return held
}

// options are those of a disk "v" in the account.
func (p *process) options(t *testing.T) device.Options {
	p.fence = new(store.Fence)
	fenced := store.Wrap(p.container("v"), func(ctx context.Context, op store.Op, call func(context.Context) error) error {
		switch op.Kind {
		case store.OpPut, store.OpDelete, store.OpBulkDelete:
		default: // the lease's own
			return call(ctx)
		}
		ctx, stop, err := p.fence.Guard(ctx)
		if err != nil {
			return err
		}
		defer stop()
		return call(ctx)
	})
	return device.Options{
		Store: fenced, Holder: "host:1", Cache: 5 << 20, Connections: 4, Age: time.Minute, FlushTime: -1, Timeout: 2 * time.Second, GC: -1,
		Lease: lease.Options{Store: p.container("v"), Name: "v", Sibling: p.container, Holder: "host:1", Term: 30 * time.Second, Fence: p.fence},
		Log:   func(string, ...any) {},
	}
}

// convertible is a disk that is converted, and what it has.
type convertible struct {
	t       *testing.T
	cluster *mem.Cluster
	rng     *rand.Rand
	geo     geometry.Geometry
	want    []byte
	salt    byte
}

// serve opens the disk as a server does, has do use it, and closes it, or kills
// the server.
func (c *convertible) serve(kill bool, do func(d *device.Device)) {
	c.t.Helper()
	p := &process{cluster: c.cluster}
	d, err := device.Open(c.t.Context(), p.options(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	do(d)
	if kill {
		p.end(c.rng)
		d.Abandon()
		time.Sleep(2 * time.Minute) // its lease ends
		return
	}
	if err := d.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// scribble changes some of the disk: parts of chunks, whole ones, and more.
func (c *convertible) scribble(d *device.Device) {
	c.t.Helper()
	size := c.geo.ObjectSize()
	for range 6 {
		c.salt++
		off := c.rng.Int64N(c.geo.Objects()) * size
		n := size
		switch c.rng.IntN(3) {
		case 0:
			off, n = off+c.rng.Int64N(size), 1+c.rng.Int64N(size)
		case 1:
			n *= 2
		}
		n = min(n, c.geo.Size()-off)
		var err error
		switch c.rng.IntN(4) {
		case 0:
			err = d.Zero(off, n, false, false)
			clear(c.want[off:][:n])
		case 1:
			if err = d.Trim(off, n, false); err == nil {
				_, err = d.ReadAt(c.want[off:][:n], off) // version 1 may trim less
			}
		default:
			for i := range n {
				c.want[off+i] = c.salt ^ byte(i) | 1
			}
			err = d.WriteFUA(c.want[off:][:n], off, false)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	if err := d.Sync(); err != nil {
		c.t.Fatal(err)
	}
}

// same fails unless the disk has what it is to have, by reads of any kind and by
// what counts as a hole.
func (c *convertible) same(d *device.Device) {
	c.t.Helper()
	got := make([]byte, len(c.want))
	if d.Size() != int64(len(got)) {
		c.t.Fatalf("the disk has %d bytes, and is to have %d", d.Size(), len(got))
	}
	if c.rng.IntN(2) == 0 {
		for off := int64(0); off < int64(len(got)); {
			n := min(1+c.rng.Int64N(3*c.geo.ObjectSize()), int64(len(got))-off)
			if _, err := d.ReadAt(got[off:][:n], off); err != nil {
				c.t.Fatal(err)
			}
			off += n
		}
	} else if _, err := d.ReadAt(got, 0); err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Equal(got, c.want) {
		c.t.Fatalf("the disk is not what it was: %s", firstDifference(got, c.want))
	}
	at := int64(0)
	err := d.Extents(0, int64(len(got)), func(off, n int64, hole bool) bool {
		if off != at {
			c.t.Errorf("an extent at %d, expected at %d", off, at)
		}
		if hole && !bytes.Equal(c.want[off:][:n], make([]byte, n)) {
			c.t.Errorf("%d bytes at %d are no hole", n, off)
		}
		at = off + n
		return true
	})
	if err != nil || at == 0 {
		c.t.Errorf("extents up to %d: %v", at, err)
	}
}

func newConvertible(t *testing.T, rng *rand.Rand, objectSize, objects int64) *convertible {
	t.Helper()
	geo, err := geometry.New(objectSize, objects)
	if err != nil {
		t.Fatal(err)
	}
	c := &convertible{t: t, cluster: mem.NewCluster(), rng: rng, geo: geo, want: make([]byte, geo.Size())}
	if err := volume.Create(t.Context(), c.cluster.Container("v"), geo); err != nil {
		t.Fatal(err)
	}
	return c
}

// convert is one run of the conversion.
func (c *convertible) convert(p *process) error {
	ctx, stop := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer stop()
	_, err := device.Convert(ctx, p.options(c.t), nil)
	return err
}

func (c *convertible) version() int {
	m, err := volume.Read(c.t.Context(), c.cluster.Container("v"))
	if err != nil {
		c.t.Fatal(err)
	}
	return m.Version
}

// TestConvertEveryRequest ends the process that converts a disk at each of its
// requests. What it has sent and was not answered arrives at any time later:
// before the disk is served by the next one, meanwhile, or when the conversion is
// run again. The disk is always of one version or the other, and every byte is
// what it was.
func TestConvertEveryRequest(t *testing.T) {
	t.Parallel()
	for _, was := range []string{"mapped", "killed", "blank"} {
		t.Run(was, func(t *testing.T) {
			var n int64
			versions := map[int]int{}
			synctest.Test(t, func(t *testing.T) { n, _, _ = convertEvery(t, was, 1<<40, "late", 0) })
			if n < 8 || n > 40 {
				t.Errorf("%d requests", n)
			}
			lates := 0
			for k := int64(1); k <= n; k++ {
				// The request that changes the version is late in more ways.
				for i := uint64(0); i < 16; i++ {
					asked := false
					synctest.Test(t, func(t *testing.T) { _, _, asked = convertEvery(t, was, k, "late", 100+i) })
					if t.Failed() {
						t.Fatalf("request %d, late, %d", k, 100+i)
					}
					if !asked {
						break
					}
					lates++
				}
				for i, way := range []string{"without effect", "with effect", "late", "late", "late"} {
					// All of them with another -ops.
					if *opsFlag == 4000 && int(k)%3 != i%3 || testing.Short() && (k%2 == 0 || i > 2) {
						continue
					}
					synctest.Test(t, func(t *testing.T) {
						_, version, _ := convertEvery(t, was, k, way, uint64(i))
						versions[version]++
					})
					if t.Failed() {
						t.Fatalf("request %d, %s, %d", k, way, i)
					}
				}
			}
			t.Logf("%d requests; versions after the cut: %v", n, versions)
			if versions[1] == 0 || versions[2] == 0 || lates < 10 {
				t.Errorf("%v: this test shows little", versions)
			}
		})
	}
}

func convertEvery(t *testing.T, was string, k int64, way string, seed uint64) (requests int64, version int, asked bool) {
	rng := rand.New(rand.NewPCG(uint64(k), seed))
	c := newConvertible(t, rng, []int64{4096, 16384, 5000}[rng.IntN(3)], 24)
	if was != "blank" {
		for range 3 {
			c.serve(was == "killed", c.scribble)
		}
	}
	p := &process{cluster: c.cluster}
	switch way {
	case "late":
		p.holdAt = k
	default:
		p.endAt, p.effect = k, way == "with effect"
	}
	err := c.convert(p)
	if k > 1<<30 && err != nil {
		t.Fatal(err)
	}
	requests = p.n
	held, asked := p.end(rng), p.asked
	some := func() {
		n := rng.IntN(len(held) + 1)
		for _, land := range held[:n] {
			land()
		}
		held = held[n:]
	}
	some()
	time.Sleep(2 * time.Minute) // the lease ends
	some()
	version = c.version()
	// Whatever it is, it is served.
	if rng.IntN(3) > 0 {
		c.serve(rng.IntN(2) == 0, func(d *device.Device) {
			some()
			c.same(d)
			c.scribble(d)
			some()
			c.scribble(d)
			c.same(d)
		})
		some()
	}
	before := c.version()
	err = c.convert(&process{cluster: c.cluster})
	var wrong *volume.VersionError
	if before == volume.Version1 && err != nil || before == volume.Version2 && !errors.As(err, &wrong) {
		t.Fatalf("the conversion again, of version %d: %v", before, err)
	}
	some()
	if v := c.version(); v != volume.Version2 {
		t.Fatalf("it has version %d in the end", v)
	}
	for range 2 {
		c.serve(rng.IntN(2) == 0, func(d *device.Device) {
			some()
			c.same(d)
			c.scribble(d)
		})
	}
	for _, land := range held {
		land()
	}
	c.serve(false, c.same)
	items, err := c.cluster.Container("v").Metadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{volume.KeyObjects, volume.KeyObjectSize, volume.KeyBlank} {
		if items.Items[key] != "" {
			t.Errorf("%s is %q", key, items.Items[key])
		}
	}
	return requests, version, asked
}

// TestConvertRefused: what cannot be converted is left as it is.
func TestConvertRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConvertible(t, rand.New(rand.NewPCG(1, 1)), 4096, 8)
		c.serve(false, c.scribble)
		names := func() (names []string) {
			list, err := c.cluster.Container("v").List(t.Context(), store.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range list {
				names = append(names, o.Name)
			}
			return names
		}
		before := names()
		p := &process{cluster: c.cluster}
		o := p.options(t)
		no := errors.New("no")
		if _, err := device.Convert(t.Context(), o, func(store.Metadata, volume.Meta) error { return no }); !errors.Is(err, no) {
			t.Errorf("not checked: %v", err)
		}
		c.serve(false, func(*device.Device) {
			var locked *lease.LockedError
			if err := c.convert(&process{cluster: c.cluster}); !errors.As(err, &locked) {
				t.Errorf("of a disk that is served: %v", err)
			}
		})
		o = (&process{cluster: c.cluster}).options(t)
		o.Lease.Sibling = nil
		if _, err := device.Convert(t.Context(), o, nil); err == nil {
			t.Error("converted without a lease")
		}
		if after := names(); c.version() != volume.Version1 || !slices.Equal(before, after) {
			t.Errorf("version %d, and the objects %q of %q", c.version(), after, before)
		}
		c.serve(false, c.same)
	})
}
