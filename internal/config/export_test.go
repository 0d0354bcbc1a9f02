// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"strings"
	"testing"
)

// environ is an environment for a test.
func environ(pairs ...string) Environ {
	vars := make(map[string]string)
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		vars[k] = v
	}
	return func(name string) string { return vars[name] }
}

const v1 = "http://h/auth/v1.0"

// TestExport is the table of what a container's login comes from.
func TestExport(t *testing.T) {
	osPassword := []string{"OS_USERNAME=envuser", "OS_PASSWORD=envpass", "OS_AUTH_URL=https://env/v3", "OS_PROJECT_NAME=envproj",
		"OS_USER_DOMAIN_ID=default", "OS_PROJECT_DOMAIN_NAME=Dom", "OS_REGION_NAME=EnvRegion", "OS_INTERFACE=internal", "OS_CACERT=/env/ca.pem"}
	envLogin := Login{AuthURL: "https://env/v3", Version: 3, Username: "envuser", Password: "envpass", Project: "envproj",
		UserDomainID: "default", ProjectDomain: "Dom", Region: "EnvRegion", EndpointType: "internal", CACert: "/env/ca.pem"}
	st := []string{"ST_USER=test:tester", "ST_KEY=testing", "ST_AUTH=http://st/auth/v1.0"}

	for _, c := range []struct {
		name string
		file string
		d    Defaults
		env  []string
		want Login
		ro   bool
		err  string
	}{
		{name: "0.11's section", file: "[a]\nusername = u\npassword = p\n", d: Defaults{AuthURL: v1},
			want: Login{AuthURL: v1, Version: 1, Username: "u", Password: "p"}},
		{name: "0.11's read-only", file: "[a]\nusername = u\npassword = p\nread-only = 1\n", d: Defaults{AuthURL: v1},
			want: Login{AuthURL: v1, Version: 1, Username: "u", Password: "p"}, ro: true},
		{name: "the section beats DEFAULT beats the command line",
			file: "[DEFAULT]\nusername = du\npassword = dp\nauthurl = http://d/auth/v1.0\ncacert = /d.pem\nread-only = yes\n[a]\npassword = p\nread-only = off\n",
			d:    Defaults{AuthURL: v1, CACert: "/cli.pem"},
			want: Login{AuthURL: "http://d/auth/v1.0", Version: 1, Username: "du", Password: "p", CACert: "/d.pem"}},
		{name: "the section's own authurl", file: "[DEFAULT]\nauthurl = http://d/auth/v1.0\n[a]\nauthurl = http://s/auth/v1.0\nusername=u\npassword=p",
			want: Login{AuthURL: "http://s/auth/v1.0", Version: 1, Username: "u", Password: "p"}},
		{name: "the command line's CA", file: "[a]\nusername = u\npassword = p\n", d: Defaults{AuthURL: v1, CACert: "/cli.pem"},
			want: Login{AuthURL: v1, Version: 1, Username: "u", Password: "p", CACert: "/cli.pem"}},
		{name: "a CA beside the secrets", file: "[a]\nusername = u\npassword = p\ncacert = ca.pem\n", d: Defaults{AuthURL: v1},
			want: Login{AuthURL: v1, Version: 1, Username: "u", Password: "p", CACert: "/etc/x/ca.pem"}},
		{name: "with credentials in the file the environment counts for nothing", file: "[a]\nusername = u\npassword = p\n", d: Defaults{AuthURL: v1}, env: osPassword,
			want: Login{AuthURL: v1, Version: 1, Username: "u", Password: "p"}},
		{name: "nor does its URL", file: "[a]\nusername = u\npassword = p\n", env: osPassword,
			err: "/etc/x/s: [a] authurl: missing, and the command line gives no authentication URL either"},
		{name: "no password", file: "[a]\nusername = u\n", d: Defaults{AuthURL: v1}, err: "/etc/x/s: [a] password: missing"},
		{name: "an empty password is one", file: "[a]\nusername = u\npassword =\n", d: Defaults{AuthURL: v1}, want: Login{AuthURL: v1, Version: 1, Username: "u"}},
		{name: "no username", file: "[a]\npassword = p\n", d: Defaults{AuthURL: v1},
			err: "/etc/x/s: [a] username: missing (nor is there an application-credential-id, nor credentials in the environment)"},

		{name: "keystone v3", file: "[a]\nusername=u\npassword=p\nauthurl=https://k/v3\nproject=pr\nuser-domain=UD\nproject-domain=PD\nregion=R\nendpoint-type=adminURL\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "u", Password: "p", Project: "pr", UserDomain: "UD", ProjectDomain: "PD", Region: "R", EndpointType: "admin"}},
		{name: "keystone v3's usual domain; a dot in the name is a dot", file: "[a]\nusername=first.last\npassword=p\nauthurl=https://k/v3\nproject=pr\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "first.last", Password: "p", Project: "pr", UserDomain: "Default", ProjectDomain: "Default"}},
		{name: "a dot without a project too", file: "[a]\nusername=first.last\npassword=p\nauthurl=https://k/v3\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "first.last", Password: "p", UserDomain: "Default"}},
		{name: "a project makes it v3", file: "[a]\nusername=u\npassword=p\nauthurl=https://k:5000\nproject=pr\n",
			want: Login{AuthURL: "https://k:5000/v3", Version: 3, Username: "u", Password: "p", Project: "pr", UserDomain: "Default", ProjectDomain: "Default"}},
		{name: "auth-version", file: "[a]\nusername=u\npassword=p\nauthurl=https://k:5000/\nauth-version=3\n",
			want: Login{AuthURL: "https://k:5000/v3", Version: 3, Username: "u", Password: "p", UserDomain: "Default"}},
		{name: "auth-version against the URL", file: "[a]\nusername=u\npassword=p\nauthurl=https://k/v3\nauth-version=1\n",
			err: "/etc/x/s:5: [a] auth-version: is 1, but the authentication URL is https://k/v3"},
		{name: "keystone v2.0", file: "[a]\nusername=tenant.user.name\npassword=p\nauthurl=https://k/v2.0\n",
			want: Login{AuthURL: "https://k/v2.0", Version: 2, Username: "user.name", Password: "p", Project: "tenant"}},
		{name: "keystone v2.0 with a project", file: "[a]\nusername=user.name\npassword=p\nproject=t\nauthurl=https://k/v2.0\n",
			want: Login{AuthURL: "https://k/v2.0", Version: 2, Username: "user.name", Password: "p", Project: "t"}},
		{name: "keystone v2.0 without a tenant", file: "[a]\nusername=u\npassword=p\nauthurl=https://k/v2.0\n",
			err: "/etc/x/s:2: [a] username: names no tenant (TENANT.USERNAME, or a project key), which Keystone v2.0 needs"},
		{name: "-k", file: "[a]\nusername=te:us:er\npassword=p\n",
			d: Defaults{AuthURL: "https://k:5000", Keystone: &KeystoneOptions{RegionName: "R", TenantSeparator: ":", ServiceType: "swift", EndpointType: "internalURL"}},
			want: Login{AuthURL: "https://k:5000/v2.0", Version: 2, Username: "us:er", Password: "p", Project: "te", Region: "R",
				ServiceType: "swift", EndpointType: "internal"}},
		{name: "-k with v3", file: "[a]\nusername=te.us\npassword=p\nregion=mine\n", d: Defaults{AuthURL: "https://k/v3", Keystone: &KeystoneOptions{RegionName: "R"}},
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "us", Password: "p", Project: "te", Region: "mine", UserDomain: "Default", ProjectDomain: "Default"}},
		{name: "-k leaves a v1 section alone", file: "[a]\nusername=te.us\npassword=p\nauthurl=" + v1, d: Defaults{Keystone: &KeystoneOptions{RegionName: "R"}},
			want: Login{AuthURL: v1, Version: 1, Username: "te.us", Password: "p"}},

		{name: "application credential", file: "[a]\napplication-credential-id=i\napplication-credential-secret=s\nauthurl=https://k/v3\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, AppCredentialID: "i", AppCredentialSecret: "s"}},
		{name: "application credential without a secret", file: "[a]\napplication-credential-id=i\nauthurl=https://k/v3\n",
			err: "/etc/x/s: [a] application-credential-secret: missing"},
		{name: "application credential at v1", file: "[a]\napplication-credential-id=i\napplication-credential-secret=s\nauthurl=" + v1,
			err: "/etc/x/s:4: [a] authurl: http://h/auth/v1.0 is not Keystone v3's, which an application credential needs"},
		{name: "both kinds", file: "[a]\nusername=u\npassword=p\napplication-credential-id=i\napplication-credential-secret=s\nauthurl=https://k/v3\n",
			err: "/etc/x/s:2: [a] username: given together with application-credential-id: use one of them"},
		{name: "the section's kind beats DEFAULT's", file: "[DEFAULT]\nusername=u\npassword=p\nauthurl=https://k/v3\n[a]\napplication-credential-id=i\napplication-credential-secret=s\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, AppCredentialID: "i", AppCredentialSecret: "s"}},
		{name: "and the other way round", file: "[DEFAULT]\napplication-credential-id=i\napplication-credential-secret=s\nauthurl=https://k/v3\n[a]\nusername=u\npassword=p\n",
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "u", Password: "p", UserDomain: "Default"}},

		{name: "the environment for a container without a section", file: "[b]\n", env: osPassword, want: envLogin},
		{name: "the environment for a section without credentials", file: "[a]\nread-only=1\nregion=R\n", env: osPassword,
			want: func() Login { l := envLogin; l.Region = "R"; return l }(), ro: true},
		{name: "the environment's password does not go to another cloud", file: "[a]\nauthurl=https://other/v3\n", env: osPassword,
			err: "/etc/x/s:2: [a] authurl: the only credentials are the environment's, and those are for https://env/v3, not for https://other/v3"},
		{name: "nor to the command line's", d: Defaults{AuthURL: v1}, env: osPassword,
			err: "the only credentials are the environment's, and those are for https://env/v3, not for http://h/auth/v1.0"},
		{name: "the same cloud in other words", file: "[a]\nauthurl=https://env/v3/\n", env: osPassword, want: envLogin},
		{name: "an openrc URL lacks its version", env: []string{"OS_USERNAME=u", "OS_PASSWORD=p", "OS_AUTH_URL=https://env:5000", "OS_PROJECT_ID=id", "OS_PROJECT_NAME=n"},
			want: Login{AuthURL: "https://env:5000/v3", Version: 3, Username: "u", Password: "p", ProjectID: "id", UserDomain: "Default"}},
		{name: "OS_IDENTITY_API_VERSION", env: []string{"OS_USERNAME=u", "OS_PASSWORD=p", "OS_AUTH_URL=https://env:5000", "OS_TENANT_NAME=t", "OS_IDENTITY_API_VERSION=2.0"},
			want: Login{AuthURL: "https://env:5000/v2.0", Version: 2, Username: "u", Password: "p", Project: "t"}},
		{name: "OS application credential", env: []string{"OS_AUTH_TYPE=v3applicationcredential", "OS_APPLICATION_CREDENTIAL_ID=i", "OS_APPLICATION_CREDENTIAL_SECRET=s", "OS_AUTH_URL=https://env/v3", "OS_REGION_NAME=R"},
			want: Login{AuthURL: "https://env/v3", Version: 3, AppCredentialID: "i", AppCredentialSecret: "s", Region: "R"}},
		{name: "OS before ST", env: append(append([]string{}, osPassword...), st...), want: envLogin},
		{name: "ST", env: st, want: Login{AuthURL: "http://st/auth/v1.0", Version: 1, Username: "test:tester", Password: "testing"}},
		{name: "ST with the command line's URL", env: st[:2], d: Defaults{AuthURL: v1}, want: Login{AuthURL: v1, Version: 1, Username: "test:tester", Password: "testing"}},
		{name: "ST v3", env: []string{"ST_USER=proj:user", "ST_KEY=k", "ST_AUTH=https://k/v3"},
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "user", Password: "k", Project: "proj", UserDomain: "Default", ProjectDomain: "Default"}},
		{name: "half of OS", env: []string{"OS_USERNAME=u", "OS_AUTH_URL=https://env/v3"}, err: "container a: OS_USERNAME is set, but OS_PASSWORD is not"},
		{name: "half of ST", env: []string{"ST_USER=u"}, err: "container a: ST_USER is set, but ST_KEY is not"},
		{name: "an unsupported OS_AUTH_TYPE", env: []string{"OS_USERNAME=u", "OS_AUTH_TYPE=v3oidcpassword"},
			err: `container a: OS_AUTH_TYPE: "v3oidcpassword" is not supported (password, v3applicationcredential)`},
		{name: "a wrong OS_AUTH_URL", env: []string{"OS_USERNAME=u", "OS_PASSWORD=p", "OS_AUTH_URL=env:5000"},
			err: `container a: OS_AUTH_URL: "env:5000" does not begin with http:// or https://`},
		{name: "no URL at all", env: []string{"OS_USERNAME=u", "OS_PASSWORD=p"},
			err: "the environment gives credentials but no authentication URL (OS_AUTH_URL or ST_AUTH), and nothing else does"},
		{name: "neither section nor environment", file: "[b]\nusername=u\n", err: "a not found in /etc/x/s"},
		{name: "a wrong URL on the command line", file: "[a]\nusername=u\npassword=p\n", d: Defaults{AuthURL: "h/auth"},
			err: `authentication URL: "h/auth" does not begin with http:// or https://`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := ParseSecrets("/etc/x/s", []byte(c.file))
			if err != nil {
				t.Fatal(err)
			}
			x, err := s.Export("a", c.d, environ(c.env...))
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Fatalf("got %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if x.Login != c.want || x.ReadOnly != c.ro || x.Container != "a" {
				t.Errorf("got  %s\nwant %s\nread-only %v", reveal(x.Login), reveal(c.want), x.ReadOnly)
			}
		})
	}
}

// reveal prints a login of a test with its secrets.
func reveal(l Login) string {
	var b strings.Builder
	b.WriteString(strings.Join([]string{l.AuthURL, string(rune('0' + l.Version)), l.Username, l.Password.Reveal(), l.Project, l.ProjectID, l.UserDomain,
		l.UserDomainID, l.ProjectDomain, l.ProjectDomainID, l.Region, l.ServiceType, l.EndpointType, l.AppCredentialID, l.AppCredentialSecret.Reveal(), l.CACert}, "|"))
	return b.String()
}

// TestErrNoContainer: callers tell it apart.
func TestErrNoContainer(t *testing.T) {
	s := NoSecrets("/etc/x/s")
	if _, err := s.Export("a", Defaults{}, nil); !errors.Is(err, ErrNoContainer) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"", "a/b", "..", strings.Repeat("x", 257)} {
		if _, err := s.Export(name, Defaults{}, environ("ST_USER=u", "ST_KEY=k", "ST_AUTH="+v1)); err == nil || errors.Is(err, ErrNoContainer) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

// TestValidate finds every section that is wrong, and only those.
func TestValidate(t *testing.T) {
	s, err := ParseSecrets("f", []byte("[good]\nusername=u\npassword=p\nauthurl="+v1+"\n[bad]\nusername=u\n[worse]\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Validate(Defaults{}, nil)
	if err == nil || strings.Contains(err.Error(), "[good]") || !strings.Contains(err.Error(), "[bad]") || !strings.Contains(err.Error(), "[worse]") {
		t.Errorf("got %v", err)
	}
}
