// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
)

var (
	seedFlag = flag.Uint64("seed", 0, "of random tests; 0: one of its own each time")
	opsFlag  = flag.Int("ops", 0, "operations of a random test; 0: its own choice")
)

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 2))
}

// doer returns a function that ends the test at an error.
func doer(t testing.TB) func(error) {
	return func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

const blockSize = layout.BlockSize

// stamp fills a block with who wrote it: its number and the operation's. Of each
// third operation, what comes after the first stamp cannot be compressed.
func stamp(p []byte, block, op uint64) {
	x := block<<32 ^ op
	for i := 0; i < len(p); i += 16 {
		first, second := block, op
		if op%3 == 0 && i > 0 {
			x += 0x9e3779b97f4a7c15
			first = (x ^ x>>30) * 0xbf58476d1ce4e5b9
			second = (first ^ first>>27) * 0x94d049bb133111eb
		}
		binary.LittleEndian.PutUint64(p[i:], first)
		binary.LittleEndian.PutUint64(p[i+8:], second)
	}
}

// past is a disk's history: for each block the operations that changed it, in
// order. An operation makes blocks zero, or stamps them.
type past struct {
	ops     uint64 // operations so far, from 1
	changes map[uint64][]change
	snaps   snapshots
	doubt   string // the name of one that may be there or not
	sizes   []resizing

	clones map[string]int // of snapshots: how many clones each has
}

type change struct {
	op    uint64
	zero  bool
	stamp uint64 // whose stamp it is: that of op, or of an earlier one that came back
}

// resizing is an operation after which the disk has so many blocks.
type resizing struct{ op, blocks uint64 }

func (h *past) note(first, count uint64, op uint64, zero bool) {
	for b := first; b < first+count; b++ {
		h.changes[b] = append(h.changes[b], change{op, zero, op})
	}
}

// size returns how many blocks the disk had after operation op. It had first at
// the beginning.
func (h *past) size(op, first uint64) uint64 {
	for _, r := range h.sizes {
		if r.op <= op {
			first = r.blocks
		}
	}
	return first
}

// resize notes as the next operation that the disk gets another size. It had
// first at the beginning.
func (h *past) resize(blocks, first uint64) {
	was := h.size(h.ops, first)
	h.ops++
	h.sizes = append(h.sizes, resizing{h.ops, blocks})
	if blocks < was {
		h.note(blocks, was-blocks, h.ops, true)
	}
}

// revert notes as the next operation that the disk becomes what it was after
// operation op. It had first at the beginning.
func (h *past) revert(op, first uint64) {
	blocks := h.size(op, first)
	h.ops++
	h.sizes = append(h.sizes, resizing{h.ops, blocks})
	for b, list := range h.changes {
		c := change{op: h.ops, zero: true}
		for _, old := range list {
			if old.op <= op && b < blocks {
				c.zero, c.stamp = old.zero, old.stamp
			}
		}
		h.changes[b] = append(list, c)
	}
}

// made returns the operation after which a snapshot was made of which that was in
// doubt, and that is there; 0: there is none. It was made after a flush, also if
// nobody has heard of that.
func (h *past) made(d *Disk) uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if h.doubt != "" && findPin(d.root.Pins, h.doubt) != nil {
		return h.snaps[h.doubt]
	}
	return 0
}

// data returns how many blocks of a range have data, and the first of them.
func (h *past) data(first, end uint64) (n, from uint64) {
	for b := first; b < end; b++ {
		if list := h.changes[b]; len(list) > 0 && !list[len(list)-1].zero {
			if n == 0 {
				from = b
			}
			n++
		}
	}
	return n, from
}

// at returns the block's content after operation op.
func (h *past) at(b, op uint64, p []byte) {
	clear(p)
	list := h.changes[b]
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].op <= op {
			if !list[i].zero {
				stamp(p, b, list[i].stamp)
			}
			return
		}
	}
}

// cut forgets what came after operation op.
func (h *past) cut(op uint64) {
	for b, list := range h.changes {
		for len(list) > 0 && list[len(list)-1].op > op {
			list = list[:len(list)-1]
		}
		h.changes[b] = list
	}
	for n := len(h.sizes); n > 0 && h.sizes[n-1].op > op; n-- {
		h.sizes = h.sizes[:n-1]
	}
	h.ops = op
}

