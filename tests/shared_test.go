// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// TestSharedContainer serves a container of another account on the real Swift,
// to which its ACLs give access, and nothing else of the account: read-only,
// with a line that says why, whether the ACL lets objects be written or not.
// Nothing is changed in it. swiftnbd-ctl shows and downloads it, and its other
// verbs end with one line.
func TestSharedContainer(t *testing.T) {
	t.Parallel()
	c := harness.Real(t)
	const guest = "test2:tester2" // scripts/saio.sh
	for _, acl := range []map[string]string{
		{"X-Container-Read": guest},
		{"X-Container-Read": guest, "X-Container-Write": guest},
	} {
		name, account, params := volumeOf(t, c, 16)
		data := harness.Random(81, 16*objectSize)
		n := serve(t, params...)
		harness.RoundTrip(t, n.URI, data)
		n.Stop(t)
		account.Create(t, name, acl)
		before := account.Meta(t, name)

		other := harness.Cloud{AuthURL: c.AuthURL, User: guest, Key: "testing2"}
		secrets := harness.Secrets(t, other.Section(name, "storage-url = "+account.StorageURL))
		n = harness.Serve(t, harness.Options{Params: []string{name, "secrets=" + secrets}})
		image := filepath.Join(harness.TempDir(t), "image")
		harness.Must(t, "nbdcopy", n.URI, image)
		if info := harness.Must(t, "nbdinfo", n.URI); !strings.Contains(info, "is_read_only: true") {
			t.Errorf("not read-only: %s", info)
		}
		n.Stop(t)
		if out, _ := n.Output(); strings.Count(out, "warning: container "+name+": will be served read-only") != 1 {
			t.Errorf("nothing is said at the start: %s", out)
		}
		if out, _ := n.Output(); strings.Contains(out, "mark only") {
			t.Errorf("a reader is told of a lock that it does not have:\n%s", out)
		}
		if out, _ := n.Output(); !strings.Contains(out, "served read-only, since these credentials may read it and not lock it") {
			t.Errorf("nothing is said: %s", out)
		}
		same := harness.Must(t, "cat", image)
		if !bytes.Equal([]byte(same), data) {
			t.Error("what is read is not what the owner has written")
		}

		ctl := func(args ...string) harness.Result {
			return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", secrets}, args...)...)
		}
		for _, args := range [][]string{{"info", name}, {"list"}, {"download", name, image + "2"}} {
			if r := ctl(args...); r.Status != 0 {
				t.Errorf("%v: status %d: %s", args, r.Status, r.Stderr)
			}
		}
		if r := ctl("info", name); !strings.Contains(r.Stdout, "these credentials may read it and not lock it") || strings.Contains(r.Stdout, "by Swift") {
			t.Errorf("info: %s", r.Stdout)
		}
		if r := ctl("info", "--json", name); !strings.Contains(r.Stdout, `"may_lock": false`) || !strings.Contains(r.Stdout, `"fencing": "none"`) {
			t.Errorf("info --json: %s", r.Stdout)
		}
		for _, args := range [][]string{{"lock", name}, {"delete", "--yes", name}, {"setup", "-f", name, "16"}} {
			r := ctl(args...)
			if r.Status != 1 || !strings.Contains(r.Stderr, "403") || strings.Contains(r.Stderr, "tried") {
				t.Errorf("%v: status %d: %s", args, r.Status, r.Stderr)
			}
		}
		account.Create(t, name, map[string]string{"X-Container-Meta-Swiftnbd-Client": "owner@1"})
		if r := ctl("unlock", name); r.Status != 1 || !strings.Contains(r.Stderr, "another account's, and its ACL does not let these credentials do this") || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("unlock: status %d: %s", r.Status, r.Stderr)
		}
		account.Create(t, name, map[string]string{"X-Container-Meta-Swiftnbd-Client": ""})
		after := account.Meta(t, name)
		for key, v := range before {
			if after[key] != v {
				t.Errorf("%s was %q, and is %q", key, v, after[key])
			}
		}
	}
}

