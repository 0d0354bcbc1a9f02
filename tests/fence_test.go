// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"strconv"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// interruption is a way in which a holder is cut off for longer than its lease,
// and comes back, not knowing.
type interruption struct {
	name       string
	away, back func(r *rivals, n *harness.Nbdkit)
}

var interruptions = []interruption{
	{"stopped",
		func(r *rivals, n *harness.Nbdkit) { n.Server.Signal(r.t, syscall.SIGSTOP) },
		func(r *rivals, n *harness.Nbdkit) { n.Server.Signal(r.t, syscall.SIGCONT) }},
	{"silence",
		func(r *rivals, _ *harness.Nbdkit) { r.wire.Cut() },
		func(r *rivals, _ *harness.Nbdkit) { r.wire.Mend() }},
	{"resets",
		func(r *rivals, _ *harness.Nbdkit) { r.wire.Break() },
		func(r *rivals, _ *harness.Nbdkit) { r.wire.Mend() }},
}

func forEachInterruption(t *testing.T, f func(t *testing.T, c *harness.Cloud, i interruption)) {
	for _, i := range interruptions {
		t.Run(i.name, func(t *testing.T) {
			forEachSwift(t, func(t *testing.T, c *harness.Cloud) { f(t, c, i) })
		})
	}
}

// TestFenceDirty cuts a holder off that has data which is not in Swift yet. A
// second nbdkit takes the volume over once the lease has run out, and writes.
// When the first comes back it writes nothing, its client gets errors, it says
// what was lost, and its exit status does.
func TestFenceDirty(t *testing.T) {
	forEachInterruption(t, func(t *testing.T, c *harness.Cloud, i interruption) {
		r := newRivals(t, c, "writeback-age=3600")
		first := serve(t, r.first...)
		client := act(t, first.URI, `
h.pwrite(b"A" * 65536 * 16, 0)
h.flush()
for i in range(16): h.pwrite(b"B" * 4096, i * 65536 + 8192)
reached("dirty")
until("taken")
everything(3)
everything(40)
`)
		client.reached("dirty")
		holder := r.holder()
		if r.wrote(0) == 0 {
			t.Fatal("nothing is seen to have been written over the wire, so the test shows nothing")
		}
		i.away(r, first)
		second, _ := harness.TakeOver(t, harness.Options{Params: r.second}, holder)
		before := len(r.wire.Requests())
		rival := act(t, second.URI, `
assert h.pread(16 * 65536, 0) == b"A" * 16 * 65536 # what was flushed, and no more
h.pwrite(b"C" * 65536 * 4, 0)
h.pwrite(b"C" * 1000, 6 * 65536 + 10000)
h.flush()
reached("written")
until("end")
`)
		rival.reached("written")
		want := bytes.Repeat([]byte("A"), 16*65536)
		copy(want, bytes.Repeat([]byte("C"), 4*65536))
		copy(want[6*65536+10000:], bytes.Repeat([]byte("C"), 1000))
		want = append(want, make([]byte, diskSize-len(want))...)
		if !bytes.Equal(r.account.Read011(t, r.name), want) {
			t.Error("Swift does not hold what the second has flushed")
		}
		i.back(r, first)
		client.tell("taken")
		client.done()
		first.Said(t, "the lock is not ours any more: locked by "+r.holder())
		first.Said(t, "65536 bytes in 16 chunks were not written and are lost")
		if n := r.wrote(before); n > 0 {
			t.Errorf("the first has written %d objects after its lease had gone", n)
		}
		if !bytes.Equal(harness.Download(t, second.URI), want) {
			t.Error("the second does not read what it has written")
		}
		rival.tell("end")
		rival.done()
		second.Stop(t)
		term(t, first)
		if !bytes.Equal(r.account.Read011(t, r.name), want) {
			t.Error("Swift does not hold what the second has written")
		}
		unlocked(t, r.account, r.name)
	})
}

// TestFenceLoad cuts a holder off in the middle of load. What it had flushed the
// second finds; what was on its way is whole or not there; and nothing changes
// any more once the second has it.
func TestFenceLoad(t *testing.T) {
	forEachInterruption(t, func(t *testing.T, c *harness.Cloud, i interruption) {
		r := newRivals(t, c)
		first := serve(t, r.first...)
		client := act(t, first.URI, `
i = 0
try:
    while True:
        i += 1
        h.pwrite(i.to_bytes(8, "big") * 8192, i % 64 * 65536)
        if i % 5 == 0:
            h.flush()
            open(DIR + "/flushed.new", "w").write(str(i))
            os.rename(DIR + "/flushed.new", DIR + "/flushed")
        if i == 100: reached("loaded")
except nbd.Error as e:
    assert e.errno == "EIO", e
everything(3)
everything(100)
`)
		client.reached("loaded")
		holder := r.holder()
		i.away(r, first)
		second, _ := harness.TakeOver(t, harness.Options{Params: r.second}, holder)
		before := len(r.wire.Requests())
		flushed, err := strconv.Atoi(client.read("flushed"))
		if err != nil {
			t.Fatal(err)
		}
		rival := act(t, second.URI, fmt.Sprintf(`
flushed = %d
for c in range(64):
    b = h.pread(65536, c * 65536)
    i = int.from_bytes(b[:8], "big")
    assert b == b[:8] * 8192, "chunk %%d is torn" %% c
    least = flushed - (flushed - c) %% 64
    assert i %% 64 == c and i >= least, (c, i, least)
h.pwrite(b"C" * 65536 * 32, 0)
h.flush()
reached("written")
until("end")
`, flushed))
		rival.reached("written")
		want := harness.Download(t, second.URI)
		i.back(r, first)
		client.done()
		first.Said(t, "the lock is not ours any more: locked by "+r.holder())
		if n := r.wrote(before); n > 0 {
			t.Errorf("the first has written %d objects after its lease had gone", n)
		}
		if !bytes.Equal(harness.Download(t, second.URI), want) {
			t.Error("the second does not read what it has written")
		}
		rival.tell("end")
		rival.done()
		second.Stop(t)
		if first.Has("were not written and are lost") {
			term(t, first)
		} else {
			first.Stop(t)
		}
		if !bytes.Equal(r.account.Read011(t, r.name), want) {
			t.Error("Swift does not hold what the second has read and written")
		}
		unlocked(t, r.account, r.name)
	})
}
