// SPDX-License-Identifier: MIT

package logdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// oneReplica is a container of whose PUTs some reach one replica of three, and are not
// answered.
type oneReplica struct {
	*mem.Container
	mu   sync.Mutex
	few  func(name string) bool // whether a PUT is one of these
	on   map[string]bool        // what only one replica has
	puts []string
}

func (b *oneReplica) Put(ctx context.Context, name string, p []byte, etag store.ETag) error {
	if err := b.Container.Put(ctx, name, p, etag); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.puts = append(b.puts, name)
	if b.few == nil || !b.few(name) {
		delete(b.on, name)
		return nil
	}
	b.on[name] = true
	return errors.New("no answer")
}

// put returns how many PUTs of names with the prefix there were since the last call.
func (b *oneReplica) put(prefix string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range b.puts {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	b.puts = nil
	return n
}

// lose has the disk of that one replica fail.
func (b *oneReplica) lose(t *testing.T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.on {
		if err := b.Container.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	clear(b.on)
}

// newOneReplica returns a disk in such a container.
func newOneReplica(t *testing.T) (*opener, *oneReplica) {
	v := (&opener{box: mem.New(), uuid: layout.UUID{1}, t: t}).create(t, 64*blockSize)
	v.o.Timeout, v.o.Checkpoint, v.o.GC, v.o.Connections, v.o.Pause = 5*time.Second, 1000, 70, 4, time.Hour
	return v, &oneReplica{Container: v.box, on: map[string]bool{}}
}

// TestFoundOnOneReplica opens a disk whose last objects are on one replica, since their
// writer died before they were acknowledged. It counts them, and so they have to be there
// when that replica's disk fails.
func TestFoundOnOneReplica(t *testing.T) {
	for _, compress := range []bool{false, true} {
		for sent := range 4 { // objects that were not acknowledged
			t.Run(fmt.Sprint(compress, sent), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { foundOnOneReplica(t, compress, sent) })
			})
		}
	}
}

func foundOnOneReplica(t *testing.T, compress bool, sent int) {
	v, box := newOneReplica(t)
	v.o.Compress = compress
	do := doer(t)
	d, err := v.open(t.Context(), box)
	do(err)
	for n := range 3 {
		do(d.Write(t.Context(), bytes.Repeat([]byte{byte(n + 1)}, 2*blockSize), int64(n)*blockSize))
		do(d.Flush(t.Context()))
	}
	box.few = func(name string) bool { return strings.HasPrefix(name, layout.LogPrefix) }
	for n := range sent {
		do(d.Write(t.Context(), bytes.Repeat([]byte{byte(n + 100)}, 2*blockSize), int64(10+n)*blockSize))
		if err := d.Flush(t.Context()); err == nil {
			t.Fatal("a flush is acknowledged whose object one replica has")
		}
	}
	v.o.Durable = d.Durable()
	d.Close()
	synctest.Wait()

	box.few = nil
	box.put("")
	d, err = v.open(t.Context(), box)
	do(err)
	if n := box.put(layout.LogPrefix); n != sent {
		t.Errorf("%d objects were sent again, want %d", n, sent)
	}
	before := make([]byte, d.Size())
	do(d.Read(t.Context(), before, 0))
	if sent > 0 && before[(10+sent)*blockSize] != byte(sent+99) {
		t.Fatal("what has arrived was not found: this test shows nothing")
	}
	do(d.Flush(t.Context()))
	v.o.Durable = d.Durable()
	d.Close()
	synctest.Wait()

	box.lose(t)
	d, err = v.open(t.Context(), box)
	do(err)
	after := make([]byte, d.Size())
	do(d.Read(t.Context(), after, 0))
	if !bytes.Equal(before, after) {
		t.Error("the disk is another one now")
	}
}

