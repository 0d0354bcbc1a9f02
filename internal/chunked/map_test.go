// SPDX-License-Identifier: MIT

package chunked

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"swiftnbd/internal/geometry"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
	"swiftnbd/internal/volume"
)

// world is a volume in memory, with the sessions that follow each other on it
// and what each chunk must hold.
type world struct {
	t     *testing.T
	mem   *mem.Container
	store *faulty.Store // over mem
	geo   geometry.Geometry
	n     int                          // sessions so far
	want  map[geometry.ChunkIndex]byte // what fills each chunk; absent: zeroes
}

// newWorld makes a volume of tiny chunks. blank says that it was made by our
// setup, else by 0.11's.
func newWorld(t *testing.T, objects int64, blank bool) *world {
	t.Helper()
	w := &world{t: t, mem: mem.New(), geo: mustGeometry(t, 16, objects), want: map[geometry.ChunkIndex]byte{}}
	w.store = faulty.New(w.mem, nil)
	if blank {
		if err := volume.Create(t.Context(), w.mem, w.geo); err != nil {
			t.Fatal(err)
		}
	} else {
		if _, err := w.mem.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		setup011(t, w.mem, fmt.Sprint(objects), "16")
	}
	return w
}

// open begins a session, as package lease does it: the mark is set and what
// was valid is made void.
func (w *world) open() *Volume {
	w.t.Helper()
	v, warning := w.tryOpen()
	if warning != nil {
		w.t.Fatal(warning)
	}
	return v
}

func (w *world) tryOpen() (*Volume, error) {
	w.t.Helper()
	meta := read(w.t, w.mem)
	w.n++
	post(w.t, w.mem, map[string]string{volume.KeyClient: w.session(), volume.KeyBlank: "", volume.KeyMap: ""})
	return Open(w.t.Context(), w.store, meta, false)
}

func (w *world) session() string { return fmt.Sprintf("host:%d@%d", w.n, 1700000000+w.n) }

// close ends a session cleanly.
func (w *world) close(v *Volume) {
	w.t.Helper()
	obsolete, err := v.SaveMap(w.t.Context(), w.session())
	if err != nil {
		w.t.Fatal(err)
	}
	post(w.t, w.mem, map[string]string{volume.KeyClient: "", volume.KeyLast: w.session(), volume.KeyMap: w.session()})
	Forget(w.t.Context(), w.store, obsolete)
}

// crash ends a session as kill -9 and an operator's unlock do.
func (w *world) crash() {
	w.t.Helper()
	post(w.t, w.mem, map[string]string{volume.KeyClient: "", volume.KeyLast: w.session(), volume.KeyBlank: "", volume.KeyMap: ""})
}

func (w *world) chunk(b byte) []byte { return bytes.Repeat([]byte{b}, int(w.geo.ObjectSize())) }

func (w *world) write(v *Volume, i geometry.ChunkIndex, b byte) {
	w.t.Helper()
	if err := v.Write(w.t.Context(), i, w.chunk(b)); err != nil {
		w.t.Fatal(err)
	}
	w.want[i] = b
}

func (w *world) delete(v *Volume, i geometry.ChunkIndex) {
	w.t.Helper()
	if err := v.Delete(w.t.Context(), i); err != nil {
		w.t.Fatal(err)
	}
	delete(w.want, i)
}

// check reads chunk i and holds it against what it must be. It returns how
// many requests that took.
func (w *world) check(v *Volume, i geometry.ChunkIndex) int64 {
	w.t.Helper()
	before := w.store.Ops()
	p := w.chunk(0xee)
	hole, err := v.Read(w.t.Context(), i, 0, p)
	if err != nil {
		w.t.Fatalf("chunk %d: %v", i, err)
	}
	if hole {
		clear(p)
	}
	if want := w.chunk(w.want[i]); !bytes.Equal(p, want) {
		w.t.Fatalf("session %d: chunk %d holds %#x, want %#x", w.n, i, p[0], want[0])
	}
	return w.store.Ops() - before
}

