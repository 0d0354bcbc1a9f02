// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

func TestInfo(t *testing.T) {
	for name, login := range logins(t) {
		info, err := dial(t, swiftstore.Options{Login: login}).Info(t.Context())
		if err != nil || !info.Known || !info.BulkDelete || info.MaxDeletes < 100 || !info.TempURL ||
			len(info.TempURLMethods) == 0 || len(info.TempURLDigests) == 0 || info.MaxFileSize < 1<<30 || info.Version == "" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

// TestInfoIsKept and asked for once.
func TestInfoIsKept(t *testing.T) {
	server, login := embedded(t, devswift.Options{Without: []string{"tempurl"}})
	c := dial(t, swiftstore.Options{Login: login})
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/info", Times: 1, Action: devswift.Action{Status: 503}}))
	if _, err := c.Info(t.Context()); !store.Transient(err) {
		t.Errorf("%v, want 503", err)
	}
	for range 3 {
		info, err := c.Info(t.Context())
		if err != nil || !info.Known || info.TempURL || !info.BulkDelete {
			t.Errorf("%+v, %v", info, err)
		}
	}
	n := 0
	for _, r := range server.Requests() {
		if r.Path == "/info" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("/info was asked for %d times, want the failed and one more", n)
	}
}

// TestNoBulkDelete is a cluster without it, or that does not say.
func TestNoBulkDelete(t *testing.T) {
	for name, o := range map[string]devswift.Options{
		"without": {Without: []string{"bulk_delete"}},
		"403":     {Fault: devswift.Rules(devswift.Rule{Prefix: "/info", Action: devswift.Action{Status: http.StatusForbidden}})},
		"404":     {Fault: devswift.Rules(devswift.Rule{Prefix: "/info", Action: devswift.Action{Status: http.StatusNotFound}})},
	} {
		_, login := embedded(t, o)
		c := dial(t, swiftstore.Options{Login: login})
		err := c.Container("c").BulkDelete(t.Context(), []string{"o"})
		if !errors.Is(err, errors.ErrUnsupported) || store.Transient(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBulkDeleteInPieces of a thousand names.
func TestBulkDeleteInPieces(t *testing.T) {
	server, login := embedded(t, devswift.Options{})
	c := dial(t, swiftstore.Options{Login: login})
	var names []string
	for i := range 2500 {
		names = append(names, fmt.Sprintf("disk.part/%08d", i))
	}
	s := c.Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := s.Put(t.Context(), name, nil, storetest.Sum(nil)); err != nil {
			t.Fatal(err)
		}
	}
	server.ResetRequests()
	if err := s.BulkDelete(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	if n := server.Count("POST"); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
	if page, err := s.List(t.Context(), store.ListOptions{}); err != nil || len(page) != 0 {
		t.Errorf("%d objects are left, %v", len(page), err)
	}
}

// TestBulkDeleteTokenEnds renews the token, whose refusal comes in the body of
// an answer that says 200.
func TestBulkDeleteTokenEnds(t *testing.T) {
	for name, login := range logins(t) {
		c := dial(t, swiftstore.Options{Login: login})
		container := storetest.Name(t)
		s := c.Container(container)
		if _, err := s.CreateContainer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), "o", nil, ""); err != nil {
			t.Fatal(err)
		}
		dead := c.Session()
		dead.Token = "AUTH_tkdead"
		second := dial(t, swiftstore.Options{Login: login, Session: &dead})
		if err := second.Container(container).BulkDelete(t.Context(), []string{"o"}); err != nil || second.Logins() != 1 {
			t.Errorf("%s: %v after %d logins", name, err, second.Logins())
		}
		if _, err := s.Head(t.Context(), "o"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: the object is still there: %v", name, err)
		}
		if err := s.DeleteContainer(t.Context()); err != nil {
			t.Errorf("%s: clean up: %v", name, err)
		}
	}
}
