// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// stacked makes a volume of n objects and the container that its older versions
// go to. stack switches X-Versions-Location on and off.
func stacked(t testing.TB, c *harness.Cloud, n int64) (name string, account *harness.Account, params []string, stack func(on bool)) {
	t.Helper()
	name, account, params = volumeOf(t, c, n)
	archive := name + "-old"
	account.Create(t, archive, nil)
	stack = func(on bool) {
		t.Helper()
		header := map[string]string{"X-Versions-Location": archive}
		if !on {
			header = map[string]string{"X-Remove-Versions-Location": "x"}
		}
		post(t, account, name, header)
	}
	t.Cleanup(func() { stack(false) })
	return name, account, params, stack
}

// post sets headers of a container.
func post(t testing.TB, a *harness.Account, container string, header map[string]string) {
	t.Helper()
	if status, _, body := a.Do(t, "POST", "/"+container, header, nil); status/100 != 2 {
		t.Fatalf("POST %s %v: status %d\n%s", container, header, status, body)
	}
}

// TestVersionsRestored switches X-Versions-Location on while a disk is served,
// and does what once brought old data back: 0x11 in one session, 0x22 in the
// next, then zeroes and discards over all of it, a flush, one more write, a
// flush, kill -9, unlock. Nobody reads 0x11 where zeroes were flushed.
func TestVersionsRestored(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		const n, mib = 64, 1 << 20
		name, account, params, stack := stacked(t, c, n)
		first := serve(t, params...)
		harness.Nbdsh(t, first.URI, `h.pwrite(b"\x11" * 4194304, 0); h.flush()`)
		first.Stop(t)

		second := serve(t, params...)
		client := act(t, second.URI, `
reached("open")
until("stacked")
h.pwrite(b"\x22" * 4194304, 0)
h.flush()
`)
		client.reached("open")
		stack(true)
		client.tell("stacked")
		client.done()
		second.Stop(t)
		if old := account.List(t, name+"-old"); len(old) < n {
			t.Fatalf("%d older versions are kept, so the test shows nothing: %v", len(old), old)
		}

		stack(false)
		third := serve(t, params...)
		client = act(t, third.URI, `
reached("open")
until("stacked")
h.zero(2097152, 0)
h.trim(2097152, 2097152)
h.flush()
h.pwrite(b"\x33" * 4096, 3145728)
h.flush()
reached("flushed")
until("end")
`)
		client.reached("open")
		stack(true)
		client.tell("stacked")
		client.reached("flushed")
		third.Said(t, "X-Versions-Location", "zeroes are written", "swift post "+name+" -H 'X-Remove-Versions-Location: x'")
		third.Kill(t)
		ctl(t, params, "unlock", name)

		want := make([]byte, n*objectSize)
		copy(want[3*mib:], bytes.Repeat([]byte{0x33}, 4096))
		image := filepath.Join(harness.TempDir(t), "image")
		ctl(t, params, "download", name, image)
		got, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("download: %d bytes of 0x11, %d of 0x22, in place of zeroes", bytes.Count(got, []byte{0x11}), bytes.Count(got, []byte{0x22}))
		}
		stack(false)
		last := serve(t, params...)
		if got := harness.Download(t, last.URI); !bytes.Equal(got, want) {
			t.Errorf("the next session reads %d bytes of 0x11, %d of 0x22, in place of zeroes", bytes.Count(got, []byte{0x11}), bytes.Count(got, []byte{0x22}))
		}
		last.Stop(t)
		if !bytes.Equal(account.Read011(t, name), want) {
			t.Error("swiftnbd 0.11 reads something else")
		}
	})
}

// TestVersionsRefused shows that no disk is served for writing, nor set up,
// where a DELETE brings the previous version back; reading, download and verify go
// with a warning.
func TestVersionsRefused(t *testing.T) {
	t.Parallel()
	forEachSwift(t, func(t *testing.T, c *harness.Cloud) {
		name, account, params, stack := stacked(t, c, 16)
		account.Put(t, name, "disk.part/00000003", bytes.Repeat([]byte{7}, objectSize))
		stack(true)
		said := []string{name, "X-Versions-Location: " + name + "-old", "swift post " + name + " -H 'X-Remove-Versions-Location: x'"}
		harness.Fail(t, harness.Options{Params: params}).Want(t, said...)
		tool, secrets := harness.Built(t, "swiftnbd-ctl"), strings.TrimPrefix(params[1], "secrets=")
		r := harness.Run(t, tool, "--secrets", secrets, "setup", "--force", name, "16")
		if r.Status == 0 {
			t.Error("setup takes the container")
		}
		for _, words := range said {
			if !strings.Contains(r.Stderr, words) {
				t.Errorf("setup does not say %q: %s", words, r.Stderr)
			}
		}
		if h := account.Holder(t, name); h != "" {
			t.Errorf("the container is left locked by %s", h)
		}
		if l := account.Leases(t, name); len(l) > 0 {
			t.Errorf("leases are left: %v", l)
		}

		reader := harness.Serve(t, harness.Options{Params: params, Args: []string{"-r"}})
		reader.Said(t, append([]string{"warning"}, said...)...)
		if got := harness.Download(t, reader.URI); got[3*objectSize] != 7 {
			t.Error("a reader does not read the disk")
		}
		reader.Stop(t)
		for _, args := range [][]string{{"download", name, filepath.Join(harness.TempDir(t), "image")}, {"verify", name}} {
			r := harness.Run(t, tool, append([]string{"--secrets", secrets}, args...)...)
			if r.Status != 0 {
				t.Errorf("%s: status %d", args[0], r.Status)
			}
			for _, words := range append([]string{"warning"}, said...) {
				if !strings.Contains(r.Stderr, words) {
					t.Errorf("%s does not say %q: %s", args[0], words, r.Stderr)
				}
			}
		}

		stack(false)
		serve(t, params...).Stop(t)
	})
}

