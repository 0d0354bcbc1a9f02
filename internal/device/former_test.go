// SPDX-License-Identifier: MIT

package device_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/etag"
	"swiftnbd/internal/store/mem"
)

// TestFormerDurable has a server die of whose acknowledged objects the last one cannot
// be found then. Nothing in the log says that there was one, but the lease that the
// server has renewed does: nobody opens the disk without it, to write or to read,
// however often they try. When it is found again, nothing is lost.
func TestFormerDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mem.NewCluster()
		box := c.Container("v")
		newLogVolume(t, box, 1<<20)
		a, err := open(t, c, "a", false)
		if err != nil {
			t.Fatal(err)
		}
		// The disk does not rest until the lease is renewed, or a root would have what the
		// last object has.
		rounds := byte(0)
		for renewed := false; !renewed; {
			if rounds++; rounds > 60 {
				t.Fatal("the lease never says what is durable")
			}
			a.mustFill(0, rounds)
			if err := a.device.Sync(); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(time.Second); !renewed && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				state, err := lease.Inspect(t.Context(), a.lease)
				if err != nil {
					t.Fatal(err)
				}
				last, _ := lastLogged(t, box)
				renewed = layout.LogName(logdisk.DurableIn(state.Kept)) == last
			}
		}
		a.cut.Store(true)
		a.device.Abandon()
		time.Sleep(2 * leaseTerm) // it is over

		wantLast(t, c, rounds)
	})
}

// TestEndWithoutRoot has a server end in order but for its last root, which Swift does
// not take. Then the lease says what was acknowledged, as if the server had died.
func TestEndWithoutRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mem.NewCluster()
		newLogVolume(t, c.Container("v"), 1<<20)
		a := mustOpen(t, c, "a")
		a.mustFill(0, 1)
		if err := a.device.Sync(); err != nil {
			t.Fatal(err)
		}
		a.mustFill(0, 2) // Close writes it back
		a.noRoot.Store(true)
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
		wantLast(t, c, 2)
	})
}

// wantLast takes the last data object away: nobody opens the disk then. When it is
// back, block 0 is to have b.
func wantLast(t *testing.T, c *mem.Cluster, b byte) {
	t.Helper()
	box := c.Container("v")
	name, data := lastLogged(t, box)
	if err := box.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	for try := range 6 {
		l, err := open(t, c, "b", try%2 > 0) // for reading, too
		if err == nil {
			got, err := l.read(0)
			t.Fatalf("the disk opens without %s, and has %d: %v", name, got, err)
		}
		var away *logdisk.AwayError
		if !errors.As(err, &away) || away.Name != name || !strings.Contains(away.By, "former holder") {
			t.Fatalf("it does not open for another reason: %v", err)
		}
	}
	if err := box.Put(t.Context(), name, data, etag.Sum(data)); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, c, "b")
	if got, err := l.read(0); err != nil || got != b {
		t.Errorf("the disk has %d: %v", got, err)
	}
	if err := l.device.Close(); err != nil {
		t.Error(err)
	}
	if left := c.Names(); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// lastLogged returns the last data object and its bytes.
func lastLogged(t *testing.T, s store.Store) (name string, data []byte) {
	t.Helper()
	all, err := s.List(t.Context(), store.ListOptions{Prefix: layout.LogPrefix})
	if err != nil || len(all) == 0 {
		t.Fatalf("%d data objects: %v", len(all), err)
	}
	last := all[len(all)-1]
	data = make([]byte, last.Size)
	if _, err := s.Get(t.Context(), last.Name, data, store.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	return last.Name, data
}

// TestOpenGivesBack has the time for opening end while Swift answers no read: the
// lease is given back all the same, and the next one need not wait for its end.
func TestOpenGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := mem.NewCluster()
		newLogVolume(t, c.Container("v"), 1<<20)
		way := cloud.New(mem.Account{Cluster: c}, cloud.Options{
			Connections: 4, Policy: store.Policy{Timeout: timeout, Attempt: timeout},
			Watch: func(_ string, s store.Store) store.Store {
				return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
					if op.Kind == store.OpGet {
						<-ctx.Done()
						return ctx.Err()
					}
					return call(ctx)
				})
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, take := way.Writer("v", leaseTerm)
		d, err := device.Open(ctx, device.Options{Store: s, Lease: take, Holder: "a", Connections: 4, Timeout: timeout, Cache: logCache})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("opened: %v, %v", d, err)
		}
		begun := time.Now()
		b := mustOpen(t, c, "b")
		if waited := time.Since(begun); waited > time.Second {
			t.Errorf("the next one waits for %v", waited)
		}
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
	})
}