// TestAccountACL opens a container on the real Swift with credentials to which the
// account's own ACL gives everything but its ownership (read-write), or all of it
// (admin). The first may create containers and change metadata, and Swift drops
// the key of the fence: one clear line, at once, and nothing is left behind. The
// mark alone (lease=0) works for them.
func TestAccountACL(t *testing.T) {
	t.Parallel()
	// An account of its own, since the ACL is the account's.
	const owner, guest = "test2:tester2", "test:tester" // scripts/saio.sh
	c := harness.Real(t)
	own := harness.Cloud{AuthURL: c.AuthURL, User: owner, Key: "testing2"}
	account := own.Account(t)
	name := harness.Name(t)
	account.Setup(t, name, 16, objectSize)
	setACL := func(acl string) {
		t.Helper()
		if status, _, body := account.Do(t, "POST", "", map[string]string{"X-Account-Access-Control": acl}, nil); status != 204 {
			t.Fatalf("ACL %s: status %d: %s", acl, status, body)
		}
	}
	// giveACL also waits until the guest is let in so. The proxy keeps the account's
	// ACL for a minute, and a request that has read it before the POST may write it
	// there after the POST has taken it away.
	guests := *c.Account(t)
	guests.StorageURL = account.StorageURL
	giveACL := func(acl string, owns bool) {
		t.Helper()
		for end := time.Now().Add(90 * time.Second); ; time.Sleep(time.Second) {
			setACL(acl)
			status, h, _ := guests.Do(t, "HEAD", "", nil, nil)
			if status/100 == 2 && (h.Get("X-Account-Access-Control") != "") == owns {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("ACL %s: the guest's HEAD has status %d, %v", acl, status, h)
			}
		}
	}
	t.Cleanup(func() { setACL("") })
	secrets := harness.Secrets(t, c.Section(name, "storage-url = "+account.StorageURL))
	// A disk that its owner has used, which has a key.
	data := harness.Random(82, 16*objectSize)
	n := harness.Serve(t, harness.Options{Params: []string{name, "secrets=" + harness.Secrets(t, own.Section(name))}})
	harness.RoundTrip(t, n.URI, data)
	n.Stop(t)
	before := account.Meta(t, name)

	giveACL(`{"read-write":["`+guest+`"]}`, false)
	const condition = `if it is the owner's or an account ACL gives it "admin"`
	if _, text := inform(t, []string{name, "secrets=" + secrets}, nil); !strings.Contains(text, condition) {
		t.Errorf("info promises a fence:\n%s", text)
	}
	// A disk of version 2 could not be used, so it is not set up.
	setup := func() harness.Result {
		logged := name + "-log"
		s := harness.Secrets(t, c.Section(logged, "storage-url = "+account.StorageURL))
		return harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", s, "setup", "--format", "2", "--size", "1M", logged)
	}
	if r := setup(); r.Status != 1 || !strings.Contains(r.Stderr, "these credentials may write in this account and do not own it") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("setup: status %d: %s", r.Status, r.Stderr)
	}
	if status, _, _ := account.Do(t, "HEAD", "/"+name+"-log", nil, nil); status != 404 {
		t.Errorf("setup has left the container: status %d", status)
	}
	n = harness.Serve(t, harness.Options{Params: []string{name, "secrets=" + secrets, "timeout=20"}})
	begun := time.Now()
	if r := harness.Run(t, "nbdinfo", n.URI); r.Status == 0 {
		t.Errorf("the disk is served: %s", r.Stdout)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	n.Stop(t)
	out, _ := n.Output()
	if !strings.Contains(out, "container "+name+": these credentials may write in this account and do not own it") || strings.Contains(out, "deadline") {
		t.Errorf("what is said: %s", out)
	}
	if left := account.Leases(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	after := account.Meta(t, name)
	if after["client"] != "" || after["last"] != before["last"] {
		t.Errorf("it was %v, and is %v", before, after)
	}

	for _, how := range []struct{ acl, param string }{{"read-write", "lease=0"}, {"admin", "lease=30"}} {
		giveACL(`{"`+how.acl+`":["`+guest+`"]}`, how.acl == "admin")
		if how.acl == "admin" {
			if r := setup(); r.Status != 0 {
				t.Errorf("setup: status %d: %s", r.Status, r.Stderr)
			}
			account.Remove(t, name+"-log")
		}
		n = harness.Serve(t, harness.Options{Params: []string{name, "secrets=" + secrets, how.param}})
		data = harness.Random(83, 16*objectSize)
		harness.RoundTrip(t, n.URI, data)
		n.Stop(t)
		if _, text := inform(t, []string{name, "secrets=" + secrets}, nil); strings.Contains(text, condition) != (how.acl == "read-write") {
			t.Errorf("%s: info says\n%s", how.acl, text)
		}
		if out, _ := n.Output(); strings.Contains(out, "not fenced") {
			t.Errorf("%s, %s: %s", how.acl, how.param, out)
		}
		if !bytes.Equal(account.Read011(t, name), data) {
			t.Errorf("%s, %s: the owner reads something else", how.acl, how.param)
		}
		if left := account.Leases(t, name); len(left) > 0 {
			t.Errorf("%s: left behind: %v", how.acl, left)
		}
	}
}

// TestKeystoneGuest serves a container of another project on the real Swift with
// keystoneauth, whose ACL names the guest by the ids of project and user, or of
// the user in any project: read-only, and said so, whatever the ACL lets be
// written. A guest with a bare token is served as well, also when the first client
// comes a while after the start: a 403 to it is no token that has expired.
func TestKeystoneGuest(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	owner := k.Account(t)
	guest := *k
	guest.User, guest.Password, guest.Project = "guest", "guesting", "guests" // scripts/saio.sh
	g := guest.Account(t)
	if g.UserID == "" || g.ProjectID == "" || g.StorageURL == owner.StorageURL {
		t.Fatalf("the guest is %+v", g)
	}
	name := harness.Name(t)
	owner.Setup(t, name, 8, objectSize)
	data := bytes.Repeat([]byte("K"), objectSize)
	owner.Write011(t, name, map[int][]byte{3: data})
	before := owner.Meta(t, name)
	section := []string{name, "secrets=" + harness.Secrets(t, guest.PasswordSection(name, "storage-url = "+owner.StorageURL))}
	bare := harness.Options{
		Params: []string{name, "secrets=" + harness.Secrets(t)},
		Env:    []string{"OS_AUTH_TOKEN=" + g.Token, "OS_STORAGE_URL=" + owner.StorageURL},
	}
	check := func(how string, o harness.Options) {
		t.Helper()
		o.Params = append(o.Params, "timeout=120") // Keystone and Swift share two processors with other tests
		n := harness.Serve(t, o)
		time.Sleep(1200 * time.Millisecond) // a younger token has not expired: no new one would be asked for
		harness.Nbdsh(t, n.URI, fmt.Sprintf(`
size = %d
assert h.is_read_only()
assert h.pread(size, 3 * size) == b"K" * size
assert h.pread(size, 4 * size) == bytes(size)
`, objectSize))
		n.Stop(t)
		out, _ := n.Output()
		if !strings.Contains(out, "warning: container "+name+": will be served read-only") || !strings.Contains(out, "served read-only, since these credentials may read it and not lock it") ||
			strings.Contains(out, "another cluster's") {
			t.Errorf("%s: %s", how, out)
		}
	}
	user := g.ProjectID + ":" + g.UserID
	for _, acl := range []map[string]string{
		{"X-Container-Read": user},
		{"X-Container-Read": "*:" + g.UserID},
		{"X-Container-Read": user, "X-Container-Write": user},
	} {
		owner.Create(t, name, acl)
		check(fmt.Sprint(acl), harness.Options{Params: section})
		check(fmt.Sprint("a bare token, ", acl), bare)
	}
	// An ACL for another user of the project gives nothing.
	owner.Create(t, name, map[string]string{"X-Container-Read": g.ProjectID + ":nobody", "X-Container-Write": "x:y"})
	harness.Fail(t, harness.Options{Params: section}).Want(t, "403", "it is another account's, and its ACL does not let these credentials do this")
	harness.Fail(t, bare).Want(t, "403", "it is another account's, and its ACL does not let these credentials do this")
	after := owner.Meta(t, name)
	for key, v := range before {
		if after[key] != v {
			t.Errorf("%s was %q, and is %q", key, v, after[key])
		}
	}
}
