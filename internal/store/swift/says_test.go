// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
)

// TestServersWords has requests refused with words of the server's own: the
// error has them beside what it means, in one short line, and no secret.
func TestServersWords(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	for _, status := range []int{400, 401, 403, 404, 409, 413, 422, 429, 498, 507} {
		for body, want := range map[string]string{
			"ask the <b>operator</b>\r\nfor it":                       "ask the operator for it",
			"<html><h1>Odd</h1><p>ask \x1b[1mthe operator</p></html>": "Odd ask [1mthe operator",
			"see " + strings.Repeat("words ", 2000):                   "see words words",
		} {
			c := dial(t, swiftstore.Options{Login: login})
			if err := c.Login(t.Context()); err != nil {
				t.Fatal(err)
			}
			token := c.Session().Token.Reveal()
			server.SetFault(devswift.Rules(devswift.Rule{Method: http.MethodPut, Prefix: "/v1", Action: devswift.Action{
				Status: status, Body: body + " token " + token + " and key",
			}}))
			_, err := c.Container("c").CreateContainer(t.Context(), nil)
			if err == nil {
				t.Fatalf("%d: no error", status)
			}
			text := err.Error()
			if !strings.Contains(text, want) || !strings.Contains(text, fmt.Sprint(status)) || len(text) > 400 || strings.ContainsAny(text, "\r\n\x1b<>") {
				t.Errorf("%d %q: %q", status, body, text)
			}
			if strings.Contains(text, token) {
				t.Errorf("the token is shown: %q", text)
			}
			server.SetFault(nil)
		}
	}
	c := dial(t, swiftstore.Options{Login: login})
	const key = "a-very-secret-key"
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/v1", Action: devswift.Action{
		Status: 403, Body: "no: X-Container-Meta-Temp-URL-Key: " + key + ", /v1/a?temp_url_sig=0123abc&x=1",
	}}))
	err := c.Container("c").SetMetadata(t.Context(), map[string]string{"Temp-Url-Key": key})
	if !errors.Is(err, store.ErrForbidden) || !strings.Contains(err.Error(), "permission denied (the server says: no: ") ||
		strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "0123abc") {
		t.Errorf("SetMetadata: %v", err)
	}
}

// TestLoginsWords has a login refused with words: they are shown, the password
// is not.
func TestLoginsWords(t *testing.T) {
	t.Parallel()
	server, login := embedded(t, devswift.Options{})
	server.SetFault(devswift.Rules(devswift.Rule{Prefix: "/auth", Action: devswift.Action{
		Status: 401, Body: "account suspended, key " + login.Password.Reveal(),
	}}))
	err := dial(t, swiftstore.Options{Login: login}).Login(t.Context())
	if !errors.Is(err, store.ErrUnauthorized) || !strings.Contains(err.Error(), "account suspended") || strings.Contains(err.Error(), login.Password.Reveal()) {
		t.Errorf("%v", err)
	}
}