// TestFoundDamaged has a frame of such an object be damaged: that copy is not sent to
// the other replicas. And it is no reason not to open the disk.
func TestFoundDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, box := newOneReplica(t)
		do := doer(t)
		d, err := v.open(t.Context(), box)
		do(err)
		do(d.Write(t.Context(), bytes.Repeat([]byte{1}, 4*blockSize), 0))
		do(d.Flush(t.Context()))
		d.Close()
		synctest.Wait()
		name := layout.LogName(layout.Position{Epoch: v.epoch, N: 1})
		info, err := box.Head(t.Context(), name)
		do(err)
		data := make([]byte, info.Size)
		_, err = box.Get(t.Context(), name, data, store.GetOptions{})
		do(err)
		data[2*layout.FrameSize+100]++
		do(box.Put(t.Context(), name, data, etagOf(data)))
		box.put("")
		d, err = v.open(t.Context(), box)
		do(err)
		if box.put(layout.LogPrefix) != 0 {
			t.Error("damaged bytes are sent again")
		}
		do(d.Read(t.Context(), make([]byte, blockSize), 0))
		if err := d.Read(t.Context(), make([]byte, blockSize), 2*blockSize); err == nil {
			t.Error("the damaged block is read")
		}
	})
}

// TestFoundAndNotAnswered has the PUT of such an object not be answered when it is sent
// again, and not take effect. That a HEAD finds the object then says nothing: it is what
// was there before.
func TestFoundAndNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, box := newOneReplica(t)
		do := doer(t)
		d, err := v.open(t.Context(), box)
		do(err)
		box.few = func(name string) bool { return strings.HasPrefix(name, layout.LogPrefix) }
		do(d.Write(t.Context(), bytes.Repeat([]byte{1}, blockSize), 0))
		if err := d.Flush(t.Context()); err == nil {
			t.Fatal("a flush is acknowledged whose object one replica has")
		}
		d.Close()
		synctest.Wait()

		box.few = nil
		var lost, superseded atomic.Bool
		s := store.Retry(store.Wrap(box, func(ctx context.Context, op store.Op, call func(context.Context) error) error {
			switch {
			case op.Kind != store.OpPut || !strings.HasPrefix(op.Name, layout.LogPrefix):
			case superseded.Load():
				return store.ErrSuperseded
			case !lost.Swap(true):
				return &store.TransportError{Op: op.String(), Sent: true, Err: errors.New("no answer")}
			}
			return call(ctx)
		}), store.Policy{Timeout: 10 * time.Second})
		d, err = v.open(t.Context(), s)
		do(err)
		p := make([]byte, blockSize)
		if do(d.Read(t.Context(), p, 0)); p[0] != 1 || !lost.Load() {
			t.Fatal("what has arrived was not found: this test shows nothing")
		}
		do(d.Flush(t.Context()))
		d.Close()
		box.lose(t)
		d, err = v.open(t.Context(), s)
		do(err)
		if err := d.Read(t.Context(), p, 0); err != nil || p[0] != 1 {
			t.Errorf("what was read and flushed is another one now: %v", err)
		}

		// A proxy whose clock is behind that of the one before does not keep the disk shut.
		do(d.Write(t.Context(), p, 0))
		do(d.Flush(t.Context()))
		d.Close()
		superseded.Store(true)
		d, err = v.open(t.Context(), s)
		do(err)
		do(d.Read(t.Context(), p, 0))
	})
}

// TestSnapshotOnOneReplica is TestFoundOnOneReplica for the root of a snapshot: the next
// root names it, and does not take its place.
func TestSnapshotOnOneReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, box := newOneReplica(t)
		do := doer(t)
		d, err := v.open(t.Context(), box)
		do(err)
		do(d.Write(t.Context(), bytes.Repeat([]byte{1}, blockSize), 0))
		do(d.Flush(t.Context()))
		told := d.RootName()
		box.few = func(name string) bool { return strings.HasPrefix(name, layout.RootPrefix) }
		if err := d.Snapshot(t.Context(), "s"); err == nil {
			t.Fatal("a snapshot is acknowledged whose root one replica has")
		}
		v.o.Durable = d.Durable()
		v.o.Root = told
		d.Close()
		synctest.Wait()

		box.few = nil
		d, err = v.open(t.Context(), box)
		do(err)
		do(d.Write(t.Context(), bytes.Repeat([]byte{2}, blockSize), 0))
		do(d.Flush(t.Context()))
		if list, _ := d.Copies(); len(list) != 1 {
			t.Fatalf("%d snapshots: this test shows nothing", len(list))
		}
		v.o.Root = d.RootName()
		box.lose(t)
		o := v.o
		o.Store, o.UUID, o.Snapshot = box, v.uuid, "s"
		s, err := Open(t.Context(), o)
		do(err)
		defer s.Close()
		p := make([]byte, blockSize)
		do(s.Read(t.Context(), p, 0))
		if p[0] != 1 {
			t.Error("the snapshot is another one now")
		}
	})
}
