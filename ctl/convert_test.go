// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"swiftnbd/internal/device"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// fillChunks sets a disk of version 1 up, and writes to it.
func (b *bench) fillChunks(name string, size int, objectSize string) []byte {
	b.Helper()
	b.ok("setup", name, "--size", itoa(size), "--object-size", objectSize)
	want := make([]byte, size)
	b.serve(name, func(d *device.Device) { b.scribble(d, want) })
	return want
}

// TestConvert converts disks, and uses every verb on what comes of that.
func TestConvert(t *testing.T) {
	t.Parallel()
	for _, objectSize := range []string{"64K", "1000", "1M"} {
		t.Run(objectSize, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk", "copy")
			size := 2 << 20
			if objectSize == "1000" {
				size = 900_000 // so much that some of it stays as it is
			}
			disk := b.fillChunks("disk", size, objectSize)
			writes := b.writes()
			if out := b.ok("convert", "disk"); !strings.HasPrefix(out, "Done, disk is of version 2 of the format now") {
				t.Errorf("%q", out)
			}
			if n := b.writes() - writes; n > 10 {
				t.Errorf("%d requests that change something", n)
			}
			checkUnlocked(b, "disk")
			items := b.items("disk")
			for _, key := range []string{volume.KeyObjects, volume.KeyObjectSize, volume.KeyMap, volume.KeyBlank, volume.KeyUpload} {
				if items[key] != "" {
					t.Errorf("%s is %q", key, items[key])
				}
			}
			b.holds("disk", disk)
			b.verify(0)
			b.verify(0, "--quick")
			image := filepath.Join(t.TempDir(), "image")
			b.ok("snapshot", "disk", "before")
			before := bytes.Clone(disk)
			for range 2 {
				b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
				b.holds("disk", disk)
				b.verify(0)
			}
			b.ok("download", "disk", image)
			checkImage(t, image, disk)
			b.ok("download", "disk@before", image)
			checkImage(t, image, before)
			if out := b.ok("info", "disk"); !strings.Contains(out, "is in its objects of version 1, up to") {
				t.Errorf("info: %s", out)
			}
			if out := b.ok("list", "disk"); !strings.Contains(out, " 2 ") {
				t.Errorf("list: %s", out)
			}
			b.differs("disk@before", "disk", before, disk)
			b.ok("download", "disk@before", image, "-O", "increment")
			b.ok("upload", image, "--onto", "copy")
			if got := b.content("copy", (len(before)+4095)/4096*4096); !bytes.Equal(got[:len(before)], before) || !zero(got[len(before):]) {
				t.Error("an increment of it is not what it was")
			}
			b.ok("delete", "copy", "--yes")
			// A clone reads the chunks through its parent's snapshot.
			b.ok("clone", "disk@before", "copy")
			if got := b.content("copy", len(before)); !bytes.Equal(got, before) {
				t.Error("a clone of it is not what it was")
			}
			b.ok("delete", "copy", "--yes")
			// Other sizes, and back.
			small, large := len(disk)/2/4096*4096, 4<<20
			b.ok("resize", "disk", itoa(small), "--force")
			disk = disk[:small]
			b.holds("disk", disk)
			b.ok("resize", "disk", itoa(large))
			disk = append(bytes.Clone(disk), make([]byte, large-small)...)
			b.holds("disk", disk)
			b.serve("disk", func(d *device.Device) { b.scribble(d, disk) })
			b.holds("disk", disk)
			b.verify(0)
			b.ok("revert", "disk", "before", "--yes")
			b.holds("disk", before)
			b.verify(0)
			// All of it into the log.
			if r := b.run("flatten", "disk"); r.code != 0 || !strings.Contains(r.err, "its snapshots need its objects of version 1 still") || !strings.Contains(r.out, "but for its snapshots: before") {
				t.Errorf("flatten: %+v", r)
			}
			b.holds("disk", before)
			b.ok("snapshot", "--delete", "disk", "before")
			if out := b.ok("flatten", "disk"); out != "Done, disk has all of its data itself\n" {
				t.Errorf("flatten: %q", out)
			}
			b.serve("disk", nil)
			b.holds("disk", before)
			b.verify(0)
			b.ok("snapshot", "disk", "after")
			b.ok("diff", "disk@after", "disk")
			// Back to version 1.
			b.ok("download", "disk", image)
			b.ok("delete", "disk", "--yes")
			b.gone("disk")
			b.ok("upload", image, "disk", "--format", "1", "--object-size", "4096")
			if m := b.items("disk"); m[volume.KeyVersion] != "1" {
				t.Errorf("the way back: %v", m)
			}
		})
	}
}

// differs fails unless diff names all blocks that differ, and not the whole disk.
func (b *bench) differs(from, to string, was, is []byte) {
	b.Helper()
	in := map[int]bool{}
	for _, e := range b.asked("diff", from, to)["extents"].([]any) {
		e := e.(map[string]any)
		off, n := int(e["offset"].(float64)), int(e["length"].(float64))
		for block := off / 4096; block < (off+n+4095)/4096; block++ {
			in[block] = true
		}
	}
	for off := 0; off < len(is); off += 4096 {
		end := min(off+4096, len(is))
		if !in[off/4096] && !bytes.Equal(was[off:end], is[off:end]) {
			b.Errorf("block %d has changed, and diff does not say so", off/4096)
		}
	}
	if len(in) == 0 || len(in) == (len(is)+4095)/4096 {
		b.Errorf("%d blocks are said to have changed", len(in))
	}
}

