// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// mustQemu runs one of qemu's programs.
func mustQemu(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestImageFormats uploads images of each format that qemu makes, and downloads
// them as qcow2: qemu finds the same in all of them.
func TestImageFormats(t *testing.T) {
	t.Parallel()
	raw, content := sparse(t, 6<<20, map[int][]byte{0: noise(70_000), 3<<20 - 5: noise(1 << 20), 6<<20 - 9: noise(9)})
	for _, c := range []struct {
		format string
		how    []string
		setup  []string
	}{
		{"qcow2", nil, nil},
		{"qcow2", []string{"-c"}, []string{"--format", "2"}},
		{"vmdk", nil, nil}, {"vdi", nil, nil}, {"vhdx", nil, nil},
	} {
		t.Run(c.format+strings.Join(c.how, ""), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			dir := t.TempDir()
			path, back := filepath.Join(dir, "image:1"), filepath.Join(dir, "back")
			mustQemu(t, append(append([]string{"qemu-img", "convert", "-f", "raw", "-O", c.format}, c.how...), raw, path)...)
			out := b.ok(append([]string{"upload", path, "disk"}, c.setup...)...)
			if !strings.Contains(out, "Done, 6291456 bytes uploaded") {
				t.Errorf("%q", out)
			}
			b.holds("disk", content)
			b.ok("download", "disk", back, "-O", "qcow2")
			mustQemu(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, back)
			mustQemu(t, "qemu-img", "check", "-f", "qcow2", back)
			if used := checkImageSize(t, back); used > 3<<20 {
				t.Errorf("the image takes %d bytes: where are the holes?", used)
			}
			checkAlone(t, dir, "back", "image:1")
			checkUnlocked(b, "disk")
		})
	}
}

func checkImageSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestImageFormatRefused: an image that nobody has called by its format reads no
// other file, what is given as raw is taken as it is, and what cannot be is said.
func TestImageFormatRefused(t *testing.T) {
	b := newBench(t, devswift.Options{}, "disk")
	raw, content := sparse(t, 1<<20, map[int][]byte{0: noise(70_000)})
	dir := t.TempDir()
	path := filepath.Join(dir, "overlay")
	mustQemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", path)
	b.fails(1, []string{"a qcow2 image that has a part of its content in " + raw, "give --image-format qcow2"}, "upload", path, "disk")
	outside := filepath.Join(dir, "outside")
	mustQemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), outside, "1M")
	b.fails(1, []string{"a qcow2 image that has a part of its content in another file", "give --image-format qcow2"}, "upload", outside, "disk")
	b.fails(2, []string{"--image-format", "raw, qcow2"}, "upload", path, "disk", "-O", "iso")
	b.fails(2, []string{"--image-format", "raw, qcow2"}, "download", "disk", path, "-O", "vdi")
	b.fails(1, []string{"raw image only"}, "upload", "-", "disk", "-O", "qcow2")
	b.fails(1, []string{raw}, "upload", raw, "disk", "-O", "qcow2")
	b.ok("upload", path, "disk", "-O", "qcow2")
	b.holds("disk", content)

	small, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b.ok("upload", path, "disk", "-O", "raw", "--force")
	b.holds("disk", small)

	if err := os.WriteFile(filepath.Join(dir, "device"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	b.setItem("disk", volume.KeyUpload, "")
	b.fails(1, []string{"qemu-img is needed", "qemu-utils"}, "upload", path, "disk", "--force")
	b.fails(1, []string{"qemu-img is needed", "qemu-utils"}, "download", "disk", filepath.Join(dir, "x"), "-O", "qcow2")
	// No program is asked about it: an older qemu-img opens the other file.
	b.fails(1, []string{"a part of its content in another file"}, "upload", outside, "disk")
	checkAlone(t, dir, "data", "device", "outside", "overlay")
}
