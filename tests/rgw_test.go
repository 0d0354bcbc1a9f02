// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"swiftnbd/tests/harness"
)

// rgwVolume sets a volume of 64 KiB objects up with swiftnbd-ctl, on Ceph's
// gateway.
func rgwVolume(t *testing.T, n string) (name string, account *harness.Account, params []string) {
	t.Helper()
	c := harness.RGW(t)
	name, account = harness.Name(t), c.Account(t)
	params = []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=5"}
	ctl(t, params, "setup", name, n)
	t.Cleanup(func() { account.Remove(t, name) })
	return name, account, params
}

// TestRGWDisk writes, flushes and reads a disk on Ceph's gateway, kills its
// nbdkit, and has another take it over with all that was flushed. info and list
// tell the truth before, meanwhile and after.
func TestRGWDisk(t *testing.T) {
	t.Parallel()
	name, account, params := rgwVolume(t, "64")
	wantInfo(t, params, "lock none, no holder, no since, no until, no expired, fencing available, map blank, last", "unlocked")
	n := serve(t, params...)
	data := harness.Random(7, 64*objectSize)
	harness.RoundTrip(t, n.URI, data)
	act(t, n.URI, `
h.pwrite(b"x" * 512, 0)
h.zero(65536, 65536)
h.flush()
reached("there")
until("go")
`).reached("there")
	copy(data, bytes.Repeat([]byte("x"), 512))
	clear(data[65536 : 2*65536])
	in, text := inform(t, params, nil)
	if in.Lock != "lease" || in.Holder == nil || in.Until == nil || in.Fencing != "expiry" || in.Map != "in use" ||
		!strings.Contains(text, "by Swift, when the lease ends") || !strings.Contains(text, "unlock does not end one before") {
		t.Fatalf("info says %v\n%s", in, text)
	}
	holder, _, _ := strings.Cut(*in.Holder, "@")
	if list := ctl(t, params, "list", name); !strings.Contains(list, name) || !strings.Contains(list, holder) {
		t.Errorf("list says\n%s", list)
	}
	n.Kill(t)
	if got := account.Read011(t, name); !bytes.Equal(got, data) {
		t.Error("what was flushed is not what the container holds")
	}
	n, refused := harness.TakeOver(t, harness.Options{Params: params}, holder)
	if refused == 0 {
		t.Error("the next could start at once, as if nobody had held the volume")
	}
	if got := harness.Download(t, n.URI); !bytes.Equal(got, data) {
		t.Error("the disk that was taken over has other bytes")
	}
	n.Stop(t)
	unlocked(t, account, name)
	if in, text := inform(t, params, nil); in.Lock != "none" || in.Fencing != "expiry" {
		t.Errorf("info says %v\n%s", in, text)
	}
	file := filepath.Join(harness.TempDir(t), "image")
	ctl(t, params, "download", "-q", name, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
		t.Errorf("download: other bytes, or %v", err)
	}
	if leases := account.Leases(t, name); len(leases) != 0 {
		t.Errorf("leases are left behind: %v", leases)
	}
}

// TestRGWLog does the same with a disk of version 2 of the format: what was
// flushed outlives kill -9, verify finds it whole, and delete leaves nothing.
func TestRGWLog(t *testing.T) {
	t.Parallel()
	c := harness.RGW(t)
	name, account := harness.Name(t), c.Account(t)
	params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name)), "lease=5"}
	ctl(t, params, "setup", name, "--size", "1G", "--format", "2")
	t.Cleanup(func() { account.Remove(t, name) })
	n := serve(t, params...)
	data := harness.Random(11, 16<<20)
	harness.Upload(t, n.URI, data)
	act(t, n.URI, `
h.pwrite(b"x" * 5000, 300)
h.zero(1 << 20, 2 << 20)
h.flush()
reached("there")
until("go")
`).reached("there")
	copy(data[300:], bytes.Repeat([]byte("x"), 5000))
	clear(data[2<<20 : 3<<20])
	in, text := inform(t, params, nil)
	if in.Lock != "lease" || in.Holder == nil || in.Fencing != "expiry" || !strings.Contains(text, "version 2") {
		t.Fatalf("info says %v\n%s", in, text)
	}
	holder, _, _ := strings.Cut(*in.Holder, "@")
	n.Kill(t)
	n, refused := harness.TakeOver(t, harness.Options{Params: params}, holder)
	if refused == 0 {
		t.Error("the next could start at once, as if nobody had held the volume")
	}
	got := harness.Download(t, n.URI)
	if len(got) != 1<<30 || !bytes.Equal(got[:len(data)], data) || len(bytes.Trim(got[len(data):], "\x00")) != 0 {
		t.Error("the disk that was taken over has other bytes")
	}
	n.Stop(t)
	unlocked(t, account, name)
	if said := ctl(t, params, "verify", name); !strings.Contains(said, "it is clean") {
		t.Errorf("verify says\n%s", said)
	}
	ctl(t, params, "delete", "-q", "--yes", name)
	if status, _, _ := account.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
		t.Errorf("after delete HEAD of the container says %d", status)
	}
}

