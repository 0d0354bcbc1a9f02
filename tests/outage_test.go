// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// outage is an embedded Swift that keeps its objects in a directory and can be
// taken away and brought back at the same address. Its tokens do not outlive
// it, as when a token expires in the middle of work.
type outage struct {
	cloud *harness.Cloud
	args  []string
	p     *harness.Process
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{args: []string{"--dir", harness.TempDir(t)}}
	o.cloud, o.p = harness.OwnDev(t, o.args...)
	address := strings.TrimSuffix(strings.TrimPrefix(o.cloud.AuthURL, "http://"), "/auth/v1.0")
	o.args = append(o.args, "--listen", address)
	return o
}

func (o *outage) stop(t *testing.T) {
	t.Helper()
	o.p.Signal(t, syscall.SIGTERM)
	if status := o.p.Wait(t); status != 0 {
		t.Fatalf("swiftdev ended with status %d\n%s", status, o.p.Output())
	}
}

func (o *outage) start(t *testing.T) {
	t.Helper()
	_, o.p = harness.OwnDev(t, o.args...)
}

// TestOutageShort takes Swift away for a moment while a client writes and
// flushes all the time: the client sees a delay and nothing else. The tokens
// that nbdkit had are void afterwards, which nobody sees either.
func TestOutageShort(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	name, _, params := volume(t, o.cloud)
	n := serve(t, append(params, "timeout=60")...)
	progress, stop := filepath.Join(harness.TempDir(t), "progress"), filepath.Join(harness.TempDir(t), "stop")
	client := harness.StartNbdsh(t, n.URI, model+fmt.Sprintf(`
i = 0
while not os.path.exists(%[2]q):
    write((i * 40961) %% (size - 8192), 8192)
    h.flush()
    i += 1
    open(%[1]q, "w").write(str(i))
check()
print("rounds", i)
`, progress, stop))
	// round waits until the client has done n more rounds.
	round := func(n int) {
		t.Helper()
		at := func() (k int) {
			b, _ := os.ReadFile(progress)
			_, _ = fmt.Sscan(string(b), &k) // nothing yet counts as 0
			return k
		}
		from := at()
		harness.Eventually(t, "the client goes on", func() bool {
			if !client.Running() {
				t.Fatalf("the client came to an end: %s", client.Output())
			}
			return at() >= from+n
		})
	}
	round(5)
	for range 2 {
		o.stop(t)
		o.start(t)
		round(5)
	}
	harness.WriteFile(t, stop, "")
	if client.Wait(t) != 0 {
		t.Errorf("the client saw the outage: %s", client.Output())
	}
	got := harness.Download(t, n.URI)
	n.Stop(t)
	harness.Forget(o.cloud) // the test's own token is void too
	account := o.cloud.Account(t)
	if !bytes.Equal(got, account.Read011(t, name)) {
		t.Error("what is read over NBD is not what is in Swift")
	}
	unlocked(t, account, name)
}

// TestOutageLong takes Swift away for longer than the timeout: the client gets
// I/O errors and keeps its connection, and all is well once Swift is back. No
// flush says yes while the data is not in Swift.
func TestOutageLong(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	name, account, params := volume(t, o.cloud)
	account.Write011(t, name, map[int][]byte{9: harness.Random(91, objectSize)})
	n := serve(t, append(params, "timeout=2")...)
	dir := harness.TempDir(t)
	gone, failed, back := filepath.Join(dir, "gone"), filepath.Join(dir, "failed"), filepath.Join(dir, "back")
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import time
def until(path):
    while not os.path.exists(path): time.sleep(0.02)
h.pwrite(b"before", 0)
h.flush()
open(%[1]q + ".ready", "w").close()
until(%[1]q)
def fails(f):
    try: f()
    except nbd.Error as e:
        assert e.errno == "EIO", e
        return
    raise SystemExit("no error while Swift is away")
fails(lambda: h.pread(4096, 9 * 65536))
def write():
    h.pwrite(b"during", 65536)
    h.flush()
fails(write)
open(%[2]q, "w").close()
until(%[3]q)
# What failed may be tried again by the client, as file systems do.
h.pwrite(b"during", 65536)
h.flush()
assert h.pread(6, 0) == b"before"
assert h.pread(6, 65536) == b"during"
assert len(h.pread(4096, 9 * 65536)) == 4096
`, gone, failed, back))
	client.Until(t, gone+".ready")
	o.stop(t)
	harness.WriteFile(t, gone, "")
	client.Until(t, failed)
	o.start(t)
	harness.WriteFile(t, back, "")
	if status := client.Wait(t); status != 0 {
		t.Errorf("client: status %d\n%s", status, client.Output())
	}
	n.Stop(t)
	harness.Forget(o.cloud)
	account = o.cloud.Account(t)
	want := make([]byte, diskSize)
	copy(want, "before")
	copy(want[65536:], "during")
	copy(want[9*65536:], harness.Random(91, objectSize))
	if !bytes.Equal(account.Read011(t, name), want) {
		t.Error("after the outage Swift does not hold what the client wrote")
	}
	unlocked(t, account, name)
}
