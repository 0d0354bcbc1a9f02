// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/config"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestMetadataOfReplicas has one of three replicas of a container behind, in
// turns; X-Newest is answered by the last that was made. TestStaleMark sees the
// real Swift do it.
func TestMetadataOfReplicas(t *testing.T) {
	const newest = 2
	var (
		behind   atomic.Int64
		requests atomic.Int64
		changed  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		since    atomic.Int64 // seconds between the change that was missed and the one before
		alike    atomic.Bool  // replicas cannot be told apart
	)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		replica := requests.Add(1) % 3
		if r.Header.Get("X-Newest") != "" {
			replica = newest
		}
		at, value := changed, "new"
		if replica == behind.Load() {
			at, value = changed.Add(-time.Duration(since.Load())*time.Second), "old"
		}
		if alike.Load() {
			replica = 0
		}
		w.Header().Set("X-Container-Meta-Mark", value)
		w.Header().Set("X-Timestamp", []string{"1700000000.00001", "1700000000.00002", "1700000000.00003"}[replica])
		w.Header().Set("Last-Modified", at.Format(http.TimeFormat))
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(web.Close)
	s := dial(t, swiftstore.Options{
		Login:   config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "u", Password: "p"},
		Session: &swiftstore.Session{StorageURL: web.URL, Token: "t"},
	}).Container("c")
	for i := range int64(12) {
		behind.Store(i % 3)
		since.Store(i / 3 % 2 * 10)
		alike.Store(i >= 6)
		m, err := s.Metadata(t.Context())
		if err != nil || m.Items["Mark"] != "new" {
			t.Errorf("replica %d is behind by %d s, alike %v: %v, %v", behind.Load(), since.Load(), alike.Load(), m.Items, err)
		}
	}
	requests.Store(0)
	if _, err := s.MetadataHint(t.Context()); err != nil || requests.Load() != 1 {
		t.Errorf("a hint cost %d requests, %v", requests.Load(), err)
	}
}
