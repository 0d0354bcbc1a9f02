// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestClients lets N clients have a disk at a time, and says why the next is
// turned away: for writers and for readers, and for each disk by itself.
func TestClients(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	one, _, _ := volume(t, c)
	two, _, _ := volume(t, c)
	readers, _, _ := volume(t, c)
	secrets := harness.Secrets(t, c.Section(one), c.Section(two)+"clients = 2\n", c.Section(readers)+"clients = 1\nread-only = yes\n")
	n := serve(t, "secrets="+secrets, "clients=1")
	hold := func(name string) *actor {
		a := act(t, n.Export(name), "reached(\"in\")\nuntil(\"out\")\n")
		a.reached("in")
		return a
	}
	turnedAway := func(name, limit string) {
		t.Helper()
		if r := harness.TryNbdsh(t, n.Export(name), "pass"); r.Status == 0 {
			t.Errorf("%s: one more client than %s was let in", name, limit)
		}
		n.Said(t, name, limit)
	}
	multi := func(name string, want bool) {
		t.Helper()
		yes := "False"
		if want {
			yes = "True"
		}
		harness.Nbdsh(t, n.Export(name), "assert h.can_multi_conn() == "+yes)
	}
	multi(one, false)
	multi(two, true)
	harness.Eventually(t, "the client has left", func() bool { return harness.TryNbdsh(t, n.Export(one), "pass").Status == 0 })
	first := hold(two)
	second := hold(two)
	turnedAway(two, "clients=2: 2 connected already")
	alone := hold(readers)
	turnedAway(readers, "clients=1: 1 connected already")
	for _, a := range []*actor{first, second, alone} {
		a.tell("out")
		a.done()
	}
	harness.Eventually(t, "there is room again", func() bool { return harness.TryNbdsh(t, n.Export(two), "pass").Status == 0 })
	n.Stop(t)
}

// TestClientsOneCopy copies with nbdcopy, which opens four connections where it
// may, onto and from a disk of one client.
func TestClientsOneCopy(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	n := serve(t, append(params, "clients=1")...)
	harness.RoundTrip(t, n.URI, harness.Random(1, diskSize))
	n.Stop(t)
}

