// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/tests/harness"
)

// writer is a client that writes and flushes a block again and again, and counts
// in a file. Rounds that fail are counted in another; "count" starts a new round
// of both.
const writer = `
i = bad = 0
def note(name, n):
    with open(os.path.join(DIR, "new"), "w") as f: f.write(str(n))
    os.rename(os.path.join(DIR, "new"), os.path.join(DIR, name))
note("bad", 0)
while not os.path.exists(os.path.join(DIR, "end")):
    try:
        h.pwrite(b"%08d" % (i + 1) * 512, i % 64 * 65536)
        h.flush()
        i += 1
        note("good", i)
    except nbd.Error as e:
        assert e.errno == "EIO", e
        bad += 1
        note("bad", bad)
    time.sleep(0.05)
`

// rotated is a disk that is served while somebody changes the credentials.
type rotated struct {
	t      *testing.T
	n      *harness.Nbdkit
	client *actor
}

func rotate(t *testing.T, o harness.Options) *rotated {
	t.Helper()
	r := &rotated{t: t, n: harness.Serve(t, o)}
	r.client = act(t, r.n.URI, writer)
	r.progress()
	return r
}

// count returns a number that the client has noted.
func (r *rotated) count(name string) (n int) {
	b, _ := os.ReadFile(filepath.Join(r.client.dir, name))
	_, _ = fmt.Sscan(string(b), &n)
	return n
}

// progress waits until the client has written and flushed some more.
func (r *rotated) progress() {
	r.t.Helper()
	from := r.count("good")
	harness.EventuallyWithin(r.t, 40*time.Second, "the client writes on", func() bool { return r.count("good") > from+5 })
}

// said waits for a line of nbdkit's.
func (r *rotated) said(words string) {
	r.t.Helper()
	harness.EventuallyWithin(r.t, 40*time.Second, "nbdkit says "+words, func() bool {
		out, _ := r.n.Output()
		return strings.Contains(out, words)
	})
}

// once wants a line to be there n times.
func (r *rotated) times(n int, words string) {
	r.t.Helper()
	if out, _ := r.n.Output(); strings.Count(out, words) != n {
		r.t.Errorf("nbdkit says %q %d times, want %d:\n%s", words, strings.Count(out, words), n, out)
	}
}

func (r *rotated) end() {
	r.t.Helper()
	r.client.tell("end")
	r.client.done()
	r.n.Stop(r.t)
}

