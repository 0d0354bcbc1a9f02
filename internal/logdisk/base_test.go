// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/faulty"
	"swiftnbd/internal/store/mem"
)

// family is some disks in the containers of an account, some of them clones of
// others.
type family struct {
	cluster *mem.Cluster
	members []*member
	away    map[string]bool // containers that cannot be read as a base
}

type member struct {
	*opener
	name    string
	h       *past
	flushed uint64
	w       *witness
	parent  *member
	of      string // the parent's snapshot
}

func newFamily() *family { return &family{cluster: mem.NewCluster(), away: map[string]bool{}} }

func (f *family) bases(_ context.Context, url, container string) (store.Store, error) {
	if url != "" {
		return nil, fmt.Errorf("url %q", url)
	}
	if f.away[container] {
		return mem.New(), nil // nothing is there
	}
	return f.cluster.Container(container), nil
}

// disk sets a disk up.
func (f *family) disk(t testing.TB, size int64, o Options) *member {
	t.Helper()
	m := f.container(t, o)
	if _, err := Setup(t.Context(), m.box, m.uuid, size); err != nil {
		t.Fatal(err)
	}
	return m
}

func (f *family) container(t testing.TB, o Options) *member {
	t.Helper()
	name := fmt.Sprintf("disk%d", len(f.members))
	o.Bases = f.bases
	m := &member{opener: &opener{box: f.cluster.Container(name), uuid: layout.NewUUID(), o: o}, name: name, h: &past{changes: map[uint64][]change{}, snaps: snapshots{}, clones: map[string]int{}}}
	if _, err := m.box.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.members = append(f.members, m)
	return m
}

