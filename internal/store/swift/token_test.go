// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// load lets 16 goroutines write and read until stop says so; no error is
// allowed. It returns the number of rounds.
func load(t *testing.T, s store.Store, stop func() bool) int64 {
	t.Helper()
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var rounds atomic.Int64
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			data := storetest.Bytes(64<<10, uint64(g))
			p := make([]byte, len(data))
			name := fmt.Sprintf("disk.part/%08d", g)
			for !stop() && !t.Failed() {
				if err := s.Put(t.Context(), name, data, storetest.Sum(data)); err != nil {
					t.Errorf("put: %v", err)
				}
				if _, err := s.Get(t.Context(), name, p, store.GetOptions{}); err != nil || !bytes.Equal(p, data) {
					t.Errorf("get: %v", err)
				}
				rounds.Add(1)
			}
		})
	}
	wg.Wait()
	return rounds.Load()
}

// TestTokensThatLiveTwoSeconds end under 16 goroutines that see nothing of it,
// at the cost of about one login each.
func TestTokensThatLiveTwoSeconds(t *testing.T) {
	t.Parallel()
	const life, span = 2 * time.Second, 9 * time.Second
	_, login := embedded(t, devswift.Options{TokenLife: life})
	c := dial(t, swiftstore.Options{Login: login})
	start := time.Now()
	rounds := load(t, c.Container("c"), func() bool { return time.Since(start) > span })
	// The first login, one for each end, and one ahead of time, which finds
	// that the old token is what a new login gives.
	expiries := int64(time.Since(start) / life)
	if n := c.Logins(); n < expiries || n > expiries+3 {
		t.Errorf("%d logins, and tokens ended %d times", n, expiries)
	}
	t.Logf("%d rounds, %d logins", rounds, c.Logins())
}

// TestRevokedTokens takes the tokens away again and again.
func TestRevokedTokens(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	c := dial(t, swiftstore.Options{Login: login})
	const times = 20
	var done atomic.Bool
	go func() {
		defer done.Store(true)
		for range times {
			before := server.Count("PUT", http.StatusCreated)
			for server.Count("PUT", http.StatusCreated) < before+50 && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			server.RevokeTokens()
		}
	}()
	load(t, c.Container("c"), done.Load)
	if n := c.Logins(); n < times || n > times+1 {
		t.Errorf("%d logins, and tokens were revoked %d times", n, times)
	}
}

