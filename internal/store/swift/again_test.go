// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// place is a file with a login, which somebody changes.
type place struct {
	mu    sync.Mutex
	login config.Login
	err   error
	reads int
	used  []config.Login
	lines []string
}

func (p *place) source() *swiftstore.Source {
	return &swiftstore.Source{
		Read: func() (config.Login, string, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.reads++
			return p.login, "section [c] of FILE", p.err
		},
		Used: func(now config.Login) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.used = append(p.used, now)
		},
		Log: func(format string, args ...any) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lines = append(p.lines, fmt.Sprintf(format, args...))
		},
	}
}

func (p *place) set(login config.Login, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.login, p.err = login, err
}

// said returns the only line, which has the words and no secret.
func (p *place) said(t *testing.T, words ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) != 1 {
		t.Fatalf("%d lines: %q", len(p.lines), p.lines)
	}
	for _, w := range words {
		if !strings.Contains(p.lines[0], w) {
			t.Errorf("%q lacks %q", p.lines[0], w)
		}
	}
	if strings.Contains(p.lines[0], secret) {
		t.Errorf("%q has the secret", p.lines[0])
	}
	p.lines = nil
}

// served is a client that has put one object, and whose key is changed then.
func served(t *testing.T) (*devswift.Server, config.Login, *place, *swiftstore.Client, store.Store) {
	t.Helper()
	users := []devswift.User{{Account: "test", Name: "tester", Key: "testing"}, {Account: "test", Name: "second", Key: secret}, {Account: "other", Name: "tester", Key: secret}}
	server, login := embedded(t, devswift.Options{Users: users})
	p := &place{login: login}
	c := dial(t, swiftstore.Options{Login: login, Source: p.source()})
	s := c.Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := put(t, s, "before"); err != nil {
		t.Fatal(err)
	}
	server.SetKey("test", "tester", secret)
	server.RevokeTokens()
	return server, login, p, c, s
}

func put(t *testing.T, s store.Store, name string) error {
	data := storetest.Bytes(100, 1)
	return s.Put(t.Context(), name, data, storetest.Sum(data))
}

// TestAgainChanged has another password at the place: the request that meets the
// end of the old one succeeds.
func TestAgainChanged(t *testing.T) {
	t.Parallel()
	_, login, p, _, s := served(t)
	login.Password = secret
	login.CACert = "/another" // the connections are made already
	p.set(login, nil)
	if err := put(t, s, "after"); err != nil {
		t.Fatal(err)
	}
	p.said(t, "the login was refused, and the one that section [c] of FILE has now counts: login at ", `as "test:tester"`)
	if login.CACert = ""; len(p.used) != 1 || p.used[0] != login {
		t.Errorf("used: %v", p.used)
	}
}

// TestAgainUser has another user of the same account there.
func TestAgainUser(t *testing.T) {
	t.Parallel()
	server, login, p, c, s := served(t)
	login.Username, login.Password = "test:second", secret
	p.set(login, nil)
	if err := put(t, s, "after"); err != nil {
		t.Fatal(err)
	}
	p.said(t, `as "test:second"`)
	// The new login is made again, and nothing is read for it.
	server.RevokeTokens()
	if err := put(t, s, "later"); err != nil || c.Logins() != 3 || p.reads != 1 || len(p.used) != 1 {
		t.Errorf("%v, %d logins, read %d times, %d of them used", err, c.Logins(), p.reads, len(p.used))
	}
}

// TestAgainSame has nothing new there: the error says what to change, one line
// too, and the place is not read for each request. Then it is changed.
func TestAgainSame(t *testing.T) {
	t.Parallel()
	_, login, p, c, s := served(t)
	begun := time.Now()
	for range 20 {
		err := put(t, s, "after")
		if !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "section [c] of FILE has no other login") {
			t.Fatal(err)
		}
	}
	// Even where each asks for a login by itself.
	for range 20 {
		if err := c.Login(t.Context()); !errors.Is(err, store.ErrUnauthorized) {
			t.Fatal(err)
		}
	}
	if p.reads != 1 && time.Since(begun) < 5*time.Second {
		t.Errorf("read %d times", p.reads)
	}
	p.said(t, "section [c] of FILE has no other: change it there, it is read again")
	login.Password = secret
	p.set(login, nil)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := put(t, s, "after")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	p.said(t, "has now counts")
}

