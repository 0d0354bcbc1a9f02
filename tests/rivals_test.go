// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// forEachSwift runs f as a parallel subtest on the embedded Swift and on the
// real one.
func forEachSwift(t *testing.T, f func(t *testing.T, c *harness.Cloud)) {
	for _, s := range []struct {
		name  string
		cloud func(testing.TB) *harness.Cloud
	}{{"embedded", harness.Dev}, {"real", harness.Real}} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			f(t, s.cloud(t))
		})
	}
}

// actor is an NBD client that works in step with the test: it says how far it
// is, and waits to be told to go on.
type actor struct {
	t   testing.TB
	dir string
	p   *harness.Process
}

// prelude is what all actors know. Steps are files, so that the test sees them.
const prelude = `
import os, time
DIR = %q
def reached(name): open(os.path.join(DIR, name), "w").close()
def until(name):
    while not os.path.exists(os.path.join(DIR, name)): time.sleep(0.02)
def fails(*calls):
    for what, call in calls:
        try: call()
        except nbd.Error as e:
            assert e.errno == "EIO", (what, e)
        else: raise SystemExit(what + " did not fail")
# all that a client may do, at a chunk of its own
def everything(chunk):
    at = chunk * 65536
    fails(("read", lambda: h.pread(512, at)),
          ("read of what was in the cache", lambda: h.pread(512, 8192)),
          ("write", lambda: h.pwrite(b"L" * 512, at)),
          ("write of a chunk", lambda: h.pwrite(b"L" * 65536, at)),
          ("FUA", lambda: h.pwrite(b"L" * 512, at, nbd.CMD_FLAG_FUA)),
          ("zero", lambda: h.zero(65536, at)),
          ("flush", h.flush))
`

func act(t testing.TB, uri, script string) *actor {
	t.Helper()
	dir := harness.TempDir(t)
	return &actor{t, dir, harness.StartNbdsh(t, uri, fmt.Sprintf(prelude, dir)+script)}
}

// reached waits until the actor has come to a step.
func (a *actor) reached(step string) {
	a.t.Helper()
	a.p.Until(a.t, filepath.Join(a.dir, step))
}

// tell lets the actor go on.
func (a *actor) tell(step string) {
	a.t.Helper()
	harness.WriteFile(a.t, filepath.Join(a.dir, step), "")
}

// read returns what the actor has noted in a file.
func (a *actor) read(name string) string {
	a.t.Helper()
	b, err := os.ReadFile(filepath.Join(a.dir, name))
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

// done waits for the actor's end, which has to be a good one.
func (a *actor) done() {
	a.t.Helper()
	if status := a.p.Wait(a.t); status != 0 {
		a.t.Errorf("client: status %d\n%s", status, a.p.Output())
	}
}

// rivals are two ways to one volume: the first nbdkit's goes over a wire, the
// second's does not.
type rivals struct {
	t             testing.TB
	name          string
	account       *harness.Account
	wire          *harness.Wire
	first, second []string // nbdkit's parameters
}

// newRivals makes a volume with a lease of the shortest term.
func newRivals(t testing.TB, c *harness.Cloud, params ...string) *rivals {
	t.Helper()
	r := &rivals{t: t, wire: harness.NewWire(t, c)}
	r.name, r.account, r.second = volume(t, c)
	r.second = append(r.second, "lease=5")
	r.first = append([]string{r.name, "secrets=" + harness.Secrets(t, r.wire.Cloud.Section(r.name)), "lease=5"}, params...)
	return r
}

// holder returns who holds the volume, without since when.
func (r *rivals) holder() string {
	r.t.Helper()
	holder, _, _ := strings.Cut(r.account.Holder(r.t, r.name), "@")
	return holder
}

// wrote counts the writes of the first that Swift has taken from request from
// on.
func (r *rivals) wrote(from int) (n int) {
	for _, q := range r.wire.Requests()[from:] {
		if q.Writes(r.name) && q.Status/100 == 2 {
			n++
		}
	}
	return n
}

// lookedAgain says whether the first has renewed its lease since it got it, and
// has looked at the volume's mark after that.
func (r *rivals) lookedAgain() bool {
	times, looked := 0, false
	for _, q := range r.wire.Requests() {
		switch {
		case q.Status/100 != 2:
		case q.Method == "POST" && strings.Contains(q.Path, "/"+r.name+".swiftnbd-lease."):
			times++
			looked = false
		case q.Method == "HEAD" && strings.HasSuffix(q.Path, "/"+r.name):
			looked = true
		}
	}
	return times >= 2 && looked
}

// term sends SIGTERM to an nbdkit that has lost something, and checks that its
// exit status says so.
func term(t testing.TB, n *harness.Nbdkit) {
	t.Helper()
	n.Server.Signal(t, syscall.SIGTERM)
	if status := n.Server.Wait(t); status != 1 {
		t.Errorf("nbdkit has lost data and ended with status %d; want 1", status)
	}
}
