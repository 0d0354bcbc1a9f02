// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
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

// away is an embedded Swift whose account servers may go away, with a container that is
// not empty and one that is.
type away struct {
	server   *devswift.Server
	login    config.Login
	s, empty store.Store
	data     []byte
}

func newAway(t *testing.T, policy string) away {
	t.Helper()
	server, login := embedded(t, devswift.Options{Policy: policy})
	c := dial(t, swiftstore.Options{Login: login})
	a := away{server, login, c.Container("c"), c.Container("empty"), storetest.Bytes(1000, 1)}
	for _, s := range []store.Store{a.s, a.empty} {
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	a.put(t)
	return a
}

// put puts the objects that requests delete.
func (a away) put(t *testing.T) {
	t.Helper()
	for _, name := range []string{"o", "o1", "o2"} {
		if err := a.s.Put(t.Context(), name, a.data, storetest.Sum(a.data)); err != nil {
			t.Fatal(err)
		}
	}
}

// requests are all that need the account, by name. Each succeeds if it is made alone.
func (a away) requests(t *testing.T) map[string]func() error {
	ctx := t.Context()
	return map[string]func() error{
		"GET": func() error {
			p := make([]byte, len(a.data))
			_, err := a.s.Get(ctx, "o", p, store.GetOptions{Newest: true})
			if err == nil && !bytes.Equal(p, a.data) {
				t.Error("GET: other bytes")
			}
			return err
		},
		"HEAD":             func() error { _, err := a.s.Head(ctx, "o"); return err },
		"PUT":              func() error { return a.s.Put(ctx, "new", a.data, storetest.Sum(a.data)) },
		"DELETE":           func() error { return a.s.Delete(ctx, "o") },
		"BULK DELETE":      func() error { return a.s.BulkDelete(ctx, []string{"o1", "o2"}) },
		"LIST":             func() error { _, err := a.s.List(ctx, store.ListOptions{}); return err },
		"METADATA":         func() error { _, err := a.s.Metadata(ctx); return err },
		"HINT":             func() error { _, err := a.s.MetadataHint(ctx); return err },
		"SET METADATA":     func() error { return a.s.SetMetadata(ctx, map[string]string{"A": "b"}) },
		"CREATE":           func() error { _, err := a.s.CreateContainer(ctx, nil); return err },
		"DELETE CONTAINER": func() error { return a.empty.DeleteContainer(ctx) },
	}
}

// TestAccountAway has no account server answer. Swift says 404 then to nearly all, and
// means nothing by it (TestAccountAway of tests/replicas): no container and no object may
// be taken for absent, or for deleted.
func TestAccountAway(t *testing.T) {
	for _, policy := range []string{"", "gold"} {
		a := newAway(t, policy)
		a.server.SetAccountAway(true)
		for name, do := range a.requests(t) {
			err := do()
			if policy == "" && (name == "GET" || name == "HEAD") {
				if err != nil {
					t.Errorf("%s: %v, and objects of the first policy are found", name, err)
				}
				continue
			}
			if !store.Transient(err) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrContainerNotFound) {
				t.Errorf("policy %q: %s: %v", policy, name, err)
			}
			if name != "CREATE" && store.Ambiguous(err) { // that one is 503
				t.Errorf("policy %q: %s: %v may take effect", policy, name, err)
			}
		}
		a.server.SetAccountAway(false)
		if page, err := a.s.List(t.Context(), store.ListOptions{}); err != nil || len(page) != 3 {
			t.Errorf("policy %q: the container has %v, %v", policy, page, err)
		}
	}
}

// TestAccountComesBack has the account servers answer again between a 404 and the
// question whether it can be believed. The answer to that is yes, and the 404 was wrong.
func TestAccountComesBack(t *testing.T) {
	for _, policy := range []string{"", "gold"} {
		for name := range newAway(t, policy).requests(t) {
			if name == "CREATE" {
				continue // 503
			}
			a := newAway(t, policy)
			do := a.requests(t)[name]
			a.server.SetAccountAway(true)
			a.count(func(n int64, _ *devswift.Request) *devswift.Action {
				if n == 2 {
					a.server.SetAccountAway(false)
				}
				return nil
			})
			if err := do(); err != nil {
				t.Errorf("policy %q: %s: %v", policy, name, err)
			}
		}
	}
}

// count passes the number of each request to the account and below it, from 1 on.
func (a away) count(f func(int64, *devswift.Request) *devswift.Action) (requests *atomic.Int64) {
	requests = new(atomic.Int64)
	a.server.SetFault(func(r *devswift.Request) *devswift.Action {
		if !strings.HasPrefix(r.Path, "/v1/") {
			return nil // a login, or /info
		}
		return f(requests.Add(1), r)
	})
	return requests
}