// prefix returns the operation after which the disk was what it is now, and fails when
// there is none that is at least flushed. ok is false when the store has crashed.
// The disk had so many blocks at the beginning.
func (h *past) prefix(t testing.TB, d *Disk, blocks uint64, flushed uint64, gate *faulty.Store) (op uint64, ok bool) {
	t.Helper()
	beginning := blocks
	blocks = uint64(d.Size()) / blockSize
	all := make([]byte, blocks*blockSize)
	err := d.Read(t.Context(), all, 0)
	if errors.As(err, new(*store.TransportError)) { // one request failed
		err = d.Read(t.Context(), all, 0)
	}
	if err != nil {
		if gate.Crashed() {
			return 0, false
		}
		t.Fatalf("read the disk: %v", err)
	}
	// A state is told by its newest stamp; zeroes do not tell theirs, so that
	// later operations which only made zeroes are tried too.
	op = flushed
	for b := range blocks {
		p := all[b*blockSize:][:blockSize]
		if n := binary.LittleEndian.Uint64(p[8:]); n > op {
			op = n
		}
	}
	want := make([]byte, blockSize)
	var first string
	for ; op <= h.ops; op++ {
		bad := ""
		if n := h.size(op, beginning); n != blocks {
			bad = fmt.Sprintf("it has %d blocks, after operation %d it had %d", blocks, op, n)
		}
		for b := range blocks {
			if bad != "" {
				break
			}
			h.at(b, op, want)
			if p := all[b*blockSize:][:blockSize]; string(p) != string(want) {
				bad = fmt.Sprintf("block %d has (%d, %d), after operation %d it was (%d, %d)", b,
					binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]), op,
					binary.LittleEndian.Uint64(want), binary.LittleEndian.Uint64(want[8:]))
			}
		}
		if bad == "" {
			return op, true
		}
		if first == "" {
			first = bad
		}
	}
	t.Fatalf("the disk is no state that it had since operation %d, which was flushed, of %d: %s", flushed, h.ops, first)
	return 0, false
}

// opener opens a volume's disk under one lease after the other.
type opener struct {
	box   *mem.Container
	uuid  layout.UUID
	epoch uint32
	o     Options
	t     testing.TB // if not nil, its end closes every disk
}

// littleMap gives the map hardly any memory, so that it is read from Swift again
// and again, and small regions.
func (o *Options) littleMap() {
	o.MapMemory, o.regionShift = 6<<10, 4
}

// smallOptions returns options with which few blocks make many objects.
func smallOptions() Options {
	return Options{
		Seal: 3 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 8, Checkpoint: 6,
		Age: time.Second, FlushTime: -1, Timeout: 2 * time.Second, GC: 70,
	}
}

func newVolume(t testing.TB, size int64) *opener {
	t.Helper()
	return (&opener{box: mem.New(), uuid: layout.NewUUID()}).create(t, size)
}

// newClosing is newVolume whose disks are closed at the end of the test.
func newClosing(t testing.TB, size int64) *opener {
	t.Helper()
	v := newVolume(t, size)
	v.t = t
	return v
}

// create makes the volume, with its container, and returns v.
func (v *opener) create(t testing.TB, size int64) *opener {
	t.Helper()
	if _, err := v.box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Setup(t.Context(), v.box, v.uuid, size); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *opener) open(ctx context.Context, s store.Store) (*Disk, error) {
	v.epoch++
	o := v.o
	o.Store, o.UUID, o.Epoch = s, v.uuid, v.epoch
	if o.tableLimit == 0 && o.keptLimit == 0 {
		// What roots have in themselves: all, hardly anything, or nothing.
		o.tableLimit, o.keptLimit = []int{0, 0, 120, 1}[v.epoch%4], []int{0, 90, 0, 1}[v.epoch%4]
	}
	d, err := Open(ctx, o)
	if err == nil && v.t != nil {
		v.t.Cleanup(d.Close) // also when the test fails: a synctest bubble waits for it
	}
	return d, err
}

// TestModel changes a disk at random, has it crash at any request to the store,
// and opens it again: it must be what it was at one moment, which is not before
// the last flush, block for block.
func TestModel(t *testing.T) { model(t, false, false) }

// TestModelPaged is TestModel with little memory for the map.
func TestModelPaged(t *testing.T) { model(t, true, false) }

