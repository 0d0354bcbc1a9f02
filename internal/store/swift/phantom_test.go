// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestPhantom is what Swift's proxy says of a deleted object while one replica
// has it still and another is away: in half of the cases 404, and in the others
// the old object's status and ETag without its bytes.
// TestStaleReplica sees the real one do it.
func TestPhantom(t *testing.T) {
	requests := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/": // the account is asked at the first 404: see absent.go
			w.WriteHeader(http.StatusNoContent)
			return
		case "/c/absent":
			http.NotFound(w, r)
			return
		}
		if requests++; requests%2 == 0 {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Etag", string(storetest.Sum([]byte("deleted"))))
		w.Header().Set("Content-Length", "0")
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", "bytes 0-2/7")
			w.WriteHeader(http.StatusPartialContent)
		}
	}))
	t.Cleanup(web.Close)
	s := dial(t, swiftstore.Options{
		Login:   config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "u", Password: "p"},
		Session: &swiftstore.Session{StorageURL: web.URL, Token: "t"},
	}).Container("c")
	patient := store.Retry(s, store.Policy{Base: time.Millisecond})
	ctx := t.Context()
	if _, err := s.Head(ctx, "absent"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	for name, read := range map[string]func(store.Store) error{
		"GET": func(s store.Store) error {
			_, err := s.Get(ctx, "o", make([]byte, 7), store.GetOptions{Newest: true, Whole: true})
			return err
		},
		"GET of a range": func(s store.Store) error {
			_, err := s.Get(ctx, "o", make([]byte, 3), store.GetOptions{Newest: true})
			return err
		},
		"HEAD": func(s store.Store) error { _, err := s.Head(ctx, "o"); return err },
	} {
		requests = 0
		if err := read(s); !store.Transient(err) {
			t.Errorf("%s: %v is not transient", name, err)
		}
		requests = 0
		if err := read(patient); !errors.Is(err, store.ErrNotFound) || requests != 2 {
			t.Errorf("%s with patience: %v after %d requests", name, err, requests)
		}
	}
}