func (w *world) knows(v *Volume, i geometry.ChunkIndex, want Knowledge) {
	w.t.Helper()
	if k, _, err := v.know(w.t.Context(), i); err != nil || k != want {
		w.t.Errorf("session %d: of chunk %d is known %d, want %d (%v)", w.n, i, k, want, err)
	}
}

func (w *world) maps() []string {
	w.t.Helper()
	page, err := w.mem.List(w.t.Context(), store.ListOptions{Prefix: MapPrefix})
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, o := range page {
		names = append(names, o.Name)
	}
	return names
}

// TestMapRoundTrip lets random sessions write and delete all over a volume of
// several shards, and holds what each knows against what must be known.
func TestMapRoundTrip(t *testing.T) {
	for _, blank := range []bool{true, false} {
		t.Run(fmt.Sprintf("blank=%t", blank), func(t *testing.T) {
			w := newWorld(t, 3*shardChunks+5, blank)
			rng := rand.New(rand.NewPCG(5, 6))
			// Chunks at the shards' and the pages' edges, and some others.
			pool := []geometry.ChunkIndex{0, 1, pageChunks - 1, pageChunks, shardChunks - 1, shardChunks, 2*shardChunks - 1,
				2 * shardChunks, 3*shardChunks - 1, 3 * shardChunks, 3*shardChunks + 4}
			for range 20 {
				pool = append(pool, geometry.ChunkIndex(rng.Int64N(w.geo.Objects())))
			}
			known := map[geometry.ChunkIndex]Knowledge{}
			initial := Unknown
			if blank {
				initial = Hole
			}
			for range 12 {
				v := w.open()
				for _, i := range pool {
					k, ok := known[i]
					if !ok {
						k = initial
					}
					w.knows(v, i, k)
				}
				for range rng.IntN(15) {
					i := pool[rng.IntN(len(pool))]
					switch rng.IntN(4) {
					case 0:
						w.delete(v, i)
						known[i] = Hole
					case 1:
						cost := w.check(v, i)
						if k, ok := known[i]; (ok && k == Hole || !ok && blank) && cost > 1 {
							t.Errorf("reading a known hole took %d requests", cost) // one: its shard
						}
						if _, ok := known[i]; !ok {
							known[i] = Hole // learned: nobody ever wrote it
						}
					default:
						w.write(v, i, byte(1+rng.IntN(255)))
						known[i] = Known
					}
				}
				w.close(v)
				for _, name := range w.maps() {
					if !strings.HasPrefix(name, MapPrefix) {
						t.Error(name)
					}
				}
				if n := len(w.maps()); n > 1+4 {
					t.Errorf("%d objects of maps are left: %q", n, w.maps())
				}
			}
			v := w.open()
			for _, i := range pool {
				w.check(v, i)
			}
		})
	}
}

// TestMapCarriesOver has a session that touches one shard name the others as
// they are, by an earlier session's objects, and read none of them.
func TestMapCarriesOver(t *testing.T) {
	w := newWorld(t, 3*shardChunks, true)
	v := w.open()
	for _, i := range []geometry.ChunkIndex{3, shardChunks + 3, 2*shardChunks + 3} {
		w.write(v, i, byte(i)+1)
	}
	w.close(v)
	first := w.maps()
	if len(first) != 4 {
		t.Fatalf("maps: %q", first)
	}
	v = w.open()
	var got []string
	w.store.SetDriver(func(op faulty.Op) faulty.Fault {
		if op.Kind == store.OpGet {
			got = append(got, op.Name)
		}
		return faulty.Fault{}
	})
	w.write(v, shardChunks+4, 9)
	w.close(v)
	w.store.SetDriver(nil)
	if len(got) != 1 || got[0] != mapName("host:1@1700000001", "00000001") {
		t.Errorf("read to change one shard: %q", got)
	}
	if n := w.maps(); len(n) != 4 || !slices.Contains(n, first[0]) || slices.Contains(n, mapName("host:1@1700000001", "index")) {
		t.Errorf("maps after the second session: %q, after the first %q", n, first)
	}
	v = w.open()
	for _, i := range []geometry.ChunkIndex{3, shardChunks + 3, shardChunks + 4, 2*shardChunks + 3} {
		w.knows(v, i, Known)
		w.check(v, i)
	}
	w.knows(v, 5, Hole)
	if v.Changed() {
		t.Error("reading has changed it")
	}
}

