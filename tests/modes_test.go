// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

type mode struct {
	name    string
	options harness.Options
	root    bool // takes root
	one     bool // one connection at a time
	cow     bool // what is written stays in nbdkit
}

// modes are the ways in which nbdkit is started. Each has to pass every test
// of this file that ranges over them.
var modes = []mode{
	{name: "foreground", options: harness.Options{Mode: harness.Foreground}},
	{name: "foreground-tcp", options: harness.Options{Mode: harness.Foreground, TCP: true}},
	{name: "background", options: harness.Options{Mode: harness.Background}},
	{name: "background-tcp", options: harness.Options{Mode: harness.Background, TCP: true}},
	{name: "captive", options: harness.Options{Mode: harness.Captive}},
	{name: "inetd", options: harness.Options{Mode: harness.Inetd}, one: true},
	{name: "activated", options: harness.Options{Mode: harness.Activated}},
	{name: "activated-tcp", options: harness.Options{Mode: harness.Activated, TCP: true}},
	{name: "other-user", options: harness.Options{Mode: harness.Background, Args: []string{"-u", "nobody", "-g", "nogroup"}}, root: true},
	{name: "filter-cow", options: harness.Options{Mode: harness.Background, Args: []string{"--filter=cow"}}, cow: true},
	{name: "filter-stats", options: harness.Options{Mode: harness.Background, Args: []string{"--filter=stats"}}},
	{name: "filter-cache", options: harness.Options{Mode: harness.Background, Args: []string{"--filter=cache"}}},
	{name: "filter-blocksize-readahead", options: harness.Options{
		Mode: harness.Background, Args: []string{"--filter=blocksize", "--filter=readahead"}}},
}

// forEachMode runs f as a parallel subtest for each mode.
func forEachMode(t *testing.T, f func(t *testing.T, m mode)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			if m.root {
				harness.NeedRoot(t)
			}
			if m.name == "filter-stats" {
				m.options.Params = []string{"statsfile=" + filepath.Join(harness.TempDir(t), "stats")}
			}
			f(t, m)
		})
	}
}

func (m mode) serve(t *testing.T, params []string) *harness.Nbdkit {
	t.Helper()
	m.options.Params = append(params[:len(params):len(params)], m.options.Params...)
	return harness.Serve(t, m.options)
}

// TestModeRoundTrip copies a full disk of random bytes onto the volume and
// back, and then looks for them in Swift, where a flush has put them.
func TestModeRoundTrip(t *testing.T) {
	forEachMode(t, func(t *testing.T, m mode) {
		name, account, params := volume(t, harness.Dev(t))
		n := m.serve(t, params)
		data := harness.Random(1, diskSize)
		connections := "--connections=4"
		if m.one {
			connections = "--connections=1"
		}
		harness.RoundTrip(t, n.URI, data, connections)
		n.Stop(t)
		if there := bytes.Equal(account.Read011(t, name), data); there == m.cow {
			t.Errorf("Swift holds what was written: %v, want %v", there, !m.cow)
		}
	})
}

// TestModeLoad has several connections at once write and verify with many
// requests in flight, stops nbdkit by SIGTERM, and sees the lock go.
func TestModeLoad(t *testing.T) {
	forEachMode(t, func(t *testing.T, m mode) {
		name, account, params := volume(t, harness.Dev(t))
		n := m.serve(t, params)
		clients := 2
		if m.one {
			clients = 1
		}
		harness.Load(t, n.URI, clients, 8)
		n.Stop(t)
		unlocked(t, account, name)
	})
}