// TestAgainBad has what cannot be used there.
func TestAgainBad(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*place, config.Login)
		says   string
	}{
		"unreadable": {func(p *place, l config.Login) { p.set(config.Login{}, errors.New("FILE: permission denied")) },
			"where it came from cannot be used: FILE: permission denied"},
		"wrong": {func(p *place, l config.Login) { l.Password = "wrong"; p.set(l, nil) },
			"section [c] of FILE has now is not used: login at "},
		"incomplete": {func(p *place, l config.Login) { l.Username = ""; p.set(l, nil) },
			"section [c] of FILE has one that cannot be used: no username is given"},
		"another account": {func(p *place, l config.Login) { l.Username, l.Password = "other:tester", secret; p.set(l, nil) },
			"/v1/AUTH_other, and the containers that are in use are at http://"},
		"storage URL": {func(p *place, l config.Login) {
			l.Password, l.StorageURL = secret, strings.Replace(l.AuthURL, "/auth/v1.0", "/v1/AUTH_other", 1)
			p.set(l, nil)
		}, "/v1/AUTH_other, and the containers that are in use are at http://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, login, p, client, s := served(t)
			c.change(p, login)
			server.SetFault(func(r *devswift.Request) *devswift.Action {
				if r.Account == "AUTH_other" {
					t.Errorf("%s %s", r.Method, r.Path)
				}
				return nil
			})
			for range 3 {
				if err := put(t, s, "after"); !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), c.says) || store.Transient(err) {
					t.Error(err)
				}
				if err := client.Login(t.Context()); err == nil {
					t.Error("the login is good")
				}
			}
			p.said(t, "the login is refused, ", c.says)
			if len(p.used) != 0 {
				t.Errorf("used: %v", p.used)
			}
			// The old login is good again, and counts.
			server.SetKey("test", "tester", "testing")
			if err := client.Login(t.Context()); err != nil {
				t.Error(err)
			}
			if err := put(t, s, "again"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAgainHost has a login there that leads to an account of the same name at
// another host.
func TestAgainHost(t *testing.T) {
	t.Parallel()
	_, login, p, _, s := served(t)
	target, err := url.Parse(login.AuthURL)
	if err != nil {
		t.Fatal(err)
	}
	relay := httptest.NewServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})) // with its own Host
	defer relay.Close()
	login.AuthURL, login.Password = relay.URL+"/auth/v1.0", secret
	p.set(login, nil)
	if err := put(t, s, "after"); !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), relay.URL+"/v1/AUTH_test, and") {
		t.Error(err)
	}
	p.said(t, relay.URL+"/v1/AUTH_test, and the containers that are in use are at http://"+target.Host+"/v1/AUTH_test:")
}

// TestAgainLater has another login there, which fails for a passing reason first.
func TestAgainLater(t *testing.T) {
	t.Parallel()
	server, login, p, _, s := served(t)
	login.Password = secret
	p.set(login, nil)
	server.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Header.Get("X-Auth-Key") == secret {
			return &devswift.Action{Status: http.StatusServiceUnavailable}
		}
		return nil
	})
	if err := put(t, s, "after"); !store.Transient(err) {
		t.Errorf("%v: not worth another try", err)
	}
	server.SetFault(nil)
	time.Sleep(time.Second) // the hold after a failure
	if err := put(t, s, "after"); err != nil {
		t.Error(err)
	}
	p.said(t, "has now counts")
}