func model(t *testing.T, paged, converted bool) {
	const blocks = 2048
	ops := 12_000
	if testing.Short() {
		ops = 8_000
	}
	if paged {
		ops /= 2
	}
	if converted {
		ops /= 4
	}
	if *opsFlag > 0 {
		ops = *opsFlag
	}
	rng := newRand(t)
	v := newVolume(t, blocks*blockSize)
	h := &past{changes: map[uint64][]change{}, snaps: snapshots{}}
	var flushed uint64
	if converted {
		v = stampedChunks(t, rng, h, blocks)
		flushed = h.ops
	}
	v.o = Options{
		Seal: 16 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 20,
		Age: time.Millisecond, Pause: time.Millisecond, Timeout: time.Second,
		GC: 70, Every: time.Millisecond, Idle: 3 * time.Millisecond, Horizon: time.Nanosecond,
	}
	if paged || converted && rng.IntN(2) == 0 {
		v.o.littleMap()
	}
	crashes, sessions, reshaped := 0, 0, 0
	var loads, merges, packed int64
	done := 0
	for done < ops {
		sessions++
		gate := faulty.NewGate(v.box)
		if rng.IntN(4) > 0 {
			gate.CrashAt(gate.Ops()+1+rng.Int64N(200), rng.IntN(2) == 0)
		}
		v.o.Brief = rng.IntN(4) == 0 // for a change of its form
		v.o.Compress = rng.IntN(3) > 0
		d, err := v.open(t.Context(), gate)
		brief := v.o.Brief
		v.o.Brief = false
		if err != nil {
			if !gate.Crashed() {
				t.Fatal(err)
			}
			crashes++
			continue
		}
		flushed = max(flushed, h.made(d))
		op, ok := h.prefix(t, d, blocks, flushed, gate)
		if !ok {
			crashes++
			d.Close()
			continue
		}
		h.cut(op)
		flushed = op
		h.settle(t, d)
		most := 400
		if brief {
			most = 20
		}
		for range 1 + rng.IntN(most) {
			if rng.IntN(100) == 0 && !randomSnapshot(t, rng, v, d, h, blocks, &flushed, gate) {
				break
			}
			if done%8 == 0 {
				d.checkSums(t)
			}
			if done++; !randomOp(t, rng, d, h, h.size(h.ops, blocks), &flushed, gate) {
				break
			}
		}
		if converted && brief && done > ops*2/3 && !gate.Crashed() && hasBase(d) {
			if err := flattenAll(t, d); err == nil {
				flushed = h.ops
			} else if !gate.Crashed() {
				t.Fatal(err)
			}
		}
		if brief && !gate.Crashed() && rng.IntN(2) == 0 {
			zeroAndSnapshot(t, rng, v, d, h, blocks, &flushed, gate)
		}
		for n := rng.IntN(4); brief && n > 0 && !gate.Crashed(); n-- {
			reshaped += randomShape(t, rng, v, d, h, blocks, &flushed, gate)
		}
		if !gate.Crashed() && rng.IntN(2) == 0 {
			if err := d.Drain(t.Context()); err == nil {
				flushed = h.ops
				_ = d.Save(t.Context())
			} else if !gate.Crashed() {
				t.Fatal(err)
			}
		}
		if gate.Crashed() {
			crashes++
		}
		d.checkSums(t)
		d.Close()
		loads += d.stats.MapGets.Load()
		merges += int64(d.merges)
		packed += d.stats.CompressFrom.Load()
	}
	t.Logf("%d sessions, %d crashes, %d changes of the form, %d reads of the map, %d merges", sessions, crashes, reshaped, loads, merges)
	if reshaped == 0 && done >= 4000 {
		t.Error("no change of the form: this test shows little")
	}
	if paged && (loads < int64(sessions) || merges == 0) {
		t.Error("hardly any reads of the map, or no merges: this test shows little")
	}
	if packed == 0 {
		t.Error("nothing was compressed: this test shows little")
	}
	if crashes == 0 {
		t.Error("no crash: this test shows little")
	}

	// Left alone, the disk shrinks to what it needs, whatever was left behind.
	v.o.Idle, v.o.Checkpoint, v.o.Log = 20*time.Millisecond, 1000, t.Logf
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		u := d.Use()
		list, err := v.box.List(t.Context(), store.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if converted {
			list = slices.DeleteFunc(list, func(o store.ObjectInfo) bool { return ofVersion1(o.Name) })
		}
		named := len(wantedObjects(t, d, v.box))
		if u.Garbage == 0 && len(list) == named && (u.Live*10 > u.Bytes*8 || u.Objects < 3) {
			t.Logf("at rest: %+v, %d objects in the container", u, len(list))
			break
		}
		if time.Now().After(end) {
			atRest(t, d, v.box)
			t.Fatalf("at rest: %+v; %d objects in the container, of which %d are named", u, len(list), named)
		}
	}
	if _, ok := h.prefix(t, d, blocks, flushed, faulty.NewGate(v.box)); !ok {
		t.Error("cannot be read")
	}
	h.settle(t, d)
	for name := range h.snaps {
		h.snaps.check(t, v, v.box, name, h, blocks)
	}
	if converted {
		d.Close()
		chunksEnd(t, v, h, blocks, flushed)
	}
}

