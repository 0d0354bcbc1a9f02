// SPDX-License-Identifier: MIT

package logdisk

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/mem"
)

// contents returns all objects of a container.
func contents(t testing.TB, box *mem.Container) map[string][]byte {
	t.Helper()
	list, err := box.List(context.Background(), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, o := range list {
		all[o.Name] = get(t, box, o.Name)
	}
	return all
}

func put(t testing.TB, box *mem.Container, name string, b []byte) {
	t.Helper()
	if err := box.Put(context.Background(), name, b, ""); err != nil {
		t.Fatal(err)
	}
}

// harms are what can be wrong with an object, by name. Each returns its bytes
// then, or nil for what does not apply.
var harms = map[string]func(name string, all, foreign map[string][]byte) []byte{
	"the first byte": func(name string, all, _ map[string][]byte) []byte {
		b := slices.Clone(all[name])
		b[0] ^= 1
		return b
	},
	"the last byte": func(name string, all, _ map[string][]byte) []byte {
		b := slices.Clone(all[name])
		b[len(b)-1] ^= 0x80
		return b
	},
	"a byte in the tail": func(name string, all, _ map[string][]byte) []byte {
		b := slices.Clone(all[name])
		b[len(b)-layout.FooterSize/2] ^= 4
		return b
	},
	"cut by one":        func(name string, all, _ map[string][]byte) []byte { return all[name][:len(all[name])-1] },
	"cut in half":       func(name string, all, _ map[string][]byte) []byte { return all[name][:len(all[name])/2] },
	"empty":             func(string, map[string][]byte, map[string][]byte) []byte { return []byte{} },
	"of another volume": func(name string, _, foreign map[string][]byte) []byte { return foreign[name] },
	"of another name": func(name string, all, _ map[string][]byte) []byte {
		var other []byte // the last of its kind, or the one before
		for n, b := range all {
			if kind(n) == kind(name) && string(b) != string(all[name]) && (other == nil || string(b) > string(other)) {
				other = b
			}
		}
		return other
	},
	"of another kind": func(name string, all, _ map[string][]byte) []byte {
		for n, b := range all {
			if kind(n) != kind(name) {
				return b
			}
		}
		return nil
	},
}

func kind(name string) string { return strings.Split(name, "/")[1] }

// TestDamage has one object after the other be wrong in each way. What is needed
// to open the disk is named by the error. What is not leaves the rest readable,
// and nothing is ever read wrongly.
func TestDamage(t *testing.T) {
	const blocks = 64
	type count struct{ refused, served int }
	counts := map[string]count{}
	for harm, do := range harms {
		for n, i := 1, 0; i < n; i++ {
			synctest.Test(t, func(t *testing.T) {
				fill := func() (*opener, *script) {
					v, s, d := written(t, blocks)
					if err := s.everything(d); err != nil {
						t.Fatal(err)
					}
					if err := s.flush(d); err != nil {
						t.Fatal(err)
					}
					v.o.Root, v.o.Durable = d.RootName(), d.Durable()
					d.Close()
					return v, s
				}
				v, s := fill()
				all := contents(t, v.box)
				names := slices.Sorted(func(yield func(string) bool) {
					for name := range all {
						if !yield(name) {
							return
						}
					}
				})
				if n = len(names); i >= n {
					return
				}
				name := names[i]
				b := do(name, all, asOf(t, all, layout.UUID{2}))
				if b == nil || string(b) == string(all[name]) {
					return
				}
				defer func() {
					if t.Failed() {
						t.Logf("%s: %s", name, harm)
					}
				}()
				put(t, v.box, name, b)
				c := counts[kind(name)]
				defer func() { counts[kind(name)] = c }()
				d, err := v.open(t.Context(), v.box)
				if err != nil {
					c.refused++
					if !strings.Contains(err.Error(), name) {
						t.Errorf("the error does not name it: %v", err)
					}
					if !errors.As(err, new(*layout.DamagedError)) && !errors.As(err, new(*layout.UnsupportedError)) {
						t.Errorf("it is not called damaged: %v", err)
					}
					return
				}
				c.served++
				if kind(name) != "log" && name == layout.RootPrefix+v.o.Root {
					t.Error("the newest root is wrong, and the disk is open")
				}
				readable(t, s, d, name)
				time.Sleep(30 * time.Minute) // and the collector at work
				if d.Stats().Moved.Load() == 0 || d.Stats().Deleted.Load() == 0 {
					t.Error("the collector has done nothing")
				}
				readable(t, s, d, name)
				d.mu.RLock()
				for at := range d.objects.all() {
					if _, err := v.box.Head(t.Context(), layout.LogName(at)); err != nil {
						t.Errorf("%v is away", at)
					}
				}
				d.mu.RUnlock()
			})
		}
	}
	t.Logf("%+v", counts)
	for _, kind := range []string{"root", "run", "log"} {
		if counts[kind].refused == 0 {
			t.Errorf("no %s was refused: this test shows little", kind)
		}
	}
	if counts["log"].served == 0 {
		t.Error("no disk was served with a damaged data object: this test shows little")
	}
}

// readable reads block for block: each is right, or is in the object with the
// name, and the error says so.
func readable(t *testing.T, s *script, d *Disk, name string) {
	t.Helper()
	want, p := make([]byte, blockSize), make([]byte, blockSize)
	bad := 0
	for b := range s.blocks {
		_, err := d.read(t.Context(), b, p)
		s.h.at(b, s.h.ops, want)
		switch {
		case err != nil:
			bad++
			if !strings.Contains(err.Error(), name) {
				t.Errorf("block %d: the error does not name the object: %v", b, err)
			}
			d.mu.RLock()
			v, _ := d.m.Get(b)
			d.mu.RUnlock()
			if layout.LogName(v.At) != name {
				t.Errorf("block %d is in %v, and cannot be read: %v", b, v.At, err)
			}
			if !errors.As(err, new(*layout.DamagedError)) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("block %d: %v", b, err)
			}
		case string(p) != string(want):
			t.Errorf("block %d has wrong bytes", b)
		}
	}
	if uint64(bad) == s.blocks {
		t.Error("nothing can be read")
	}
}

