// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

const (
	leaseTerm = 30 * time.Second
	// timeout is how long Swift may fail without a client's seeing it: longer
	// than a lease lasts.
	timeout = 3 * leaseTerm
)

// leased is one process with a device under a lease, in a synctest bubble.
type leased struct {
	t       *testing.T
	cluster *mem.Cluster
	device  *device.Device
	name    string
	lease   lease.Options
	cut     atomic.Bool // none of its requests arrives
	noRoot  atomic.Bool // Swift takes no root of it
	deaf    atomic.Bool // what it asks of a container does not arrive
}

// inLease runs a test with a volume of 64 chunks of 4 KiB.
func inLease(t *testing.T, test func(t *testing.T, c *mem.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := mem.NewCluster()
		geo, err := geometry.New(4096, 64)
		if err != nil {
			t.Fatal(err)
		}
		if err := volume.Create(t.Context(), c.Container("v"), geo); err != nil {
			t.Fatal(err)
		}
		test(t, c)
	})
}

// open opens the volume as the process name; read-only where ro is set.
func open(t *testing.T, c *mem.Cluster, name string, ro bool) (*leased, error) {
	t.Helper()
	l := &leased{t: t, cluster: c, name: name}
	way := cloud.New(mem.Account{Cluster: c}, cloud.Options{
		Connections: 4,
		Policy:      store.Policy{Timeout: timeout, Attempt: 5 * time.Second, Base: 100 * time.Millisecond, Max: time.Second},
		Watch: func(_ string, s store.Store) store.Store {
			return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
				deaf := l.deaf.Load() && (op.Kind == store.OpMetadata || op.Kind == store.OpSetMetadata)
				if l.cut.Load() || deaf || l.noRoot.Load() && op.Kind == store.OpPut && strings.HasPrefix(op.Name, layout.RootPrefix) {
					return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("no route to host")}
				}
				return call(ctx)
			})
		},
	})
	s, take := way.Writer("v", leaseTerm)
	l.lease = take
	l.lease.Store = s
	ctx, cancel := context.WithTimeout(context.Background(), timeout) // as the plugin has it
	defer cancel()
	var err error
	l.device, err = device.Open(ctx, device.Options{
		Store: s, Lease: take, Holder: name, ReadOnly: ro, Connections: 4, Age: time.Second, Timeout: timeout, Cache: logCache,
		Log: func(format string, args ...any) { t.Logf(name+": "+format, args...) },
	})
	return l, err
}