// TestAgainElsewhere has a clone's parent in another account, which is read with
// the same login.
func TestAgainElsewhere(t *testing.T) {
	t.Parallel()
	server, login, p, c, s := served(t)
	// Both accounts were open to the first user; devswift's ACLs are the containers'.
	login.Password = secret
	p.set(login, nil)
	if err := put(t, s, "after"); err != nil {
		t.Fatal(err)
	}
	p.said(t, "has now counts")
	base := strings.Replace(login.AuthURL, "/auth/v1.0", "/v1/AUTH_other", 1)
	other, err := c.At(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	server.SetKey("test", "tester", "third")
	server.RevokeTokens()
	login.Password = "third"
	p.set(login, nil)
	time.Sleep(5 * time.Second) // it was read a moment ago
	if err := other.Login(t.Context()); err != nil {
		t.Error(err)
	}
	if got := other.Session().StorageURL; got != base {
		t.Errorf("the other account is at %s", got)
	}
	p.said(t, "has now counts")
	if err := put(t, s, "again"); err != nil {
		t.Error(err)
	}
	p.said(t, "has now counts") // the second change of the first account's
}

// TestAgainCredential deletes an application credential, and has another one there.
// Keystone answers 404 for one that it does not know.
func TestAgainCredential(t *testing.T) {
	t.Parallel()
	k := newKeystone(t)
	good := "first"
	k.answer = func(w http.ResponseWriter, r *http.Request) {
		body, _ := k.body.Load().(string)
		switch {
		case r.Method == http.MethodPut && r.Header.Get("X-Auth-Token") == "of "+good:
			w.Header().Set("Etag", strings.Trim(r.Header.Get("Etag"), `"`))
			w.WriteHeader(http.StatusCreated)
		case strings.HasPrefix(r.URL.Path, "/nowhere"):
			http.NotFound(w, r)
		case r.URL.Path != "/id/v3/auth/tokens":
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(body, `"id":"`+good+`"`):
			w.Header().Set("X-Subject-Token", "of "+good)
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprint(w, strings.ReplaceAll(catalogueV3, "BASE", k.URL))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprint(w, `{"error":{"code":404,"message":"Could not find Application Credential: first.","title":"Not Found"}}`)
		}
	}
	p := &place{login: config.Login{AuthURL: k.URL + "/id/v3", Version: 3, AppCredentialID: "first", AppCredentialSecret: secret}}
	s := dial(t, swiftstore.Options{Login: p.login, Source: p.source()}).Container("c")
	if err := put(t, s, "before"); err != nil {
		t.Fatal(err)
	}
	good = "second"
	now := p.login
	now.AppCredentialID = "second"
	p.set(now, nil)
	if err := put(t, s, "after"); err != nil {
		t.Fatal(err)
	}
	p.said(t, "has now counts: login at "+k.URL+"/id/v3 with application credential second")
	// The wrong URL is another 404.
	other := dial(t, swiftstore.Options{Login: config.Login{AuthURL: k.URL + "/nowhere/v3", Version: 3, AppCredentialID: "third", AppCredentialSecret: secret}})
	if err := other.Login(t.Context()); err == nil || errors.Is(err, store.ErrUnauthorized) {
		t.Error(err)
	}
}

// TestAgainToken has a token that was given instead of a login. 401 says that it is
// dead, and another one that is there is used. 403 says that it may not do that: the
// place is not read, and whatever else it may do goes on.
func TestAgainToken(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	given := func() config.Login {
		c := dial(t, swiftstore.Options{Login: login})
		if err := c.Login(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := c.Session()
		return config.Login{StorageURL: s.StorageURL, Token: s.Token}
	}
	p := &place{login: given()}
	s := dial(t, swiftstore.Options{Login: p.login, Source: p.source()}).Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	server.RevokeTokens()
	p.set(given(), nil)
	if err := put(t, s, "after"); err != nil {
		t.Fatal(err)
	}
	p.said(t, "the login was refused, and the one that section [c] of FILE has now counts: the token for http://")

	p.set(given(), nil)
	reads := p.reads
	server.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Action: devswift.Action{Status: http.StatusForbidden}}))
	time.Sleep(6 * time.Second) // the token is not fresh, and the place may be read again
	for range 3 {
		if err := put(t, s, "refused"); !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "the token was given") || store.Transient(err) {
			t.Error(err)
		}
		if _, err := s.Head(t.Context(), "after"); err != nil {
			t.Error(err)
		}
	}
	if p.reads != reads || len(p.lines) > 0 || len(p.used) != 1 {
		t.Errorf("read %d times more, %d logins used, and said: %q", p.reads-reads, len(p.used), p.lines)
	}
}