// asOf returns the objects as another volume would have them.
func asOf(t testing.TB, all map[string][]byte, to layout.UUID) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name, b := range all {
		switch kind(name) {
		case "root":
			root, err := layout.ParseRoot(b)
			if err != nil {
				t.Fatal(err)
			}
			root.UUID = to
			reseal(root.Table, func(uuid []byte) { copy(uuid, to[:]) })
			if out[name], err = root.Marshal(); err != nil {
				t.Fatal(err)
			}
		default:
			b = slices.Clone(b)
			reseal(b, func(uuid []byte) { copy(uuid, to[:]) })
			if kind(name) == "log" { // and its frames
				f, records, _, err := layout.ParseTail(b, int64(len(b)))
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range records {
					for i := uint64(0); r.Kind == layout.Data && i < uint64(r.Count); i++ {
						frame := b[uint64(r.Place)+i*layout.FrameSize:][:layout.FrameSize]
						layout.PutFrame(frame, frame[:blockSize], r.First+i, &f.UUID)
					}
				}
			}
			out[name] = b
		}
	}
	return out
}

// reseal changes the footer's uuid of a data object or a run, and makes its CRCs
// right. It does nothing to what is neither.
func reseal(b []byte, change func(uuid []byte)) {
	table := crc32.MakeTable(crc32.Castagnoli)
	size, at := layout.FooterSize, 16
	if i := len(b) - 64; i >= 0 && string(b[i:i+8]) == "swnbdrun" {
		size, at = 64, 24
	} else if i := len(b) - size; i < 0 || string(b[i:i+8]) != "swnbdlog" {
		return
	}
	f := b[len(b)-size:]
	change(f[at : at+16])
	body := b[:len(b)-size]
	if size == 64 {
		n := int64(binary.LittleEndian.Uint32(f[12:])) * 20
		if n <= int64(len(body)) {
			binary.LittleEndian.PutUint32(f[40:], crc32.Checksum(body[int64(len(body))-n:], table))
		}
	} else {
		n := int64(binary.LittleEndian.Uint32(f[36:])) * int64(binary.LittleEndian.Uint32(f[12:]))
		if n >= 0 && n <= int64(len(body)) {
			binary.LittleEndian.PutUint32(f[80:], crc32.Checksum(body[int64(len(body))-n:], table))
		}
	}
	binary.LittleEndian.PutUint32(f[size-4:], crc32.Checksum(f[:size-4], table))
}

