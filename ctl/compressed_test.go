// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store/storetest"
)

// TestRealSwiftCompressed: a real Swift takes compressed records as it takes others,
// and a clone without compression reads them from its parent.
func TestRealSwiftCompressed(t *testing.T) {
	t.Parallel()
	l := storetest.RealLogin(t)
	b := newRealBench(t, l, "above", "disk")
	b.pace.work.Timeout = 30 * time.Second
	b.writeSecrets(section("disk", l) + "compression = zstd\n" + section("above", l))
	disk := b.packed("disk")
	a := bytes.Clone(disk)
	b.write("disk", true, disk, 2, 2)
	b.ok("clone", "disk@a", "above")
	b.sound("above", a)
	b.sound("disk", disk)
	b.ok("delete", "above", "--yes")
	b.ok("delete", "disk", "--yes")
}

// packed makes a disk with compressed records and a snapshot a, and returns what it
// has.
func (b *bench) packed(name string) []byte {
	b.Helper()
	b.ok("setup", name, "--size", itoa(compressedSize), "--format", "2")
	disk := make([]byte, compressedSize)
	b.write(name, true, disk, 30, 5)
	b.ok("snapshot", name, "a")
	if b.compressed(name) == 0 {
		b.Fatal("nothing is compressed")
	}
	return disk
}

// compressedSize is how large these disks are, bytes.
const compressedSize = 4 << 20

// sound fails unless a disk has what was written, and verify agrees.
func (b *bench) sound(name string, want []byte) {
	b.Helper()
	if !bytes.Equal(b.content(name, len(want)), want) {
		b.Fatalf("%s is not what was written", name)
	}
	b.ok("verify", name)
}

// write opens a disk, with compression or without, and writes text in some places,
// and what cannot be compressed in others.
func (b *bench) write(name string, compress bool, want []byte, text, other int) {
	b.Helper()
	d, end := b.openAs(name, device.Options{Compress: compress})
	defer end()
	do := func(p []byte) {
		off := rand.IntN(len(want) - len(p))
		if rand.IntN(2) == 0 {
			off &^= 4095
		}
		if _, err := d.WriteAt(p, int64(off)); err != nil {
			b.Fatal(err)
		}
		copy(want[off:], p)
	}
	for i := range text {
		do(prose(i, 1+rand.IntN(200_000)))
	}
	for range other {
		do(noise(1 + rand.IntN(30_000)))
	}
	if err := d.Sync(); err != nil {
		b.Fatal(err)
	}
}

func prose(seed, n int) []byte {
	var s bytes.Buffer
	for i := 0; s.Len() < n; i++ {
		fmt.Fprintf(&s, "%d: line %d of a text that says little, and %x\n", seed, i, i*i*7919)
	}
	return s.Bytes()[:n]
}

// compressed returns how many compressed records a disk's objects have.
func (b *bench) compressed(name string) (n int) {
	b.Helper()
	for _, object := range b.names(name, layout.LogPrefix) {
		p := b.object(name, object)
		_, records, _, err := layout.ParseTail(p, int64(len(p)))
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range records {
			if r.Kind == layout.Zstd {
				n++
			}
		}
	}
	return n
}

