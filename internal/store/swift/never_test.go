// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestNeverPass makes logins that can never succeed: each error says why, and
// is not tried again.
func TestNeverPass(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	for _, c := range []struct{ url, want string }{
		{strings.Replace(plain.URL, "http:", "https:", 1), "speak"},
		{strings.Replace(secure.URL, "https:", "http:", 1), "HTTPS"},
		{secure.URL, "certificate"},
		{"http://name.invalid", "name.invalid"},
	} {
		l := config.Login{AuthURL: c.url + "/auth/v1.0", Username: "u", Password: secret}
		err := dial(t, swiftstore.Options{Login: l}).Login(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || store.Transient(err) {
			t.Errorf("%s: %v (transient: %t); want %q", c.url, err, store.Transient(err), c.want)
		}
	}
}

// TestRateLimit names a 498 whose answer has no words.
func TestRateLimit(t *testing.T) {
	k := newKeystone(t)
	k.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(498) }
	l := config.Login{AuthURL: k.URL + "/auth/v1.0", Username: "u", Password: secret}
	if err := dial(t, swiftstore.Options{Login: l}).Login(t.Context()); err == nil || !strings.Contains(err.Error(), "Rate Limited") || !store.Transient(err) {
		t.Errorf("498: %v", err)
	}
}

// TestCompressedAnswer names a login's answer that a proxy has compressed.
func TestCompressedAnswer(t *testing.T) {
	k := newKeystone(t)
	k.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("X-Subject-Token", "tok")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte{0x1f, 0x8b, 8})
	}
	l := config.Login{AuthURL: k.URL + "/id/v3", Username: "u", Password: secret}
	err := dial(t, swiftstore.Options{Login: l}).Login(t.Context())
	if err == nil || !strings.Contains(err.Error(), "compressed (Content-Encoding: gzip)") || store.Transient(err) {
		t.Errorf("%v", err)
	}
}
