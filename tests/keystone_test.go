// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// logins are the ways into the real Swift through the real Keystone: sections
// of a secrets file, or the environment that the OpenStack tools take.
func logins(k *harness.Keystone) []login {
	unversioned := strings.TrimSuffix(k.AuthURL, "/v3")
	return []login{
		{name: "password", section: func(c string) string { return k.PasswordSection(c) }},
		{name: "password-unversioned-url", section: func(c string) string {
			return strings.Replace(k.PasswordSection(c), k.AuthURL, unversioned, 1) + "auth-version = 3\n"
		}},
		{name: "application-credential", section: func(c string) string { return k.AppCredSection(c) }},
		{name: "environment-password", env: []string{"OS_AUTH_URL=" + k.AuthURL, "OS_IDENTITY_API_VERSION=3",
			"OS_USERNAME=" + k.User, "OS_PASSWORD=" + k.Password, "OS_PROJECT_NAME=" + k.Project,
			"OS_USER_DOMAIN_NAME=" + k.Domain, "OS_PROJECT_DOMAIN_NAME=" + k.Domain, "OS_REGION_NAME=" + k.Region}},
		{name: "environment-application-credential", env: []string{"OS_AUTH_URL=" + k.AuthURL,
			"OS_AUTH_TYPE=v3applicationcredential", "OS_APPLICATION_CREDENTIAL_ID=" + k.AppCredID,
			"OS_APPLICATION_CREDENTIAL_SECRET=" + k.AppCredSecret}},
	}
}

type login struct {
	name    string
	section func(container string) string // nil: the environment alone
	env     []string
}

func keystone(t testing.TB) *harness.Keystone {
	t.Helper()
	c := harness.Real(t)
	if c.Keystone == nil {
		t.Fatal("SWIFTNBD_TEST_AUTH is set and SWIFTNBD_TEST_KEYSTONE is not: start the Swift with scripts/saio.sh up --keystone")
	}
	return c.Keystone
}

// TestKeystoneServe serves a volume after each kind of login, in the
// background, where the token is handed from the preflight to the server.
func TestKeystoneServe(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	account := k.Account(t)
	for _, l := range logins(k) {
		t.Run(l.name, func(t *testing.T) {
			name := harness.Name(t)
			account.Setup(t, name, 64, 65536)
			text := ""
			if l.section != nil {
				text = l.section(name)
			}
			n := harness.Serve(t, harness.Options{
				Mode: harness.Background, Env: l.env, Params: []string{name, "secrets=" + harness.Secrets(t, text)}})
			data := harness.Random(51, 64*65536)
			harness.RoundTrip(t, n.URI, data)
			n.Stop(t)
			if !bytes.Equal(account.Read011(t, name), data) {
				t.Error("what was written through nbdkit is not in Swift")
			}
			unlocked(t, account, name)
		})
	}
}

// TestKeystoneControl has swiftnbd-ctl set up, show, download and delete a
// volume after each kind of login.
func TestKeystoneControl(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	account := k.Account(t)
	for _, l := range logins(k) {
		t.Run(l.name, func(t *testing.T) {
			name := harness.Name(t)
			t.Cleanup(func() { account.Remove(t, name) })
			text := ""
			if l.section != nil {
				text = l.section(name)
			}
			secrets := harness.Secrets(t, text)
			ctl := func(args ...string) string {
				t.Helper()
				cmd := harness.Command(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--secrets", secrets}, args...)...)
				cmd.Env = append(os.Environ(), l.env...)
				r := harness.RunCmd(t, cmd)
				if r.Status != 0 {
					t.Fatalf("swiftnbd-ctl %s: status %d\n%s%s", strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
				}
				return r.Stdout
			}
			ctl("setup", name, "8")
			if l.section != nil {
				if out := ctl("list"); !strings.Contains(out, name) {
					t.Errorf("list does not show %s:\n%s", name, out)
				}
			}
			chunk := harness.Random(52, 65536)
			account.Write011(t, name, map[int][]byte{2: chunk})
			image := filepath.Join(harness.TempDir(t), "image")
			ctl("download", "-q", name, image)
			want := make([]byte, 8*65536)
			copy(want[2*65536:], chunk)
			if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the downloaded image is not the disk: %v", err)
			}
			ctl("delete", "--yes", name)
		})
	}
}

// TestKeystoneRefused gives each kind of login a wrong secret.
func TestKeystoneRefused(t *testing.T) {
	t.Parallel()
	k := *keystone(t)
	account := k.Account(t)
	name := harness.Name(t)
	account.Setup(t, name, 8, 65536)
	k.Password, k.AppCredSecret = "wrong-secret-1", "wrong-secret-2"
	noProject := k
	noProject.Password, noProject.Project = "testing", "nonesuch"
	noRegion := *keystone(t)
	noRegion.Region = "Atlantis"
	for what, section := range map[string]string{
		"password":               k.PasswordSection(name),
		"application credential": k.AppCredSection(name),
		"project":                noProject.PasswordSection(name),
		"region":                 noRegion.PasswordSection(name),
	} {
		f := harness.Fail(t, harness.Options{
			Mode: harness.Background, Params: []string{name, "secrets=" + harness.Secrets(t, section)}})
		f.Want(t, name)
		if strings.Contains(f.Stderr, "wrong-secret") {
			t.Errorf("wrong %s: the secret is on standard error:\n%s", what, f.Stderr)
		}
	}
}
