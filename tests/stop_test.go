// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// stopping is a volume whose only nbdkit is to be stopped while Swift is out of
// its reach, with data that is not in Swift yet: 4 KiB in each of 3 chunks.
type stopping struct {
	*rivals
	n      *harness.Nbdkit
	client *actor
	away   func(*harness.Wire)
}

// stopModes are the modes in which nbdkit is stopped, and how Swift is away.
var stopModes = []struct {
	name string
	mode harness.Mode
	away func(*harness.Wire)
}{
	{"foreground", harness.Foreground, (*harness.Wire).Break},
	{"foreground-silence", harness.Foreground, (*harness.Wire).Cut},
	{"background", harness.Background, (*harness.Wire).Break},
	{"inetd", harness.Inetd, (*harness.Wire).Break},
	{"captive", harness.Captive, (*harness.Wire).Break},
	{"captive-silence", harness.Captive, (*harness.Wire).Cut},
}

func forEachStop(t *testing.T, timeout string, f func(t *testing.T, s *stopping)) {
	for _, m := range stopModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := &stopping{rivals: newRivals(t, harness.Dev(t), timeout, "writeback-age=3600"), away: m.away}
			s.n = harness.Serve(t, harness.Options{Mode: m.mode, Params: s.first})
			s.client = act(t, s.n.URI, `
h.pwrite(b"A" * 65536, 0)
h.flush()
for i in range(3): h.pwrite(b"B" * 4096, i * 65536 + 8192)
reached("dirty")
until("stop")
try:
    while True:
        h.pread(4096, 8192) # until the server goes
        time.sleep(0.05)
except nbd.Error: pass
`)
			s.client.reached("dirty")
			f(t, s)
		})
	}
}

// stop tells nbdkit to stop while Swift is away.
func (s *stopping) stop() {
	s.t.Helper()
	s.away(s.wire)
	s.n.Terminate(s.t)
	s.client.tell("stop")
}

// left are the files in the directory of nbdkit's socket and pid file.
func left(t testing.TB, n *harness.Nbdkit) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(filepath.Dir(n.PidFile), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return names
}

// TestStopOutage stops nbdkit while Swift is away, and stays away: it tries
// until the timeout, says how much was not written, and ends with a status
// that is not 0, in every mode. It cleans up behind itself as ever.
func TestStopOutage(t *testing.T) {
	t.Parallel()
	forEachStop(t, "timeout=3", func(t *testing.T, s *stopping) {
		holder := s.holder()
		s.stop()
		if status := s.n.End(t); status != 1 {
			t.Errorf("nbdkit has not written all, and ended with status %d; want 1", status)
		}
		s.client.done()
		if out, ok := s.n.Output(); ok {
			for _, want := range []string{harness.Dirty(12288, 3) + " could not be written", "the lock is kept"} {
				if !strings.Contains(out, want) {
					t.Errorf("nbdkit does not say %q:\n%s", want, out)
				}
			}
		}
		cleanEnd(t, s)
		// What the wire still holds stays there.
		if now := s.holder(); now != holder {
			t.Errorf("the volume was %s's, and is now %q's", holder, now)
		}
		// Nobody takes it unaware: once the lease has run out, the next one
		// says whose it was.
		second, _ := harness.TakeOver(t, harness.Options{Params: s.second}, holder)
		harness.Nbdsh(t, second.URI, `assert h.pread(65536, 0) == b"A" * 65536`)
		second.Stop(t)
	})
}

// cleanEnd holds what a stopped nbdkit has left against what an ordinary one
// leaves.
func cleanEnd(t *testing.T, s *stopping) {
	t.Helper()
	if s.n.PidFile == "" {
		return // -s has neither
	}
	_, _, params := volume(t, harness.Dev(t))
	o := harness.Options{Mode: s.n.Mode(), Params: params}
	ordinary := harness.Serve(t, o)
	ordinary.Stop(t)
	if got, want := left(t, s.n), left(t, ordinary); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("after its end nbdkit has left %v; an ordinary one leaves %v", got, want)
	}
}

