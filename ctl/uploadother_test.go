// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/volume"
)

// noted uploads path to the disk until the first note of how far it is, and
// interrupts it then.
func (b *bench) noted(path string, options ...string) {
	b.Helper()
	note := b.pace.uploadNote
	b.pace.uploadNote = 0
	defer func() { b.pace.uploadNote = note }()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
		if strings.HasPrefix(r.Header.Get("X-Container-Meta-"+volume.KeyUpload), uploadRecordVersion+" ") {
			cancel()
		}
		return nil
	})
	defer b.swift.SetFault(nil)
	r := b.runContext(ctx, append([]string{"upload", path, "disk"}, options...)...)
	if r.code != 1 || !strings.Contains(r.err, "is uploaded: to go on from there") {
		b.Fatalf("%+v", r)
	}
	checkUnlocked(b, "disk")
}

// TestUploadOtherLonger: the image of an interrupted upload ends within a unit, and
// another image goes on where it ends. What was read of that one to find this out is
// not in the disk, and the next upload does not take it for uploaded.
func TestUploadOtherLonger(t *testing.T) {
	t.Parallel()
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			path, content := sparse(t, 300_000, map[int][]byte{0: noise(300_000)})
			b.noted(path, append([]string{"--size", "4000000"}, options...)...)
			other, otherContent := sparse(t, 3_000_000, map[int][]byte{0: noise(3_000_000)})
			for range 2 {
				b.fails(1, []string{"a part of another image", "--force replaces it"}, "upload", other, "disk")
			}
			b.ok("upload", path, "disk")
			b.holds("disk", content)
			b.ok("upload", other, "disk", "--force")
			b.holds("disk", otherContent)
		})
	}
}

// TestUploadOtherPipe: an upload with --force that finds out from a pipe that the disk
// has a part of another image has uploaded nothing of its own. The next one does not go
// on where it was.
func TestUploadOtherPipe(t *testing.T) {
	t.Parallel()
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			size := 3_000_000
			path, _ := sparse(t, size, map[int][]byte{0: noise(size)})
			b.noted(path, append([]string{"--size", "4000000"}, options...)...)
			content := noise(size)
			r := b.runWith(t.Context(), bytes.NewReader(content), "upload", "-", "disk", "--force")
			if r.code != 1 || !strings.Contains(r.err, "run the command again, it begins anew then") {
				t.Fatalf("%+v", r)
			}
			checkUnlocked(b, "disk")
			if r := b.runWith(t.Context(), bytes.NewReader(content), "upload", "-", "disk", "--force"); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			b.holds("disk", content)
		})
	}
}

// TestUploadOtherStdin: a file as standard input, of which some was read to compare it,
// is read from its beginning again, and not from where the search for holes has left it.
func TestUploadOtherStdin(t *testing.T) {
	t.Parallel()
	for format, options := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, devswift.Options{}, "disk")
			path, _ := sparse(t, 300_000, map[int][]byte{0: noise(300_000)})
			b.noted(path, append([]string{"--size", "4000000"}, options...)...)
			other, content := sparse(t, 3<<20, map[int][]byte{0: noise(3 << 19), 5 << 19: noise(1 << 19)})
			f, err := os.Open(other)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if r := b.runWith(t.Context(), f, "upload", "-", "disk", "--force"); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			b.holds("disk", content)
		})
	}
}
