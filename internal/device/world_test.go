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

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
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
	cloud *cloud

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
func overHTTP(t *testing.T) *cloud {
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

// policy tries again quickly: the faults are our own.
var policy = store.Policy{Timeout: time.Minute, Attempt: 50 * time.Millisecond, Base: 100 * time.Microsecond, Max: 2 * time.Millisecond, RetryAfter: time.Millisecond}

// open begins a session.
func (w *world) open() error {
	inner := w.inner
	if w.cloud != nil {
		w.opts.Log = func(format string, args ...any) {
			if line := fmt.Sprintf(format, args...); strings.Contains(line, "not fenced") || strings.Contains(line, "not signed") {
				w.t.Error(line) // this cluster checks signatures
			}
		}
		w.opts.Lease = w.cloud.lease()
		sibling := w.opts.Lease.Sibling
		w.opts.Lease.Sibling = func(name string) store.Store {
			gate := faulty.NewGate(sibling(name))
			if w.session.Crashed() {
				gate.CrashAt(1, false) // the process has died
			}
			return store.Retry(gate, w.policy)
		}
		inner = w.cloud.client.Fenced("v", w.opts.Lease.Fence)
	}
	if w.session = faulty.New(inner, w.driver); w.apart {
		w.session = faulty.NewGate(inner)
	}
	if w.crashAt > 0 {
		w.session.CrashAt(w.crashAt, w.effect)
	}
	o := w.opts
	o.Store = store.Settle(store.Limit(store.Retry(w.session, w.policy), 8))
	var err error
	w.device, err = device.Open(context.Background(), o)
	return err
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
		o = w.cloud.lease()
		o.Store, o.Sibling = w.cloud.own, w.cloud.ownSibling
	}
	if _, err := lease.Unlock(context.Background(), o); err != nil && !errors.Is(err, lease.ErrNotLocked) {
		w.t.Fatal(err)
	}
	if w.cloud != nil {
		// What comes from now on is refused. What has been let in may take
		// a moment yet, which a lease's end waits for.
		for w.cloud.server.Active() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// raw reads the disk as it is in Swift, as swiftnbd 0.11 would.
func (w *world) raw() []byte {
	w.t.Helper()
	out := make([]byte, w.geo.Size())
	for i := range w.geo.Objects() {
		c := geometry.ChunkIndex(i)
		info, err := w.inner.Get(context.Background(), volume.ObjectName(c), out[w.geo.Offset(c):][:w.geo.ObjectSize()], store.GetOptions{Newest: true})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			w.t.Fatal(err)
		}
		if err == nil && info.Size != w.geo.ObjectSize() {
			w.t.Fatalf("chunk %d has %d bytes", i, info.Size)
		}
	}
	return out
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
