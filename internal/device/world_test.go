// SPDX-License-Identifier: MIT

package device_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")
	opsFlag  = flag.Int("ops", 4000, "operations of each run of the model test")
)

func newSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	return seed
}

// world is one volume in a store that survives, and the sessions on it.
type world struct {
	t     *testing.T
	geo   geometry.Geometry
	inner store.Store // what survives a crash
	// apart says that what goes wrong does so in the cloud, and not as the
	// driver says on the device's way to it.
	apart bool
	opts  device.Options
	// policy is how patiently the device's way tries.
	policy store.Policy
	// cloud, when not nil, is where the volume is taken under a lease, and
	// written with its signature: what is late there is refused.
	cloud *embedded

	// logged says that the volume has version 2 of the format.
	logged bool

	session *faulty.Store // the present session's way to it
	device  *device.Device
	crashAt int64 // of the session that opens next; 0: never
	effect  bool
	driver  faulty.Driver
}

// inMemory returns a container in memory.
func inMemory(*testing.T) store.Store { return mem.New() }

// overHTTP returns a container of an embedded Swift, behind the real client,
// whose tokens are good for a moment only.
func overHTTP(t *testing.T) *embedded {
	return newCloud(t, devswift.Options{TokenLife: time.Second, Journal: -1}, swiftstore.Options{})
}

// newWorld makes a volume. blank says that our own setup made it, else it is
// as 0.11's left it.
func newWorld(t *testing.T, inner store.Store, objectSize, objects int64, blank bool) *world {
	t.Helper()
	geo, err := geometry.New(objectSize, objects)
	if err != nil {
		t.Fatal(err)
	}
	if !blank {
		if _, err := inner.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := volume.Create(t.Context(), inner, geo); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, geo: geo, inner: inner, policy: policy, opts: device.Options{
		Holder: "host:1", Cache: 64 << 20, Connections: 4, Age: time.Hour, Timeout: 2 * time.Second,
		Log: func(string, ...any) {},
	}}
}

// newLogWorld makes a volume of version 2 in a cloud, since there it needs a
// lease. geo says no more than its size, and how long requests are.
func newLogWorld(t *testing.T, c *embedded, objectSize, objects int64) *world {
	t.Helper()
	w := newWorld(t, c.own, objectSize, objects, true)
	w.setupLog(c.own)
	w.cloud, w.logged = c, true
	w.opts.Cache = logCache
	return w
}

// logCache is a cache for version 2 that is hardly larger than the smallest.
const logCache = 5 << 20

// setupLog makes the volume in s one of version 2.
func (w *world) setupLog(s store.Store) { newLogVolume(w.t, s, w.geo.Size()) }

// newLogVolume makes a volume of version 2 in s.
func newLogVolume(t *testing.T, s store.Store, size int64) {
	t.Helper()
	m := volume.Meta{Version: volume.Version2, Size: size, UUID: volume.NewUUID()}
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.Root, err = logdisk.Setup(t.Context(), s, m.UUID, m.Size); err != nil {
		t.Fatal(err)
	}
	if err := volume.Create2(t.Context(), s, m); err != nil {
		t.Fatal(err)
	}
}

// policy tries again quickly: the faults are our own.
var policy = store.Policy{Timeout: time.Minute, Attempt: 50 * time.Millisecond, Base: 100 * time.Microsecond, Max: 2 * time.Millisecond, RetryAfter: time.Millisecond}

// open begins a session.
func (w *world) open() error {
	var account cloud.Account = unleased{w.inner}
	if w.cloud != nil {
		w.opts.Log = func(format string, args ...any) {
			if line := fmt.Sprintf(format, args...); strings.Contains(line, "not fenced") || strings.Contains(line, "not signed") {
				w.t.Error(line) // this cluster checks signatures
			}
		}
		account = w.cloud.client
	}
	way := cloud.New(account, cloud.Options{Connections: 8, Policy: w.policy, Watch: w.watch})
	o := w.opts
	var take lease.Options
	o.Store, take = way.Writer("v", time.Minute)
	if w.cloud != nil {
		o.Lease = take
		// A signature is good for as long as the second by which Swift's
		// clock may be misread allows.
		o.Lease.SignedFor = 2 * time.Second
	}
	var err error
	w.device, err = device.Open(context.Background(), o)
	return err
}

