// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
)

// held is a store whose answers to Gets and Puts of one object can be held
// back after they took effect, and whose Gets can be damaged on the way.
type held struct {
	store.Store
	mu      sync.Mutex
	gate    chan struct{} // nil: nothing is held back
	reached chan struct{} // closed when something is
	damage  int           // how many Gets are damaged; negative: all
	bare    bool          // objects have no checksum, as 0.11's
	// checksum, when not empty, is what objects are said to have.
	checksum store.Checksum
}

func (h *held) hold() (reached <-chan struct{}, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gate := make(chan struct{})
	h.gate, h.reached = gate, make(chan struct{})
	return h.reached, func() { close(gate) }
}

func (h *held) pass() {
	h.mu.Lock()
	gate, reached := h.gate, h.reached
	h.gate = nil
	h.mu.Unlock()
	if gate != nil {
		close(reached)
		<-gate
	}
}

func (h *held) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	info, err := h.Store.Get(ctx, name, p, o)
	h.pass()
	if h.damage != 0 && err == nil {
		p[len(p)/2] ^= 1
		h.damage--
	}
	if h.bare {
		info.Checksum = ""
	}
	info.Checksum = cmp.Or(h.checksum, info.Checksum)
	return info, err
}

func (h *held) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	info, err := h.Store.Head(ctx, name)
	h.pass()
	return info, err
}

// TestLearnRaces has a read, or a look, that began before a write and ends
// after it: what it saw is old, and must not be what the volume knows then.
func TestLearnRaces(t *testing.T) {
	for _, before := range []byte{0, 1} {
		for _, probe := range []bool{false, true} {
			for _, change := range []byte{0, 2} {
				w := newWorld(t, 10, false)
				if before != 0 {
					w.mem.Put(t.Context(), ObjectName(3), w.chunk(before), "")
				}
				h := &held{Store: w.mem}
				v, _ := Open(t.Context(), h, read(t, w.mem), false)
				if probe && before != 0 {
					continue // the listing has it: nobody looks
				}
				reached, release := h.hold()
				done := make(chan error)
				go func() {
					var err error
					if probe {
						_, err = v.Probe(context.Background(), 3)
					} else {
						_, err = v.Read(context.Background(), 3, 0, w.chunk(0))
					}
					done <- err
				}()
				<-reached
				if change == 0 {
					w.delete(v, 3)
				} else {
					w.write(v, 3, change)
				}
				release()
				if err := <-done; err != nil {
					t.Error(err)
				}
				want := Known
				if change == 0 {
					want = Hole
				}
				w.knows(v, 3, want)
				w.check(v, 3)
			}
		}
	}
}

// TestFailedWriteStaysUnknown has a write that failed and may have taken
// effect: no read makes the chunk known again, since the late request may land
// after it. Only the next write that succeeds does.
func TestFailedWriteStaysUnknown(t *testing.T) {
	for _, after := range []bool{false, true} {
		w := newWorld(t, 10, true)
		v := w.open()
		w.write(v, 3, 1)
		w.store.SetDriver(func(op faulty.Op) faulty.Fault {
			if op.Kind == store.OpPut || op.Kind == store.OpDelete {
				return faulty.Fault{Err: faulty.Reset(op.Op), After: after}
			}
			return faulty.Fault{}
		})
		if err := v.Write(t.Context(), 3, w.chunk(2)); !store.Ambiguous(err) {
			t.Errorf("write: %v", err)
		}
		if after {
			w.want[3] = 2
		}
		w.check(v, 3)
		w.knows(v, 3, Unknown)
		w.mem.Put(t.Context(), ObjectName(3), w.chunk(2), "") // it lands late
		w.want[3] = 2
		w.check(v, 3)
		if err := v.Delete(t.Context(), 3); !store.Ambiguous(err) {
			t.Errorf("delete: %v", err)
		}
		if after {
			delete(w.want, 3)
		}
		w.check(v, 3)
		w.knows(v, 3, Unknown)
		w.store.SetDriver(nil)
		w.write(v, 3, 4)
		w.knows(v, 3, Known)
		w.check(v, 3)
		if !v.Changed() {
			t.Error("nothing was changed, it says")
		}
	}
}

