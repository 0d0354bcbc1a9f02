// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"swiftnbd/tests/harness"
)

// clouds runs f on the embedded Swift and on the real one.
func clouds(t *testing.T, f func(t *testing.T, c *harness.Cloud)) {
	t.Run("embedded", func(t *testing.T) { t.Parallel(); f(t, harness.Dev(t)) })
	t.Run("real", func(t *testing.T) { t.Parallel(); f(t, harness.Real(t)) })
}

// TestCompatRead serves a volume that was set up, filled and left by swiftnbd
// 0.11: some objects there, some not, the last client's name in Last.
func TestCompatRead(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		for _, size := range []int{65536, 1000} {
			name, account := harness.Name(t), c.Account(t)
			account.Setup(t, name, 40, int64(size))
			want := make([]byte, 40*size)
			chunks := make(map[int][]byte)
			for _, i := range []int{0, 1, 7, 38, 39} {
				chunks[i] = harness.Random(uint64(i), size)
				copy(want[i*size:], chunks[i])
			}
			account.Write011(t, name, chunks)
			n := serve(t, name, "secrets="+harness.Secrets(t, c.Section(name)))
			if !bytes.Equal(harness.Download(t, n.URI), want) {
				t.Errorf("a volume of swiftnbd 0.11 with objects of %d bytes is read wrong", size)
			}
			n.Stop(t)
			unlocked(t, account, name)
			if got := len(account.Chunks(t, name)); got != len(chunks) {
				t.Errorf("reading changed the number of objects from %d to %d", len(chunks), got)
			}
		}
	})
}

// clientMark is how 0.11 writes the Client item: "HOST:PORT@UNIX", which its
// ctl splits at the @ to show who and when.
var clientMark = regexp.MustCompile(`^[^@ ]+@[0-9]{9,11}$`)

// TestCompatWrite writes with us and reads as 0.11 does, and then goes on with
// what 0.11 has written since.
func TestCompatWrite(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, account := harness.Name(t), c.Account(t)
		account.Setup(t, name, 64, 65536)
		secrets := harness.Secrets(t, c.Section(name))
		n := serve(t, name, "secrets="+secrets)
		data := harness.Random(21, 64*65536)
		clear(data[10*65536 : 20*65536]) // holes
		mark := harness.Nbdsh(t, n.URI, fmt.Sprintf(`
import subprocess
h.pwrite(b"x", 0)
print(subprocess.check_output(["swift", "-A", %q, "-U", %q, "-K", %q, "stat", %q], text=True))
`, c.AuthURL, c.User, c.Key, name))
		m := regexp.MustCompile(`(?m)^ *Meta Swiftnbd-Client: (.*)$`).FindStringSubmatch(mark)
		if m == nil || !clientMark.MatchString(m[1]) {
			t.Errorf("0.11 would not understand the lock mark in\n%s", mark)
		}
		harness.RoundTrip(t, n.URI, data)
		n.Stop(t)
		if !bytes.Equal(account.Read011(t, name), data) {
			t.Error("swiftnbd 0.11 would not read what we wrote")
		}
		unlocked(t, account, name)
		if last := account.Meta(t, name)["last"]; !clientMark.MatchString(last) {
			t.Errorf("0.11 would not understand Last %q", last)
		}

		// 0.11 writes, deletes nothing, and leaves; whatever we noted is void.
		patch := harness.Random(22, 65536)
		account.Write011(t, name, map[int][]byte{3: patch, 12: patch})
		copy(data[3*65536:], patch)
		copy(data[12*65536:], patch)
		n = serve(t, name, "secrets="+secrets)
		if !bytes.Equal(harness.Download(t, n.URI), data) {
			t.Error("what swiftnbd 0.11 wrote after us is not what we read")
		}
		n.Stop(t)
	})
}

// TestCompatSetup holds what our ctl sets up against what 0.11 sets up, and
// fills and empties it with our tools.
func TestCompatSetup(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, account := harness.Name(t), c.Account(t)
		t.Cleanup(func() { account.Remove(t, name) })
		secrets := harness.Secrets(t, c.Section(name))
		ctl := func(args ...string) harness.Result {
			return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", secrets, "-a", c.AuthURL}, args...)...)
		}
		if r := ctl("setup", name, "48"); r.Status != 0 {
			t.Fatalf("setup: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		meta := account.Meta(t, name)
		for key, want := range map[string]string{"version": "1", "objects": "48", "object-size": "65536", "client": ""} {
			if meta[key] != want {
				t.Errorf("setup wrote %s = %q, 0.11 writes %q", key, meta[key], want)
			}
		}
		if r := ctl("setup", name, "48"); r.Status != 1 {
			t.Errorf("a second setup without -f: status %d, want 1", r.Status)
		}
		n := serve(t, name, "secrets="+secrets)
		data := harness.Random(31, 48*65536)
		harness.RoundTrip(t, n.URI, data)
		n.Stop(t)
		unlocked(t, account, name)
	})
}

// TestCompatLock locks with our ctl, which nbdkit respects, and unlocks.
func TestCompatLock(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, params := volume(t, c)
	ctl := func(args ...string) {
		t.Helper()
		harness.Must(t, harness.Built(t, "swiftnbd-ctl"),
			append([]string{"--secrets", params[1][len("secrets="):], "-a", c.AuthURL}, args...)...)
	}
	ctl("lock", name)
	if holder := account.Holder(t, name); !regexp.MustCompile(`^ctl@[0-9]+$`).MatchString(holder) {
		t.Errorf("our lock is %q, 0.11's is ctl@TIME", holder)
	}
	harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).Want(t, name, "lock", "ctl")
	ctl("unlock", name)
	n := serve(t, params...)
	harness.Upload(t, n.URI, harness.Random(41, diskSize))
	n.Stop(t)
	image := filepath.Join(harness.TempDir(t), "image")
	ctl("download", "-q", name, image)
	got, err := os.ReadFile(image)
	if err != nil || !bytes.Equal(got, harness.Random(41, diskSize)) {
		t.Errorf("the downloaded image is not the disk: %v", err)
	}
	ctl("delete", "--yes", name)
	if status, _, _ := account.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
		t.Errorf("after delete the container answers %d", status)
	}
}