// TestStopOutageEnds stops nbdkit while Swift is away, which comes back within
// the timeout: then all is written, the lock goes, and the status is 0.
func TestStopOutageEnds(t *testing.T) {
	t.Parallel()
	forEachStop(t, "timeout=60", func(t *testing.T, s *stopping) {
		s.stop()
		time.Sleep(3 * time.Second) // how long the outage lasts
		s.wire.Mend()
		if status := s.n.End(t); status != 0 {
			t.Errorf("nbdkit ended with status %d; want 0", status)
		}
		s.client.done()
		want := append(bytes.Repeat([]byte("A"), 65536), make([]byte, 2*65536)...)
		for i := range 3 {
			copy(want[i*65536+8192:], bytes.Repeat([]byte("B"), 4096))
		}
		if !bytes.Equal(s.account.Read011(t, s.name)[:len(want)], want) {
			t.Error("Swift does not hold what the client has written")
		}
		unlocked(t, s.account, s.name)
		if leases := s.account.Leases(t, s.name); len(leases) != 0 {
			t.Errorf("the leases %v are left", leases)
		}
	})
}

// TestStopTurnsAway stops nbdkit while Swift is away and a client waits for a
// read: the client hears at once that the server ends, and not when the outage
// or the timeout does.
func TestStopTurnsAway(t *testing.T) {
	t.Parallel()
	r := newRivals(t, harness.Dev(t), "timeout=3600")
	r.account.Write011(t, r.name, map[int][]byte{40: harness.Random(40, objectSize)})
	n := serve(t, r.first...)
	client := act(t, n.URI, `
h.pwrite(b"A" * 4096, 0)
h.flush()
reached("ready")
until("read")
waits = h.aio_pread(nbd.Buffer(4096), 40 * 65536)
assert h.pread(4096, 0) == b"A" * 4096 # so the other one is under way
reached("reading")
try:
    while not h.aio_command_completed(waits): h.poll(-1)
except nbd.Error as e: assert e.errno == "ESHUTDOWN", e
else: raise SystemExit("a read that Swift has not answered succeeded")
`)
	client.reached("ready")
	r.wire.Cut()
	client.tell("read")
	client.reached("reading")
	n.Terminate(t)
	client.done()
	r.wire.Mend()
	if status := n.End(t); status != 0 {
		t.Errorf("nbdkit ended with status %d; want 0", status)
	}
	unlocked(t, r.account, r.name)
}

// TestStopQuota stops nbdkit while Swift takes no data, and everything else: the
// volume stays locked for ever, so that whoever comes next looks first.
func TestStopQuota(t *testing.T) {
	t.Parallel()
	c := harness.Real(t)
	r := newRivals(t, c, "timeout=5", "writeback-age=3600")
	n := serve(t, r.first...)
	client := act(t, n.URI, `
h.pwrite(b"A" * 65536, 0)
h.flush()
h.pwrite(b"B" * 4096, 65536)
reached("dirty")
until("stop")
try: h.flush()
except nbd.Error as e: assert e.errno == "ENOSPC", e
else: raise SystemExit("a flush beyond the quota")
`)
	client.reached("dirty")
	holder := r.holder()
	quota := func(n string) {
		status, _, body := r.account.Do(t, "POST", "/"+r.name, map[string]string{"X-Container-Meta-Quota-Bytes": n}, nil)
		if status != 204 {
			t.Fatalf("the quota of %s: status %d\n%s", r.name, status, body)
		}
	}
	// A listing that is under way at the same moment may leave the old metadata
	// in Swift's cache for a minute; version 2 lists when it begins.
	for range 3 {
		quota("1")
		time.Sleep(time.Second)
	}
	client.tell("stop")
	client.done()
	n.Server.Signal(t, syscall.SIGTERM)
	if status := n.Server.Wait(t); status != 1 {
		t.Errorf("nbdkit has not written all, and ended with status %d; want 1", status)
	}
	n.Said(t, harness.Dirty(4096, 1)+" could not be written")
	n.Said(t, "the quota of container "+r.name+" is used up", "of 1 bytes (X-Container-Meta-Quota-Bytes)")
	quota("")
	if out := ctl(t, r.second, "info", r.name); !strings.Contains(out, "without an end") {
		t.Errorf("the volume is not locked for ever:\n%s", out)
	}
	f := harness.Fail(t, harness.Options{Params: r.second})
	f.Want(t, "locked by "+holder+" since", "swiftnbd-ctl unlock")
	ctl(t, r.second, "unlock", r.name)
	// Nobody comes after it: a lease that outlasts a busy Swift.
	second := serve(t, append(slices.Clone(r.second[:len(r.second)-1]), "lease=60")...)
	harness.Nbdsh(t, second.URI, `assert h.pread(65536 + 4096, 0) == b"A" * 65536 + bytes(4096)`)
	second.Stop(t)
}