func mustOpen(t *testing.T, c *mem.Cluster, name string) *leased {
	t.Helper()
	l, err := open(t, c, name, false)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

// fill writes a whole chunk of b's.
func (l *leased) fill(chunk int64, b byte) error {
	_, err := l.device.WriteAt(bytes.Repeat([]byte{b}, 4096), chunk*4096)
	return err
}

func (l *leased) mustFill(chunk int64, b byte) {
	l.t.Helper()
	if err := l.fill(chunk, b); err != nil {
		l.t.Fatalf("%s: %v", l.name, err)
	}
}

func (l *leased) read(chunk int64) (byte, error) {
	b := make([]byte, 1)
	_, err := l.device.ReadAt(b, chunk*4096+5)
	return b[0], err
}

// TestTakenAway has a device cut off until another process has its volume.
// From then on whatever its clients ask for is an error, what it had not
// written is counted, and what the other one writes is whole.
func TestTakenAway(t *testing.T) {
	inLease(t, func(t *testing.T, c *mem.Cluster) {
		a := mustOpen(t, c, "a")
		a.mustFill(1, 1)
		a.mustFill(2, 1)
		if err := a.device.Sync(); err != nil {
			t.Fatal(err)
		}
		a.cut.Store(true)
		a.mustFill(2, 2) // within its lease, and never flushed
		a.mustFill(3, 2)
		// Reads of what is in its cache, and writes to it, begun when it has
		// lapsed: they must not be answered as if it had the volume.
		time.Sleep(leaseTerm)
		var wg sync.WaitGroup
		ended := make(map[string]error)
		var mu sync.Mutex
		ask := func(what string, do func() error) {
			wg.Go(func() {
				err := do()
				mu.Lock()
				defer mu.Unlock()
				ended[what] = err
			})
		}
		ask("read", func() error { _, err := a.read(1); return err })
		ask("write", func() error { return a.fill(1, 3) })
		ask("zero", func() error { return a.device.Zero(0, 4096, false, false) })
		ask("extents", func() error {
			return a.device.Extents(0, 4096, func(int64, int64, bool) bool { return true })
		})
		ask("flush", a.device.Sync)
		time.Sleep(5 * time.Second)
		mu.Lock()
		if len(ended) > 0 {
			t.Errorf("lapsed, and answered: %v", ended)
		}
		mu.Unlock()
		b := mustOpen(t, c, "b")
		if v, err := b.read(2); err != nil || v != 1 {
			t.Errorf("the other one reads %d, %v", v, err)
		}
		b.mustFill(1, 9)
		b.mustFill(4, 9)
		if err := b.device.Sync(); err != nil {
			t.Error(err)
		}
		a.cut.Store(false)
		wg.Wait()
		for what, err := range ended {
			if !errors.Is(err, lease.ErrLost) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, err := range map[string]error{
			"write": a.fill(5, 3), "flush": a.device.Sync(), "trim": a.device.Trim(0, 4096, false), "prefetch": a.device.Prefetch(0, 10),
		} {
			if !errors.Is(err, lease.ErrLost) {
				t.Errorf("%s when it is lost: %v", what, err)
			}
		}
		if _, err := a.read(1); !errors.Is(err, lease.ErrLost) {
			t.Errorf("read when it is lost: %v", err)
		}
		if err := a.device.Lost(); !errors.Is(err, lease.ErrLost) {
			t.Errorf("lost: %v", err)
		}
		err := a.device.Close()
		var lost *device.LostError
		// Of the four chunks (0 is zero, and 1, 2 and 3 are data) none was written.
		if !errors.As(err, &lost) || !errors.Is(err, lease.ErrLost) || lost.Chunks < 3 || lost.Bytes < 3*4096 || !strings.Contains(err.Error(), "lost") {
			t.Errorf("closed: %v", err)
		}
		if err := a.device.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
		time.Sleep(2 * leaseTerm)
		for chunk, want := range map[int64]byte{0: 0, 1: 9, 2: 1, 3: 0, 4: 9} {
			if v, err := b.read(chunk); err != nil || v != want {
				t.Errorf("chunk %d is %d, want %d, %v", chunk, v, want, err)
			}
		}
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestOutageUnseen has outages that are longer than the lease, and shorter than
// the timeout, in the middle of writing and reading: no client sees them.
func TestOutageUnseen(t *testing.T) {
	inLease(t, func(t *testing.T, c *mem.Cluster) {
		a := mustOpen(t, c, "a")
		var wg sync.WaitGroup
		end := time.Now().Add(20 * leaseTerm)
		last := make([]byte, 64)
		for client := range 8 {
			wg.Go(func() {
				for n := 0; time.Now().Before(end); n++ {
					chunk := int64(client*8 + n%8)
					last[chunk]++
					if err := a.fill(chunk, last[chunk]); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					if n%5 == 0 {
						if err := a.device.Sync(); err != nil {
							t.Errorf("flush: %v", err)
							return
						}
					}
					if v, err := a.read(chunk); err != nil || v != last[chunk] {
						t.Errorf("read: %d, not %d, %v", v, last[chunk], err)
						return
					}
					time.Sleep(300 * time.Millisecond)
				}
			})
		}
		for range 4 {
			time.Sleep(leaseTerm)
			a.cut.Store(true)
			time.Sleep(leaseTerm + leaseTerm/2)
			if a.device.Lost() != nil {
				t.Error("lost in an outage")
			}
			a.cut.Store(false)
		}
		wg.Wait()
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := open(t, c, "b", true)
		if err != nil {
			t.Fatal(err)
		}
		for chunk, want := range last {
			if v, err := b.read(int64(chunk)); err != nil || v != want {
				t.Errorf("chunk %d is %d, want %d, %v", chunk, v, want, err)
			}
		}
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
		if names := c.Names(); len(names) != 1 {
			t.Errorf("left behind: %v", names)
		}
	})
}

// TestCloseOutage has a device be closed while Swift is away for longer than
// the lease: it goes on, and when it cannot any more, nobody takes the volume
// unaware.
func TestCloseOutage(t *testing.T) {
	inLease(t, func(t *testing.T, c *mem.Cluster) {
		a := mustOpen(t, c, "a")
		a.cut.Store(true)
		a.mustFill(1, 1)
		var undrained *device.DrainError
		if err := a.device.Close(); !errors.As(err, &undrained) || undrained.Chunks != 1 || undrained.Bytes != 4096 {
			t.Errorf("closed: %v", err)
		}
		a.cut.Store(false)
		time.Sleep(leaseTerm)
		if v, err := a.read(1); err != nil || v != 1 {
			t.Errorf("it does not go on: %d, %v", v, err)
		}
		a.device.Abandon()
		time.Sleep(100 * leaseTerm)
		var locked *lease.LockedError
		if _, err := open(t, c, "b", false); !errors.As(err, &locked) || locked.Holder != "a" {
			t.Errorf("opened by another: %v", err)
		}
		b, err := open(t, c, "b", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
	})
}
