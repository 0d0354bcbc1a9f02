// SPDX-License-Identifier: MIT

package logdisk

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// largeDisk is a container with a disk of which each block was written once, in an
// order that looks random. It makes runs and data objects when they are read. There is
// nothing in the data objects but their tails.
type largeDisk struct {
	store.Store
	uuid   layout.UUID
	blocks uint64 // a power of two
	zstd   bool   // each block is compressed by itself

	runs, reads int64 // bytes of all runs, and that were read of them
	wrong       layout.Position

	mu   sync.Mutex
	made string // the run that was made last
	run  []byte
	room []byte // for a data object
}

const (
	spread     = 0x9E3779B1 // odd: block b was written after b*spread other ones, modulo blocks
	perObject  = 1024
	perRun     = 1 << 16
	packedSize = 2047
)

// newLargeDisk returns a disk with 2^shift blocks.
func newLargeDisk(t testing.TB, shift uint, zstd bool) *largeDisk {
	t.Helper()
	box := mem.New()
	l := &largeDisk{Store: box, uuid: layout.NewUUID(), blocks: 1 << shift, zstd: zstd}
	l.room = make([]byte, perObject*layout.FrameSize, perObject*(layout.FrameSize+64)+layout.FooterSize)
	if _, err := box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	put := func(name string, b []byte) {
		if err := box.Put(t.Context(), name, b, etagOf(b)); err != nil {
			t.Fatal(err)
		}
	}
	table := layout.Position{Epoch: 1, N: 1 << 20}
	w := layout.NewRunWriter(l.uuid, layout.RunObjects, table)
	for n := range l.blocks / perObject {
		e := layout.ObjectEntry{At: layout.Position{Epoch: 1, N: n + 1}, Size: l.size(), Live: perObject * layout.FrameSize}
		if zstd {
			e.Density = densityOf(perObject, l.size())
		}
		if err := w.AddObject(e); err != nil {
			t.Fatal(err)
		}
	}
	put(layout.RunName(table), w.Bytes())
	root := layout.Root{Name: layout.Position{Epoch: 2, N: 1}, UUID: l.uuid, Size: int64(l.blocks) * layout.BlockSize,
		At: layout.Position{Epoch: 1, N: l.blocks / perObject}, Ended: []layout.Position{{Epoch: 1, N: l.blocks / perObject}},
		Runs: layout.Runs{Objects: []layout.Position{table}}}
	if zstd {
		root.Requires = []string{layout.FeatureZstd}
	}
	for n := range (l.blocks + perRun - 1) / perRun {
		at := layout.Position{Epoch: 1, N: n + 1}
		root.Runs.Blocks = append(root.Runs.Blocks, at)
		l.runs += int64(len(l.makeRun(at)))
	}
	b, err := root.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	put(layout.RootName(root.Name), b)
	return l
}

// place returns where block i of an object is.
func (l *largeDisk) place(i uint64) (place, bytes uint32) {
	if l.zstd {
		return uint32(i * packedSize), packedSize
	}
	return uint32(i * layout.FrameSize), 0
}

// size is that of a data object.
func (l *largeDisk) size() int64 {
	place, _ := l.place(perObject)
	return int64(place) + perObject*32 + layout.FooterSize
}

func (l *largeDisk) kind() layout.Kind {
	if l.zstd {
		return layout.Zstd
	}
	return layout.Data
}

func (l *largeDisk) makeRun(at layout.Position) []byte {
	w := layout.NewRunWriter(l.uuid, layout.RunBlocks, at)
	for b := (at.N - 1) * perRun; b < min(at.N*perRun, l.blocks); b++ {
		nth := b * spread % l.blocks
		e := layout.Entry{First: b, Count: 1, Kind: l.kind(), At: layout.Position{Epoch: 1, N: 1 + nth/perObject}}
		e.Place, e.Bytes = l.place(nth % perObject)
		if err := w.Add(e); err != nil {
			panic(err)
		}
	}
	return w.Bytes()
}

// makeTail returns the end of a data object.
func (l *largeDisk) makeTail(at layout.Position, n int) []byte {
	inverse := uint64(1)
	for range 6 {
		inverse *= 2 - spread*inverse
	}
	var records []layout.Record
	for i := range uint64(perObject) {
		r := layout.Record{First: ((at.N-1)*perObject + i) * inverse % l.blocks, Count: 1, Kind: l.kind(), Bytes: layout.FrameSize}
		place, bytes := l.place(i)
		if r.Place = place; l.zstd {
			r.Bytes = bytes
		}
		records = append(records, r)
	}
	if at == l.wrong {
		records[7].First, records[8].First = records[8].First, records[7].First
	}
	end, _ := l.place(perObject)
	b := layout.AppendTail(l.room[:end], records, layout.Footer{LastOfCut: true, UUID: l.uuid, At: at, FirstOfCut: at.N, Size: int64(l.blocks) * layout.BlockSize})
	return slices.Clone(b[len(b)-n:])
}

// has says whether it makes the object.
func (l *largeDisk) has(name string) (at layout.Position, log, ok bool) {
	if at, ok = layout.ParseLogName(name); ok {
		return at, true, at.Epoch == 1 && at.N <= l.blocks/perObject
	}
	at, ok = layout.ParseRunName(name)
	return at, false, ok && at.Epoch == 1 && (at.N-1)*perRun < l.blocks
}