// TestNewTokens logs in ahead of time where a login gives a new token, and
// nobody sees a 401.
func TestNewTokens(t *testing.T) {
	t.Parallel()
	var logins, refused atomic.Int32
	var mu sync.Mutex
	tokens := make(map[string]time.Time)
	var web *httptest.Server
	web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/auth/v1.0" {
			token := fmt.Sprint("token", logins.Add(1))
			tokens[token] = time.Now().Add(time.Second)
			w.Header().Set("X-Storage-Url", web.URL+"/v1/AUTH_test")
			w.Header().Set("X-Auth-Token", token)
			w.Header().Set("X-Auth-Token-Expires", "1")
			return
		}
		if time.Now().After(tokens[r.Header.Get("X-Auth-Token")]) {
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer web.Close()
	c := dial(t, swiftstore.Options{Login: config.Login{AuthURL: web.URL + "/auth/v1.0", Username: "u", Password: "p"}})
	s := c.Container("c")
	start := time.Now()
	for time.Since(start) < 4*time.Second {
		// One request: several at once may come late together.
		if _, err := s.MetadataHint(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := logins.Load(); n < 4 || n > 7 {
		t.Errorf("%d logins in 4 s with tokens that live 1 s", n)
	}
	// A slow machine may come late now and then; without the renewal ahead
	// of time it would be every one.
	if n := refused.Load(); n > 2 {
		t.Errorf("%d requests were refused", n)
	}
}

// TestRenewalAheadFails asks once, and goes on with the token that it has.
func TestRenewalAheadFails(t *testing.T) {
	t.Parallel()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/auth/v1.0" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok", Expires: time.Now().Add(500 * time.Millisecond)}
	c := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL + "/auth/v1.0", Username: "u", Password: "p"}})
	for start := time.Now(); time.Since(start) < time.Second; time.Sleep(time.Millisecond) {
		if _, err := c.Container("c").Metadata(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.Logins(); n != 1 {
		t.Errorf("%d logins, want one that failed", n)
	}
}

// TestSession needs no login until its token is refused.
func TestSession(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	first := dial(t, swiftstore.Options{Login: login})
	if s := first.Session(); s.StorageURL != "" || s.Token != "" {
		t.Errorf("a session before the login: %+v", s)
	}
	if err := first.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	session := first.Session()
	if session.Expires.Before(time.Now()) {
		t.Errorf("session %+v: has ended", session)
	}
	second := dial(t, swiftstore.Options{Login: login, Session: &session, Container: "c"})
	s := second.Store()
	if _, err := s.CreateContainer(t.Context(), nil); err != nil || second.Logins() != 0 {
		t.Errorf("%v after %d logins, want none", err, second.Logins())
	}
	server.RevokeTokens()
	if _, err := s.Metadata(t.Context()); err != nil || second.Logins() != 1 {
		t.Errorf("%v after %d logins, want 1", err, second.Logins())
	}
	if second.Session().Token == session.Token {
		t.Error("the session has the old token still")
	}
}

// TestPasswordChanged ends for good, and asks not at every request.
func TestPasswordChanged(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	c := dial(t, swiftstore.Options{Login: login})
	s := c.Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	server.RevokeTokens()
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/auth", Action: devswift.Action{Status: 401}}))
	for range 20 {
		_, err := s.Metadata(t.Context())
		if !errors.Is(err, store.ErrUnauthorized) || store.Transient(err) {
			t.Fatalf("%v", err)
		}
	}
	if n := c.Logins(); n != 2 {
		t.Errorf("%d logins, want the first and one refused", n)
	}
	// Login asks all the same.
	server.SetFault(nil)
	if err := c.Login(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.Metadata(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTokenNeverGood ends, although every login succeeds.
func TestTokenNeverGood(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1", Action: devswift.Action{Status: 401}}))
	c := dial(t, swiftstore.Options{Login: login})
	_, err := c.Container("c").Metadata(t.Context())
	if !errors.Is(err, store.ErrUnauthorized) || store.Transient(err) {
		t.Errorf("%v", err)
	}
	if n := c.Logins(); n > 3 {
		t.Errorf("%d logins for one request", n)
	}
}

// TestLoginComesBack is transient while the login's server is away, which is
// not asked before the time that it has named.
func TestLoginComesBack(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	c := dial(t, swiftstore.Options{Login: login})
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/auth", Times: 1, Action: devswift.Action{
		Status: 503, Header: http.Header{"Retry-After": {"1"}},
	}}))
	s := c.Container("c")
	begun := time.Now()
	for n := range 3 {
		err := s.Put(t.Context(), "o", nil, "")
		var se *store.StatusError
		if !errors.As(err, &se) || !store.Transient(err) || se.RetryAfter <= 0 || se.RetryAfter > time.Second ||
			n == 0 && se.RetryAfter != time.Second {
			t.Errorf("%v", err)
		}
		if store.Ambiguous(err) {
			t.Errorf("a PUT that was never sent is ambiguous: %v", err)
		}
	}
	if n := c.Logins(); n != 1 {
		t.Errorf("%d logins, where one was asked to wait", n)
	}
	eventually(t, "a login succeeds", func() bool {
		_, err := s.CreateContainer(t.Context(), nil)
		if err != nil && !store.Transient(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the server was asked again after %v; it had asked for a second", took)
	}
}

// TestClosed fails at once, and lets a login that is under way end.
func TestClosed(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/auth", Action: devswift.Action{Hang: true}}))
	c := dial(t, swiftstore.Options{Login: login})
	end := make(chan error)
	go func() { end <- c.Login(t.Context()) }()
	eventually(t, "the login is under way", func() bool { return server.Count("GET") > 0 || c.Logins() > 0 })
	c.Close()
	if err := <-end; err == nil {
		t.Error("login: no error")
	}
	if _, err := c.Container("c").Metadata(t.Context()); err == nil {
		t.Error("metadata after Close: no error")
	}
}
