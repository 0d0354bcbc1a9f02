// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// pastLease is longer than a lease of 5 s lives after its holder's end, with
// what others wait beyond that.
const pastLease = 9 * time.Second

// hold is an actor's script: one that has flushed an x, and stays until it is
// told to go.
const hold = `
h.pwrite(b"x" * 512, 0)
h.flush()
reached("there")
until("go")
`

// TestLeaseKilled kills nbdkit with SIGKILL. The next one is refused as long as
// the dead one's lease runs, then takes the volume over by itself and says whose
// it was; what was flushed is there.
func TestLeaseKilled(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account, params := volume(t, c)
		params = append(params, "lease=5")
		n := serve(t, params...)
		act(t, n.URI, hold).reached("there")
		holder, _, _ := strings.Cut(account.Holder(t, name), "@")
		if want := fmt.Sprintf(":%d", n.Server.Pid); !strings.HasSuffix(holder, want) {
			t.Errorf("the holder %q is not process %s", holder, want)
		}
		n.Kill(t)
		n, refused := harness.TakeOver(t, harness.Options{Params: params}, holder)
		if refused == 0 {
			t.Error("the next could start at once, as if nobody had held the volume")
		}
		harness.Nbdsh(t, n.URI, `assert h.pread(512, 0) == b"x" * 512`)
		n.Stop(t)
		unlocked(t, account, name)
		// The dead one's lease went with the take-over.
		harness.Eventually(t, "no lease is left", func() bool { return len(account.Leases(t, name)) == 0 })
	})
}

// TestLeaseMark kills an nbdkit that has 0.11's mark only: nobody gets in,
// however long it is, until somebody unlocks the volume.
func TestLeaseMark(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := serve(t, append(params, "lease=0")...)
	act(t, n.URI, hold).reached("there")
	if leases := account.Leases(t, name); len(leases) != 0 {
		t.Errorf("lease=0 has taken the lease %v", leases)
	}
	holder, _, _ := strings.Cut(account.Holder(t, name), "@")
	n.Kill(t)
	time.Sleep(pastLease) // a lease would have ended
	for _, lease := range []string{"lease=0", "lease=5"} {
		f := harness.Fail(t, harness.Options{Params: append(params, lease)})
		f.Want(t, name, "locked by "+holder+" since", "swiftnbd-ctl unlock")
		if strings.Contains(f.Stderr, "the lease") {
			t.Errorf("a mark without a lease is said to have one: %s", f.Stderr)
		}
	}
	ctl(t, params, "unlock", name)
	n = serve(t, append(params, "lease=5")...)
	harness.Nbdsh(t, n.URI, `assert h.pread(512, 0) == b"x" * 512`)
	n.Stop(t)
}

// TestLeaseReadOnly serves a volume for reading only beside its writer: it takes
// no lease and disturbs none.
func TestLeaseReadOnly(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account, params := volume(t, c)
		reader := harness.Serve(t, harness.Options{Args: []string{"-r"}, Params: params})
		alone := act(t, reader.URI, `
assert h.is_read_only()
reached("there")
until("go")
`)
		alone.reached("there")
		if holder := account.Holder(t, name); holder != "" {
			t.Errorf("a read-only export has taken the volume: %s", holder)
		}
		writer := serve(t, params...)
		client := act(t, writer.URI, hold)
		client.reached("there")
		before := account.Meta(t, name)
		beside := harness.Serve(t, harness.Options{Args: []string{"-r"}, Params: params})
		harness.Nbdsh(t, beside.URI, `
assert h.pread(512, 0) == b"x" * 512
try: h.pwrite(b"y", 0)
except nbd.Error: pass
else: raise SystemExit("a read-only export was written")
`)
		after := account.Meta(t, name)
		if before["client"] != after["client"] || before["lease"] != after["lease"] || len(account.Leases(t, name)) != 1 {
			t.Errorf("a reader has changed the lease: %v, then %v, leases %v", before, after, account.Leases(t, name))
		}
		client.tell("go")
		client.done()
		alone.tell("go")
		alone.done()
		for _, n := range []*harness.Nbdkit{beside, reader, writer} {
			n.Stop(t)
		}
	})
}