// TestMapUnknownIsLearned has chunks of which the last session knew nothing
// looked at once, and not each time.
func TestMapUnknownIsLearned(t *testing.T) {
	w := newWorld(t, 100, false)
	v := w.open()
	w.write(v, 1, 1) // so that the shard is in the map
	w.close(v)
	w.mem.Put(t.Context(), ObjectName(3), w.chunk(3), "")
	w.want[3] = 3
	v = w.open()
	w.knows(v, 2, Unknown)
	for i, k := range map[geometry.ChunkIndex]Knowledge{2: Hole, 3: Known, 4: Hole} {
		if i == 4 {
			if hole, err := v.Probe(t.Context(), i); err != nil || !hole {
				t.Errorf("probe: %t, %v", hole, err)
			}
		} else {
			w.check(v, i)
		}
		w.knows(v, i, k)
	}
	if n := w.check(v, 2); n != 0 {
		t.Errorf("a hole that was read before took %d requests", n)
	}
	w.close(v)
	v = w.open()
	for i, k := range map[geometry.ChunkIndex]Knowledge{0: Unknown, 1: Known, 2: Hole, 3: Known, 4: Hole} {
		w.knows(v, i, k)
	}
}

// TestMapNotBelieved has everything that may have come between the session
// that saved the map and this one; chunks that were holes are then written, as
// whoever came between may have done, and must be seen.
func TestMapNotBelieved(t *testing.T) {
	for name, between := range map[string]func(w *world, write func()){
		"a crash of ours": func(w *world, write func()) {
			w.open()
			write()
			w.crash()
		},
		"a crash, and the mark taken out by hand": func(w *world, write func()) {
			w.open()
			write()
			post(w.t, w.mem, map[string]string{volume.KeyClient: ""})
		},
		"a session of ours without a map": func(w *world, write func()) {
			w.open()
			write()
			post(w.t, w.mem, map[string]string{volume.KeyClient: "", volume.KeyLast: w.session()})
		},
		"a session of 0.11": func(w *world, write func()) { session011(w.t, w.mem, "127.0.0.1:5@1700009999", write) },
		"sessions of 0.11": func(w *world, write func()) {
			session011(w.t, w.mem, "a@1", write)
			session011(w.t, w.mem, "b@2", write)
		},
		"0.11's forced setup":           func(w *world, write func()) { setup011(w.t, w.mem, "100", "16"); write() },
		"0.11's forced setup and a map": func(w *world, write func()) { setup011(w.t, w.mem, "100", "16"); session011(w.t, w.mem, "a@1", write) },
		"our forced setup": func(w *world, write func()) {
			if err := volume.Create(w.t.Context(), w.mem, w.geo); err != nil {
				w.t.Fatal(err)
			}
			write()
		},
		"another Last": func(w *world, write func()) { write(); post(w.t, w.mem, map[string]string{volume.KeyLast: "x@1"}) },
		"no Last":      func(w *world, write func()) { write(); post(w.t, w.mem, map[string]string{volume.KeyLast: ""}) },
		"somebody at work": func(w *world, write func()) {
			write()
			post(w.t, w.mem, map[string]string{volume.KeyClient: "127.0.0.1:5@1700009999"})
		},
	} {
		for _, blank := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,blank=%t", name, blank), func(t *testing.T) {
				w := newWorld(t, 100, blank)
				v := w.open()
				w.write(v, 1, 1)
				w.delete(v, 2)
				w.check(v, 3)
				w.close(v)
				if m := read(t, w.mem); m.Map != w.session() {
					t.Fatalf("not even believed before: %+v", m)
				}
				between(w, func() {
					for i := range geometry.ChunkIndex(5) {
						w.mem.Put(t.Context(), ObjectName(i), w.chunk(77), "")
						w.want[i] = 77
					}
				})
				meta := read(t, w.mem)
				if meta.Map != "" || meta.Blank {
					t.Errorf("believed: %+v", meta)
				}
				v, warning := Open(t.Context(), w.store, meta, false)
				if warning != nil {
					t.Error(warning)
				}
				for i := range geometry.ChunkIndex(6) {
					w.check(v, i)
				}
			})
		}
	}
}

