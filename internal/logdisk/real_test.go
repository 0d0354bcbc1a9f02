// SPDX-License-Identifier: MIT

package logdisk_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/chunked"
	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/geometry"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// embedded is an embedded Swift that runs until the test ends, and its login.
func embedded(t testing.TB) (*devswift.Server, config.Login) {
	t.Helper()
	s, err := devswift.New(devswift.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		web.CloseClientConnections()
		s.Close()
		web.Close()
	})
	return s, config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "test:tester", Password: "testing"}
}

// onSwift is a volume in a container of a Swift, which is opened in one session
// after the other, without a lease.
type onSwift struct {
	*testing.T
	store store.Store
	uuid  layout.UUID
	epoch uint32
	want  []byte
}

const onSwiftSize = 2 << 20

func newOnSwift(t *testing.T, l config.Login) *onSwift {
	t.Helper()
	client, err := swiftstore.Dial(swiftstore.Options{Login: l, Connections: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := &onSwift{T: t, uuid: layout.NewUUID(), want: make([]byte, onSwiftSize)}
	v.store = store.Retry(client.Container(storetest.Name(t)), store.Policy{Timeout: time.Minute})
	if _, err := v.store.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background() // the test's is over
		for end := time.Now().Add(10 * time.Second); ; {
			var names []string
			for page, err := range store.Pages(ctx, v.store, store.ListOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				for _, info := range page {
					names = append(names, info.Name)
				}
			}
			err := store.DeleteAll(ctx, v.store, names, store.DeleteOptions{Batch: 1000, Batches: 1, Singly: 4})
			if err == nil {
				err = v.store.DeleteContainer(ctx)
			}
			if err == nil {
				return
			}
			if time.Now().After(end) { // a listing is late
				t.Fatal(err)
			}
		}
	})
	return v
}

// options collect garbage at once, and keep nothing that is not needed.
func (v *onSwift) options() logdisk.Options {
	return logdisk.Options{
		Store: v.store, UUID: v.uuid, Seal: 32 * layout.FrameSize, Cache: 8 << 20, Checkpoint: 4, GC: 80,
		Timeout: time.Minute, Horizon: time.Nanosecond, Every: 20 * time.Millisecond, Idle: 20 * time.Millisecond, Log: v.Logf,
	}
}

// open begins the next session.
func (v *onSwift) open() *logdisk.Disk {
	v.Helper()
	v.epoch++
	o := v.options()
	o.Epoch = v.epoch
	d, err := logdisk.Open(v.Context(), o)
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(d.Close)
	return d
}

// write writes n ranges, and flushes.
func (v *onSwift) write(d *logdisk.Disk, r *rand.Rand, n int) {
	v.Helper()
	for range n {
		off := r.IntN(onSwiftSize - 1)
		p := storetest.Bytes(1+r.IntN(min(60_000, onSwiftSize-off)), r.Uint64())
		if err := d.Write(v.Context(), p, int64(off)); err != nil {
			v.Fatal(err)
		}
		copy(v.want[off:], p)
	}
	if err := d.Flush(v.Context()); err != nil {
		v.Fatal(err)
	}
}

// is reads the disk, or a snapshot of it, with a reader of its own. No server may
// run beside it: it deletes at once what a reader still needs.
func (v *onSwift) is(snapshot string, want []byte) {
	v.Helper()
	o := v.options()
	o.Newest, o.Snapshot = v.epoch, snapshot
	d, err := logdisk.Open(v.Context(), o)
	if err != nil {
		v.Fatal(err)
	}
	defer d.Close()
	v.reads(d, snapshot, want)
}

// reads has d read everything.
func (v *onSwift) reads(d *logdisk.Disk, snapshot string, want []byte) {
	v.Helper()
	got := make([]byte, len(want))
	if err := d.Read(v.Context(), got, 0); err != nil {
		v.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		v.Errorf("the disk has other bytes (snapshot %q)", snapshot)
	}
}

// names lists a part of the container.
func (v *onSwift) names(prefix string) (names []string) {
	v.Helper()
	for page, err := range store.Pages(v.Context(), v.store, store.ListOptions{Prefix: prefix}) {
		if err != nil {
			v.Fatal(err)
		}
		for _, info := range page {
			names = append(names, info.Name)
		}
	}
	return names
}

// until waits for what a server does by itself.
func (v *onSwift) until(what string, f func() bool) {
	v.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			v.Fatalf("not in two minutes: %s", what)
		}
	}
}

