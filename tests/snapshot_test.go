// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// logSize is the size of the disks of version 2 that are tried on both Swifts.
const logSize = 8 << 20

// logVolume makes a disk of version 2, and returns its name and nbdkit's
// parameters.
func logVolume(t testing.TB, c *harness.Cloud, size int64) (name string, params []string) {
	t.Helper()
	name = harness.Name(t)
	c.Account(t).SetupLog(t, name, size)
	return name, []string{name, "secrets=" + harness.Secrets(t, c.Section(name))}
}

// TestSnapshotServed makes a snapshot between two sessions, and serves it while
// the disk is served and has changed.
func TestSnapshotServed(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, params := logVolume(t, c, logSize)
		first, second := harness.Random(1, logSize), harness.Random(2, logSize)
		n := serve(t, params...)
		harness.Upload(t, n.URI, first)
		n.Stop(t)
		ctl(t, params, "snapshot", name, "monday")
		n = serve(t, append(params[:2:2], "lease=6")...)
		harness.Upload(t, n.URI, second)
		ctl(t, params, "snapshot", name, "today") // nbdkit makes it

		for _, options := range [][]string{{"-r"}, {}} { // it is read-only in any case
			old := harness.Serve(t, harness.Options{Params: append(params[:2:2], "snapshot=monday"), Args: options})
			if got := harness.Download(t, old.URI); !bytes.Equal(got, first) {
				t.Error("the snapshot is not what the disk was")
			}
			harness.Nbdsh(t, old.URI, "assert h.is_read_only()")
			old.Stop(t)
		}
		if got := harness.Download(t, n.URI); !bytes.Equal(got, second) {
			t.Error("the disk is not what was written")
		}
		harness.Upload(t, n.URI, first)
		old := serve(t, append(params[:2:2], "snapshot=today")...)
		if got := harness.Download(t, old.URI); !bytes.Equal(got, second) {
			t.Error("the snapshot that nbdkit made is not what the disk was")
		}
		old.Stop(t)
		n.Stop(t)
		if out := ctl(t, params, "snapshots", name); !strings.HasPrefix(out, "monday ") || !strings.Contains(out, "\ntoday ") {
			t.Errorf("snapshots: %q", out)
		}
		for _, bad := range []struct{ param, says string }{
			{"snapshot=tuesday", "snapshot tuesday: there is no such snapshot"},
			{"snapshot=", "parameter 'snapshot' is empty"},
		} {
			harness.Fail(t, harness.Options{Params: append(params[:2:2], bad.param)}).Want(t, bad.says)
		}
	})
}

// TestReshapedServed serves a disk and its snapshots after it was resized and
// reverted between sessions: each has its own size and bytes.
func TestReshapedServed(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, params := logVolume(t, c, logSize)
		first := harness.Random(1, logSize)
		is := func(what string, want []byte, more ...string) {
			t.Helper()
			n := serve(t, append(params[:2:2], more...)...)
			harness.Nbdsh(t, n.URI, fmt.Sprintf("assert h.get_size() == %d", len(want)))
			if got := harness.Download(t, n.URI); !bytes.Equal(got, want) {
				t.Errorf("%s is not what it was", what)
			}
			n.Stop(t)
		}
		n := serve(t, params...)
		harness.Upload(t, n.URI, first)
		n.Stop(t)
		ctl(t, params, "snapshot", name, "first")
		ctl(t, params, "resize", name, fmt.Sprint(2*logSize))
		second := harness.Random(2, 2*logSize)
		n = serve(t, params...)
		harness.Upload(t, n.URI, second)
		n.Stop(t)
		ctl(t, params, "snapshot", name, "second")
		ctl(t, params, "resize", name, fmt.Sprint(logSize/2), "--force")
		is("the smaller disk", second[:logSize/2])
		ctl(t, params, "resize", name, fmt.Sprint(logSize))
		is("the disk that has grown again", append(bytes.Clone(second[:logSize/2]), make([]byte, logSize/2)...))
		ctl(t, params, "revert", name, "first", "--yes")
		is("the disk that was reverted", first)
		is("the snapshot that is smaller", first, "snapshot=first")
		is("the snapshot that is larger", second, "snapshot=second")
		ctl(t, params, "revert", name, "second", "--yes")
		ctl(t, params, "snapshot", "--delete", name, "second")
		is("the disk that was reverted again", second)
		ctl(t, params, "verify", name)
	})
}

// TestGrowServed makes a disk larger while nbdkit serves it: the client that is
// connected goes on, and the next one sees the new size.
func TestGrowServed(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, params := logVolume(t, c, logSize)
		n := serve(t, append(params[:2:2], "lease=6")...)
		first := harness.Random(1, logSize)
		harness.Upload(t, n.URI, first)
		const larger = 4 * logSize
		harness.Nbdsh(t, n.URI, fmt.Sprintf(`
import subprocess
subprocess.run([%q, "--secrets", %q, "resize", %q, "%d"], check=True)
assert h.get_size() == %d
h.pwrite(b"x" * 4096, 8192)
`, harness.Built(t, "swiftnbd-ctl"), strings.TrimPrefix(params[1], "secrets="), name, larger, logSize))
		copy(first[8192:], bytes.Repeat([]byte("x"), 4096))
		harness.Nbdsh(t, n.URI, fmt.Sprintf(`
assert h.get_size() == %d
h.pwrite(b"y" * 4096, %d)
h.flush()
`, larger, larger-4096))
		want := make([]byte, larger)
		copy(want, first)
		copy(want[larger-4096:], bytes.Repeat([]byte("y"), 4096))
		if got := harness.Download(t, n.URI); !bytes.Equal(got, want) {
			t.Error("the disk is not what was written")
		}
		n.Stop(t)
	})
}