// TestRotate changes the password of a disk that is served: with the file, without
// it, and to another account. The places are a section of the secrets file, and a
// cloud of clouds.yaml with its password in secure.yaml.
func TestRotate(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"section", "cloud"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			server, err := devswift.New(devswift.Options{Users: []devswift.User{
				{Account: "test", Name: "tester", Key: "key-1"}, {Account: "other", Name: "tester", Key: "key-o"},
			}, TokenLife: 4 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			web := httptest.NewServer(server)
			t.Cleanup(func() { server.Close(); web.Close() })
			login := web.URL + "/auth/v1.0"
			name := harness.Name(t)
			account := func(user, key string) *harness.Account {
				return (&harness.Cloud{AuthURL: login, User: user, Key: key}).Account(t)
			}
			for _, a := range []*harness.Account{account("test:tester", "key-1"), account("other:tester", "key-o")} {
				if status, _, _ := a.Do(t, "PUT", "/"+name, nil, nil); status != 201 {
					t.Fatalf("the container: status %d", status)
				}
			}
			dir := harness.TempDir(t)
			secrets, place := filepath.Join(dir, "secrets.conf"), ""
			var write func(user, key string)
			o := harness.Options{Params: []string{name, "secrets=" + secrets, "lease=10", "timeout=10"}}
			switch from {
			case "section":
				place = "section [" + name + "] of " + secrets
				write = func(user, key string) {
					harness.WriteFile(t, secrets, harness.Section(name, "authurl = "+login, "username = "+user, "password = "+key))
				}
			case "cloud":
				yaml, secure := filepath.Join(dir, "clouds.yaml"), filepath.Join(dir, "secure.yaml")
				place = "cloud mine of " + secure
				harness.WriteFile(t, secrets, harness.Section(name, "cloud = mine"))
				harness.WriteFile(t, yaml, fmt.Sprintf("clouds: {mine: {auth_type: v1password, auth: {auth_url: %q}}}\n", login))
				write = func(user, key string) {
					harness.WriteFile(t, secure, fmt.Sprintf("clouds: {mine: {auth: {username: %q, password: %q}}}\n", user, key))
				}
				o.Env = []string{"OS_CLIENT_CONFIG_FILE=" + yaml}
			}
			write("test:tester", "key-1")
			setup := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "setup", name, "--size", "4M")
			setup.Env = append(os.Environ(), o.Env...)
			if done := harness.RunCmd(t, setup); done.Status != 0 {
				t.Fatal(done.Stderr)
			}
			server.SetFault(func(q *devswift.Request) *devswift.Action {
				if q.Account == "AUTH_other" {
					t.Errorf("%s %s", q.Method, q.Path)
				}
				return nil
			})
			r := rotate(t, o)

			// First the file, then the password: the client sees nothing of it.
			write("test:tester", "key-2")
			server.SetKey("test", "tester", "key-2")
			server.RevokeTokens()
			used := "the login was refused, and the one that " + place + " has now counts: login at " + login + ` as "test:tester"`
			r.said(used)
			r.progress()
			if bad := r.count("bad"); bad != 0 {
				t.Errorf("%d requests have failed", bad)
			}

			// First the password, and then another account's login. Nothing of that
			// is touched.
			server.SetKey("test", "tester", "key-3")
			server.RevokeTokens()
			r.said("the login is refused, and " + place + " has no other: change it there, it is read again")
			write("other:tester", "key-o")
			r.said("the login is refused, and the one that " + place + " has now is not used: authentication failed: it leads to " + web.URL + "/v1/AUTH_other")

			// What nobody can read.
			if from == "section" {
				harness.WriteFile(t, secrets, "[half")
				r.said("the login is refused, and where it came from cannot be used: " + secrets + ":1: ")
			} else {
				harness.WriteFile(t, filepath.Join(dir, "secure.yaml"), "clouds: {")
				r.said("the login is refused, and where it came from cannot be used: ")
			}

			// The right one, in the end.
			write("test:tester", "key-3")
			r.progress()
			r.times(2, used)
			r.end()
			unlocked(t, account("test:tester", "key-3"), name)
		})
	}
}

