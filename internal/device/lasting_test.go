// SPDX-License-Identifier: MIT

package device_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// TestFaultsThatLast has all requests of one kind go wrong in one way for
// longer than the device's patience. What needs them ends with an error, in
// its time; when the fault is over the same device goes on by itself, and
// everything that was written is there, flushed before or not.
func TestFaultsThatLast(t *testing.T) {
	t.Parallel()
	for version, kinds := range map[int][]kind{
		1: {login, getPart, getWhole, head, put, del, listing},
		2: {login, getPart, put}, // the others are for opening only
	} {
		for _, h := range harms {
			t.Run(fmt.Sprintf("version %d/%s", version, h.name), func(t *testing.T) {
				t.Parallel()
				for _, k := range kinds {
					// 401 to a write is how a fence speaks to a former owner.
					if h.on(k) && !(h.action.Status == 401 && (k == put || k == del)) && !tolerable(h, k) {
						t.Run(string(k), func(t *testing.T) { lasting(t, version, h, k) })
					}
				}
			})
		}
	}
}

// tolerable says whether the harm leaves requests of the kind successful,
// however long it lasts.
func tolerable(h harm, k kind) bool {
	switch {
	case h.action.After && (k == put || k == del):
		return true // found out by looking for it
	case h.action.Skew != 0 && k == put:
		return true // there is nothing newer that it could lose against
	}
	return false
}

func lasting(t *testing.T, version int, h harm, k kind) {
	const objects, patience = 6, 200 * time.Millisecond
	size := int64(160 << 10)
	if version == 2 {
		size = 1 << 20 // a unit of its cache
	}
	c := newCloud(t, devswift.Options{Journal: -1}, swiftstore.Options{Timeout: patience})
	w := newCloudWorld(t, c, version, size, objects)
	w.opts.Timeout = patience
	hasty := store.Policy{Timeout: patience, Attempt: patience / 2, Base: time.Millisecond, Max: 10 * time.Millisecond, RetryAfter: 10 * time.Millisecond}
	// Chunks 0 to 3 hold data of which this session knows nothing.
	rng, want := rand.New(rand.NewPCG(2, 2)), make([]byte, size*objects)
	w.mustOpen()
	noise(rng, want[:4*size])
	if _, err := w.device.WriteAt(want[:4*size], 0); err != nil {
		t.Fatal(err)
	}
	if err := w.device.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.inner.SetMetadata(t.Context(), map[string]string{volume.KeyMap: ""}); err != nil {
		t.Fatal(err)
	}
	w.policy = hasty
	var d *device.Device
	// soon does what nothing is in the way of. A busy machine may be too slow
	// for so little patience.
	soon := func(what string, do func() error) {
		t.Helper()
		err := do()
		for start := time.Now(); err != nil && time.Since(start) < 20*time.Second; err = do() {
			time.Sleep(patience / 10)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	soon("open", w.open)
	d = w.device
	write := func(off, n int64) {
		t.Helper()
		b := make([]byte, n)
		noise(rng, b)
		if _, err := d.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], b)
	}
	// Flushed, acknowledged, and to be there whatever comes.
	write(3*size+10, 1000)
	soon("flush", d.Sync)
	read := func(off, n int64) func() error {
		return func() error {
			b := make([]byte, n)
			_, err := d.ReadAt(b, off)
			if err == nil && !bytes.Equal(b, want[off:off+n]) {
				t.Fatalf("read of %d bytes at %d: %s", n, off, firstDifference(b, want[off:]))
			}
			return err
		}
	}
	extents := func() error {
		return d.Extents(4*size, 2*size, func(int64, int64, bool) bool { return true })
	}
	var needs func() error
	switch k {
	case login:
		c.server.RevokeTokens()
		needs = read(size, 100)
	case getPart:
		needs = read(2*size+100, 4096)
	case getWhole:
		needs = read(size, size)
	case head, listing:
		needs = extents
	case put:
		write(5*size, 100)
		needs = d.Sync
	case del:
		if err := d.Zero(3*size, size, false, false); err != nil {
			t.Fatal(err)
		}
		clear(want[3*size : 4*size])
		needs = d.Sync
	}
	c.harm(func(r *devswift.Request) *devswift.Action {
		if kindOf(r) != k {
			return nil
		}
		return &h.action
	})
	for range 2 {
		if err := needs(); err == nil {
			t.Fatal("no error, though it lasts for longer than the patience")
		}
	}
	c.harm(nil)
	soon("the same again, when all is well", needs)
	soon("read", read(0, size*objects))
	soon("flush", d.Sync)
	soon("close", d.Close)
	if got := w.raw(); !bytes.Equal(got, want) {
		t.Errorf("Swift holds something else: %s", firstDifference(got, want))
	}
}
