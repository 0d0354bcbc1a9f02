// SPDX-License-Identifier: MIT

package config

import (
	"strings"
	"testing"
)

// TestLoginPath cuts the path of a login, as examples with curl have it, off an
// authentication URL.
func TestLoginPath(t *testing.T) {
	for given, want := range map[string]string{
		"http://h/v3/auth/tokens":           "http://h/v3",
		"http://h/identity/v3/auth/tokens/": "http://h/identity/v3",
		"http://h/v2.0/tokens":              "http://h/v2.0",
		"http://h/v3":                       "http://h/v3",
		"http://h/auth/tokens":              "http://h/auth/tokens/v3", // no version: it may be anybody's path
	} {
		s, err := ParseSecrets("f", []byte("[a]\nusername = u\npassword = p\nproject = t\nauthurl = "+given+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if x, err := s.Export("a", Defaults{}, nil); err != nil || x.Login.AuthURL != want {
			t.Errorf("%s: %q, %v; want %q", given, x.Login.AuthURL, err, want)
		}
	}
}

// TestEnvironTokens takes a user's ID, and a token with a storage URL, from the
// environment; where it lacks something, the error names that.
func TestEnvironTokens(t *testing.T) {
	const storage = "OS_STORAGE_URL=https://h/v1/A"
	for _, c := range []struct {
		env   []string
		want  Login
		error string
	}{
		{[]string{"OS_USER_ID=i", "OS_PASSWORD=p", "OS_PROJECT_ID=q", "OS_AUTH_URL=http://h/v3", "OS_USER_DOMAIN_NAME=d"},
			Login{AuthURL: "http://h/v3", Version: 3, UserID: "i", Password: "p", ProjectID: "q"}, ""},
		{[]string{"OS_AUTH_TOKEN=t", storage, "OS_USERNAME=u"}, Login{Version: 1, Token: "t", StorageURL: "https://h/v1/A"}, ""},
		{[]string{"OS_TOKEN=t", storage}, Login{Version: 1, Token: "t", StorageURL: "https://h/v1/A"}, ""},
		{[]string{"OS_AUTH_TYPE=v3applicationcredential", "OS_APPLICATION_CREDENTIAL_NAME=n", "OS_APPLICATION_CREDENTIAL_SECRET=s", "OS_USERNAME=u", "OS_AUTH_URL=http://h/v3"},
			Login{AuthURL: "http://h/v3", Version: 3, AppCredentialName: "n", AppCredentialSecret: "s", Username: "u", UserDomain: "Default"}, ""},
		{[]string{"OS_AUTH_TYPE=v3applicationcredential", "OS_APPLICATION_CREDENTIAL_NAME=n", "OS_USERNAME=u"}, Login{}, "OS_APPLICATION_CREDENTIAL_NAME is set, but OS_APPLICATION_CREDENTIAL_SECRET is not"},
		{[]string{"OS_USERNAME=u", "OS_PASSWORD=p", "OS_PROJECT_NAME=q", "OS_TRUST_ID=t", "OS_AUTH_URL=http://h/v3"},
			Login{AuthURL: "http://h/v3", Version: 3, Username: "u", Password: "p", UserDomain: "Default", TrustID: "t"}, ""},
		{[]string{"OS_TOKEN=t"}, Login{}, "lacks OS_STORAGE_URL"},
		{[]string{"OS_USER_ID=i"}, Login{}, "OS_USER_ID is set, but OS_PASSWORD is not"},
		{[]string{"OS_AUTH_URL=http://h/v3", "OS_PASSWORD=p"}, Login{}, "OS_AUTH_URL and OS_PASSWORD, but lacks a user: OS_USERNAME"},
		{[]string{storage}, Login{}, "OS_STORAGE_URL, but lacks a user"},
		{[]string{"OS_AUTH_TOKEN=t", "OS_STORAGE_URL=https://h"}, Login{}, "names no account"},
	} {
		x, err := NoSecrets("f").Export("a", Defaults{}, environ(c.env...))
		switch {
		case c.error == "" && (err != nil || x.Login != c.want):
			t.Errorf("%v: %+v (token %q), %v", c.env, x.Login, x.Login.Token.Reveal(), err)
		case c.error != "" && (err == nil || !strings.Contains(err.Error(), c.error)):
			t.Errorf("%v: %v; want %q", c.env, err, c.error)
		}
	}
	// Another host than the environment's does not get its token.
	_, err := NoSecrets("f").Export("a", Defaults{StorageURL: "https://other/v1/A"}, environ("OS_TOKEN=t", storage))
	if err == nil || !strings.Contains(err.Error(), "not for https://other/v1/A") {
		t.Errorf("another host: %v", err)
	}
}
