// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/clouds"
	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/metrics"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// printed returns what do prints to standard error.
func printed(t *testing.T, do func()) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, err := syscall.Dup(2)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Dup3(int(f.Fd()), 2, 0); err != nil {
		t.Fatal(err)
	}
	func() {
		defer syscall.Close(before)
		defer syscall.Dup3(before, 2, 0)
		do()
	}()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// onCluster opens the volume "v" as another process would. While cut is set,
// none of its requests arrives.
func onCluster(t *testing.T, c *mem.Cluster, holder string, cut *atomic.Bool) *device.Device {
	t.Helper()
	way := cloud.New(mem.Account{Cluster: c}, cloud.Options{
		Policy: store.Policy{Timeout: 10 * time.Second},
		Watch: func(_ string, s store.Store) store.Store {
			return store.Wrap(s, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
				if cut.Load() {
					return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("no route to host")}
				}
				return call(ctx)
			})
		},
	})
	s, l := way.Writer("v", 30*time.Second)
	d, err := device.Open(t.Context(), device.Options{Store: s, Lease: l, Holder: holder, Connections: 4, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatalf("%s: %v", holder, err)
	}
	return d
}

// TestLostLater has the last client leave in an outage, which lasts until another
// process has the disk: what is lost then is said, whoever finds it out.
func TestLostLater(t *testing.T) {
	set := failStatus
	failStatus = func() {}
	defer func() { failStatus = set; failed.Store(false) }()
	for _, who := range []string{"closeLater", "the next client"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := mem.NewCluster()
				geo, err := geometry.New(4096, 64)
				if err != nil {
					t.Fatal(err)
				}
				if err := volume.Create(t.Context(), c.Container("v"), geo); err != nil {
					t.Fatal(err)
				}
				cut := new(atomic.Bool)
				dev := onCluster(t, c, "a", cut)
				d := &disk{name: "v", device: dev, clients: 1}
				d.counts = metrics.New().Watch("v", func() metrics.Counts { return metrics.Counts(dev.Stats()) })
				if _, err := dev.WriteAt(bytes.Repeat([]byte{1}, 100), 5); err != nil {
					t.Fatal(err)
				}
				cut.Store(true)
				said := printed(t, func() {
					if who == "closeLater" {
						d.leave(dev)
					} else {
						d.clients = 0
					}
					time.Sleep(time.Minute)
					other := onCluster(t, c, "b", new(atomic.Bool))
					cut.Store(false)
					time.Sleep(time.Minute)
					if who != "closeLater" {
						if _, err := ready(t, d).open("v", false); err == nil {
							t.Error("opened")
						}
					}
					if err := other.Close(); err != nil {
						t.Error(err)
					}
					d.mu.Lock()
					defer d.mu.Unlock()
					if d.device != nil {
						t.Error("the device goes on")
					}
				})
				if !failed.Swap(false) {
					t.Error("the exit status says nothing of it")
				}
				if !strings.Contains(said, "in 1 chunk were not written and are lost") {
					t.Errorf("what was lost is not said: %q", said)
				}
			})
		})
	}
}

// ready returns exports with d, of which no other cloud can be reached.
func ready(t *testing.T, d *disk) *exports {
	return &exports{
		params:  &params{container: "v", secrets: t.TempDir() + "/none", authURL: "http://127.0.0.1:1/auth/v1.0", disk: config.Disk{Timeout: time.Second}},
		env:     func(name string) string { return map[string]string{"ST_USER": "a:b", "ST_KEY": "c"}[name] },
		secrets: config.NoSecrets("none"), inCloud: clouds.New(clouds.Files{}), metrics: metrics.New(),
		clouds: make(map[cloudKey]*cloud.Cloud), clients: make(map[cloudKey]*swiftstore.Client), origins: make(map[cloudKey]*origin),
		disks: map[string]*disk{"v": d},
	}
}

// TestOpenAtEnd has a client wait for a disk that is being closed when nbdkit ends,
// and get it after closeAll: it may not be opened any more, since nobody would close it.
func TestOpenAtEnd(t *testing.T) {
	d := &disk{name: "v"}
	e := ready(t, d)
	d.mu.Lock()
	opened := make(chan error)
	go func() {
		_, err := e.open("v", false)
		opened <- err
	}()
	time.Sleep(100 * time.Millisecond)
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	d.mu.Unlock()
	if err := <-opened; !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("%v", err)
	}
}

// TestSecretsPipe has the secrets in a pipe, which the check before the fork has read:
// a look at it finds nothing there, and waits for ever where it has a name.
func TestSecretsPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close()
	e := ready(t, &disk{name: "v"})
	e.params.secrets = fmt.Sprintf("/proc/self/fd/%d", r.Fd())
	if now := e.current(); now != e.secrets || now.Path() != "none" {
		t.Errorf("the secrets are those of %s now", now.Path())
	}
	// So it is with a key or a certificate.
	cas := certificates{e.params.secrets: []byte("key")}
	if b, err := cas.read(e.params.secrets); string(b) != "key" || err != nil {
		t.Errorf("the key is %q now, %v", b, err)
	}
	file := t.TempDir() + "/key"
	if err := os.WriteFile(file, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	cas[file] = []byte("old")
	if b, err := cas.read(file); string(b) != "new" || err != nil {
		t.Errorf("a key that was changed is %q, %v", b, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if b, err := cas.read(file); string(b) != "old" || err != nil {
		t.Errorf("a key that cannot be read any more is %q, %v", b, err)
	}
}