// randomOp does one operation, and says whether the disk goes on after it.
func randomOp(t *testing.T, rng *rand.Rand, d *Disk, h *past, blocks uint64, flushed *uint64, gate *faulty.Store) bool {
	t.Helper()
	ctx := t.Context()
	first := rng.Uint64N(blocks)
	count := 1 + rng.Uint64N(min(8, blocks-first))
	if rng.IntN(30) == 0 {
		count = 1 + rng.Uint64N(blocks-first)
	}
	crashed := func(err error) bool {
		if err != nil && !gate.Crashed() {
			t.Fatal(err)
		}
		return err != nil
	}
	switch k := rng.IntN(20); {
	case k < 9:
		count = min(count, 40, chunkBlocks-first%chunkBlocks) // one piece: it is in one cut, or in the one before
		count = min(count, 16)
		h.ops++
		p := make([]byte, count*blockSize)
		for i := range count {
			stamp(p[i*blockSize:][:blockSize], first+i, h.ops)
		}
		h.note(first, count, h.ops, false)
		return !crashed(d.Write(ctx, p, int64(first)*blockSize))
	case k < 12:
		h.ops++
		h.note(first, count, h.ops, true)
		if k == 9 {
			return !crashed(d.Trim(ctx, int64(first)*blockSize, int64(count)*blockSize))
		}
		return !crashed(d.Zero(ctx, int64(first)*blockSize, int64(count)*blockSize))
	case k < 13:
		if crashed(d.Flush(ctx)) {
			return false
		}
		*flushed = h.ops
	case k < 14:
		err := d.Extents(ctx, int64(first)*blockSize, int64(count)*blockSize, func(off, n int64, hole bool) bool {
			want := make([]byte, blockSize)
			for b := uint64(off) / blockSize; b < uint64(off+n)/blockSize; b++ {
				h.at(b, h.ops, want)
				if zero := binary.LittleEndian.Uint64(want[8:]) == 0; zero != hole && !(zero && gate.Crashed()) { // a base that cannot be asked counts as data
					t.Fatalf("block %d: hole is %t", b, hole)
				}
			}
			return true
		})
		if crashed(err) { // it may read the map
			return false
		}
	case k < 15 && rng.IntN(10) == 0:
		time.Sleep(time.Millisecond)
	default:
		p := make([]byte, count*blockSize)
		if crashed(d.Read(ctx, p, int64(first)*blockSize)) {
			return false
		}
		want := make([]byte, blockSize)
		for i := range count {
			h.at(first+i, h.ops, want)
			if got := p[i*blockSize:][:blockSize]; string(got) != string(want) {
				t.Fatalf("block %d reads as (%d, %d), want (%d, %d)", first+i, binary.LittleEndian.Uint64(got),
					binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(want), binary.LittleEndian.Uint64(want[8:]))
			}
		}
	}
	return true
}

// TestUnaligned changes parts of blocks.
func TestUnaligned(t *testing.T) {
	const size = 3<<20 + 512
	rng := newRand(t)
	v := newVolume(t, size)
	d, err := v.open(t.Context(), v.box)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range 2000 {
		off := rng.Int64N(size)
		n := min(size-off, 1+rng.Int64N(10_000))
		if rng.IntN(20) == 0 {
			n = size - off
		}
		switch rng.IntN(4) {
		case 0:
			err = d.Zero(t.Context(), off, n)
			clear(want[off : off+n])
		case 1:
			got := make([]byte, n)
			if err = d.Read(t.Context(), got, off); err == nil && string(got) != string(want[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d are wrong", i, n, off)
			}
		default:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			err = d.Write(t.Context(), p, off)
			copy(want[off:], p)
		}
		if err != nil {
			t.Fatal(err)
		}
		if rng.IntN(100) == 0 {
			if err := errors.Join(d.Drain(t.Context()), d.Save(t.Context())); err != nil {
				t.Fatal(err)
			}
			d.Close()
			if d, err = v.open(t.Context(), v.box); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.Close()
}