// FuzzOpen opens, uses and closes a disk one of whose objects has been changed:
// at places of it, with its checksums as they were, or made right again.
func FuzzOpen(f *testing.F) {
	const blocks = 64
	v := newVolume(f, blocks*blockSize)
	v.o = Options{
		Seal: 3 * layout.FrameSize, Tail: 64 * layout.FrameSize, Cache: 8 << 20, Connections: 4, Checkpoint: 6, FlushTime: -1,
		Pause: time.Millisecond, Timeout: time.Millisecond, GC: 70, Every: time.Millisecond, Idle: time.Millisecond, Horizon: time.Nanosecond,
	}
	s := newScript(f, blocks)
	d, err := v.open(f.Context(), v.box)
	if err != nil {
		f.Fatal(err)
	}
	for _, err := range []error{
		s.write(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), s.flush(d), s.write(d, 1, 3, 5, 7), s.flush(d), s.save(d),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // the collector's time
	if err := errors.Join(s.write(d, 2, 30, 31), s.zero(d, 8, 3), s.flush(d), s.write(d, 40, 41, 42, 43, 44), s.flush(d)); err != nil {
		f.Fatal(err)
	}
	root := d.RootName()
	d.Close()
	all := contents(f, v.box)
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range all {
			if !yield(name) {
				return
			}
		}
	})
	for i := range names {
		b := all[names[i]]
		for _, at := range []int{0, len(b) / 2, len(b) - 120, len(b) - 100, len(b) - 88, len(b) - 60, len(b) - 20} {
			for _, right := range []bool{false, true} {
				f.Add(uint8(i), right, uint16(max(0, len(b)-at)), []byte{1, 0, 0, 0x80})
			}
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, right bool, fromEnd uint16, change []byte) {
		name := names[int(which)%len(names)]
		b := slices.Clone(all[name])
		at := max(0, len(b)-int(fromEnd))
		for i := 0; i < len(change) && at+i < len(b); i++ {
			b[at+i] ^= change[i]
		}
		if right {
			reseal(b, func([]byte) {})
		}
		box := mem.New()
		if _, err := box.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for n, c := range all {
			if n == name {
				c = b
			}
			put(t, box, n, c)
		}
		w := &opener{box: box, uuid: v.uuid, epoch: 1, o: v.o}
		w.o.Root, w.o.Log = root, func(format string, args ...any) {
			if strings.Contains(format, "given up") {
				t.Errorf(format, args...)
			}
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		d, err := w.open(ctx, box)
		if err == nil {
			defer d.Close()
			p, want := make([]byte, blockSize), make([]byte, blockSize)
			for b := range s.blocks {
				if d.Read(ctx, p, int64(b)*blockSize) != nil || right {
					continue
				}
				if s.h.at(b, s.h.ops, want); string(p) != string(want) {
					t.Errorf("block %d has wrong bytes", b)
				}
			}
			_ = d.Write(ctx, p, 5*blockSize)
			_ = d.Flush(ctx)
			_ = d.Save(ctx)
			_, _ = d.collectOnce(ctx)
		}
		if ctx.Err() != nil {
			t.Error("it takes for ever")
		}
	})
}