// TestVersionsDelete deletes disks in containers that keep older versions: what
// they hold is said, and deleted when asked; what stays elsewhere is said;
// nothing is locked, and no lease is left, after a refusal.
func TestVersionsDelete(t *testing.T) {
	t.Parallel()
	twice := func(t *testing.T, params []string) {
		for _, value := range []string{"1", "2"} {
			n := serve(t, params...)
			n.Said(t, "warning", "overwritten or deleted")
			harness.Nbdsh(t, n.URI, `h.pwrite(b"`+value+`" * 262144, 0); h.flush(); h.trim(131072, 0); h.flush()`)
			n.Stop(t)
		}
	}
	run := func(t *testing.T, params []string, args ...string) harness.Result {
		return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", strings.TrimPrefix(params[1], "secrets=")}, args...)...)
	}
	gone := func(t *testing.T, a *harness.Account, name string) {
		if status, _, _ := a.Do(t, "HEAD", "/"+name, nil, nil); status != 404 {
			t.Errorf("HEAD %s: status %d after it was deleted", name, status)
		}
		if l := a.Leases(t, name); len(l) > 0 {
			t.Errorf("leases are left: %v", l)
		}
	}

	mode := func(name string, f func(t *testing.T, c *harness.Cloud)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forEachSwift(t, f)
		})
	}
	mode("enabled", func(t *testing.T, c *harness.Cloud) {
		name, account, params := volumeOf(t, c, 16)
		post(t, account, name, map[string]string{"X-Versions-Enabled": "true"})
		twice(t, params)
		if out := ctl(t, params, "info", name); !strings.Contains(out, "X-Versions-Enabled") {
			t.Errorf("info does not say that versions are kept: %s", out)
		}
		r := run(t, params, "delete", "--yes", name)
		if r.Status == 0 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "older versions") || !strings.Contains(r.Stderr, "--old-versions") {
			t.Errorf("status %d, said: %s", r.Status, r.Stderr)
		}
		if h := account.Holder(t, name); h != "" {
			t.Errorf("the container is left locked by %s", h)
		}
		if l := account.Leases(t, name); len(l) > 0 {
			t.Errorf("leases are left: %v", l)
		}
		// It was not touched, and is served.
		serve(t, params...).Stop(t)
		ctl(t, params, "delete", "--yes", "--old-versions", name)
		gone(t, account, name)
	})
	// An earlier program's delete emptied the container, met 409 for ever, and
	// left its lock and its lease behind.
	mode("left-locked", func(t *testing.T, c *harness.Cloud) {
		name, account, params := volumeOf(t, c, 16)
		post(t, account, name, map[string]string{"X-Versions-Enabled": "true"})
		twice(t, params)
		const mark, number = "ctl-delete@1700000000", "7"
		for _, object := range account.List(t, name) {
			account.Do(t, "DELETE", "/"+name+"/"+object, nil, nil)
		}
		account.Create(t, name+".swiftnbd-lease."+number, map[string]string{
			"X-Container-Meta-Swiftnbd-Lease-Holder": mark, "X-Container-Meta-Swiftnbd-Lease-Until": "never"})
		account.SetMeta(t, name, "Client", mark)
		account.SetMeta(t, name, "Lease", number)
		r := run(t, params, "delete", "--yes", name)
		if r.Status == 0 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "--old-versions") {
			t.Errorf("status %d, said: %s", r.Status, r.Stderr)
		}
		ctl(t, params, "delete", "--yes", "--old-versions", name)
		gone(t, account, name)
	})
	mode("history", func(t *testing.T, c *harness.Cloud) {
		name, account, params := volumeOf(t, c, 16)
		account.Create(t, name+"-old", nil)
		post(t, account, name, map[string]string{"X-History-Location": name + "-old"})
		twice(t, params)
		r := run(t, params, "delete", "--yes", name)
		if r.Status != 0 || !strings.Contains(r.Stderr, "stay in "+name+"-old (X-History-Location)") {
			t.Errorf("status %d, said: %s", r.Status, r.Stderr)
		}
		gone(t, account, name)
	})
	mode("stack", func(t *testing.T, c *harness.Cloud) {
		name, account, params := volumeOf(t, c, 16)
		account.Create(t, name+"-old", nil)
		post(t, account, name, map[string]string{"X-Versions-Location": name + "-old"})
		for range 3 {
			account.Put(t, name, "disk.part/00000003", make([]byte, objectSize))
		}
		r := run(t, params, "delete", "--yes", name)
		if r.Status != 0 || !strings.Contains(r.Stderr, "stay in "+name+"-old (X-Versions-Location): 2, of 128 KiB in all") {
			t.Errorf("status %d, said: %s", r.Status, r.Stderr)
		}
		gone(t, account, name)
	})
}
