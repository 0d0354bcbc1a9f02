// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
)

// TestTooMuch refuses a PUT with 413 for each limit that Swift has. The error
// must say which it is, and that it is a lack of space where it is one.
func TestTooMuch(t *testing.T) {
	for _, c := range []struct {
		name               string
		container, account map[string]string
		info, body         string
		kind, other        error
		want               string
	}{
		{"container-bytes", map[string]string{"X-Container-Meta-Quota-Bytes": "5000", "X-Container-Bytes-Used": "4096"}, nil, "", "Upload exceeds quota.",
			store.ErrNoSpace, store.ErrTooLarge, "the quota of container c is used up: 4096 of 5000 bytes (X-Container-Meta-Quota-Bytes)"},
		{"container-objects", map[string]string{"X-Container-Meta-Quota-Count": "7", "X-Container-Object-Count": "7", "X-Container-Meta-Quota-Bytes": "900000", "X-Container-Bytes-Used": "4096"}, nil, "", "Upload exceeds quota.",
			store.ErrNoSpace, store.ErrTooLarge, "the quota of container c is used up: 7 of 7 objects (X-Container-Meta-Quota-Count)"},
		{"account", map[string]string{"X-Container-Bytes-Used": "1"}, map[string]string{"X-Account-Meta-Quota-Bytes": "8192", "X-Account-Bytes-Used": "8000"}, "", "Upload exceeds quota.",
			store.ErrNoSpace, store.ErrTooLarge, "the account's quota is used up: 8000 of 8192 bytes (X-Account-Meta-Quota-Bytes)"},
		{"max-file-size", map[string]string{"X-Container-Meta-Quota-Bytes": "1"}, nil, `{"swift":{"max_file_size":1000}}`, "Your request is too large.",
			store.ErrTooLarge, store.ErrNoSpace, "an object of 4096 bytes is larger than this Swift takes (max_file_size is 1000)"},
		{"limit-not-shown", nil, nil, "", "Your request is too large.",
			store.ErrTooLarge, store.ErrNoSpace, "an object of 4096 bytes is larger than this Swift takes, or a quota is used up (Your request is too large.)"},
		{"quota-not-shown", nil, nil, "", "Upload exceeds quota.",
			store.ErrNoSpace, store.ErrTooLarge, "a quota is used up, of the container or of the account (Upload exceeds quota.)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				show := c.container
				switch {
				case r.URL.Path == "/info" && c.info != "":
					w.Write([]byte(c.info))
					return
				case r.Method == "PUT":
					http.Error(w, c.body, http.StatusRequestEntityTooLarge)
					return
				case r.Method != "HEAD":
					w.WriteHeader(http.StatusForbidden)
					return
				case strings.HasSuffix(r.URL.Path, "/AUTH_test"):
					show = c.account
				}
				if show == nil {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				for k, v := range show {
					w.Header().Set(k, v)
				}
				w.WriteHeader(http.StatusNoContent)
			}))
			defer web.Close()
			session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok"}
			client := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL, Username: "u"}})
			err := client.Container("c").Put(t.Context(), "o", make([]byte, 4096), "")
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.kind) || errors.Is(err, c.other) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}