// watch puts what goes wrong on the device's way to its container. The lease's
// containers are reached as long as the process lives.
func (w *world) watch(container string, s store.Store) store.Store {
	if container != "v" {
		gate := faulty.NewGate(s)
		if w.session.Crashed() {
			gate.CrashAt(1, false) // the process has died
		}
		return gate
	}
	if w.session = faulty.New(s, w.driver); w.apart {
		w.session = faulty.NewGate(s)
	}
	if w.crashAt > 0 {
		w.session.CrashAt(w.crashAt, w.effect)
	}
	return w.session
}

// unleased is the account of a volume that is taken by its mark alone.
type unleased struct{ store.Store }

func (u unleased) Container(string) store.Store { return u.Store }

func (u unleased) Fenced(string, *store.Fence, *store.Stragglers) store.Store { return u.Store }

func (u unleased) CheckFence(context.Context, string, store.Grant) error {
	return swiftstore.ErrNoFence
}

func (w *world) mustOpen() {
	w.t.Helper()
	if err := w.open(); err != nil {
		w.t.Fatal(err)
	}
}

// kill ends the session as kill -9 does, and does what an operator does then.
func (w *world) kill() {
	w.t.Helper()
	w.session.CrashAt(1, false) // nothing of it goes on
	if w.device != nil {
		w.device.Abandon()
		w.device = nil
	}
	o := lease.Options{Store: w.inner}
	if w.cloud != nil {
		o = lease.Options{
			Name: "v", Store: w.cloud.own, Sibling: w.cloud.ownSibling,
			CheckFence: func(ctx context.Context, g store.Grant) error { return w.cloud.client.CheckFence(ctx, "v", g) },
		}
	}
	if _, err := lease.Unlock(context.Background(), o); err != nil && !errors.Is(err, lease.ErrNotLocked) {
		w.t.Fatal(err)
	}
	if w.cloud != nil {
		// What comes from now on is refused. What has been let in may take
		// a moment yet, which a lease's end waits for.
		for end := time.Now().Add(time.Minute); w.cloud.server.Active() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				w.t.Fatal("requests that were let in before do not end")
			}
		}
	}
}

// raw reads the disk as it is in Swift, as swiftnbd 0.11 would. Of version 2 it
// shows what a reader without a lease sees.
func (w *world) raw() []byte {
	w.t.Helper()
	out := make([]byte, w.geo.Size())
	if w.logged {
		w.readLogged(out)
		return out
	}
	for i := range w.geo.Objects() {
		c := geometry.ChunkIndex(i)
		info, err := w.inner.Get(context.Background(), chunked.ObjectName(c), out[w.geo.Offset(c):][:w.geo.ObjectSize()], store.GetOptions{Newest: true})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			w.t.Fatal(err)
		}
		if err == nil && info.Size != w.geo.ObjectSize() {
			w.t.Fatalf("chunk %d has %d bytes", i, info.Size)
		}
	}
	return out
}

func (w *world) readLogged(out []byte) {
	w.t.Helper()
	d, err := device.Open(context.Background(), device.Options{
		Store: w.inner, ReadOnly: true, Cache: logCache, Connections: 4, Timeout: 2 * time.Second,
		Lease: lease.Options{Name: "v", Sibling: w.cloud.ownSibling},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := d.ReadAt(out, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// meta returns the volume's metadata as they are in Swift.
func (w *world) meta() volume.Meta {
	w.t.Helper()
	m, err := volume.Read(context.Background(), w.inner)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// noise fills b with bytes that are cheap, and not the same twice.
func noise(rng *rand.Rand, b []byte) {
	for done := 0; done < len(b); {
		done += copy(b[done:], pool[rng.IntN(len(pool)/2):])
	}
	for i := 0; i < len(b); i += 512 {
		b[i] = byte(rng.Uint32())
	}
}

var pool = func() []byte {
	b := make([]byte, 128<<10)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b) // never fails
	return b
}()

func firstDifference(got, want []byte) string {
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
	return "no difference"
}

// ops is how many operations a run of a model test has: a tenth with -short.
func ops() int {
	if testing.Short() {
		return *opsFlag / 10
	}
	return *opsFlag
}