// TestModeSignal stops nbdkit while clients are connected and at work. What it
// had acknowledged with a flush is there afterwards, the lock is gone, and the
// exit status is 0.
func TestModeSignal(t *testing.T) {
	forEachMode(t, func(t *testing.T, m mode) {
		name, account, params := volume(t, harness.Dev(t))
		n := m.serve(t, params)
		flushed := filepath.Join(harness.TempDir(t), "flushed")
		// Writes on and on until the server goes away under it.
		client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
h.pwrite(b"flushed!" * 512, 65536 - 2048)
h.flush()
open(%q, "w").close()
block = b"x" * 4096
i = 0
while True:
    h.pwrite(block, 1048576 + (i %% 4096) * 4096)
    i += 1
`, flushed))
		client.Until(t, flushed)
		// The cow filter opens what is below it for reading only.
		if locked := account.Holder(t, name) != ""; locked == m.cow {
			t.Errorf("with a client connected the container carries a lock mark: %v, want %v", locked, !m.cow)
		}
		n.Stop(t)
		if client.Wait(t) == 0 {
			t.Error("the client went on after its server had gone")
		}
		unlocked(t, account, name)
		there := bytes.Equal(account.Read011(t, name)[65536-2048:][:4096], bytes.Repeat([]byte("flushed!"), 512))
		if there == m.cow {
			t.Errorf("Swift holds what was flushed before the signal: %v, want %v", there, !m.cow)
		}
	})
}

// unlocked fails the test when the container carries 0.11's lock mark. The
// last connection's close may still be on its way.
func unlocked(t testing.TB, account *harness.Account, container string) {
	t.Helper()
	harness.Eventually(t, "the lock mark of "+container+" goes", func() bool {
		return account.Holder(t, container) == ""
	})
}

// TestModeSignalIdle stops nbdkit while a client is connected that has written,
// has not flushed, and sends nothing more, as a mounted file system may. nbdkit
// itself then waits for the client, whatever the plugin; what was written must
// not wait with it.
func TestModeSignalIdle(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
	written := filepath.Join(harness.TempDir(t), "written")
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import time
h.pwrite(b"idle" * 1024, 65536 - 2048)
open(%q, "w").close()
time.sleep(600)
`, written))
	client.Until(t, written)
	n.Server.Signal(t, syscall.SIGTERM)
	want := bytes.Repeat([]byte("idle"), 1024)
	harness.Eventually(t, "what was written is in Swift", func() bool {
		return bytes.Equal(account.Read011(t, name)[65536-2048:][:4096], want)
	})
	unlocked(t, account, name) // the client is there still
	client.Signal(t, syscall.SIGTERM)
	client.Wait(t)
	if status := n.Server.Wait(t); status != 0 {
		t.Errorf("nbdkit ended with status %d after SIGTERM; want 0", status)
	}
	unlocked(t, account, name)
}

// TestModeErrorBeforeFork gives each mode a container that is not there. The
// command line sees the error at once, and nothing is left behind.
func TestModeErrorBeforeFork(t *testing.T) {
	forEachMode(t, func(t *testing.T, m mode) {
		c := harness.Dev(t)
		name := harness.Name(t)
		m.options.Params = append([]string{name, "secrets=" + harness.Secrets(t, c.Section(name))}, m.options.Params...)
		harness.Fail(t, m.options).Want(t, name)
	})
}

// TestModeReconnect has clients come and go by the dozen while others work.
func TestModeReconnect(t *testing.T) {
	name, account, params := volume(t, harness.Dev(t))
	n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
	stay := make(chan struct{})
	go func() {
		defer close(stay)
		harness.Load(t, n.URI, 2, 4)
	}()
	out := harness.Nbdsh(t, n.URI, `
import threading
def come_and_go(k):
    for i in range(25):
        g = nbd.NBD()
        g.connect_uri(os.environ["NBD_TEST_URI"])
        block = bytes([k, i]) * 256
        off = (16 << 20) + k * 65536 + i * 512
        g.pwrite(block, off)
        assert g.pread(512, off) == block
        g.shutdown()
    print("done", k)
threads = [threading.Thread(target=come_and_go, args=(k,)) for k in range(12)]
for t in threads: t.start()
for t in threads: t.join()
`)
	if got := strings.Count(out, "done"); got != 12 {
		t.Errorf("%d of 12 clients came to their end", got)
	}
	<-stay
	n.Stop(t)
	unlocked(t, account, name)
}

// tellsOfClients are the options with which nbdkit tells of clients that leave.
var tellsOfClients = []string{"-v", "-D", "swift.lock=1"}

// oneLeft returns how often a client has left a disk of which another stays.
func oneLeft(n *harness.Nbdkit) int {
	output, _ := n.Output()
	return strings.Count(output, "a client has left, and 1 stay")
}