// TestLeaseShared has several connections to one nbdkit: they share a lease,
// which ends with the last of them, and the next has the next number.
func TestLeaseShared(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	n := harness.Serve(t, harness.Options{Params: params, Args: tellsOfClients})
	numbers := ""
	for round := 1; round <= 2; round++ {
		one, two := act(t, n.URI, hold), act(t, n.URI, hold)
		one.reached("there")
		two.reached("there")
		leases := account.Leases(t, name)
		if len(leases) != 1 {
			t.Fatalf("two connections have the leases %v", leases)
		}
		one.tell("go")
		one.done()
		harness.Eventually(t, "the first has left", func() bool { return oneLeft(n) == round })
		if now := account.Leases(t, name); len(now) != 1 || now[0] != leases[0] || account.Holder(t, name) == "" {
			t.Errorf("one of two connections has left, and the lease %v is now %v", leases, now)
		}
		two.tell("go")
		two.done()
		unlocked(t, account, name)
		harness.Eventually(t, "the lease goes", func() bool { return len(account.Leases(t, name)) == 0 })
		numbers += strings.TrimPrefix(leases[0], name+".swiftnbd-lease.") + " "
	}
	// Each session has saved a map; that of the one before is of no use. In
	// version 2 it goes ten minutes later.
	harness.Eventually(t, "one map is left", func() bool {
		if harness.Format() == 2 {
			return true
		}
		maps := 0
		for _, object := range account.List(t, name) {
			if strings.HasPrefix(object, "swiftnbd/map/") && strings.HasSuffix(object, "/index") {
				maps++
			}
		}
		return maps == 1
	})
	if numbers != "1 2 " {
		t.Errorf("the leases' numbers were %s", numbers)
	}
	n.Stop(t)
}

// TestLeaseAlone cuts a holder off for longer than its lease while nobody else
// comes. Within the timeout the client does not see it; beyond, it gets I/O
// errors, and all is well afterwards. Nothing that was flushed is lost.
func TestLeaseAlone(t *testing.T) {
	t.Parallel()
	for _, timeout := range []string{"timeout=60", "timeout=3"} {
		seen := timeout == "timeout=3"
		t.Run(timeout, func(t *testing.T) {
			t.Parallel()
			for _, i := range interruptions[1:] {
				t.Run(i.name, func(t *testing.T) {
					t.Parallel()
					r := newRivals(t, harness.Dev(t), timeout)
					n := serve(t, r.first...)
					client := act(t, n.URI, fmt.Sprintf(`
SEEN = %s
i, failed = 0, 0
while not os.path.exists(DIR + "/end"):
    i += 1
    try:
        h.pwrite(i.to_bytes(8, "big") * 8192, i %% 8 * 65536)
        h.flush()
        assert h.pread(65536, i %% 8 * 65536) == i.to_bytes(8, "big") * 8192
    except nbd.Error as e:
        assert SEEN and e.errno == "EIO", e
        failed += 1
        reached("failed")
        i -= 1 # again, as a file system would
        continue
    if i == 20: reached("loaded")
    if os.path.exists(DIR + "/mended"): reached("on")
assert SEEN == (failed > 0)
for k in range(i - 7, i + 1):
    assert h.pread(65536, k %% 8 * 65536) == k.to_bytes(8, "big") * 8192
open(DIR + "/last", "w").write(str(i))
`, map[bool]string{true: "True", false: "False"}[seen]))
					client.reached("loaded")
					i.away(r, n)
					n.Said(t, "the lease has run out and cannot be renewed")
					if seen {
						client.reached("failed")
					}
					time.Sleep(pastLease - 5*time.Second) // others could have come by now
					i.back(r, n)
					client.tell("mended")
					client.reached("on")
					n.Said(t, "the lease is renewed, and was nobody else's meanwhile")
					client.tell("end")
					client.done()
					n.Stop(t)
					var last uint64
					if _, err := fmt.Sscan(client.read("last"), &last); err != nil {
						t.Fatal(err)
					}
					disk := r.account.Read011(t, r.name)
					for k := last - 7; k <= last; k++ {
						if !bytes.Equal(disk[k%8*65536:][:65536], bytes.Repeat([]byte{0, 0, 0, 0, byte(k >> 24), byte(k >> 16), byte(k >> 8), byte(k)}, 8192)) {
							t.Errorf("chunk %d in Swift is not what was flushed", k%8)
						}
					}
					unlocked(t, r.account, r.name)
				})
			}
		})
	}
}

// ctl runs swiftnbd-ctl with the secrets file that nbdkit's parameters name.
func ctl(t testing.TB, params []string, args ...string) string {
	t.Helper()
	args = append([]string{"--secrets", strings.TrimPrefix(params[1], "secrets=")}, args...)
	return harness.Must(t, harness.Built(t, "swiftnbd-ctl"), args...)
}