// TestFailedWriteOfBlank has the first write ever of a chunk fail after its
// effect: a hole it was, but may not be called one any more, not by the next
// session either.
func TestFailedWriteOfBlank(t *testing.T) {
	w := newWorld(t, 10, true)
	v := w.open()
	w.store.SetDriver(func(op faulty.Op) faulty.Fault { return faulty.Fault{Err: faulty.Reset(op.Op), After: true} })
	if err := v.Write(t.Context(), 3, w.chunk(2)); err == nil {
		t.Error("written")
	}
	w.store.SetDriver(nil)
	w.want[3] = 2
	if v.Knowledge(3) != Unknown {
		t.Error("it is still called a hole")
	}
	w.close(v)
	v = w.open()
	w.knows(v, 3, Unknown)
	w.knows(v, 4, Hole)
	w.check(v, 3)
}

// TestChanged has objects changed, damaged or removed behind the volume's
// back: an error that names the chunk and what told, in a read of all of it and
// of a part, of objects with a checksum and of those without.
func TestChanged(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(w *world, h *held)
		bare   bool
		part   bool
		by     string
	}{
		{"written", func(w *world, h *held) { w.mem.Put(t.Context(), ObjectName(3), w.chunk(9), "") }, false, false, ByETag},
		{"written", func(w *world, h *held) { w.mem.Put(t.Context(), ObjectName(3), w.chunk(9), "") }, true, true, ByETag},
		{"removed", func(w *world, h *held) { w.mem.Delete(t.Context(), ObjectName(3)) }, false, false, ByETag},
		{"removed", func(w *world, h *held) { w.mem.Delete(t.Context(), ObjectName(3)) }, true, true, ByETag},
		// In a read of a part it cannot be told.
		{"damaged", func(w *world, h *held) { h.damage = -1 }, false, false, ByChecksum},
		{"damaged", func(w *world, h *held) { h.damage = -1 }, true, false, ByETag},
		{"bytes are right and the checksum is not", func(w *world, h *held) { h.checksum = "00000000" }, false, false, ByChecksum},
	} {
		w := newWorld(t, 10, true)
		h := &held{Store: w.mem, bare: tc.bare}
		v, _ := Open(t.Context(), h, read(t, w.mem), false)
		w.write(v, 3, 1)
		w.check(v, 3)
		tc.change(w, h)
		p := w.chunk(0)
		if tc.part {
			p = p[:5]
		}
		want := string(sum(w.chunk(1)))
		if tc.by == ByChecksum {
			want = string(cmp.Or(h.checksum, store.ChecksumOf(w.chunk(1))))
		}
		_, err := v.Read(t.Context(), 3, 0, p)
		var ce *ChangedError
		if !errors.As(err, &ce) || ce.Chunk != 3 || ce.By != tc.by || ce.Want != want || ce.Got == ce.Want ||
			!strings.Contains(err.Error(), tc.by+" "+want) {
			t.Errorf("%s, bare=%t, part=%t: %v", tc.name, tc.bare, tc.part, err)
		}
		w.knows(v, 3, Known) // and so it stays an error
	}
	// A chunk that this session has not read yet is whatever it is.
	for _, bare := range []bool{false, true} {
		w := newWorld(t, 10, false)
		h := &held{Store: w.mem, damage: -1, bare: bare}
		v, _ := Open(t.Context(), h, read(t, w.mem), false)
		w.mem.Put(t.Context(), ObjectName(3), w.chunk(9), "")
		var ce *ChangedError
		if _, err := v.Read(t.Context(), 3, 0, w.chunk(0)); !errors.As(err, &ce) {
			t.Errorf("bytes that are not what Swift says they are, bare=%t: %v", bare, err)
		}
	}
}

