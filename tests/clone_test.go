// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestCloneServed serves a clone beside its parent, while both are written. The
// parent is then deleted by force: what the clone has itself is served, and the
// rest is EIO with a line that names the parent.
func TestCloneServed(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		golden, web := harness.Name(t), harness.Name(t)+"-web"
		c.Account(t).SetupLog(t, golden, logSize)
		secrets := "secrets=" + harness.Secrets(t, c.Section(golden), c.Section(web))
		parent, child := []string{golden, secrets}, []string{web, secrets}
		first, second := harness.Random(1, logSize), harness.Random(2, logSize)

		n := serve(t, append(parent[:2:2], "lease=6")...)
		harness.Upload(t, n.URI, first)
		if out := ctl(t, parent, "clone", golden, web); !strings.HasPrefix(out, "Done, "+web+": a clone of "+golden+"@clone-"+web+", ") {
			t.Errorf("%q", out)
		}
		harness.Upload(t, n.URI, second)
		m := serve(t, child...)
		if got := harness.Download(t, m.URI); !bytes.Equal(got, first) {
			t.Error("the clone is not what the disk was")
		}
		harness.Nbdsh(t, m.URI, `h.pwrite(b"x" * 65536, 131072); h.trim(65536, 0); h.flush()`)
		copy(first[131072:], bytes.Repeat([]byte("x"), 65536))
		clear(first[:65536])
		m.Stop(t)
		m = serve(t, child...)
		if got := harness.Download(t, m.URI); !bytes.Equal(got, first) {
			t.Error("the clone is not what was written")
		}
		if got := harness.Download(t, n.URI); !bytes.Equal(got, second) {
			t.Error("the parent is not what was written")
		}
		n.Stop(t)
		m.Stop(t)

		m = serve(t, append(child[:2:2], "timeout=5")...)
		ctl(t, parent, "delete", golden, "-y", "--force")
		harness.Nbdsh(t, m.URI, `
assert h.pread(65536, 131072) == b"x" * 65536
assert h.pread(65536, 0) == bytes(65536)
try:
    h.pread(4096, 1048576)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e.errno
assert h.pread(65536, 131072) == b"x" * 65536
`)
		m.Stop(t)
		if log, seen := m.Output(); seen && !strings.Contains(log, "the parent of this clone, "+golden+", snapshot clone-"+web+", cannot be read: ") {
			t.Errorf("the log does not name the parent:\n%s", log)
		}
	})
}
