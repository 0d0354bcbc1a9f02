// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
)

// past is what a disk was at its snapshots.
type past struct {
	*bench
	dir   string
	now   []byte
	names []string
	was   map[string][]byte
}

func (p *past) snapshot() {
	p.Helper()
	name := fmt.Sprintf("s%d", len(p.names))
	p.ok("snapshot", "disk", name)
	p.names = append(p.names, name)
	p.was[name] = bytes.Clone(p.now)
}

// change writes to a few places, and zeroes others.
func (p *past) change() {
	p.serve("disk", func(d *device.Device) {
		for range 5 {
			off := rand.IntN(len(p.now))
			data := noise(1 + rand.IntN(min(40_000, len(p.now)-off)))
			if _, err := d.WriteAt(data, int64(off)); err != nil {
				p.Fatal(err)
			}
			copy(p.now[off:], data)
			off = rand.IntN(len(p.now))
			n := 1 + rand.IntN(min(80_000, len(p.now)-off))
			if err := d.Zero(int64(off), int64(n), false, false); err != nil {
				p.Fatal(err)
			}
			clear(p.now[off:][:n])
		}
	})
}

func (p *past) image(name string) string { return filepath.Join(p.dir, name) }

// since makes an image of one snapshot one of another, and returns what was read.
func (p *past) since(from, to string) (fetched int64) {
	p.Helper()
	path := p.image("patched")
	if err := os.WriteFile(path, p.was[from], 0o666); err != nil {
		p.Fatal(err)
	}
	var out downloaded
	if err := json.Unmarshal([]byte(p.ok("download", "disk@"+to, path, "--since", from, "--json")), &out); err != nil {
		p.Fatal(err)
	}
	if !bytes.Equal(must(os.ReadFile(path)), p.was[to]) {
		p.Errorf("since %s: the image is not %s", from, to)
	}
	return out.Fetched
}

// whole has an increment without --since be all of a snapshot, on another disk.
func (p *past) whole(name string) {
	p.Helper()
	path := p.image("increment")
	p.ok("download", "disk@"+name, path, "--image-format", "increment")
	p.ok("upload", path, "--onto", "copy")
	if !bytes.Equal(p.content("copy", len(p.was[name])), p.was[name]) {
		p.Errorf("the increment of %s is not the snapshot", name)
	}
	p.ok("delete", "copy", "-y")
}

// TestSinceBelow takes increments of a clone and of a disk that was converted, between
// any two of its snapshots, before and after it was made smaller and larger, flattened
// and reverted: each is what the later one is, byte for byte.
func TestSinceBelow(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	for kind, setup := range map[string]func(b *bench) []byte{
		"clone": func(b *bench) []byte {
			b.ok("setup", "golden", "--size", itoa(size), "--format", "2")
			want := make([]byte, size)
			b.serve("golden", func(d *device.Device) {
				for _, off := range []int{0, 1 << 20, 3<<20 + 5000} {
					copy(want[off:], noise(300_000))
					if _, err := d.WriteAt(want[off:][:300_000], int64(off)); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.ok("clone", "golden", "disk")
			return want
		},
		"converted": func(b *bench) []byte {
			b.ok("setup", "disk", "--size", itoa(size), "--object-size", "64K")
			want := make([]byte, size)
			b.serve("disk", func(d *device.Device) {
				for _, off := range []int{0, 1 << 20, 3<<20 + 5000} {
					copy(want[off:], noise(300_000))
					if _, err := d.WriteAt(want[off:][:300_000], int64(off)); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.ok("convert", "disk")
			return want
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk", "golden", "copy")
			p := &past{bench: b, dir: t.TempDir(), was: map[string][]byte{}}
			p.now = setup(b)
			p.snapshot() // s0: nothing but what is below
			p.whole("s0")
			p.change()
			p.snapshot() // s1
			p.whole("s1")
			if n := p.since("s0", "s1"); n > 5*44_000 {
				t.Errorf("%d bytes are read, and hardly 200,000 have changed", n)
			}
			// Less of what is below is seen from now on, for good.
			small := 3<<20 + 8192
			b.ok("resize", "disk", itoa(small), "--force")
			p.now = p.now[:small]
			p.snapshot() // s2
			b.ok("resize", "disk", itoa(size))
			p.now = append(bytes.Clone(p.now), make([]byte, size-small)...)
			p.change()
			p.snapshot() // s3
			p.whole("s3")
			b.ok("revert", "disk", "s0", "--yes")
			p.now = bytes.Clone(p.was["s0"])
			p.snapshot() // s4
			if n := p.since("s0", "s4"); n > 0 {
				t.Errorf("%d bytes are read, and nothing has changed", n)
			}
			if r := b.run("flatten", "disk"); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			p.snapshot() // s5: nothing is below
			p.change()
			p.snapshot() // s6
			p.whole("s6")
			for _, from := range p.names {
				for _, to := range p.names {
					if from != to {
						p.since(from, to)
					}
				}
			}
			b.differs("disk@s1", "disk@s3", p.was["s1"], p.was["s3"])
			for _, from := range p.names {
				in := b.asked("diff", "disk@"+from, "disk")["extents"].([]any)
				covered := make([]bool, size/4096)
				for _, e := range in {
					e := e.(map[string]any)
					for k := int(e["offset"].(float64)) / 4096; k < (int(e["offset"].(float64))+int(e["length"].(float64))+4095)/4096; k++ {
						covered[k] = true
					}
				}
				for k := range covered {
					if was := p.was[from]; !covered[k] && (k*4096 < len(was) && !bytes.Equal(was[k*4096:][:4096], p.now[k*4096:][:4096])) {
						t.Errorf("%s: block %d has changed, and diff does not say so", from, k)
					}
				}
			}
		})
	}
}
