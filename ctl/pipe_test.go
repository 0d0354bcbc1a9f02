// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
)

// TestPipeStalls: the other end of a pipe does not move, and an interrupt ends the
// verb all the same, and gives the lock back.
func TestPipeStalls(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args  []string
		says  string
		begin []byte // of what the verb reads
	}{
		"upload, nothing": {[]string{"upload", "-", "empty"}, "empty: interrupted\n", nil},
		"upload, a part":  {[]string{"upload", "-", "empty"}, "empty: interrupted; nothing is uploaded yet: to begin anew, run the same command again\n", noise(1000)},
		"onto":            {[]string{"upload", "-", "--onto", "copy"}, "copy: interrupted\n", []byte("swiftnbd incr")},
		"download":        {[]string{"download", "disk", "-"}, "disk: interrupted\n", nil},
		"snapshot":        {[]string{"download", "log@a", "-"}, "log: interrupted\n", nil},
		"increment":       {[]string{"download", "log@a", "-", "-O", "increment"}, "log: interrupted\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk", "log", "copy", "empty")
			b.fill("disk", 40, 65536, map[int][]byte{0: noise(65536), 3: noise(65536)})
			path, _ := sparse(t, 4<<20, map[int][]byte{0: noise(4 << 20)})
			b.ok("upload", path, "log", "--format", "2")
			b.ok("snapshot", "log", "a")
			b.ok("setup", "empty", "--size", "1G")
			in, fill, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			read, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []io.Closer{in, fill, read, out} {
				defer f.Close()
			}
			if _, err := fill.Write(c.begin); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var errs bytes.Buffer
			ended := make(chan int, 1)
			go func() {
				ended <- b.pace.run(ctx, append([]string{"--secrets", b.secrets}, c.args...), in, out, &errs, func(string) string { return "" })
			}()
			select {
			case code := <-ended:
				if code != 1 || errs.String() != program+": "+c.says || ctx.Err() == nil {
					t.Errorf("exit status %d, %q", code, errs.String())
				}
				checkUnlocked(b, "disk")
				checkUnlocked(b, "empty")
			case <-time.After(20 * time.Second):
				t.Fatal("it waits for the other end of the pipe")
			}
		})
	}
}

// TestNotMeantAsDisk: what nobody wants as the content of a disk is refused, before
// anything is changed, unless it is called raw. An empty pipe is one whose filler has
// failed.
func TestNotMeantAsDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	path, content := sparse(t, 1<<20, map[int][]byte{0: noise(70_000)})
	b.ok("upload", path, "disk")
	before := b.writes()
	qcow2 := filepath.Join(t.TempDir(), "image.qcow2")
	mustQemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, qcow2)
	image, err := os.ReadFile(qcow2)
	if err != nil {
		t.Fatal(err)
	}
	for begin, said := range map[string]string{
		"\x1f\x8b\x08":               "is compressed by gzip: unpack it first",
		"\xfd7zXZ\x00":               "is compressed by xz",
		"\x28\xb5\x2f\xfd":           "is compressed by zstd",
		"swiftnbd increment 1\n{}\n": "is an increment, and not an image: give --onto",
		"conectix":                   "is a vhd image",
		"QED\x00":                    "is a qed image",
		string(image):                "is a qcow2 image, which only a named file can be",
		"":                           "is empty",
	} {
		data := append([]byte(begin), noise(len(begin))...)
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for how, in := range map[string]io.Reader{"a pipe": bytes.NewReader(data), "a file": f} {
			if r := b.runWith(t.Context(), in, "upload", "-", "disk", "--force"); r.code != 1 || !strings.HasPrefix(r.err, program+": standard input "+said) {
				t.Errorf("%.8q from %s: %+v", begin, how, r)
			}
		}
		f.Close()
		if begin != string(image) {
			b.fails(1, []string{name + " " + said}, "upload", name, "disk", "--force")
		}
	}
	b.unchanged(before)
	b.holds("disk", content)
	gz := append([]byte("\x1f\x8b\x08"), noise(1000)...)
	if r := b.runWith(t.Context(), bytes.NewReader(gz), "upload", "-", "disk", "--force", "-O", "raw"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	b.holds("disk", gz)
}

