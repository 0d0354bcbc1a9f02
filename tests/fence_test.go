// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
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
			t.Parallel()
			forEachSwift(t, func(t *testing.T, c *harness.Cloud) { f(t, c, i) })
		})
	}
}

// TestFenceDirty cuts a holder off that has data which is not in Swift yet. A
// second nbdkit takes the volume over once the lease has run out, and writes.
// When the first comes back it writes nothing, its client gets errors, it says
// what was lost, and its exit status does.
func TestFenceDirty(t *testing.T) {
	t.Parallel()
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
		first.Said(t, harness.Dirty(65536, 16)+" were not written and are lost")
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
	t.Parallel()
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

// TestFenceHalfSent cuts a holder off in the middle of PUTs, which Swift has let
// in, and of which the rest has still to come when somebody else has taken the
// volume over. Swift checks a signature when a request comes and not when it
// ends, so it would take them. The holder has given them up by then, and its
// kernel with it: they never come to their end.
func TestFenceHalfSent(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		const chunk, chunks = 2 << 20, 24
		r := &rivals{t: t, wire: harness.NewWire(t, c), name: harness.Name(t), account: c.Account(t)}
		r.account.Setup(t, r.name, chunks, chunk)
		r.second = []string{r.name, "secrets=" + harness.Secrets(t, c.Section(r.name)), "lease=5", "cache=16M", "readahead=0"}
		r.first = []string{r.name, "secrets=" + harness.Secrets(t, r.wire.Cloud.Section(r.name)), "lease=5"}
		first := serve(t, r.first...)
		client := act(t, first.URI, `
C = 2 << 20
h.pwrite(b"A" * C * 8, 0)
h.flush()
reached("flushed")
until("go")
h.pwrite(b"B" * C, 2 * C)
h.pwrite(b"B" * C, 3 * C)
fails(("flush", h.flush))
`)
		client.reached("flushed")
		object := "disk.part/00000002"
		var half atomic.Value // the object of version 2 that is sent in half
		r.wire.CutAt(chunk/2, func(q *harness.Request) bool {
			if _, at, is := strings.Cut(q.Path, "/swiftnbd/log/"); is && q.Writes(r.name) {
				half.Store("swiftnbd/log/" + at)
				return true
			}
			return q.Writes(r.name) && strings.HasSuffix(q.Path, "/00000002")
		})
		client.tell("go")
		harness.Eventually(t, "the wire is cut in the middle of a PUT", r.wire.IsCut)
		holder := r.holder()
		second, _ := harness.TakeOver(t, harness.Options{Params: r.second}, holder)
		rival := act(t, second.URI, `
C = 2 << 20
assert h.pread(C, 2 * C) == b"A" * C
h.pwrite(b"C" * C, 3 * C)
h.flush()
reached("written")
until("late")
for i in range(8, 24): h.pread(C, i * C) # so that the cache has to let go of it
assert h.pread(C, 2 * C) == b"A" * C, "what was read has changed"
assert h.pread(C, 3 * C) == b"C" * C
h.pwrite(b"D" * C, 2 * C) # who writes it anew, has it
h.flush()
assert h.pread(C, 2 * C) == b"D" * C
`)
		rival.reached("written")
		r.wire.Mend()
		client.done() // with its late requests at an end
		first.Said(t, "the lock is not ours any more")
		if first.Server.Signal(t, syscall.SIGTERM); first.Server.Wait(t) != 1 {
			t.Error("the first has lost data, and does not say so by its status")
		}
		if name, ok := half.Load().(string); ok {
			object = name
		}
		switch got, there := r.account.Get(t, r.name, object); {
		case harness.Format() == 2 && !there: // it was a new one
		case !bytes.Equal(got, bytes.Repeat([]byte("A"), chunk)):
			t.Error("a PUT that was half sent has come to its end under somebody else's lease")
		}
		rival.tell("late")
		rival.done()
		second.Stop(t)
		disk := r.account.Read011(t, r.name)
		want := bytes.Repeat([]byte("A"), 8*chunk)
		copy(want[2*chunk:], bytes.Repeat([]byte("D"), chunk))
		copy(want[3*chunk:], bytes.Repeat([]byte("C"), chunk))
		if !bytes.Equal(disk[:len(want)], want) {
			t.Error("Swift does not hold what the second has written")
		}
	})
}