// TestUnlockAtWork breaks the lock of an nbdkit that is at work. It is named;
// Swift refuses what it writes from then on, which is how it learns of it, long
// before it would look by itself; its client gets errors. Whoever comes next is
// let in at once and is not disturbed.
func TestUnlockAtWork(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		r := newRivals(t, c)
		r.first = append(r.first[:2], "lease=600", "writeback-age=3600")
		first := serve(t, r.first...)
		client := act(t, first.URI, `
h.pwrite(b"A" * 65536 * 4, 0)
h.flush()
h.pwrite(b"B" * 1000, 0)
reached("dirty")
until("unlocked")
fails(("flush", h.flush))
reached("refused")
until("taken")
everything(3)
`)
		client.reached("dirty")
		holder := r.holder()
		if !strings.HasSuffix(holder, fmt.Sprintf(":%d", first.Server.Pid)) {
			t.Errorf("the volume is held by %q", holder)
		}
		// A second after it came the holder renews its lease and looks once
		// more. After that it does not look by itself for long.
		harness.Eventually(t, "the holder has looked once more", r.lookedAgain)
		unlockedAt := len(r.wire.Requests())
		said := ctl(t, r.second, "unlock", r.name)
		for _, want := range []string{holder, "its lease was good until", "is refused by Swift", "is unlocked"} {
			if !strings.Contains(said, want) {
				t.Errorf("unlock does not say %q:\n%s", want, said)
			}
		}
		client.tell("unlocked")
		client.reached("refused")
		second := serve(t, r.second...) // at once
		rival := act(t, second.URI, `
assert h.pread(4 * 65536, 0) == b"A" * 4 * 65536
h.pwrite(b"C" * 65536 * 2, 0)
h.flush()
reached("written")
until("end")
h.pwrite(b"D" * 1000, 3 * 65536)
h.flush()
assert h.pread(4, 0) == b"CCCC"
`)
		rival.reached("written")
		client.tell("taken")
		client.done()
		refused := 0
		for _, q := range r.wire.Requests()[unlockedAt:] {
			if q.Writes(r.name) && q.Status == 401 {
				refused++
			}
		}
		if n := r.wrote(unlockedAt); n > 0 || refused == 0 {
			t.Errorf("after unlock Swift has taken %d writes of the former holder, and refused %d", n, refused)
		}
		first.Said(t, "the lock is not ours any more")
		first.Said(t, harness.Dirty(1000, 1)+" were not written and are lost")
		rival.tell("end")
		rival.done()
		second.Stop(t)
		term(t, first)
		want := append(bytes.Repeat([]byte("C"), 2*65536), bytes.Repeat([]byte("A"), 2*65536)...)
		copy(want[3*65536:], bytes.Repeat([]byte("D"), 1000))
		if !bytes.Equal(r.account.Read011(t, r.name)[:len(want)], want) {
			t.Error("Swift does not hold what the second has written")
		}
		unlocked(t, r.account, r.name)
	})
}

// TestLockForEver locks a volume by hand: nbdkit is kept out however long it is,
// until the volume is unlocked.
func TestLockForEver(t *testing.T) {
	t.Parallel()
	name, account, params := volume(t, harness.Dev(t))
	params = append(params, "lease=5")
	serving := serve(t, params...) // from before; without a client it holds nothing
	ctl(t, params, "lock", name)
	time.Sleep(pastLease) // a lease would have ended
	f := harness.Fail(t, harness.Options{Params: params})
	f.Want(t, name, "locked by ctl since", "swiftnbd-ctl unlock")
	if strings.Contains(f.Stderr, "renewed") {
		t.Errorf("a lock without an end is said to have one: %s", f.Stderr)
	}
	if r := harness.TryNbdsh(t, serving.URI, ""); r.Status == 0 {
		t.Error("a client was let in although the volume is locked")
	}
	serving.Said(t, "locked by ctl since")
	if out := ctl(t, params, "unlock", name); !strings.Contains(out, "lock was: ctl") {
		t.Errorf("unlock does not say whose lock it was: %s", out)
	}
	harness.Nbdsh(t, serving.URI, `h.pwrite(b"x", 0)`)
	serving.Server.Signal(t, syscall.SIGTERM)
	if status := serving.Server.Wait(t); status != 0 {
		t.Errorf("nbdkit ended with status %d; want 0", status)
	}
	unlocked(t, account, name)
}