// clean fails unless nothing is damaged.
func (v *onSwift) clean() *logdisk.Report {
	v.Helper()
	o := v.options()
	o.Newest = v.epoch
	r, err := logdisk.Verify(v.Context(), o, logdisk.VerifyOptions{})
	if err != nil {
		v.Fatal(err)
	}
	if len(r.Damage) > 0 || !r.Judged {
		v.Errorf("%+v", r)
	}
	return r
}

// swifts are the servers that the tests are done on, with the ways to log in.
var swifts = map[string]func(testing.TB) config.Login{
	"embedded": func(t testing.TB) config.Login { _, l := embedded(t); return l },
	"real":     storetest.RealLogin,
	"keystone": storetest.KeystoneLogin,
	"RGW":      storetest.RGWLogin,
}

// TestOnSwiftCollect overwrites a disk until most of its log is garbage, has it
// collected and deleted, ends without a word, and finds every byte that was
// flushed, of the disk and of its snapshot. What only the snapshot needs goes with
// it.
func TestOnSwiftCollect(t *testing.T) {
	t.Parallel()
	for name, login := range swifts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newOnSwift(t, login(t))
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 1))
			if _, err := logdisk.Setup(t.Context(), v.store, v.uuid, onSwiftSize); err != nil {
				t.Fatal(err)
			}
			d := v.open()
			v.write(d, r, 40)
			if err := d.Snapshot(t.Context(), "then"); err != nil {
				t.Fatal(err)
			}
			then, pin := bytes.Clone(v.want), d.RootName()
			for range 4 {
				v.write(d, r, 20)
			}
			v.until("garbage is collected and deleted", func() bool {
				return d.Stats().Deleted.Load() > 0 && d.Stats().Collected.Load() > 0
			})
			v.write(d, r, 10)
			d.Close() // nothing is saved: the newest objects are in the log alone
			v.is("", v.want)
			v.is("then", then)
			d = v.open()
			v.reads(d, "", v.want)
			v.write(d, r, 10)
			if err := d.DeleteSnapshot(t.Context(), "then", false); err != nil {
				t.Fatal(err)
			}
			v.until("the snapshot's root is gone", func() bool { return len(v.names(layout.RootPrefix+pin)) == 0 })
			if err := d.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.Close()
			v.is("", v.want)
			v.clean()
		})
	}
}

// TestOnSwiftChunks has a disk of version 1 below a log, writes to it, flattens it
// and has its chunks deleted in the end. The bytes are the same all the time.
func TestOnSwiftChunks(t *testing.T) {
	t.Parallel()
	for name, login := range swifts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newOnSwift(t, login(t))
			r := rand.New(rand.NewPCG(1, 1))
			const objectSize, objects = 65536, onSwiftSize / 65536
			for i := 0; i < objects; i += 2 {
				p := v.want[i*objectSize:][:objectSize]
				copy(p, storetest.Bytes(objectSize, uint64(i)))
				if err := v.store.Put(t.Context(), chunked.ObjectName(geometry.ChunkIndex(i)), p, storetest.Sum(p)); err != nil {
					t.Fatal(err)
				}
			}
			v.epoch = 1
			c := logdisk.Conversion{Store: v.store, UUID: v.uuid, Epoch: 1, Objects: objects, ObjectSize: objectSize}
			if _, err := c.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			v.is("", v.want)
			d := v.open()
			v.write(d, r, 10)
			v.reads(d, "", v.want)
			if n := len(v.names(chunked.Prefix)); n != objects/2 {
				t.Errorf("%d chunks", n)
			}
			if err := d.Flatten(t.Context(), func(int64) {}); err != nil {
				t.Fatal(err)
			}
			if err := d.DropBase(t.Context()); err != nil {
				t.Fatal(err)
			}
			v.until("the chunks are deleted", func() bool { return len(v.names(chunked.Prefix)) == 0 })
			v.until("the root says so", func() bool {
				left, _, err := d.ChunksNeeded(t.Context())
				return err == nil && !left
			})
			v.reads(d, "", v.want)
			d.Close()
			v.is("", v.want)
			if rep := v.clean(); rep.Chunks.Count != 0 {
				t.Errorf("%+v", rep)
			}
			for _, name := range v.names("") {
				if !strings.HasPrefix(name, "swiftnbd/") {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}