// TestRGWLock locks a disk on Ceph's gateway and unlocks it: nobody is served
// meanwhile. Then it is deleted, with all its objects.
func TestRGWLock(t *testing.T) {
	t.Parallel()
	name, account, params := rgwVolume(t, "32")
	n := serve(t, params...)
	harness.RoundTrip(t, n.URI, harness.Random(3, 32*objectSize))
	n.Stop(t)
	ctl(t, params, "lock", name)
	harness.Fail(t, harness.Options{Params: params}).Want(t, name, "locked by")
	ctl(t, params, "unlock", name)
	n = serve(t, params...)
	harness.RoundTrip(t, n.URI, harness.Random(4, 32*objectSize))
	n.Stop(t)
	if chunks := account.Chunks(t, name); len(chunks) != 32 {
		t.Errorf("%d chunks, want 32", len(chunks))
	}
	ctl(t, params, "delete", "-q", "--yes", name)
	if status, _, _ := account.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
		t.Errorf("after delete HEAD of the container says %d", status)
	}
}

// TestRGWUnlockAtWork breaks the lock of an nbdkit that is at work. The gateway
// does not refuse what it writes, so unlock does not promise that, and says until
// when the holder has noticed at the latest. It does.
func TestRGWUnlockAtWork(t *testing.T) {
	t.Parallel()
	name, _, params := rgwVolume(t, "8")
	n := serve(t, params...)
	client := act(t, n.URI, `
h.pwrite(b"x" * 512, 0)
h.flush()
reached("there")
until("go")
fails(("write", lambda: h.pwrite(b"y" * 512, 0, flags=nbd.CMD_FLAG_FUA)))
`)
	client.reached("there")
	said := ctl(t, params, "unlock", name)
	for _, want := range []string{"Swift does not refuse what they write", "make sure that they have stopped", "at the latest at ", "is unlocked"} {
		if !strings.Contains(said, want) {
			t.Errorf("unlock does not say %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "is refused by Swift") {
		t.Errorf("unlock promises a fence:\n%s", said)
	}
	harness.Eventually(t, "the holder notices", func() bool { return n.Has("the lock is not ours any more") })
	client.tell("go")
	client.done()
	n.Terminate(t)
}

// TestRGWOneOfMany has many want a disk at once, on a gateway that tells some of
// them 500 as they create the lease: one of them gets it, each time.
func TestRGWOneOfMany(t *testing.T) {
	t.Parallel()
	name, account, params := rgwVolume(t, "8")
	for round := range 3 {
		var (
			mu   sync.Mutex
			won  int
			said []string
			wg   sync.WaitGroup
		)
		for range 8 {
			cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", strings.TrimPrefix(params[1], "secrets="), "lock", name)
			wg.Go(func() {
				r := harness.RunCmd(t, cmd)
				mu.Lock()
				defer mu.Unlock()
				if r.Status == 0 {
					won++
				}
				said = append(said, fmt.Sprintf("%d %s", r.Status, r.Stdout+r.Stderr))
			})
		}
		wg.Wait()
		if won != 1 {
			t.Fatalf("round %d: %d of 8 have the lock:\n%s", round, won, strings.Join(said, "\n"))
		}
		ctl(t, params, "unlock", name)
	}
	unlocked(t, account, name)
	// Two nbdkits at once.
	var (
		mu   sync.Mutex
		up   []*harness.Nbdkit
		wg   sync.WaitGroup
		says []string
	)
	for range 2 {
		wg.Go(func() {
			n, said := harness.TryServe(t, harness.Options{Params: params})
			mu.Lock()
			defer mu.Unlock()
			if says = append(says, said); n != nil {
				up = append(up, n)
			}
		})
	}
	wg.Wait()
	if len(up) != 2 {
		t.Fatalf("%d of two that started at once are up: %v", len(up), says)
	}
	client := act(t, up[0].URI, hold)
	client.reached("there")
	if r := harness.TryNbdsh(t, up[1].URI, `h.pwrite(b"y" * 512, 0)`); r.Status == 0 {
		t.Error("the disk is served by two at once")
	}
	client.tell("go")
	client.done()
	for _, n := range up {
		n.Terminate(t)
	}
}