// TestModeMarkFollowsClients checks that the lock mark is there from the first
// client's open to the last one's close, and that nbdkit then takes clients on.
func TestModeMarkFollowsClients(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := harness.Serve(t, harness.Options{Params: params, Args: tellsOfClients})
	for round := 1; round <= 2; round++ {
		if holder := account.Holder(t, name); holder != "" {
			t.Errorf("locked by %q before a client came", holder)
		}
		ready, release := filepath.Join(harness.TempDir(t), "ready"), filepath.Join(harness.TempDir(t), "release")
		client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import time
g = nbd.NBD(); g.connect_uri(os.environ["NBD_TEST_URI"])
h.shutdown()
open(%q, "w").close()
while not os.path.exists(%q): time.sleep(0.02)
g.pwrite(b"x", 0)
g.shutdown()
`, ready, release))
		client.Until(t, ready) // two came and one left
		harness.Eventually(t, "the first has left", func() bool { return oneLeft(n) == round })
		if account.Holder(t, name) == "" {
			t.Error("one client is left, but the mark has gone")
		}
		harness.WriteFile(t, release, "")
		if status := client.Wait(t); status != 0 {
			t.Errorf("client: status %d\n%s", status, client.Output())
		}
		unlocked(t, account, name)
	}
	if last := account.Meta(t, name)["last"]; last == "" {
		t.Error("nobody is named as the last client")
	}
	n.Stop(t)
}

// idleClient returns a client that has written an x, flushed, and stays.
func idleClient(t testing.TB, uri string) *harness.Process {
	t.Helper()
	flushed := filepath.Join(harness.TempDir(t), "flushed")
	client := harness.StartNbdsh(t, uri, fmt.Sprintf(`
import time
h.pwrite(b"x" * 512, 0)
h.flush()
open(%q, "w").close()
time.sleep(600)
`, flushed))
	client.Until(t, flushed)
	return client
}

// TestModeSecond starts a second nbdkit on the volume that a client of the
// first one uses: it is refused before it forks, and harms nothing.
func TestModeSecond(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, params...)
	client := idleClient(t, n.URI)
	holder := account.Holder(t, name)
	harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).Want(t, name, "lock")
	if now := account.Holder(t, name); now != holder {
		t.Errorf("the second nbdkit changed the mark from %q to %q", holder, now)
	}
	harness.Nbdsh(t, n.URI, `assert h.pread(1, 0) == b"x"`) // another client of the first
	// After SIGTERM nbdkit, whatever its plugin, waits for idle clients.
	client.Signal(t, syscall.SIGTERM)
	client.Wait(t)
	n.Stop(t)
	unlocked(t, account, name)
}

// TestModeCaptiveStatus checks that nbdkit --run gives its command's status,
// and that the mark goes although nbdkit does not wait for its server.
func TestModeCaptiveStatus(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	for command, want := range map[string]int{
		`nbdinfo --size "$uri"`: 0,
		`exit 7`:                7,
		`nbdcopy "$uri" null:`:  0,
	} {
		args := append([]string{"-U", "-", harness.Plugin(t)}, params...)
		r := harness.Run(t, "nbdkit", append(args, "--run", command)...)
		if r.Status != want {
			t.Errorf("--run %q: exit status %d, want %d\n%s", command, r.Status, want, r.Stderr)
		}
		unlocked(t, account, name)
	}
}

// TestModeLimit checks one client at a time, by nbdkit's limit filter.
func TestModeLimit(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	n := harness.Serve(t, harness.Options{
		Mode: harness.Background, Args: []string{"--filter=limit"}, Params: append(params, "limit=1")})
	harness.Nbdsh(t, n.URI, `
g = nbd.NBD()
try:
    g.connect_uri(os.environ["NBD_TEST_URI"])
    raise SystemExit("a second client was let in")
except nbd.Error:
    pass
h.pwrite(b"first", 0)
assert h.pread(5, 0) == b"first"
`)
	harness.Nbdsh(t, n.URI, `assert h.pread(5, 0) == b"first"`)
	n.Stop(t)
}

// TestModeInformation checks --help, --version and --dump-plugin, which need
// neither a Swift nor a configuration.
func TestModeInformation(t *testing.T) {
	t.Parallel()
	for option, wants := range map[string][]string{
		"--help":        {"container=", "secrets=", "authurl=", "connections=", "timeout=", "cacert="},
		"--version":     {"nbdkit ", "swift "},
		"--dump-plugin": {"name=swift\n", "thread_model=parallel\n", "magic_config_key=container\n", "version="},
	} {
		out := harness.Must(t, "nbdkit", harness.Plugin(t), option)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("nbdkit swift %s does not say %q:\n%s", option, want, out)
			}
		}
	}
	version := strings.TrimSpace(harness.Must(t, harness.Built(t, "swiftnbd-ctl"), "--version"))
	number := version[strings.LastIndex(version, " ")+1:]
	if out := harness.Must(t, "nbdkit", harness.Plugin(t), "--version"); !strings.Contains(out, number) {
		t.Errorf("swiftnbd-ctl is %q, but the plugin says\n%s", version, out)
	}
}

// TestModeKilled checks what kill -9 leaves: a lock, which the next nbdkit
// reports, and which swiftnbd-ctl unlock removes before it ends by itself.
func TestModeKilled(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, params := volume(t, c)
	n := serve(t, params...)
	idleClient(t, n.URI)
	n.Kill(t)
	holder, _, _ := strings.Cut(account.Holder(t, name), "@")
	if holder == "" {
		t.Fatal("kill -9 left no mark, so the test shows nothing")
	}
	harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).Want(t, name, "lock", holder)
	secrets := strings.TrimPrefix(params[1], "secrets=")
	harness.Must(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "-a", c.AuthURL, "unlock", name)
	n = serve(t, params...)
	harness.Nbdsh(t, n.URI, `assert h.pread(1, 0) == b"x"`)
	n.Stop(t)
}

// TestModeSignalWhileStarting sends SIGTERM at random moments of the start:
// nothing hangs, and nothing stays locked.
func TestModeSignalWhileStarting(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	for i := range 10 {
		p := harness.StartNbdkit(t, harness.Options{Params: params}, "-f", "-U", filepath.Join(harness.TempDir(t), "s"))
		time.Sleep(time.Duration(i*15) * time.Millisecond)
		p.Signal(t, syscall.SIGTERM)
		p.Wait(t) // 0 or, before nbdkit handles the signal, 143
	}
	unlocked(t, account, name)
}