// TestRotateShared has the same login in the sections of several disks, which share
// what is made of it. It is changed in one section: the disks that are served all go
// on, and each disk that is opened later has the login of its own section.
func TestRotateShared(t *testing.T) {
	t.Parallel()
	server, err := devswift.New(devswift.Options{Users: []devswift.User{{Account: "test", Name: "tester", Key: "key-1"}}, TokenLife: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	t.Cleanup(func() { server.Close(); web.Close() })
	login := web.URL + "/auth/v1.0"
	account := (&harness.Cloud{AuthURL: login, User: "test:tester", Key: "key-1"}).Account(t)
	base := harness.Name(t)
	names := []string{base + "-a", base + "-b", base + "-c", base + "-d"}
	secrets := filepath.Join(harness.TempDir(t), "secrets.conf")
	write := func(keys ...string) {
		text := ""
		for i, key := range keys {
			text += harness.Section(names[i], "authurl = "+login, "username = test:tester", "password = "+key)
		}
		harness.WriteFile(t, secrets, text)
	}
	counts := func(i int) string {
		return "the login was refused, and the one that section [" + names[i] + "] of " + secrets + " has now counts: login at " + login
	}
	var logins atomic.Int64
	server.SetFault(func(q *devswift.Request) *devswift.Action {
		if q.Path == "/auth/v1.0" {
			logins.Add(1)
		}
		return nil
	})
	write("key-1", "key-1", "key-1", "key-1")
	for _, name := range names {
		if status, _, _ := account.Do(t, "PUT", "/"+name, nil, nil); status != 201 {
			t.Fatalf("the container: status %d", status)
		}
		if done := harness.RunCmd(t, harness.Command(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", secrets, "setup", name, "--size", "4M")); done.Status != 0 {
			t.Fatal(done.Stderr)
		}
	}
	n := harness.Serve(t, harness.Options{Params: []string{"secrets=" + secrets, "lease=10", "timeout=10"}})
	var clients []*rotated
	for _, name := range names[:2] {
		r := &rotated{t: t, n: n, client: act(t, n.Export(name), writer)}
		r.progress()
		clients = append(clients, r)
	}
	change := func(key string, times int) { // counts(1) has been said so often then
		t.Helper()
		server.SetKey("test", "tester", key)
		server.RevokeTokens()
		harness.EventuallyWithin(t, 40*time.Second, "the new login counts", func() bool {
			out, _ := n.Output()
			return strings.Count(out, counts(1)) == times
		})
		for _, r := range clients {
			r.progress()
			if bad := r.count("bad"); bad != 0 {
				t.Errorf("%d requests have failed", bad)
			}
		}
	}

	// The second disk's section has the new one.
	write("key-1", "key-2", "key-2", "key-1")
	change("key-2", 1)
	before := logins.Load()
	harness.Must(t, "nbdinfo", "--size", n.Export(names[2]))
	if r := harness.Run(t, "nbdinfo", "--size", n.Export(names[3])); r.Status == 0 {
		t.Error("a disk with the old login is served with the new one")
	}
	if r := harness.Run(t, "nbdinfo", "--size", n.Export(names[2])); r.Status != 0 {
		t.Errorf("the new login: %s", r.Stderr)
	}
	if n := logins.Load() - before; n > 12 { // tokens live for 4 s, and the old login is refused
		t.Errorf("%d logins: the disks do not share them", n)
	}

	// Once more, while the first one's section has the oldest one still, which is
	// known to be refused.
	time.Sleep(6 * time.Second) // the file is not read again before
	write("key-1", "key-3", "key-3", "key-3")
	change("key-3", 2)
	clients[0].times(2, "the login was refused")
	clients[0].times(0, "is not used")
	harness.Must(t, "nbdinfo", "--size", n.Export(names[3]))
	for _, r := range clients {
		r.client.tell("end")
		r.client.done()
	}
	n.Stop(t)
	after := (&harness.Cloud{AuthURL: login, User: "test:tester", Key: "key-3"}).Account(t)
	for _, name := range names {
		unlocked(t, after, name)
	}
}

// administrator is scripts/saio.sh's own of Keystone.
var administrator = harness.Keystone{User: "admin", Password: "adminpass", Project: "admin", Domain: "Default"}

// TestRotateKeystone changes a user's password at the real Keystone, which ends the
// user's tokens too, and replaces an application credential by another.
func TestRotateKeystone(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	admin := administrator
	admin.AuthURL = k.AuthURL
	for _, kind := range []string{"password", "application-credential"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			name := harness.Name(t)
			account := k.Account(t)
			account.Setup(t, name, 64, 65536)

			// Swift's proxy knows a token for minutes after its end: the relay
			// refuses it sooner.
			target, err := url.Parse(account.StorageURL)
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			dead, seen := map[string]bool{}, map[string]bool{}
			relay := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				mu.Lock()
				token := q.Header.Get("X-Auth-Token")
				if token != "" { // a signed request has none
					seen[token] = true
				}
				refused := dead[token]
				mu.Unlock()
				if refused {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				relay.ServeHTTP(w, q)
			}))
			defer web.Close()
			through := "storage-url = " + web.URL + target.Path

			var was, now string // sections
			var change func()
			switch kind {
			case "password":
				user := *k
				user.User, user.Password = "rotating-"+name, "password-1"
				id := newUser(t, &admin, &user, account.ProjectID)
				was = user.PasswordSection(name, through)
				user.Password = "password-2"
				now = user.PasswordSection(name, through)
				change = func() {
					identity(t, &admin, "PATCH", "/users/"+id, map[string]any{"user": map[string]any{"password": "password-2"}}, http.StatusOK)
				}
			default:
				old, fresh := *k, *k
				oldID := newCredential(t, k, account.UserID, name+"-1", &old)
				newCredential(t, k, account.UserID, name+"-2", &fresh)
				was, now = old.AppCredSection(name, through), fresh.AppCredSection(name, through)
				change = func() {
					identity(t, k, "DELETE", "/users/"+account.UserID+"/application_credentials/"+oldID, nil, http.StatusNoContent)
				}
			}
			secrets := harness.Secrets(t, was)
			r := rotate(t, harness.Options{Params: []string{name, "secrets=" + secrets, "lease=10", "timeout=30"}})
			harness.WriteFile(t, secrets, now)
			change()
			mu.Lock()
			for token := range seen {
				dead[token] = true
			}
			mu.Unlock()
			r.said("the login was refused, and the one that section [" + name + "] of " + secrets + " has now counts: login at " + k.AuthURL)
			r.progress()
			if bad := r.count("bad"); bad != 0 {
				t.Errorf("%d requests have failed", bad)
			}
			r.end()
			unlocked(t, account, name)
			if i := r.count("good") - 1; !bytes.Equal(account.Read011(t, name)[i%64*65536:][:4096], bytes.Repeat([]byte(fmt.Sprintf("%08d", i+1)), 512)) {
				t.Error("Swift does not hold what was flushed last")
			}
		})
	}
}

