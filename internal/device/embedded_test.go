// SPDX-License-Identifier: MIT

package device_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// embedded is an embedded Swift with two ways to one container in it: the
// device's, whose requests go wrong as a test wants it, and the test's own,
// whose requests never do.
type embedded struct {
	server *devswift.Server
	client *swiftstore.Client // the device's
	store  store.Store        // its way
	own    store.Store        // the test's

	ownSibling func(name string) store.Store
}

// ownAgent is the User-Agent of the test's own requests.
const ownAgent = "the test itself"

func newCloud(t *testing.T, o devswift.Options, client swiftstore.Options) *embedded {
	server, err := devswift.New(o)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	client.Login = config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "test:tester", Password: "testing"}
	dial := func(o swiftstore.Options) *swiftstore.Client {
		c, err := swiftstore.Dial(o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := &embedded{server: server, client: dial(client)}
	own := dial(swiftstore.Options{Login: client.Login, UserAgent: ownAgent})
	c.store, c.own, c.ownSibling = c.client.Container("v"), own.Container("v"), own.Container
	t.Cleanup(func() {
		c.client.Close()
		own.Close()
		server.Close()
		web.Close()
	})
	return c
}

// harm has f decide about the device's requests; nil ends all faults.
func (c *embedded) harm(f devswift.FaultFunc) {
	if f == nil {
		c.server.SetFault(nil)
		return
	}
	c.server.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Header.Get("User-Agent") == ownAgent {
			return nil
		}
		return f(r)
	})
}

// kind is what a request is for, as far as faults differ by it.
type kind string

const (
	login           kind = "login"
	info            kind = "GET /info"
	getPart         kind = "GET of a part"
	getWhole        kind = "GET"
	head            kind = "HEAD"
	put             kind = "PUT"
	del             kind = "DELETE"
	listing         kind = "GET of a listing"
	headContainer   kind = "HEAD of a container"
	postContainer   kind = "POST of a container"
	putContainer    kind = "PUT of a container"
	deleteContainer kind = "DELETE of a container"
	bulkDelete      kind = "bulk delete"
)

var kinds = []kind{login, info, getPart, getWhole, head, put, del, listing,
	headContainer, postContainer, putContainer, deleteContainer, bulkDelete}

// changes says whether requests of the kind have an effect that can have taken
// place, or not, when they fail.
func (k kind) changes() bool {
	switch k {
	case put, del, postContainer, putContainer, deleteContainer, bulkDelete:
		return true
	}
	return false
}

// answers says whether requests of the kind are answered with a body that is
// looked at.
func (k kind) answers() bool {
	switch k {
	case info, getPart, getWhole, listing, bulkDelete:
		return true
	}
	return false
}

func kindOf(r *devswift.Request) kind {
	object := map[string]kind{"GET": getWhole, "HEAD": head, "PUT": put, "DELETE": del}
	container := map[string]kind{"GET": listing, "HEAD": headContainer, "POST": postContainer, "PUT": putContainer, "DELETE": deleteContainer}
	switch {
	case strings.HasPrefix(r.Path, "/auth/"):
		return login
	case r.Path == "/info":
		return info
	case r.Query.Has("bulk-delete"):
		return bulkDelete
	case r.Object == "":
		return container[r.Method]
	case r.Method == "GET" && r.Header.Get("Range") != "":
		return getPart
	}
	return object[r.Method]
}

// harm is one way in which requests go wrong, of which a client must see
// nothing when it ends in time.
type harm struct {
	name   string
	action devswift.Action
	on     func(k kind) bool
	slow   bool // it costs the time of an attempt
}

// harms are all of them: every answer that is to be tried again, and every
// fault of a connection, before and after the request took effect.
var harms = func() (all []harm) {
	statuses := []int{401, 408, 409, 429, 498, 500, 502, 503, 504, 507}
	for _, code := range statuses {
		a := devswift.Action{Status: code}
		if code == 429 {
			a.Header = http.Header{"Retry-After": {"1"}}
		}
		all = append(all, harm{name: fmt.Sprint(code), action: a, on: func(k kind) bool {
			// Two of them mean something else: a wrong password, and a
			// container that is not empty.
			return !(code == 401 && k == login) && !(code == 409 && k == deleteContainer)
		}})
		a.After = true
		all = append(all, harm{name: fmt.Sprintf("%d after the effect", code), action: a, on: func(k kind) bool {
			// A container that was deleted by a request which says that
			// it was not carried out: that would be a lie.
			certain := code == 401 || code == 409 || code == 429 || code == 498
			return k.changes() && !(certain && k == deleteContainer)
		}})
	}
	every := func(kind) bool { return true }
	is := func(kinds ...kind) func(kind) bool {
		return func(k kind) bool { return slices.Contains(kinds, k) }
	}
	return append(all,
		harm{name: "202", action: devswift.Action{Status: 202}, on: is(put)},
		harm{name: "202 after the effect", action: devswift.Action{Status: 202, After: true}, on: is(put)},
		harm{name: "a slow clock", action: devswift.Action{Skew: -time.Hour}, on: is(put, del)},
		harm{name: "422", action: devswift.Action{Status: 422}, on: is(put)},
		harm{name: "reset", action: devswift.Action{Drop: true}, on: every},
		harm{name: "reset after the effect", action: devswift.Action{Drop: true, After: true}, on: kind.changes},
		harm{name: "hang", action: devswift.Action{Hang: true}, on: every, slow: true},
		harm{name: "hang after the effect", action: devswift.Action{Hang: true, After: true}, on: kind.changes, slow: true},
		harm{name: "no body", action: devswift.Action{ShortBody: -1}, on: kind.answers},
		harm{name: "short body", action: devswift.Action{ShortBody: 40}, on: kind.answers},
		harm{name: "slow body", action: devswift.Action{SlowBody: 200}, on: kind.answers, slow: true},
		// A part of an object has nothing that it could be held against.
		harm{name: "corrupted body", action: devswift.Action{Corrupt: true}, on: is(getWhole, listing, info, bulkDelete)},
	)
}()

// everyOther harms the requests of a kind: of those for the same the first, the
// third and so on. hits is told of each.
func everyOther(k kind, a devswift.Action, hits func()) devswift.FaultFunc {
	var mu sync.Mutex
	seen := make(map[string]int)
	return func(r *devswift.Request) *devswift.Action {
		if kindOf(r) != k {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		same := r.Method + r.Path + r.Query.Get("marker")
		if seen[same]++; seen[same]%2 == 0 {
			return nil
		}
		hits()
		return &a
	}
}

// storm harms requests of all kinds at random, one in n, each by one of the
// harms that fit. Those that cost the time of an attempt are rarer.
func storm(seed uint64, n int) devswift.FaultFunc {
	fitting := make(map[kind][]harm)
	for _, k := range kinds {
		for _, h := range harms {
			if h.on(k) {
				fitting[k] = append(fitting[k], h)
			}
		}
	}
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 77))
	return func(r *devswift.Request) *devswift.Action {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(n) > 0 {
			return nil
		}
		all := fitting[kindOf(r)]
		h := all[rng.IntN(len(all))]
		if h.slow && rng.IntN(20) > 0 {
			return nil
		}
		return &h.action
	}
}