// TestDamagedOnTheWay has bytes damaged that Swift holds as they should be: a
// chunk that is read as a whole is read again, and a map whose index is damaged
// is not believed, whatever it says then.
func TestDamagedOnTheWay(t *testing.T) {
	w := newWorld(t, 10, false)
	h := &held{Store: w.mem, damage: maxDamaged - 1}
	w.mem.Put(t.Context(), ObjectName(3), w.chunk(9), "")
	v, _ := Open(t.Context(), h, read(t, w.mem), false)
	p := w.chunk(0)
	if _, err := v.Read(t.Context(), 3, 0, p); err != nil || !bytes.Equal(p, w.chunk(9)) {
		t.Errorf("damaged %d times, and then not: %v", maxDamaged-1, err)
	}
	if h.damage != 0 {
		t.Error("nothing was damaged")
	}

	w.close(w.open())
	meta := read(t, w.mem)
	if _, warning := Open(t.Context(), w.mem, meta, false); warning != nil || meta.Map == "" {
		t.Fatalf("%+v: %v", meta, warning)
	}
	name := mapName(meta.Map, "index")
	good := w.object(name).data
	for digit := range good {
		// Swift has the right ETag, and sends something else.
		bad := bytes.Clone(good)
		bad[digit] ^= 1
		v, warning := Open(t.Context(), &sends{w.mem, name, bad}, meta, false)
		if warning == nil || v.Mapped() || v.Knowledge(3) != Unknown {
			t.Fatalf("believed: %s", bad)
		}
	}
}

// sends is a store that sends other bytes than it holds for one object.
type sends struct {
	store.Store
	name string
	data []byte
}

func (s *sends) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	info, err := s.Store.Get(ctx, name, p, o)
	if err == nil && name == s.name {
		copy(p, s.data[o.Offset:])
	}
	return info, err
}

// TestReadOnlyFollows has a reader beside a writer: what has changed is read
// again, whatever the reader knew.
func TestReadOnlyFollows(t *testing.T) {
	w := newWorld(t, 10, false)
	w.mem.Put(t.Context(), ObjectName(3), w.chunk(1), "")
	w.want[3] = 1
	v, _ := Open(t.Context(), w.store, read(t, w.mem), true)
	for _, b := range []byte{1, 2, 0, 3} {
		if b == 0 {
			w.mem.Delete(t.Context(), ObjectName(3))
			delete(w.want, 3)
		} else {
			w.mem.Put(t.Context(), ObjectName(3), w.chunk(b), "")
			w.want[3] = b
		}
		if b == 3 {
			continue // the reader has it as a hole: only a new one looks
		}
		w.check(v, 3)
	}
	v, _ = Open(t.Context(), w.store, read(t, w.mem), true)
	w.check(v, 3)
}

// TestSizes has objects of another size than the volume's: an error, and no
// bytes made up.
func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, 15, 17, 1000} {
		w := newWorld(t, 10, false)
		w.mem.Put(t.Context(), ObjectName(3), make([]byte, n), "")
		v, _ := Open(t.Context(), w.store, read(t, w.mem), false)
		for _, r := range [][2]int64{{0, 16}, {0, 1}, {15, 1}} {
			_, err := v.Read(t.Context(), 3, r[0], make([]byte, r[1]))
			var se *SizeError
			if !errors.As(err, &se) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("an object of %d bytes, read %v: %v", n, r, err)
			}
		}
		if err := v.Write(t.Context(), 3, make([]byte, n)); err == nil {
			t.Errorf("%d bytes were written as a chunk", n)
		}
		w.write(v, 3, 5) // and is right again
		w.check(v, 3)
	}
}

// TestNoSuperseded has Swift answer that it holds something newer, for as long
// as one asks: never a success.
func TestNoSuperseded(t *testing.T) {
	w := newWorld(t, 10, true)
	v := w.open()
	w.write(v, 3, 1)
	w.store.SetDriver(func(op faulty.Op) faulty.Fault {
		return faulty.Fault{Err: &store.StatusError{Op: op.String(), Code: 202, Err: store.ErrSuperseded}}
	})
	if err := v.Write(t.Context(), 3, w.chunk(2)); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("write: %v", err)
	}
	w.knows(v, 3, Unknown)
	if err := v.Delete(t.Context(), 3); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("delete: %v", err)
	}
	w.knows(v, 3, Unknown)
	w.store.SetDriver(nil)
	w.check(v, 3)
}