// TestMapDamaged has maps that are not what they were. The volume must go on
// without them, and read what is there.
func TestMapDamaged(t *testing.T) {
	type object struct {
		name string
		data []byte
	}
	index := func(w *world) object { return w.object(mapName("host:1@1700000001", "index")) }
	shard0 := func(w *world) object { return w.object(mapName("host:1@1700000001", "00000000")) }
	// swap replaces the shard and makes the index name what is there now.
	swap := func(w *world, data []byte) {
		s, x := shard0(w), index(w)
		w.mem.Put(w.t.Context(), s.name, data, "")
		var parsed map[string]any
		if err := json.Unmarshal(x.data, &parsed); err != nil {
			w.t.Fatal(err)
		}
		ref := parsed["Shards"].(map[string]any)["0"].(map[string]any)
		ref["ETag"], ref["Size"] = string(sum(data)), len(data)
		b, err := json.Marshal(parsed)
		if err != nil {
			w.t.Fatal(err)
		}
		w.mem.Put(w.t.Context(), x.name, b, "")
	}
	resum := func(body []byte) []byte {
		s := sha256.Sum256(body)
		return append(slices.Clone(body), s[:]...)
	}
	for name, tc := range map[string]struct {
		damage  func(w *world)
		warning bool
	}{
		"index gone":  {func(w *world) { w.mem.Delete(t.Context(), index(w).name) }, true},
		"index empty": {func(w *world) { w.mem.Put(t.Context(), index(w).name, nil, "") }, true},
		"index cut":   {func(w *world) { x := index(w); w.mem.Put(t.Context(), x.name, x.data[:len(x.data)/2], "") }, true},
		"index of another session": {func(w *world) {
			x := index(w)
			w.mem.Put(t.Context(), x.name, bytes.Replace(x.data, []byte("host:1@"), []byte("host:7@"), 1), "")
		}, true},
		"index of another shape": {func(w *world) {
			x := index(w)
			w.mem.Put(t.Context(), x.name, bytes.Replace(x.data, []byte(`"Objects":100`), []byte(`"Objects":101`), 1), "")
		}, true},
		"index of another version": {func(w *world) {
			x := index(w)
			w.mem.Put(t.Context(), x.name, bytes.Replace(x.data, []byte(`"Version":1`), []byte(`"Version":2`), 1), "")
		}, true},
		"index huge": {func(w *world) {
			w.mem.Put(t.Context(), index(w).name, bytes.Repeat([]byte(" "), maxIndex+1), "")
		}, true},
		"the volume has another shape": {func(w *world) { post(t, w.mem, map[string]string{volume.KeyObjects: "101"}) }, true},
		"shard gone":                   {func(w *world) { w.mem.Delete(t.Context(), shard0(w).name) }, false},
		"shard another": {func(w *world) {
			s := shard0(w)
			s.data[len(s.data)/2] ^= 1
			w.mem.Put(t.Context(), s.name, s.data, "")
		}, false},
		"shard damaged":      {func(w *world) { s := shard0(w); s.data[len(s.data)/2] ^= 1; swap(w, s.data) }, false},
		"shard cut":          {func(w *world) { s := shard0(w); swap(w, s.data[:len(s.data)-40]) }, false},
		"shard too short":    {func(w *world) { swap(w, []byte("x")) }, false},
		"shard of fewer":     {func(w *world) { swap(w, newShard(99).encode()) }, false},
		"shard of more":      {func(w *world) { swap(w, newShard(101).encode()) }, false},
		"shard without runs": {func(w *world) { swap(w, resum([]byte(shardMagic))) }, false},
		"shard, endless runs": {func(w *world) {
			swap(w, resum(append([]byte(shardMagic), 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)))
		}, false},
		"shard, a state that is none": {func(w *world) {
			swap(w, resum(append([]byte(shardMagic), 7, 100, 0, 0)))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 100, true)
			v := w.open()
			w.write(v, 1, 1)
			w.write(v, 2, 2)
			w.delete(v, 2)
			w.close(v)
			tc.damage(w)
			v, warning := w.tryOpen()
			if (warning != nil) != tc.warning {
				t.Errorf("warning: %v", warning)
			}
			if warning != nil && v.Mapped() {
				t.Error("a map that was refused is in use")
			}
			for i := range geometry.ChunkIndex(5) {
				w.check(v, i)
			}
			w.write(v, 4, 4)
			w.close(v)
			v = w.open()
			for i := range geometry.ChunkIndex(5) {
				w.check(v, i)
			}
			w.knows(v, 4, Known)
		})
	}
}