// TestConvertBlank: of a disk that nobody has written nothing lies below.
func TestConvertBlank(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.ok("setup", "disk", "16")
	v := b.asked("convert", "disk")
	b.is("convert", v, map[string]any{"container": "disk", "version": 2., "size": 1048576., "objects": 16., "object_size": 65536.})
	if in := b.info(); in.Chunks != nil {
		t.Errorf("%d chunks", *in.Chunks)
	}
	b.holds("disk", make([]byte, 1<<20))
	b.verify(0)
}

// TestConvertRefused: what is wrong is said in one line, and changes nothing.
func TestConvertRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "log", "locked", "half", "absent", "plain")
	text, err := os.ReadFile(b.secrets)
	if err != nil {
		t.Fatal(err)
	}
	b.writeSecrets(string(text) + "[ro]\nread-only = 1\n")
	disk := b.fillChunks("disk", 1<<20, "64K")
	b.ok("setup", "log", "--size", "1M", "--format", "2")
	b.ok("setup", "locked", "16")
	b.ok("lock", "locked")
	b.ok("setup", "half", "16")
	last := b.items("half")[volume.KeyLast]
	b.setItem("half", volume.KeyUpload, uploadRecord{unit: 65536, at: 65536, sum: "x", mark: last}.String())
	b.create("plain")
	before := b.writes()
	b.refused([]refusal{
		{2, "CONTAINER is missing", ""},
		{2, `"extra" is one argument too many`, "disk extra"},
		{1, "log is of version 2 of the format already", "log"},
		{1, "locked is locked by ctl", "locked"},
		{1, "absent doesn't exist", "absent"},
		{1, "plain hasn't been setup", "plain"},
		{1, "nowhere not found in", "nowhere"},
		{1, "ro is read-only in", "ro"},
	}, "convert")
	b.unchanged(before)
	b.fails(1, []string{"half: not converted: an upload to it has not come to its end"}, "convert", "half")
	checkUnlocked(b, "half")
	if items := b.items("half"); items[volume.KeyVersion] != "1" || items[volume.KeyLast] != last {
		t.Errorf("it has changed: %v", items)
	}
	b.serve("disk", func(*device.Device) {
		b.fails(1, []string{"disk is locked by server:1"}, "convert", "disk")
	})
	b.ok("convert", "disk")
	b.fails(1, []string{"disk is of version 2 of the format already"}, "convert", "disk")
	b.holds("disk", disk)
}

// TestConvertDamage: a chunk below the log that is damaged or lost is
// an error when it is read, and verify names it; what was written since is served.
func TestConvertDamage(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	const objectSize = 65536
	b.ok("setup", "disk", "16")
	want := noise(16 * objectSize)
	b.serve("disk", func(d *device.Device) {
		if _, err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
	})
	b.ok("convert", "disk")
	b.serve("disk", func(d *device.Device) { // a part of each that will be damaged
		for _, i := range []int{1, 3, 5} {
			copy(want[i*objectSize:][:8192], noise(8192))
			if _, err := d.WriteAt(want[i*objectSize:][:8192], int64(i*objectSize)); err != nil {
				t.Fatal(err)
			}
		}
		copy(want[7*objectSize:][:objectSize], noise(objectSize))
		if _, err := d.WriteAt(want[7*objectSize:][:objectSize], 7*objectSize); err != nil {
			t.Fatal(err)
		}
	})
	b.put("disk", "disk.part/00000001", noise(objectSize))
	b.del("disk.part/00000003")
	b.put("disk", "disk.part/00000005", nil)
	b.put("disk", "disk.part/00000007", noise(objectSize)) // nobody needs it
	b.put("disk", "disk.part/00000009", noise(100))
	out := b.verify(exitDamage)
	var bad []string
	for _, d := range out.Damage {
		bad = append(bad, d.Object)
	}
	if want := []string{"disk.part/00000001", "disk.part/00000003", "disk.part/00000005", "disk.part/00000009"}; !slices.Equal(bad, want) {
		t.Errorf("damaged are %q, want %q", bad, want)
	}
	b.serve("disk", func(d *device.Device) {
		p := make([]byte, 4096)
		for i := range 16 {
			for _, off := range []int{0, 8192} {
				_, err := d.ReadAt(p, int64(i*objectSize+off))
				lost := slices.Contains([]int{1, 3, 5}, i) && off > 0 || i == 9
				if lost != (err != nil) || err == nil && !bytes.Equal(p, want[i*objectSize+off:][:4096]) {
					t.Errorf("chunk %d at %d: %v", i, off, err)
				}
				if err != nil && !strings.Contains(err.Error(), "disk.part/0000000"+itoa(i)) {
					t.Errorf("chunk %d: %v", i, err)
				}
			}
		}
	})
}

// TestConvertFirstRoot: the first root of a conversion that ends there does not stay,
// if it came to be.
func TestConvertFirstRoot(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	disk := b.fillChunks("disk", 256<<10, "64K")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Prefix: "/v1/AUTH_test/disk/swiftnbd/root/", Times: 1,
		Action: devswift.Action{Status: http.StatusForbidden, After: true}}))
	b.fails(1, []string{"disk: ", "write root "}, "convert", "disk")
	if names := b.names("disk", "swiftnbd/root/"); len(names) > 0 {
		t.Errorf("%q stay", names)
	}
	b.ok("convert", "disk")
	b.holds("disk", disk)
}