// TestRemovedEnd removes one of two sections while the clients of both are at
// work. The removed disk is drained, unlocked and given back at once, and its
// client gets errors; the other client never notices. When the section is there
// again, so is the disk, and the client that stayed connected disturbs nobody.
func TestRemovedEnd(t *testing.T) {
	t.Parallel()
	c := harness.Real(t)
	gone, account, _ := volume(t, c)
	stays, _, _ := volume(t, c)
	both := []string{c.Section(gone) + "removed = end\nwriteback-age = 3600\n", c.Section(stays)}
	secrets := harness.Secrets(t, both...)
	n := serve(t, "secrets="+secrets)
	const work = `
import itertools
acked = 0
try:
    for i in itertools.count(1):
        h.pwrite(i.to_bytes(8, "little") * 512, 8 * 65536 + (i % 8) * 4096)
        acked = i
        if i % 5 == 0: h.flush()
        if i == 50: reached("work")
        if stopped(): break
except nbd.Error as e:
    refused = e.errno
`
	client := act(t, n.Export(gone), `
h.pwrite(b"flushed!" * 512, 0)
h.flush()
h.pwrite(b"dirty..." * 512, 65536)
def stopped(): return False
`+work+`
assert refused in ("ESHUTDOWN", "EIO"), refused
for f in (lambda: h.pread(4096, 0), lambda: h.pwrite(b"late" * 1024, 0), h.flush):
    try: f()
    except nbd.Error as e: assert e.errno in ("ESHUTDOWN", "EIO"), e
    else: raise SystemExit("a request after the end")
open(os.path.join(DIR, "acked"), "w").write(str(acked))
reached("refused")
until("leave")
`)
	other := act(t, n.Export(stays), `
def stopped(): return os.path.exists(os.path.join(DIR, "stop"))
`+work+`
assert "refused" not in globals(), refused
h.flush()
`)
	client.reached("work")
	other.reached("work")
	write := func(sections ...string) {
		t.Helper()
		if err := os.WriteFile(secrets+".new", []byte(strings.Join(sections, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(secrets+".new", secrets); err != nil {
			t.Fatal(err)
		}
	}
	write(both[1])
	client.reached("refused")
	// While the client is connected still.
	harness.Eventually(t, "the disk is given back", func() bool {
		return account.Holder(t, gone) == "" && len(account.Leases(t, gone)) == 0
	})
	disk := account.Read011(t, gone)
	for i, want := range []string{"flushed!", "dirty..."} {
		if !bytes.Equal(disk[i*65536:][:4096], bytes.Repeat([]byte(want), 512)) {
			t.Errorf("Swift lacks what was %s", want)
		}
	}
	var newest int
	for i := range 8 {
		b := disk[8*65536+i*4096:]
		newest = max(newest, int(b[0])|int(b[1])<<8|int(b[2])<<16)
	}
	n.Said(t, gone, "its section has been removed")
	if r := harness.TryNbdsh(t, n.Export(gone), "pass"); r.Status == 0 {
		t.Error("the disk is served without its section")
	}

	// The old client leaves while a new one has the disk.
	write(both...)
	harness.Nbdsh(t, n.Export(gone), `
assert h.pread(8, 0) == b"flushed!" and h.pread(8, 65536) == b"dirty..."
h.pwrite(b"again", 0)
h.flush()`)
	fresh := act(t, n.Export(gone), `
h.pwrite(b"fresh", 0)
reached("in")
until("left")
h.flush()
assert h.pread(5, 0) == b"fresh"
`)
	fresh.reached("in")
	client.tell("leave")
	client.done()
	fresh.tell("left")
	fresh.done()
	acked, err := strconv.Atoi(client.read("acked"))
	if err != nil {
		t.Fatal(err)
	}
	if acked == 0 || newest < acked {
		t.Errorf("write %d was acknowledged, and the newest in Swift is %d", acked, newest)
	}
	other.tell("stop")
	other.done()
	n.Stop(t)
	unlocked(t, account, gone)
	unlocked(t, account, stays)
}

// TestRemovedOutage removes a section while Swift is away: the disk does not
// end before what is dirty has been written, and then it does.
func TestRemovedOutage(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	gone, _, _ := volume(t, o.cloud)
	stays, _, _ := volume(t, o.cloud)
	secrets := harness.Secrets(t, o.cloud.Section(gone)+"removed = end\nwriteback-age = 3600\ntimeout = 1\n", o.cloud.Section(stays))
	n := serve(t, "secrets="+secrets)
	client := act(t, n.Export(gone), `
h.pwrite(b"dirty..." * 512, 0)
reached("dirty")
until("back")
while True:
    try: h.pread(4096, 0)
    except nbd.Error as e:
        if e.errno == "ESHUTDOWN": break
        assert e.errno == "EIO", e
    time.sleep(0.05)
`)
	client.reached("dirty")
	o.stop(t)
	harness.WriteFile(t, secrets, o.cloud.Section(stays))
	n.Said(t, gone, "its section has been removed, and it cannot end yet", harness.Dirty(4096, 1)+" could not be written")
	o.start(t)
	n.Said(t, gone, "all is written, the lock is given back")
	client.tell("back")
	client.done()
	harness.Forget(o.cloud)
	account := o.cloud.Account(t)
	unlocked(t, account, gone)
	if !bytes.Equal(account.Read011(t, gone)[:4096], bytes.Repeat([]byte("dirty..."), 512)) {
		t.Error("what was dirty is not in Swift")
	}
	n.Stop(t)
}

// TestRemovedInvalid breaks the secrets file, and takes it away: its sections
// have not been removed, and the clients go on.
func TestRemovedInvalid(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	other, _, _ := volume(t, c)
	secrets := harness.Secrets(t, c.Section(name)+"removed = end\n", c.Section(other)+"removed = end\n")
	n := serve(t, "secrets="+secrets)
	client := act(t, n.Export(name), `
reached("in")
until("removed")
h.pwrite(b"still" * 100, 0)
h.flush()
`)
	client.reached("in")
	harness.WriteFile(t, secrets, "[half\n")
	n.Said(t, "the secrets file has changed and is not used")
	// An editor may empty the file before it writes it, or a disk be full.
	harness.WriteFile(t, secrets, "")
	n.Said(t, "has no section any more: this ends no disk")
	harness.WriteFile(t, secrets, c.Section(name)+"removed = end\n"+c.Section(other)+"removed = end\n")
	// The other section is removed, and that is seen: so is what was broken.
	second := act(t, n.Export(other), `
reached("in")
try:
    while True:
        h.pread(1, 0)
        time.sleep(0.05)
except nbd.Error as e: assert e.errno in ("ESHUTDOWN", "EIO"), e
`)
	second.reached("in")
	harness.WriteFile(t, secrets, c.Section(name)+"removed = end\n")
	second.done()
	client.tell("removed")
	client.done()
	n.Stop(t)
}