// TestAbsentCosts is what it costs to believe 404s: one question, and a repetition of
// what was sent before its answer. Who may not ask pays for the question alone.
func TestAbsentCosts(t *testing.T) {
	for _, c := range []struct {
		name     string
		believe  time.Duration
		guest    bool
		requests int64 // for ten 404s
	}{
		{"GET", 0, false, 12}, {"DELETE", 0, false, 12}, {"BULK DELETE", 0, false, 12}, {"METADATA", 0, false, 12},
		{"GET", -1, false, 30}, {"GET", time.Nanosecond, false, 30}, {"GET", 0, true, 11}, {"BULK DELETE", 0, true, 11},
	} {
		a := newAway(t, "")
		client := dial(t, swiftstore.Options{Login: a.login, Believe: c.believe})
		s, nothing := client.Container("c"), client.Container("nothing")
		requests := a.count(func(_ int64, r *devswift.Request) *devswift.Action {
			if c.guest && r.Container == "" && r.Method == http.MethodHead {
				return &devswift.Action{Status: http.StatusForbidden}
			}
			return nil
		})
		for range 10 {
			var err error
			switch c.name {
			case "GET":
				_, err = s.Get(t.Context(), "absent", make([]byte, 10), store.GetOptions{Newest: true})
			case "DELETE":
				err = s.Delete(t.Context(), "absent")
			case "METADATA":
				_, err = nothing.Metadata(t.Context())
			default:
				if err = s.BulkDelete(t.Context(), []string{"absent"}); err == nil {
					err = store.ErrNotFound
				}
			}
			if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrContainerNotFound) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if n := requests.Load(); n != c.requests {
			t.Errorf("%+v: %d requests for ten that are 404", c, n)
		}
	}
}

// TestAbsentFirstPolicy reads what is not there in a container whose policy an answer has
// named. Of the first policy it is believed at once; deletes, and other policies, are not.
func TestAbsentFirstPolicy(t *testing.T) {
	for _, c := range []struct {
		policy, name string
		requests     int64 // for ten 404s
	}{{"", "GET", 10}, {"", "HEAD", 10}, {"", "DELETE", 12}, {"gold", "GET", 12}, {"gold", "HEAD", 12}} {
		a := newAway(t, c.policy)
		s := dial(t, swiftstore.Options{Login: a.login}).Container("c")
		if _, err := s.List(t.Context(), store.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		requests := a.count(func(int64, *devswift.Request) *devswift.Action { return nil })
		for range 10 {
			var err error
			switch c.name {
			case "GET":
				_, err = s.Get(t.Context(), "absent", make([]byte, 10), store.GetOptions{Newest: true})
			case "HEAD":
				_, err = s.Head(t.Context(), "absent")
			default:
				err = s.Delete(t.Context(), "absent")
			}
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if n := requests.Load(); n != c.requests {
			t.Errorf("%+v: %d requests for ten that are 404", c, n)
		}
	}
}

// TestAbsentTogether has many requests be 404 while the account is asked. It is asked
// once for them all, and for longer than the request waits that was the first.
func TestAbsentTogether(t *testing.T) {
	const many = 10
	a := newAway(t, "")
	hold, asked, deletes := make(chan struct{}), make(chan struct{}, many+1), make(chan struct{}, 3*many)
	a.count(func(_ int64, r *devswift.Request) *devswift.Action {
		if r.Container == "" {
			asked <- struct{}{}
			<-hold
		} else {
			deletes <- struct{}{}
		}
		return nil
	})
	s := dial(t, swiftstore.Options{Login: a.login, Connections: many + 1}).Container("c")
	ctx, cancel := context.WithCancelCause(t.Context())
	first := make(chan error)
	go func() { first <- s.Delete(ctx, "absent") }()
	<-asked
	over := errors.New("over")
	cancel(over)
	if err := <-first; !errors.Is(err, over) || !store.Transient(err) || store.Ambiguous(err) {
		t.Errorf("with a context that has ended: %v", err)
	}
	<-deletes
	var g sync.WaitGroup
	for range many {
		g.Go(func() {
			if err := s.Delete(t.Context(), "absent"); !errors.Is(err, store.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	for range many {
		<-deletes
	}
	close(hold)
	g.Wait()
	if n := 1 + len(asked); n != 1 {
		t.Errorf("the account was asked %d times", n)
	}
}