func (w *world) object(name string) (o struct {
	name string
	data []byte
}) {
	w.t.Helper()
	info, err := w.mem.Head(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	o.name, o.data = name, make([]byte, info.Size)
	if _, err := w.mem.Get(w.t.Context(), name, o.data, store.GetOptions{}); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// TestRecallFails has a shard that cannot be read for a while: an error for
// whoever needs it, and no chunk is taken for what it is not. SaveMap must not
// write a map then that has forgotten what it could not read.
func TestRecallFails(t *testing.T) {
	w := newWorld(t, 100, true)
	v := w.open()
	w.write(v, 1, 1)
	w.close(v)
	v = w.open()
	down := errors.New("down")
	w.store.SetDriver(func(op faulty.Op) faulty.Fault {
		if strings.HasPrefix(op.Name, MapPrefix) && op.Kind == store.OpGet {
			return faulty.Fault{Err: down}
		}
		return faulty.Fault{}
	})
	p := w.chunk(0)
	if _, err := v.Read(t.Context(), 1, 0, p); !errors.Is(err, down) {
		t.Errorf("read: %v", err)
	}
	if err := v.Write(t.Context(), 2, p); !errors.Is(err, down) {
		t.Errorf("write: %v", err)
	}
	if err := v.Delete(t.Context(), 1); !errors.Is(err, down) {
		t.Errorf("delete: %v", err)
	}
	if _, err := v.Probe(t.Context(), 1); !errors.Is(err, down) {
		t.Errorf("probe: %v", err)
	}
	if k := v.Knowledge(1); k != Unknown {
		t.Errorf("known without the map: %d", k)
	}
	w.store.SetDriver(nil)
	for i := range geometry.ChunkIndex(3) {
		w.check(v, i)
	}
	w.knows(v, 1, Known)
}

// TestRecallRaces loads a shard while its chunks are being written by others.
// What the map says must never be said of a chunk that was written since.
func TestRecallRaces(t *testing.T) {
	for round := range 50 {
		w := newWorld(t, 200, true)
		v := w.open()
		for i := range geometry.ChunkIndex(100) {
			w.write(v, i, 1)
		}
		w.close(v)
		v = w.open()
		var wg sync.WaitGroup
		work := func(i geometry.ChunkIndex, b byte) {
			defer wg.Done()
			ctx := context.Background()
			var err error
			switch b {
			case 0:
				err = v.Delete(ctx, i)
			case 1:
				_, err = v.Read(ctx, i, 0, w.chunk(0))
			default:
				err = v.Write(ctx, i, w.chunk(b))
			}
			if err != nil {
				t.Error(err)
			}
		}
		want := maps.Clone(w.want)
		for i := range geometry.ChunkIndex(200) {
			b := byte((int(i) + round) % 4)
			switch b {
			case 0:
				delete(want, i)
			case 1:
			default:
				want[i] = b
			}
			wg.Add(1)
			go work(i, b)
		}
		wg.Wait()
		w.want = want
		for i := range geometry.ChunkIndex(200) {
			w.check(v, i)
			if want[i] != 0 {
				w.knows(v, i, Known)
			} else {
				w.knows(v, i, Hole)
			}
		}
	}
}