// clone makes a clone of a member's snapshot.
func (f *family) clone(t testing.TB, of *member, snap string) *member {
	t.Helper()
	m, err := f.tryClone(t, of, snap)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (f *family) tryClone(t testing.TB, of *member, snap string) (*member, error) {
	t.Helper()
	o := of.o
	m := f.container(t, o)
	o.Timeout = time.Second
	p, err := FindParent(t.Context(), of.box, snap, o)
	if err != nil {
		return nil, err
	}
	c := &Child{Parent: p, Notes: of.box, Base: of.box, ParentURL: layout.SameAccount, ParentName: of.name, URL: layout.SameAccount, Name: m.name, Store: m.box}
	if _, _, err := c.Clone(t.Context(), o); err != nil {
		return nil, errors.Join(err, c.Forget(t.Context()))
	}
	m.uuid = c.UUID
	m.parent, m.of = of, snap
	of.h.clones[snap]++
	m.h.ops = of.h.snaps[snap]
	for b, list := range of.h.changes {
		for _, c := range list {
			if c.op <= m.h.ops {
				m.h.changes[b] = append(m.h.changes[b], c)
			}
		}
	}
	for _, r := range of.h.sizes {
		if r.op <= m.h.ops {
			m.h.sizes = append(m.h.sizes, r)
		}
	}
	m.flushed = m.h.ops
	return m, nil
}

// TestModelClones is TestModel with several disks, which are clones of each
// other's snapshots, and are flattened at times. Any of them may crash at any
// request.
func TestModelClones(t *testing.T) {
	const blocks = 512
	ops := 6000
	if testing.Short() {
		ops = 3000
	}
	if *opsFlag > 0 {
		ops = *opsFlag
	}
	rng := newRand(t)
	f := newFamily()
	o := Options{
		Seal: 16 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 20,
		Age: time.Millisecond, Pause: time.Millisecond, Timeout: time.Second,
		GC: 70, Every: time.Millisecond, Idle: 3 * time.Millisecond, Horizon: time.Nanosecond,
	}
	f.disk(t, blocks*blockSize, o)
	crashes, flat, deepest, reshaped := 0, 0, 0, 0
	for done := 0; done < ops; {
		m := f.members[rng.IntN(len(f.members))]
		m.o.MapMemory, m.o.regionShift = 0, 0
		if rng.IntN(3) == 0 {
			m.o.littleMap()
		}
		if m.w == nil {
			m.w = newWitness(t, m.box, 0)
		}
		gate := faulty.NewGate(m.w)
		if rng.IntN(4) > 0 {
			gate.CrashAt(gate.Ops()+1+rng.Int64N(200), rng.IntN(2) == 0)
		}
		m.o.Brief = rng.IntN(4) == 0
		brief := m.o.Brief
		d, err := m.open(t.Context(), gate)
		m.o.Brief = false
		if err != nil {
			if !gate.Crashed() {
				t.Fatal(err)
			}
			crashes++
			continue
		}
		m.flushed = max(m.flushed, m.h.made(d))
		op, ok := m.h.prefix(t, d, blocks, m.flushed, gate)
		if !ok {
			crashes++
			d.Close()
			continue
		}
		m.h.cut(op)
		m.flushed = op
		m.h.settle(t, d)
		for range 1 + rng.IntN(200) {
			if rng.IntN(50) == 0 && !randomSnapshot(t, rng, m.opener, d, m.h, blocks, &m.flushed, gate) {
				break
			}
			if rng.IntN(150) == 0 && m.parent != nil {
				if err := flattenAll(t, d); err != nil {
					if !gate.Crashed() {
						t.Fatal(err)
					}
					break
				}
				if hasBase(d) {
					t.Fatal("a disk that was flattened has a base")
				}
				m.flushed = m.h.ops
				if b, snaps, err := d.Base(t.Context()); err == nil && b != nil && len(snaps) == 0 && d.DropBase(t.Context()) == nil {
					if err := DropNotes(t.Context(), m.parent.box, layout.SameAccount, m.name); err != nil {
						t.Fatal(err)
					}
					m.parent.h.clones[m.of]--
					m.parent = nil
					flat++
				}
				if gate.Crashed() {
					break
				}
			}
			if done++; !randomOp(t, rng, d, m.h, m.h.size(m.h.ops, blocks), &m.flushed, gate) {
				break
			}
			if brief && rng.IntN(10) == 0 {
				break
			}
		}
		if brief && !gate.Crashed() {
			reshaped += randomShape(t, rng, m.opener, d, m.h, blocks, &m.flushed, gate)
		}
		if gate.Crashed() {
			crashes++
		}
		d.Close()
		names := slices.Sorted(maps.Keys(m.h.snaps))
		if m.h.doubt == "" && len(names) > 0 && len(f.members) < 8 && rng.IntN(3) == 0 {
			c, err := f.tryClone(t, m, names[rng.IntN(len(names))])
			if errors.Is(err, ErrGoing) { // deleting it was interrupted
				f.members = f.members[:len(f.members)-1]
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			depth := 0
			for p := c; p.parent != nil; p = p.parent {
				depth++
			}
			deepest = max(deepest, depth)
		}
	}
	t.Logf("%d disks, %d flattened, %d deep, %d changes of the form, %d crashes", len(f.members), flat, deepest, reshaped, crashes)
	if len(f.members) < 3 || crashes == 0 || reshaped == 0 {
		t.Error("hardly any clones, or no crash: this test shows little")
	}
	for _, m := range f.members {
		d, err := m.open(t.Context(), m.box)
		if err != nil {
			t.Fatal(err)
		}
		m.flushed = max(m.flushed, m.h.made(d))
		if _, ok := m.h.prefix(t, d, blocks, m.flushed, faulty.NewGate(m.box)); !ok {
			t.Error("cannot be read")
		}
		m.h.settle(t, d)
		for name := range m.h.snaps {
			m.h.snaps.check(t, m.opener, m.box, name, m.h, blocks)
		}
		d.Close()
		r, err := Verify(t.Context(), Options{Store: m.box, UUID: m.uuid, Newest: m.epoch, Timeout: time.Second, Horizon: time.Nanosecond, Bases: f.bases}, VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Damage) > 0 || len(r.Foreign) > 0 {
			t.Errorf("%s: %+v", m.name, r)
		}
	}
}

// flattenAll flattens a disk from which clients have gone.
func flattenAll(t testing.TB, d *Disk) error {
	err := d.Flatten(t.Context(), func(int64) {})
	if err != nil && !errors.Is(err, ErrNoClone) {
		return err
	}
	return d.Flush(t.Context()) // where there is nothing to flatten
}

// aFamily is a parent with known content, and its snapshot "s".
func aFamily(t testing.TB, blocks uint64) (*family, *member, *script) {
	t.Helper()
	f := newFamily()
	o := Options{Cache: 8 << 20, Timeout: 100 * time.Millisecond, GC: 70, Horizon: time.Nanosecond, Every: time.Millisecond, Idle: time.Millisecond}
	m := f.disk(t, int64(blocks)*blockSize, o)
	d, err := m.open(t.Context(), m.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := newScript(t, blocks)
	s.h = m.h
	var all []uint64
	for b := range blocks / 2 {
		all = append(all, b)
	}
	if err := errors.Join(s.write(d, all...), s.zero(d, 3, 2), d.Snapshot(t.Context(), "s")); err != nil {
		t.Fatal(err)
	}
	m.h.snaps["s"], m.flushed = m.h.ops, m.h.ops
	if err := errors.Join(s.write(d, all...), s.flush(d)); err != nil { // what the clone must not see
		t.Fatal(err)
	}
	return f, m, s
}

// TestCloneHides has a clone trim, zero and write over its parent's blocks, in
// parts of blocks too, and be opened again.
func TestCloneHides(t *testing.T) {
	const blocks = 600 // more than a chunk's, and half of the last one
	f, m, _ := aFamily(t, blocks)
	c := f.clone(t, m, "s")
	want := make([]byte, blocks*blockSize)
	for b := range uint64(blocks) {
		c.h.at(b, c.h.ops, want[b*blockSize:][:blockSize])
	}
	rng := newRand(t)
	for session := range 4 {
		d, err := c.open(t.Context(), c.box)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := d.Read(t.Context(), got, 0); err != nil || string(got) != string(want) {
			t.Fatalf("session %d: the clone is not what it was: %v", session, err)
		}
		for range 60 {
			off := rng.Int64N(int64(len(want)))
			n := min(int64(len(want))-off, 1+rng.Int64N(60_000))
			switch rng.IntN(3) {
			case 0:
				err = d.Trim(t.Context(), off, n)
				clear(want[off : off+n])
			case 1:
				err = d.Zero(t.Context(), off, n)
				clear(want[off : off+n])
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
		}
		if session == 2 {
			if err := d.Flatten(t.Context(), func(int64) {}); err != nil {
				t.Fatal(err)
			}
			f.away[m.name] = true // and nobody asks for it any more
		}
		if err := errors.Join(d.Drain(t.Context()), d.Save(t.Context())); err != nil {
			t.Fatal(err)
		}
		var extents []byte
		err = d.Extents(t.Context(), 0, int64(len(want)), func(off, n int64, hole bool) bool {
			if int64(len(extents)) != off {
				t.Errorf("an extent at %d, expected at %d", off, len(extents))
			}
			if hole && strings.Trim(string(want[off:off+n]), "\x00") != "" {
				t.Errorf("%d bytes at %d are no hole", n, off)
			}
			extents = append(extents, make([]byte, n)...)
			return true
		})
		if err != nil || len(extents) != len(want) {
			t.Errorf("%d bytes in extents, %v", len(extents), err)
		}
		d.Close()
	}
}

// TestParentAway has the parent of a clone not found, damaged and replaced: its
// blocks are errors that name it, and the clone's own are served.
func TestParentAway(t *testing.T) {
	const blocks = 600
	for _, way := range []string{"not there at opening", "objects gone later", "another disk", "damaged", "unreachable"} {
		t.Run(way, func(t *testing.T) {
			f, m, _ := aFamily(t, blocks)
			c := f.clone(t, m, "s")
			gate := faulty.NewGate(m.box)
			c.o.Bases = func(ctx context.Context, url, name string) (store.Store, error) {
				if f.away[name] {
					return mem.New(), nil
				}
				return gate, nil
			}
			d, err := c.open(t.Context(), c.box)
			if err != nil {
				t.Fatal(err)
			}
			own := make([]byte, blockSize)
			stamp(own, 7, 1<<40)
			mine := []int64{7, 8, 100, 255, 256, 400}
			for b := int64(500); b < 520; b++ {
				mine = append(mine, b)
			}
			for _, b := range mine {
				if err := d.Write(t.Context(), own, b*blockSize); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(d.Flush(t.Context()), d.Save(t.Context())); err != nil {
				t.Fatal(err)
			}
			d.Close()
			switch way {
			case "not there at opening":
				f.away[m.name] = true
			case "another disk":
				f.cluster.Container(m.name)
				c.o.Bases = func(context.Context, string, string) (store.Store, error) {
					_, other, _ := aFamily(t, blocks)
					return other.box, nil
				}
			case "unreachable":
				c.o.Bases = func(context.Context, string, string) (store.Store, error) {
					return nil, errors.New("no route")
				}
			}
			if d, err = c.open(t.Context(), c.box); err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if way == "objects gone later" || way == "damaged" {
				p := make([]byte, blockSize)
				if err := d.Read(t.Context(), p, 0); err != nil {
					t.Fatal(err)
				}
				d.cache.Forget(0, d.Size())
				list, err := m.box.List(t.Context(), store.ListOptions{Prefix: layout.LogPrefix})
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range list {
					if way == "damaged" {
						b := get(t, m.box, o.Name)
						for i := 0; i < len(b); i += 1000 {
							b[i] ^= 4
						}
						err = m.box.Put(t.Context(), o.Name, b, etagOf(b))
					} else {
						err = m.box.Delete(t.Context(), o.Name)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			p := make([]byte, blockSize)
			for _, b := range []int64{0, 6, 9, 101, 399, 401} {
				err := d.Read(t.Context(), p, b*blockSize)
				if way != "another disk" && way != "unreachable" && b > 300 { // of the second half nothing was written
					if way == "not there at opening" == (err == nil) {
						t.Errorf("block %d: %v", b, err)
					}
					continue
				}
				var base *BaseError
				if !errors.As(err, &base) || !strings.Contains(err.Error(), "the parent of this clone, disk0, snapshot s, cannot be read: ") {
					t.Errorf("block %d: %v", b, err)
				}
			}
			for _, b := range []int64{7, 8, 100, 400} {
				d.cache.Forget(b*blockSize, blockSize)
				if err := d.Read(t.Context(), p, b*blockSize); err != nil || string(p) != string(own) {
					t.Errorf("its own block %d: %v", b, err)
				}
			}
			both := make([]byte, 2*blockSize)
			for _, b := range []int64{7, 255} { // the latter in two chunks
				d.cache.Forget(0, d.Size())
				if err := d.Read(t.Context(), both, b*blockSize); err != nil {
					t.Errorf("two of its own from %d: %v", b, err)
				}
			}
			for b := int64(500); b < 520; b++ { // somebody reads on
				d.cache.Forget(0, d.Size())
				if err := d.Read(t.Context(), p, b*blockSize); err != nil {
					t.Errorf("its own block %d, of many: %v", b, err)
				}
			}
			if err := d.Write(t.Context(), own[:100], 6*blockSize+50); err == nil {
				t.Error("a part of a block that cannot be read is written")
			}
			if err := d.Write(t.Context(), own, 6*blockSize); err != nil {
				t.Errorf("a whole block: %v", err)
			}
			if err := d.Trim(t.Context(), 20*blockSize, 5*blockSize); err != nil {
				t.Errorf("trim: %v", err)
			}
			if err := d.Read(t.Context(), p, 22*blockSize); err != nil || strings.Trim(string(p), "\x00") != "" {
				t.Errorf("after a trim: %v", err)
			}
			if err := errors.Join(d.Flush(t.Context()), d.Save(t.Context())); err != nil {
				t.Error(err)
			}
			if err := d.Flatten(t.Context(), func(int64) {}); !errors.As(err, new(*BaseError)) {
				t.Errorf("flatten: %v", err)
			}
		})
	}
}

// TestCloneDepth makes a clone of a clone, and so on, as deep as that goes. Each
// has a block of each disk below it.
func TestCloneDepth(t *testing.T) {
	const blocks = 64
	f, m, _ := aFamily(t, blocks)
	for i := range MaxDepth {
		c := f.clone(t, m, "s")
		d, err := c.open(t.Context(), c.box)
		if err != nil {
			t.Fatal(err)
		}
		s := newScript(t, blocks)
		s.h = c.h
		s.flushed = c.h.ops
		s.check(d)
		if err := errors.Join(s.write(d, uint64(10+i)), d.Snapshot(t.Context(), "s")); err != nil {
			t.Fatal(err)
		}
		c.h.snaps["s"] = c.h.ops
		s.same(d)
		d.Close()
		c.h.snaps.check(t, c.opener, c.box, "s", c.h, blocks)
		m = c
	}
	// An object that only names the last note may stay.
	count := func() (n int) {
		t.Helper()
		list, err := m.box.List(t.Context(), store.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range list {
			if _, ok := layout.ParseRecentName(info.Name); !ok {
				n++
			}
		}
		return n
	}
	before := count()
	if _, err := f.tryClone(t, m, "s"); err == nil || !strings.Contains(err.Error(), "16 times already") {
		t.Errorf("one more: %v", err)
	}
	if after := count(); after != before {
		t.Errorf("%d objects in the parent's container, and %d before", after, before)
	}
}

// TestCloneResize makes a clone smaller and larger again: what its parent has
// there does not come back, and is not even seen.
func TestCloneResize(t *testing.T) {
	const blocks = 64 // half of them written
	f, m, _ := aFamily(t, blocks)
	c := f.clone(t, m, "s")
	c.o.Brief = true
	d, err := c.open(t.Context(), c.box)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var beyond *BeyondError
	if err := d.Resize(t.Context(), 20*blockSize, false); !errors.As(err, &beyond) || *beyond != (BeyondError{12 * blockSize, 20 * blockSize}) {
		t.Errorf("its parent has data there: %v", err)
	}
	if err := d.Resize(t.Context(), 48*blockSize, false); err != nil || d.root.Below.Clone.Size != 48*blockSize {
		t.Errorf("its parent has none there: %v, %+v", err, d.root.Below.Clone)
	}
	if err := d.Resize(t.Context(), 20*blockSize, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(t.Context(), blocks*blockSize, false); err != nil {
		t.Fatal(err)
	}
	if got := d.root.Below.Clone.Size; got != 20*blockSize || d.baseSize != got {
		t.Errorf("%d bytes of the base are seen, %d in memory", got, d.baseSize)
	}
	p, want := make([]byte, blocks*blockSize), make([]byte, blockSize)
	if _, err := d.read(t.Context(), 0, p); err != nil {
		t.Fatal(err)
	}
	for b := range uint64(blocks) {
		if clear(want); b < 20 {
			c.h.at(b, c.h.ops, want)
		}
		if string(p[b*blockSize:][:blockSize]) != string(want) {
			t.Errorf("block %d is not what it was", b)
		}
	}
}