// TestImageElsewhere: a guest has written the text of a vmdk image to its raw disk,
// to read a file of the host with it.
func TestImageElsewhere(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret!!"), 128), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "# Disk DescriptorFile\nversion=1\nCID=3fd7a6ef\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n" +
		"# Extent description\nRW 2 FLAT \"" + secret + "\" 0\n\n# The Disk Data Base\n#DDB\n\nddb.geometry.cylinders = \"1\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
	// The same within an image of VMware's: its header says where the text is, and has
	// no capacity.
	within := make([]byte, 2048)
	copy(within, "KDMV\x01\x00\x00\x00\x03\x00\x00\x00")
	within[28], within[36] = 1, 2 // the text's place and length, sectors
	copy(within[512:], text)
	for name, data := range map[string][]byte{"text": []byte(text), "within": within} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, append(data, make([]byte, 1<<20)...), 0o600); err != nil {
			t.Fatal(err)
		}
		b.fails(1, []string{name + " is a vmdk image that has a part of its content in ", "give --image-format vmdk"}, "upload", path, "disk")
		b.gone("disk")
	}
	b.ok("upload", filepath.Join(dir, "text"), "disk", "-O", "vmdk")
	b.holds("disk", bytes.Repeat([]byte("secret!!"), 128))
	if out, err := exec.Command("qemu-img", "info", "-f", "vmdk", filepath.Join(dir, "within")).CombinedOutput(); err != nil || !strings.Contains(string(out), secret) {
		t.Errorf("qemu does not read %s with it: %v\n%s", secret, err, out)
	}
}

// TestImageNotWhole: the end of an image is missing, as after a download that was cut
// off. qemu would read zeroes there.
func TestImageNotWhole(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	raw, _ := sparse(t, 16<<20, map[int][]byte{0: noise(3 << 20), 15 << 20: noise(1 << 20)})
	for _, format := range readFormats[1:] {
		path := filepath.Join(t.TempDir(), "image."+format)
		mustQemu(t, "qemu-img", "convert", "-f", "raw", "-O", format, raw, path)
		for _, cut := range []int64{100_000, 2_500_000, 70_000} {
			if err := os.Truncate(path, checkImageSize(t, path)-cut); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"upload", path, "disk"}, {"upload", path, "disk", "-O", format}} {
				b.fails(1, []string{path}, args...)
			}
			b.gone("disk")
		}
	}
	// What nobody needs in an image is no damage: the reference to the first block of
	// the content is taken out of the table of a qcow2 image.
	path := filepath.Join(t.TempDir(), "leaks")
	mustQemu(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8), 4<<16); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("qemu-img", "check", path).CombinedOutput(); !strings.Contains(string(out), "1 leaked clusters") {
		t.Fatalf("%s", out)
	}
	b.ok("upload", path, "disk")
}