// TestCompressedVerbs uses every verb on disks with compressed records: of
// sections that compress and of others, below a clone and above one.
func TestCompressedVerbs(t *testing.T) {
	t.Parallel()
	const size = compressedSize
	b := newBench(t, devswift.Options{}, "plain", "above")
	secrets, err := os.ReadFile(b.secrets)
	if err != nil {
		t.Fatal(err)
	}
	b.writeSecrets(string(secrets) + "[disk]\ncompression = zstd\n[packed]\ncompression = zstd\n[old]\ncompression = zstd\n")
	image := filepath.Join(t.TempDir(), "image")

	// Snapshots, differences, increments, and the way back.
	disk := b.packed("disk")
	a := bytes.Clone(disk)
	b.write("disk", false, disk, 2, 2)
	b.write("disk", true, disk, 2, 2)
	b.ok("snapshot", "disk", "b")
	b.sound("disk", disk)
	b.differs("disk@a", "disk@b", a, disk)
	b.ok("download", "disk@a", image)
	checkImage(t, image, a)
	b.ok("download", "disk@b", image, "--since", "a")
	checkImage(t, image, disk)
	for _, args := range [][]string{{"download", "disk@a", image, "-O", "increment"}, {"download", "disk@b", image, "-O", "increment", "--since", "a"}} {
		b.ok(args...)
		b.ok("upload", image, "--onto", "packed")
		b.ok("upload", image, "--onto", "plain")
	}
	b.sound("packed", disk)
	b.sound("plain", disk)
	if packed, plain := b.compressed("packed"), b.compressed("plain"); packed == 0 || plain != 0 {
		t.Errorf("with compression %d records are compressed, without %d", packed, plain)
	}
	b.ok("delete", "packed", "--yes")
	b.ok("revert", "disk", "a", "--yes")
	b.sound("disk", a)
	b.ok("revert", "disk", "b", "--yes")

	// A size that ends within a compressed record, and grows again.
	for _, to := range []int{size/2 + 5*4096, size/4 + 1234} {
		to = to / 4096 * 4096
		b.ok("resize", "disk", itoa(to), "--force")
		b.sound("disk", disk[:to])
		b.ok("resize", "disk", itoa(size))
		clear(disk[to:])
		b.sound("disk", disk)
		b.write("disk", true, disk, 10, 1)
		b.sound("disk", disk)
	}

	// Clones: what is compressed below a disk that does not compress, and the other way.
	for _, c := range []struct {
		parent, clone string
		compress      bool
		was           []byte
	}{{"disk@a", "above", false, bytes.Clone(a)}, {"plain", "packed", true, b.content("plain", size)}} {
		b.ok("clone", c.parent, c.clone)
		b.sound(c.clone, c.was)
		b.write(c.clone, c.compress, c.was, 5, 2)
		b.sound(c.clone, c.was)
		b.ok("snapshot", c.clone, "s")
		was := bytes.Clone(c.was)
		b.write(c.clone, !c.compress, c.was, 5, 2)
		b.sound(c.clone, c.was)
		b.differs(c.clone+"@s", c.clone, was, c.was)
		b.ok("snapshot", "--delete", c.clone, "s")
		b.ok("flatten", c.clone)
		b.sound(c.clone, c.was)
		b.ok("download", c.clone, image)
		checkImage(t, image, c.was)
		b.ok("delete", c.clone, "--yes")
	}

	// A disk that was of version 1 is compressed from then on.
	b.ok("upload", image, "old", "--size", itoa(size), "--format", "2")
	if b.compressed("old") == 0 {
		t.Error("upload does not compress")
	}
	b.ok("delete", "old", "--yes")
	b.ok("setup", "old", "--size", itoa(size), "--object-size", "64K")
	old := make([]byte, size)
	d, end := b.open("old")
	copy(old[100_000:], prose(1, 2<<20))
	if _, err := d.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	end()
	b.fails(1, []string{"[old] compression: a disk of version 1 of the format cannot be compressed"}, "upload", image, "old", "--force")
	b.ok("convert", "old")
	b.sound("old", old)
	b.write("old", true, old, 5, 2)
	b.sound("old", old)
	b.ok("flatten", "old")
	b.sound("old", old)
	if b.compressed("old") < size/65536/3 {
		t.Error("flatten does not compress")
	}
	b.ok("delete", "old", "--yes")

	// A damaged record: its blocks are an error that names the object, all others
	// are what they were, and a repair leaves them.
	b.ok("setup", "old", "--size", "1M", "--format", "2")
	old = make([]byte, 1<<20)
	func() {
		d, end := b.openAs("old", device.Options{Compress: true})
		defer end()
		copy(old, prose(2, len(old)))
		if _, err := d.WriteAt(old, 0); err != nil {
			t.Fatal(err)
		}
	}()
	names := b.names("old", layout.LogPrefix)
	b.flip("old", names[0], 100)
	r := b.run("verify", "old", "--repair")
	if r.code != exitDamage || !strings.Contains(r.out, names[0]) {
		t.Errorf("%+v", r)
	}
	b.fails(1, []string{"old: ", names[0], "compressed data"}, "download", "old", image)
	d, end = b.open("old")
	p := make([]byte, 64<<10)
	bad := 0
	for off := 0; off < len(old); off += len(p) {
		if _, err := d.ReadAt(p, int64(off)); err != nil {
			bad++
		} else if !bytes.Equal(p, old[off:][:len(p)]) {
			t.Errorf("byte %d: wrong bytes", off)
		}
	}
	if bad != 1 {
		t.Errorf("%d of %d groups of blocks cannot be read", bad, len(old)/len(p))
	}
	// Written anew, the record is whole.
	if _, err := d.WriteAt(old[:64<<10], 0); err != nil {
		t.Fatal(err)
	}
	end()
	b.sound("old", old)
	b.ok("delete", "old", "--yes")
	b.ok("delete", "disk", "--yes")
}
