// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// clock is a devswift's: it goes as fast as the test says.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// session returns a session of the account whose age nobody knows, as another
// process hands it over.
func session(t *testing.T, o swiftstore.Options) *swiftstore.Session {
	t.Helper()
	c := dial(t, o)
	if err := c.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := c.Session()
	return &s
}

// TestDeadTokens403 has the tokens end with 403 and not with 401, again and
// again under load: nobody sees it, and each end costs one login.
func TestDeadTokens403(t *testing.T) {
	t.Parallel()
	const life, span = 2 * time.Second, 7 * time.Second
	_, login := embedded(t, devswift.Options{TokenLife: life, DeadToken: http.StatusForbidden})
	c := dial(t, swiftstore.Options{Login: login})
	start := time.Now()
	load(t, c.Container("c"), func() bool { return time.Since(start) > span })
	expiries := int64(time.Since(start) / life)
	if n := c.Logins(); n < expiries || n > expiries+3 {
		t.Errorf("%d logins, and tokens ended %d times", n, expiries)
	}
}

// TestTokenEndsOnTheWay has a token that a login has just given end while the first
// request with it is on its way. Its 403 is no refusal.
func TestTokenEndsOnTheWay(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{TokenLife: 3 * time.Second, DeadToken: http.StatusForbidden})
	c := dial(t, swiftstore.Options{Login: login})
	if _, err := c.Container("c").CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	server.SetFault(devswift.Rules(devswift.Rule{Method: "PUT", Times: 1, Action: devswift.Action{Delay: 3500 * time.Millisecond}}))
	if err := c.Container("c").Put(t.Context(), "o", nil, ""); err != nil {
		t.Error(err)
	}
}

// TestDeadTokenAtOnce has one token end while many requests are made: one
// login is made for all of them.
func TestDeadTokenAtOnce(t *testing.T) {
	t.Parallel()
	swift := &clock{now: time.Now()}
	_, login := embedded(t, devswift.Options{Clock: swift.Now, DeadToken: http.StatusForbidden})
	o := swiftstore.Options{Login: login}
	o.Session = session(t, o)
	swift.Pass(48 * time.Hour)
	c := dial(t, o)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := c.Container("c").CreateContainer(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := c.Logins(); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

// TestRefused has an ACL that lets nobody write: that costs one login, however
// often it is tried, and reading goes on.
func TestRefused(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	o := swiftstore.Options{Login: login}
	o.Session = session(t, o)
	// tempauth would give out the same token again.
	server.RevokeTokens()
	c := dial(t, o)
	s := c.Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil || c.Logins() != 1 {
		t.Fatalf("%v after %d logins", err, c.Logins())
	}
	o.Session = session(t, o)
	c = dial(t, o) // whose token is good, and of an unknown age
	s = c.Container("c")
	server.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Prefix: "/v1", Action: devswift.Action{Status: 403}}))
	for n := range 20 {
		err := s.Put(t.Context(), "o", nil, "")
		if !errors.Is(err, store.ErrForbidden) || store.Transient(err) {
			t.Fatalf("put %d: %v", n, err)
		}
		if _, err := s.Metadata(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.Logins(); n != 1 {
		t.Errorf("%d logins for one refusal, want 1", n)
	}
	// When the ACL lets us write again, the refusal is forgotten.
	server.SetFault(nil)
	if err := s.Put(t.Context(), "o", nil, ""); err != nil {
		t.Error(err)
	}
}

// TestRefusedMany has many containers refuse at once, as in a list: one login.
func TestRefusedMany(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	o := swiftstore.Options{Login: login}
	o.Session = session(t, o)
	c := dial(t, o)
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1", Action: devswift.Action{Status: 403}}))
	var all sync.WaitGroup
	for n := range 40 {
		all.Go(func() {
			_, err := c.Container(string(rune('a' + n))).Metadata(t.Context())
			if !errors.Is(err, store.ErrForbidden) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	// On a machine that takes more than a second for this, one a second.
	if n := c.Logins(); n < 1 || n > 5 {
		t.Errorf("%d logins for 40 containers", n)
	}
}

// TestRefusedThenDead has a token end a moment after a refusal was confirmed:
// what is not refused goes on.
func TestRefusedThenDead(t *testing.T) {
	t.Parallel()
	swift := &clock{now: time.Now()}
	server, login := embedded(t, devswift.Options{Clock: swift.Now, DeadToken: http.StatusForbidden, TokenLife: time.Hour})
	o := swiftstore.Options{Login: login}
	o.Session = session(t, o)
	c := dial(t, o)
	s := c.Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	server.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Prefix: "/v1", Action: devswift.Action{Status: 403}}))
	if err := s.Put(t.Context(), "o", nil, ""); !errors.Is(err, store.ErrForbidden) {
		t.Fatal(err)
	}
	refused := c.Session()
	time.Sleep(1100 * time.Millisecond) // the token may be dead from now on
	swift.Pass(2 * time.Hour)
	if _, err := s.Metadata(t.Context()); err != nil {
		t.Error(err)
	}
	if c.Session().Token == refused.Token {
		t.Error("there is no new token")
	}
}

// TestNoRoomToRead: a read that is answered 413 or 507 is no lack of room. A
// PUT's 507 is one, and its 413 is what the answer says.
func TestNoRoomToRead(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	for _, tc := range []struct {
		status int
		body   string
		put    error // what a PUT ends with, and no other of the two
	}{
		{507, "", store.ErrNoSpace},
		{507, "The body of your request was too large for this server.", store.ErrNoSpace},
		{413, "Upload exceeds quota.", store.ErrNoSpace},
		{413, "", store.ErrTooLarge}, // Swift's own page for max_file_size
		{413, "no", store.ErrNoSpace},
	} {
		// A client remembers for a moment what an object was refused for.
		s := dial(t, swiftstore.Options{Login: login}).Container("c")
		server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1", Action: devswift.Action{Status: tc.status, Body: tc.body}}))
		_, err := s.Get(t.Context(), "o", make([]byte, 1), store.GetOptions{})
		if err == nil || errors.Is(err, store.ErrNoSpace) || errors.Is(err, store.ErrTooLarge) {
			t.Errorf("GET, %d %q: %v", tc.status, tc.body, err)
		}
		err = s.Put(t.Context(), "o", nil, "")
		for _, kind := range []error{store.ErrNoSpace, store.ErrTooLarge} {
			if errors.Is(err, kind) != (kind == tc.put) {
				t.Errorf("PUT, %d %q: %v, want %v", tc.status, tc.body, err, tc.put)
			}
		}
	}
}

// TestRefusedGiven has a request refused to a token that was given ready-made: it
// is that refusal, and no token that has expired; no login is made.
func TestRefusedGiven(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer web.Close()
	c := dial(t, swiftstore.Options{Login: config.Login{StorageURL: web.URL + "/v1/AUTH_owner", Token: "tok"}})
	if _, err := c.Container("c").Metadata(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // until it might have expired (freshFor)
	err := c.Container("c").SetMetadata(t.Context(), nil)
	if !errors.Is(err, store.ErrForbidden) || errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "the token was given") {
		t.Error(err)
	}
}
