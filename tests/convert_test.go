// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestConvert011 converts a disk that swiftnbd 0.11 has set up, filled and left, and
// serves it. One that 0.11 holds is refused. Afterwards it is none of 0.11's.
func TestConvert011(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		for _, size := range []int{65536, 1000} {
			name, account := harness.Name(t), c.Account(t)
			t.Cleanup(func() { account.Remove(t, name) })
			account.Setup(t, name, 40, int64(size))
			want := make([]byte, 40*size)
			chunks := make(map[int][]byte)
			for _, i := range []int{0, 1, 7, 38, 39} {
				chunks[i] = harness.Random(uint64(i), size)
				copy(want[i*size:], chunks[i])
			}
			secrets := harness.Secrets(t, c.Section(name))
			ctl := func(args ...string) harness.Result {
				return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", secrets, "-a", c.AuthURL}, args...)...)
			}
			old := &client011{t: t, account: account, name: name}
			old.open("192.0.2.7:51120")
			old.write(chunks)
			if r := ctl("convert", name); r.Status != 1 || !strings.Contains(r.Stderr, "locked by 192.0.2.7:51120") {
				t.Errorf("of a disk that 0.11 serves: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
			}
			if meta := account.Meta(t, name); meta["version"] != "1" || meta["client"] == "" {
				t.Errorf("it has changed: %v", meta)
			}
			old.close()
			if r := ctl("convert", name); r.Status != 0 {
				t.Fatalf("convert: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
			}
			// 0.11 needs all of these to take it for a disk.
			if meta := account.Meta(t, name); meta["version"] != "2" || meta["objects"] != "" || meta["object-size"] != "" {
				t.Errorf("0.11 would take it for a disk of its own: %v", meta)
			}
			n := serve(t, name, "secrets="+secrets)
			if !bytes.Equal(harness.Download(t, n.URI), want) {
				t.Errorf("a disk of swiftnbd 0.11 with objects of %d bytes is read wrong after its conversion", size)
			}
			harness.Nbdsh(t, n.URI, fmt.Sprintf("h.pwrite(b'y' * 5000, %d)\nh.trim(8192, 0)\nh.flush()", 7*size+100))
			copy(want[7*size+100:], bytes.Repeat([]byte("y"), 5000))
			clear(want[:8192])
			if !bytes.Equal(harness.Download(t, n.URI), want) {
				t.Error("written and trimmed, it is read wrong")
			}
			n.Stop(t)
			if r := ctl("flatten", "-q", name); r.Status != 0 {
				t.Fatalf("flatten: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
			}
			image := filepath.Join(harness.TempDir(t), "image")
			if r := ctl("download", "-q", name, image); r.Status != 0 {
				t.Fatalf("download: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
			}
			if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the downloaded image is not the disk: %v", err)
			}
		}
	})
}