func (l *largeDisk) Head(ctx context.Context, name string) (store.ObjectInfo, error) {
	_, log, ok := l.has(name)
	switch {
	case !ok:
		return l.Store.Head(ctx, name)
	case log:
		return store.ObjectInfo{Name: name, Size: l.size()}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return store.ObjectInfo{Name: name, Size: int64(len(l.runBytes(name)))}, nil
}

// runBytes returns a run. mu is held.
func (l *largeDisk) runBytes(name string) []byte {
	if at, _ := layout.ParseRunName(name); l.made != name {
		l.made, l.run = name, l.makeRun(at)
	}
	return l.run
}

func (l *largeDisk) Get(ctx context.Context, name string, p []byte, o store.GetOptions) (store.ObjectInfo, error) {
	at, log, ok := l.has(name)
	if !ok {
		return l.Store.Get(ctx, name, p, o)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !log {
		l.reads += int64(len(p))
		if copy(p, l.runBytes(name)[o.Offset:]) < len(p) {
			return store.ObjectInfo{}, io.ErrUnexpectedEOF
		}
		return store.ObjectInfo{Name: name, Size: int64(len(l.run))}, nil
	}
	copy(p, l.makeTail(at, int(l.size()-o.Offset)))
	return store.ObjectInfo{Name: name, Size: l.size()}, nil
}

func (l *largeDisk) List(ctx context.Context, o store.ListOptions) (page []store.ObjectInfo, err error) {
	n := uint64(1)
	if at, ok := layout.ParseLogName(o.Marker); ok {
		n = at.N + 1
	}
	if strings.HasPrefix(layout.LogPrefix, o.Prefix) && o.Marker < layout.RootPrefix {
		for ; n <= l.blocks/perObject && len(page) < 10_000; n++ {
			name := layout.LogName(layout.Position{Epoch: 1, N: n})
			if o.EndMarker != "" && name >= o.EndMarker {
				break
			}
			page = append(page, store.ObjectInfo{Name: name, Size: l.size()})
		}
	}
	if len(page) > 0 {
		return page, nil
	}
	return l.Store.List(ctx, o)
}

// peakOf returns how much more of Go's heap was in use while f ran, at most.
func peakOf(f func()) (peak int64) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	before := heap()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			metrics.Read(sample)
			peak = max(peak, int64(sample[0].Value.Uint64())-before)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-done
	return peak
}

// TestLargeVerify checks disks that were written at random all over: Verify does not
// have their maps in memory. A map takes 8 bytes for a block, and more if it is
// compressed.
func TestLargeVerify(t *testing.T) {
	for _, c := range []struct {
		name   string
		zstd   bool
		shift  uint
		window int64
		passes float64 // over the map
	}{
		{"frames", false, 20, 128 << 10, 2.5},
		{"compressed", true, 20, 1 << 20, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			if *opsFlag > 0 { // 256 GiB; compressed, it needs more than one window of the usual size
				c.shift, c.window = 26, 4<<20
				if c.zstd {
					c.window = 0
				}
			}
			l := newLargeDisk(t, c.shift, c.zstd)
			verify := func(l *largeDisk) (r *Report) {
				r, err := Verify(t.Context(), Options{Store: l, UUID: l.uuid, Root: "00000002-00000001", Newest: 2}, VerifyOptions{Quick: true, window: c.window})
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			began := time.Now()
			peak := peakOf(func() {
				if r := verify(l); len(r.Damage) > 0 || !r.Judged || r.Live != int64(l.blocks) || r.Data.Count != int64(l.blocks/perObject) || r.Strays.Count+r.Waiting.Count > 0 {
					t.Errorf("%+v", r)
				}
			})
			passes := float64(l.reads) / float64(l.runs)
			t.Logf("%d blocks in %d objects: %v, %d KiB of memory, %.2f bytes a block, %.1f times the map's %d KiB",
				l.blocks, l.blocks/perObject, time.Since(began), peak>>10, float64(peak)/float64(l.blocks), passes, l.runs>>10)
			limit := cmp.Or(c.window, windowMemory)*5/4 + 11<<19 // with what runs are read into, and the store makes them in
			if peak > limit {
				t.Errorf("it took %d bytes of memory, and may take %d", peak, limit)
			}
			if *opsFlag == 0 && (passes < c.passes || passes > 4*c.passes) {
				t.Errorf("the map was read %.1f times", passes)
			}
			// What is wrong is found in any window.
			l = newLargeDisk(t, 17, c.zstd)
			c.window = min(c.window, 1<<20) / 8
			l.wrong = layout.Position{Epoch: 1, N: 1 + rand.Uint64N(l.blocks/perObject)}
			r := verify(l)
			if len(r.Damage) != 1 || r.Damage[0].Object != layout.LogName(l.wrong) || r.Damage[0].Blocks != perObject || !strings.Contains(r.Damage[0].Why, "2 blocks in this object where it has no frames") {
				t.Errorf("%+v", r)
			}
		})
	}
}
