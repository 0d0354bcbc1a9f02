// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"net/http"
	"testing"

	"swiftnbd/internal/devswift"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestForeign has everything in the account refused: the owner stays the owner,
// and a guest is told from him by the account that the login names.
func TestForeign(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	own := session(t, swiftstore.Options{Login: login}).StorageURL
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1", Action: devswift.Action{Status: http.StatusForbidden}}))
	for _, tc := range []struct {
		name, url string
		unknown   bool // whose account the token is
		foreign   bool
	}{
		{"none named", "", false, false},
		{"its own", own, false, false},
		{"its own, with a slash", own + "/", false, false},
		{"another", own + "2", false, true},
		{"not known, and the account is refused", own, true, true},
	} {
		o := swiftstore.Options{Login: login}
		o.Login.StorageURL = tc.url
		if tc.unknown {
			o.Session = session(t, o)
			o.Session.Own = ""
		}
		c := dial(t, o)
		foreign, err := c.Foreign(t.Context())
		if err != nil || foreign != tc.foreign {
			t.Errorf("%s: foreign is %t, %v", tc.name, foreign, err)
		}
		if tc.unknown {
			continue // the refusal was worth a login, which names the account
		}
		may, err := c.MayLock(t.Context(), "c")
		if err != nil || may == tc.foreign {
			t.Errorf("%s: may lock is %t, %v", tc.name, may, err)
		}
	}
}
