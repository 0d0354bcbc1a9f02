// SPDX-License-Identifier: MIT

package tests

import (
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestFollowServed has one client read a disk while another one writes to it: with
// -r it sees what was there when it came, and with follow= what came since.
func TestFollowServed(t *testing.T) {
	t.Parallel()
	clouds(t, func(t *testing.T, c *harness.Cloud) {
		name, params := logVolume(t, c, logSize)
		writer := serve(t, append(params[:2:2], "lease=6")...)
		harness.Upload(t, writer.URI, harness.Random(1, logSize))
		script := `
import time
assert h.is_read_only()
w = nbd.NBD()
w.connect_uri("WRITER")
old = bytes(h.pread(65536, 0))
assert old == bytes(w.pread(65536, 0)) and old != b"x" * 65536
w.pwrite(b"x" * 65536, 0)
w.flush()
end = time.time() + 60
while bytes(h.pread(65536, 0)) != b"x" * 65536 and time.time() < end and WAIT:
    time.sleep(0.1)
time.sleep(1)
now = bytes(h.pread(65536, 0))
assert now == SEEN
w.pwrite(old, 0)
w.flush()
w.shutdown()
`
		run := func(uri, wait, seen string) {
			t.Helper()
			harness.Nbdsh(t, uri, strings.NewReplacer("WRITER", writer.URI, "WAIT", wait, "SEEN", seen).Replace(script))
		}
		still := harness.Serve(t, harness.Options{Params: params, Args: []string{"-r"}})
		run(still.URI, "False", "old")
		still.Stop(t)
		follows := serve(t, append(params[:2:2], "follow=0.3")...) // it is read-only without -r
		run(follows.URI, "True", `b"x" * 65536`)
		follows.Stop(t)
		writer.Stop(t)

		chunks := harness.Name(t) + "-chunks"
		c.Account(t).Setup(t, chunks, objects, objectSize)
		v1 := []string{chunks, "secrets=" + harness.Secrets(t, c.Section(chunks))}
		for _, bad := range []struct {
			params []string
			says   string
		}{
			{append(params[:2:2], "follow=1", "snapshot=x"), "snapshot x: there is no such snapshot"},
			{append(params[:2:2], "follow=x"), "must be a number of seconds"},
			{append(v1, "follow=1"), "a disk of version 1 of the format has no moments"},
			{append(v1, "compression=zstd"), "a disk of version 1 of the format cannot be compressed"},
		} {
			harness.Fail(t, harness.Options{Params: bad.params}).Want(t, bad.says)
		}
		ctl(t, params, "snapshot", name, "x")
		harness.Fail(t, harness.Options{Params: append(params[:2:2], "follow=1", "snapshot=x")}).Want(t, "follow and snapshot exclude each other")
	})
}
