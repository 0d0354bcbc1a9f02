// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
)

// server returns the URL of the Swift.
func (b *bench) server() string { return strings.TrimSuffix(b.auth, "/auth/v1.0") }

// accounts has two users of one Swift: the owner of golden, who lets the other
// one read it, and the other one, whose the clone is.
func accounts(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, devswift.Options{Users: []devswift.User{{Account: "test", Name: "tester", Key: "testing"}, {Account: "other", Name: "guest", Key: "pass"}}}, "golden")
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\n[golden]\nusername = test:tester\npassword = testing\n" +
		"[web]\nusername = other:guest\npassword = pass\n[web2]\nusername = other:guest\npassword = pass\n")
	return b
}

// TestCloneTwoAccounts has the parent in another account, whose ACL lets the
// clone's user read it, and nothing else.
func TestCloneTwoAccounts(t *testing.T) {
	t.Parallel()
	b := accounts(t)
	const size = 2 << 20
	disk := b.fillLog("golden", size, 1)
	b.ok("snapshot", "golden", "v1")
	other := func() *bench { // who has the clone
		c := *b
		c.client, c.login = nil, config.Login{AuthURL: b.auth, Version: 1, Username: "other:guest", Password: "pass"}
		return &c
	}()

	// Without the right to read it there is no clone.
	b.fails(1, []string{"web: not cloned: ", "permission denied"}, "clone", "golden@v1", "web")
	other.gone("web")
	if names := b.notes("golden"); len(names) > 0 {
		t.Errorf("notes %q", names)
	}
	allow(t, b, "golden", "other:guest")
	// Here the tool has both credentials: the note is the owner's to write.
	if out := b.ok("clone", "golden@v1", "web"); out != "Done, web: a clone of golden@v1, 2 MiB\n" {
		t.Errorf("%q", out)
	}
	if !bytes.Equal(other.content("web", size), disk) {
		t.Error("the clone is not what the disk was")
	}
	path := filepath.Join(t.TempDir(), "image")
	b.ok("download", "web", path)
	checkImage(t, path, disk)
	if out := b.ok("info", "web"); !strings.Contains(out, "golden@v1, at "+b.server()+"/v1/AUTH_test\n") {
		t.Errorf("%s", out)
	}
	b.fails(1, []string{"snapshot v1 is needed by its clone web (at " + b.server() + "/v1/AUTH_other)"}, "snapshot", "--delete", "golden", "v1")

	// With the guest's credentials alone nothing protects it.
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\nusername = other:guest\npassword = pass\n[golden]\nstorage-url = " + b.server() + "/v1/AUTH_test\n[web]\n[web2]\n")
	r := b.run("clone", "golden@v1", "web2")
	if r.code != 0 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "web2: nothing protects the parent") {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(other.content("web2", size), disk) {
		t.Error("the clone is not what the disk was")
	}
	r = b.run("clone", "golden", "web3")
	if r.code != 1 {
		t.Errorf("%+v", r)
	}
	// The guest may not delete the note.
	if out := b.ok("flatten", "web2"); out != "Done, web2 has all of its data itself\n" {
		t.Errorf("%q", out)
	}
	r = b.run("flatten", "web")
	if r.code != 0 || !strings.Contains(r.err, "web: the note of it in golden stays, ") {
		t.Errorf("%+v", r)
	}

	// The right to read is taken away: the clone that is flattened does not mind.
	allow(t, b, "golden", "")
	if !bytes.Equal(other.content("web2", size), disk) {
		t.Error("the clone is not what the disk was")
	}
}

// allow sets who may read a container of the test's own account.
func allow(t *testing.T, b *bench, container, who string) {
	t.Helper()
	b.store(container)
	if err := b.client.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := b.client.Session()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.StorageURL+"/"+container, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", s.Token.Reveal())
	req.Header.Set("X-Container-Read", who)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}
}
