// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"net/http"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestAt reaches a container of another account with one login, and sends the
// token to no other host, however the URL is written.
func TestAt(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{Users: []devswift.User{{Account: "test", Name: "tester", Key: "testing"}, {Account: "other", Name: "guest", Key: "pass"}}})
	owner := dial(t, swiftstore.Options{Login: login})
	if _, err := owner.Container("c").CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	own, err := owner.StorageURL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	login.Username, login.Password = "other:guest", "pass"
	guest := dial(t, swiftstore.Options{Login: login})
	mine, err := guest.StorageURL(t.Context())
	if err != nil || swiftstore.SameAccount(mine, own) || !strings.HasSuffix(mine, "/v1/AUTH_other") {
		t.Fatalf("%s and %s, %v", mine, own, err)
	}
	there, err := guest.At(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	again, err := guest.At(t.Context(), own+"/")
	if err != nil || again != there {
		t.Errorf("another one: %v", err)
	}
	if same, err := guest.At(t.Context(), mine+"/"); err != nil || same != guest {
		t.Errorf("its own: %v", err)
	}
	if _, err := there.Container("c").List(t.Context(), store.ListOptions{}); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("without a right to read: %v", err)
	}
	if n := guest.Logins() + there.Logins(); n > 2 { // a 403 is worth one more
		t.Errorf("%d logins", n)
	}
	server.SetFault(func(r *devswift.Request) *devswift.Action {
		if r.Method == http.MethodPost {
			t.Errorf("%s %s", r.Method, r.Path)
		}
		return nil
	})
	host := strings.TrimPrefix(strings.TrimSuffix(own, "/v1/AUTH_test"), "http://")
	for _, bad := range []string{
		"http://elsewhere.example/v1/AUTH_test", "https://" + host + "/v1/AUTH_test", "http://" + host + "@elsewhere.example/v1/AUTH_test",
		"http://user@" + host + "/v1/AUTH_test", "http://" + host + "/v1/AUTH_test?x=1", "//" + host + "/v1/AUTH_test", "/v1/AUTH_test", "", "http://" + host + ":99999999/x", "%",
	} {
		if c, err := guest.At(t.Context(), bad); err == nil {
			t.Errorf("%q: %v", bad, c)
		}
	}
}
