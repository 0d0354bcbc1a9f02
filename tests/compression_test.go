// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// text returns n bytes that compress well, each 64 KiB of them other ones.
func text(seed, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d: line %d of a text that says little, and %x\n", seed, i, i*i*7919)
	}
	return b.Bytes()[:n]
}

// TestCompression serves a disk with compression=zstd, from the command line and
// from the section, and without: it is what was written, after a clean end and after
// nbdkit was killed. What text takes in Swift is much less than its bytes.
func TestCompression(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name := harness.Name(t)
	const size = 16 << 20
	c.Account(t).SetupLog(t, name, size)
	plain := []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=6"}
	section := []string{name, "secrets=" + harness.Secrets(t, c.Section(name, "compression = zstd")), "lease=6"}
	socket := filepath.Join(harness.TempDir(t), "metrics")

	data := append(text(1, 12<<20), harness.Random(1, 4<<20)...)
	n := serve(t, append(plain[:3:3], "compression=zstd", "metrics=unix:"+socket)...)
	harness.RoundTrip(t, n.URI, data)
	counts := harness.Must(t, "curl", "-sf", "--unix-socket", socket, "http://x/metrics")
	before, after := sample(t, counts, "swiftnbd_log_compressed_bytes_total", `when="before"`), sample(t, counts, "swiftnbd_log_compressed_bytes_total", `when="after"`)
	if before < 12<<20 || before > 13<<20 || after <= 0 || after > before/2 {
		t.Errorf("%g bytes were compressed to %g", before, after)
	}
	n.Stop(t)
	if got := stored(t, plain, name); got > 10<<20 {
		t.Errorf("12 MiB of text and 4 MiB of noise take %d bytes", got)
	}

	// Without it, what is compressed is read and changed in parts.
	n = serve(t, plain...)
	for _, at := range []int{5 << 10, 1<<20 - 2048, 2 << 20, 11 << 20} {
		copy(data[at:], harness.Random(uint64(at), 9000))
	}
	clear(data[3<<20:][:1<<20])
	harness.Nbdsh(t, n.URI, "h.trim(1<<20, 3<<20)")
	harness.Upload(t, n.URI, data)
	n.Kill(t)

	// From the section, and with another client.
	n = serveAgain(t, harness.Options{Params: section})
	if got := harness.Download(t, n.URI); !bytes.Equal(got, data) {
		t.Error("after the kill the disk is not what was flushed")
	}
	copy(data, text(2, 6<<20))
	path := harness.WriteFile(t, filepath.Join(harness.TempDir(t), "raw"), string(data))
	harness.Must(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, n.URI)
	harness.Must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, n.URI)
	harness.Nbdsh(t, n.URI, "h.flush()")
	n.Kill(t)
	n = serveAgain(t, harness.Options{Params: section})
	if got := harness.Download(t, n.URI); !bytes.Equal(got, data) {
		t.Error("after the second kill the disk is not what was flushed")
	}
	n.Stop(t)
	if got := c.Account(t).Read011(t, name); !bytes.Equal(got, data) {
		t.Error("Swift does not have what was written, read as docs/FORMAT-V2.md says")
	}

	ctl(t, plain, "verify", name)
	image := filepath.Join(harness.TempDir(t), "image")
	ctl(t, plain, "download", name, image)
	harness.Must(t, "cmp", path, image)
	if out := ctl(t, plain, "info", name); !strings.Contains(out, "Compressed") {
		t.Errorf("info: %s", out)
	}
}

// stored returns how many bytes a disk's data objects take, as info has it, and
// checks what it has of the compression.
func stored(t testing.TB, params []string, name string) int64 {
	t.Helper()
	var in struct {
		Bytes      int64   `json:"data_bytes"`
		Live       int64   `json:"live_bytes"`
		Compressed float64 `json:"compressed_percent"`
	}
	out := ctl(t, params, "info", name, "--json")
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if in.Compressed <= 0 || in.Compressed > 65 {
		t.Errorf("compressed_percent is %g: %s", in.Compressed, out)
	}
	return in.Bytes
}

// sample returns a sample of a metric with a label.
func sample(t testing.TB, text, metric, label string) (v float64) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, metric+"{") && strings.Contains(line, label) {
			if _, err := fmt.Sscan(line[strings.LastIndex(line, " "):], &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no %s with %s in %s", metric, label, text)
	return 0
}