// identity makes a request to Keystone as a user, and returns the answer's body.
func identity(t testing.TB, k *harness.Keystone, method, path string, body any, want int) []byte {
	t.Helper()
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	q, err := http.NewRequest(method, k.AuthURL+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("X-Auth-Token", k.Account(t).Token)
	answer, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != want {
		t.Fatalf("%s %s: %s, %v: %s", method, path, answer.Status, err, data)
	}
	return data
}

// idOf returns the ID of what an answer of Keystone's is about.
func idOf(t testing.TB, answer []byte) string {
	t.Helper()
	var what map[string]struct{ ID string }
	if err := json.Unmarshal(answer, &what); err != nil {
		t.Fatal(err)
	}
	for _, w := range what {
		return w.ID
	}
	t.Fatalf("no ID: %s", answer)
	return ""
}

// newUser makes the user, who may use the project, until the test ends.
func newUser(t testing.TB, admin, user *harness.Keystone, project string) string {
	t.Helper()
	id := idOf(t, identity(t, admin, "POST", "/users", map[string]any{"user": map[string]any{
		"name": user.User, "domain_id": "default", "password": user.Password}}, http.StatusCreated))
	t.Cleanup(func() { identity(t, admin, "DELETE", "/users/"+id, nil, http.StatusNoContent) })
	var roles struct{ Roles []struct{ ID string } }
	if err := json.Unmarshal(identity(t, admin, "GET", "/roles?name=member", nil, http.StatusOK), &roles); err != nil || len(roles.Roles) != 1 {
		t.Fatalf("the roles: %v, %v", roles, err)
	}
	identity(t, admin, "PUT", "/projects/"+project+"/users/"+id+"/roles/"+roles.Roles[0].ID, nil, http.StatusNoContent)
	return id
}

// newCredential makes an application credential of the user, and puts it into to.
func newCredential(t testing.TB, k *harness.Keystone, user, name string, to *harness.Keystone) string {
	t.Helper()
	id := idOf(t, identity(t, k, "POST", "/users/"+user+"/application_credentials", map[string]any{"application_credential": map[string]any{
		"name": name, "secret": "secret of " + name}}, http.StatusCreated))
	t.Cleanup(func() {
		q, err := http.NewRequest("DELETE", k.AuthURL+"/users/"+user+"/application_credentials/"+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("X-Auth-Token", k.Account(t).Token)
		if answer, err := http.DefaultClient.Do(q); err == nil {
			answer.Body.Close() // it may be gone
		}
	})
	to.AppCredID, to.AppCredSecret = id, "secret of "+name
	return id
}