// TestHolesAreProven has a listing that lacks what exists: nothing is called a
// hole for that.
func TestHolesAreProven(t *testing.T) {
	w := newWorld(t, 10, false)
	v, _ := Open(t.Context(), w.store, read(t, w.mem), false)
	w.store.SetDriver(func(op faulty.Op) faulty.Fault { return faulty.Fault{Stale: 1} })
	other := faulty.New(w.store, nil)
	if err := other.Put(t.Context(), ObjectName(3), w.chunk(3), ""); err != nil {
		t.Fatal(err)
	}
	w.want[3] = 3
	if listed, err := v.Listed(t.Context(), 3); err != nil || listed {
		t.Fatalf("the listing is not late: %t, %v", listed, err)
	}
	if hole, err := v.Probe(t.Context(), 3); err != nil || hole {
		t.Errorf("probe says hole=%t, %v", hole, err)
	}
	if hole, err := v.Probe(t.Context(), 4); err != nil || !hole {
		t.Errorf("probe of a hole says hole=%t, %v", hole, err)
	}
	for i := range geometry.ChunkIndex(10) {
		w.check(v, i)
	}
	// What this session wrote is listed, however old the listing.
	w.write(v, 5, 5)
	if listed, err := v.Listed(t.Context(), 5); err != nil || !listed {
		t.Errorf("written by us, and not listed: %v", err)
	}
	w.delete(v, 3)
	if listed, err := v.Listed(t.Context(), 3); err != nil || listed {
		t.Errorf("deleted by us, and listed: %v", err)
	}
}

// TestStaleReads answers every read that may be stale with what was before:
// none of the volume's may be.
func TestStaleReads(t *testing.T) {
	w := newWorld(t, 10, false)
	w.store.SetDriver(func(op faulty.Op) faulty.Fault { return faulty.Fault{Stale: 1} })
	v := w.open()
	for b := range byte(6) {
		if b%3 == 0 {
			w.delete(v, 3)
		} else {
			w.write(v, 3, b)
		}
		w.check(v, 3)
	}
	w.crash()
	v, _ = Open(t.Context(), w.store, read(t, w.mem), false)
	w.check(v, 3)
	if !bytes.Equal(w.object(ObjectName(3)).data, w.chunk(5)) {
		t.Error("the store itself")
	}
}

// TestHoles holds Holes against Knowledge, chunk by chunk, on volumes of which
// different things are known.
func TestHoles(t *testing.T) {
	const objects = 3*shardChunks + 17
	rng := rand.New(rand.NewPCG(7, 7))
	for name, v := range map[string]*Volume{
		"blank":          {initial: Hole},
		"unknown":        {initial: Unknown},
		"map, holes":     {initial: Hole, old: &chunkMap{index: index{Shards: map[int64]shardRef{1: {}, 3: {}}}}},
		"map, otherwise": {initial: Unknown, old: &chunkMap{index: index{Shards: map[int64]shardRef{0: {}, 2: {}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			v.table, v.geo = newTable(), mustGeometry(t, 16, objects)
			for range 200 {
				at, state := rng.Int64N(objects), []Knowledge{Unknown, Hole, Hole, Known}[rng.IntN(4)]
				for j := range rng.Int64N(40) {
					v.table.set(geometry.ChunkIndex(min(at+j, objects-1)), state, "0123456789abcdef0123456789abcdef")
				}
			}
			v.table.load(2*shardChunks, newShard(shardChunks))
			for range 20000 {
				at, n := rng.Int64N(objects), 1+rng.Int64N(1<<rng.IntN(12))
				var want int64
				for want < min(n, objects-at) && v.Knowledge(geometry.ChunkIndex(at+want)) == Hole {
					want++
				}
				if got := v.Holes(geometry.ChunkIndex(at), n); got != want {
					t.Fatalf("from %d on %d of %d are holes, want %d", at, got, n, want)
				}
			}
			// All of it, which is what this is for.
			var holes int64
			for i := int64(0); i < objects; i++ {
				if n := v.Holes(geometry.ChunkIndex(i), objects); n > 0 {
					holes, i = holes+n, i+n
				}
			}
			var want int64
			for i := range objects {
				if v.Knowledge(geometry.ChunkIndex(i)) == Hole {
					want++
				}
			}
			if holes != want {
				t.Errorf("%d holes, want %d", holes, want)
			}
		})
	}
}