// TestNameOfSnapshot: what means a snapshot elsewhere is not made a container, unless
// the secrets file has it.
func TestNameOfSnapshot(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk", "disk2", "clone", "with@section")
	path, _ := sparse(t, 1<<20, map[int][]byte{0: noise(70_000)})
	b.ok("upload", path, "disk", "--format", "2")
	b.ok("snapshot", "disk", "a")
	b.env = map[string]string{"ST_AUTH": b.auth, "ST_USER": "test:tester", "ST_KEY": "testing"}
	const said = "disk@b is not made: where the secrets file has no section of this name, it means a snapshot"
	for _, args := range []string{"setup disk@b 4", "setup disk@b --size 1M --format 2", "upload " + path + " disk@b", "clone disk@a disk@b"} {
		b.fails(1, []string{said}, strings.Fields(args)...)
		b.gone("disk@b")
	}
	for _, args := range []string{"delete disk@a -y", "info disk@a", "verify disk@a", "resize disk@a 2M"} {
		b.fails(1, []string{"disk@a doesn't exist", "only download, clone and diff take CONTAINER@SNAPSHOT"}, strings.Fields(args)...)
	}
	// Whatever the verb, and whoever gives the credentials, it says what the name is.
	verbs := func(name string) []string {
		return []string{"list " + name, "info " + name, "setup " + name + " --size 1M", "lock " + name, "unlock " + name, "upload " + path + " " + name,
			"resize " + name + " 2M", "verify " + name, "snapshot " + name + " s", "snapshots " + name, "revert " + name + " s -y", "rewind " + name, "delete " + name + " -y",
			"convert " + name, "flatten " + name, "clone disk@a " + name}
	}
	env := b.env
	for _, b.env = range []map[string]string{env, nil} {
		for _, args := range verbs("disk@a") {
			r := b.run(strings.Fields(args)...)
			if r.code != 1 || r.out != "" || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "disk@a") || !strings.Contains(r.err, "snapshot") && !strings.Contains(r.err, "@SNAPSHOT") {
				t.Errorf("%q: %+v", args, r)
			}
			b.gone("disk@a")
		}
		image := filepath.Join(t.TempDir(), "image")
		for _, args := range []string{"download none@x " + image, "diff none@x none", "clone none@x disk2", "download none@x " + image + " --since y"} {
			b.fails(1, []string{": none@x is a snapshot of it. If it is a container, the secrets file needs a section [none@x]"}, strings.Fields(args)...)
		}
	}

	// With a section it is a container, for all of them.
	b.ok("upload", path, "with@section")
	b.ok("download", "with@section", filepath.Join(t.TempDir(), "image"))
	b.ok("delete", "with@section", "-y")
	b.ok("upload", path, "with@section", "--format", "2")
	image := filepath.Join(t.TempDir(), "image")
	for _, args := range []string{"list NAME", "info NAME", "lock NAME", "unlock NAME", "resize NAME 2M", "verify NAME", "snapshot NAME s", "snapshots NAME",
		"download NAME " + image, "download NAME@s " + image, "diff NAME@s NAME", "revert NAME s -y", "rewind NAME", "clone NAME@s clone", "verify clone", "flatten clone", "delete clone -y", "snapshot --delete NAME s", "delete NAME -y"} {
		if r := b.run(strings.Fields(strings.ReplaceAll(args, "NAME", "with@section"))...); r.code != 0 {
			t.Errorf("%q: %+v", args, r)
		}
	}
	b.gone("with@section")
}

// TestUploadResumeCut: one who goes on with an upload is interrupted at each of their
// first requests, and what was uploaded counts all the same.
func TestUploadResumeCut(t *testing.T) {
	t.Parallel()
	const size = 112 << 20
	b := newBench(t, devswift.Options{}, "disk")
	b.pace.uploadCache = 4 << 20
	path, content := sparse(t, size, map[int][]byte{0: noise(size)})
	b.interrupted(3, path, "--format", "2")
	for at := int32(1); at <= 24; at++ {
		ctx, cancel := context.WithCancel(t.Context())
		var n atomic.Int32
		b.swift.SetFault(func(*devswift.Request) *devswift.Action {
			if n.Add(1) == at {
				cancel()
			}
			return nil
		})
		r := b.runContext(ctx, "upload", path, "disk")
		b.swift.SetFault(nil)
		cancel()
		if r.code != 1 || !strings.HasPrefix(r.err, program+": disk: interrupted") {
			t.Fatalf("interrupted at request %d: %+v", at, r)
		}
		checkUnlocked(b, "disk")
	}
	var out uploaded
	if err := json.Unmarshal([]byte(b.ok("upload", path, "disk", "--json")), &out); err != nil || out.Resumed == 0 {
		t.Errorf("%+v, %v", out, err)
	}
	b.holds("disk", content)
}
