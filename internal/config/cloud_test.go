// SPDX-License-Identifier: MIT

package config

import (
	"strings"
	"testing"

	"swiftnbd/internal/clouds"
)

// cloudsOf returns the clouds of a clouds.yaml with this text.
func cloudsOf(text string) *clouds.Set {
	return clouds.New(clouds.Files{Clouds: &clouds.File{Path: "/c/clouds.yaml", Data: []byte(text)}, Places: clouds.Places{Directory: "/work", Home: "/home/u"}})
}

const cloudA = "clouds:\n  a:\n    auth:\n      auth_url: https://k/v3\n      username: u\n      password: s3cr3t\n      project_name: p\n"

// TestCloudLogin is the table of the logins that a cloud gives.
func TestCloudLogin(t *testing.T) {
	base := Login{AuthURL: "https://k/v3", Version: 3, Username: "u", Password: "s3cr3t", Project: "p", UserDomain: "Default", ProjectDomain: "Default"}
	login := func(change func(*Login)) Login { l := base; change(&l); return l }
	auth := func(more string) string { return "clouds: {a: {auth: {auth_url: 'https://k/v3', " + more + "}}}" }
	inA := func(more string) string { return cloudA + "    " + more + "\n" }
	for _, c := range []struct {
		name, clouds string
		want         Login
		err          string
	}{
		{name: "password", clouds: cloudA, want: base},
		{name: "the version is Keystone's", clouds: strings.Replace(cloudA, "k/v3", "k:5000", 1), want: login(func(l *Login) { l.AuthURL = "https://k:5000/v3" })},
		{name: "IDs count more than names", clouds: auth("username: u, user_id: i, password: s3cr3t, project_name: p, project_id: q, user_domain_name: D"),
			want: Login{AuthURL: "https://k/v3", Version: 3, UserID: "i", Password: "s3cr3t", ProjectID: "q"}},
		{name: "domain_id is both domains'", clouds: auth("username: u, password: s3cr3t, project_name: p, domain_id: D"),
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "u", Password: "s3cr3t", Project: "p", UserDomainID: "D", ProjectDomainID: "D"}},
		{name: "trust", clouds: auth("username: u, password: s3cr3t, project_name: p, trust_id: t"),
			want: Login{AuthURL: "https://k/v3", Version: 3, Username: "u", Password: "s3cr3t", UserDomain: "Default", TrustID: "t"}},
		{name: "token", clouds: auth("token: t, project_id: p"), want: Login{AuthURL: "https://k/v3", Version: 3, Token: "t", ProjectID: "p"}},
		{name: "token with a storage URL", clouds: "clouds: {a: {auth_type: token, auth: {token: t}, object_store_endpoint_override: 'http://s/v1/A'}}",
			want: Login{Version: 1, Token: "t", StorageURL: "http://s/v1/A"}},
		{name: "application credential", clouds: auth("application_credential_id: i, application_credential_secret: s, project_name: p"),
			want: Login{AuthURL: "https://k/v3", Version: 3, AppCredentialID: "i", AppCredentialSecret: "s"}},
		{name: "application credential by name", clouds: "clouds: {a: {auth_type: v3applicationcredential, auth: {auth_url: 'https://k', username: u, application_credential_name: n, application_credential_secret: s}}}",
			want: Login{AuthURL: "https://k/v3", Version: 3, AppCredentialName: "n", AppCredentialSecret: "s", Username: "u", UserDomain: "Default"}},
		{name: "version 1", clouds: "clouds: {a: {auth_type: v1password, auth: {auth_url: 'http://h/auth/v1.0', username: 'a:u', password: p}}}",
			want: Login{AuthURL: "http://h/auth/v1.0", Version: 1, Username: "a:u", Password: "p"}},
		{name: "region and interface", clouds: inA("region_name: R\n    interface: internalURL"), want: login(func(l *Login) { l.Region, l.EndpointType = "R", "internal" })},
		{name: "the service's own count more", clouds: inA("interface: admin\n    region_name: R\n    object_store_interface: internal\n    object_store_region_name: S"),
			want: login(func(l *Login) { l.Region, l.EndpointType = "S", "internal" })},
		{name: "certificates", clouds: inA("cacert: ~/ca.pem\n    cert: c.pem\n    key: /k.pem"),
			want: login(func(l *Login) { l.CACert, l.ClientCert, l.ClientKey = "/home/u/ca.pem", "/work/c.pem", "/k.pem" })},
		{name: "verify", clouds: inA("verify: no"), want: login(func(l *Login) { l.Insecure = true })},
		{name: "insecure", clouds: inA("insecure: True"), want: login(func(l *Login) { l.Insecure = true })},
		{name: "neither", clouds: inA("verify: true\n    insecure: false"), want: base},

		{name: "no URL", clouds: "clouds:\n  a: {auth: {username: u, password: s3cr3t}}", err: "cloud=a: /c/clouds.yaml: cloud a: auth.auth_url: missing"},
		{name: "a wrong URL", clouds: strings.Replace(cloudA, "https://k/v3", "http://u:s3cr3t@k/v3", 1), err: "cloud=a: /c/clouds.yaml:4: cloud a: auth.auth_url: holds a user name"},
		{name: "no user", clouds: auth("password: s3cr3t"), err: "cloud a: auth.username: missing"},
		{name: "no password", clouds: auth("username: u"), err: "cloud a: auth.password: missing"},
		{name: "no secret", clouds: auth("application_credential_id: i"), err: "cloud a: auth.application_credential_secret: missing"},
		{name: "a name without its user", clouds: auth("application_credential_name: i, application_credential_secret: s"), err: "cloud a: auth.username: missing: an application credential that is given by its name"},
		{name: "a kind that we have not", clouds: inA("auth_type: v3oidcpassword"), err: `/c/clouds.yaml:8: cloud a: auth_type: "v3oidcpassword" is not supported (there are: password, v3password`},
		{name: "the URL of another version", clouds: strings.Replace(inA("auth_type: v3password"), "k/v3", "k/v2.0", 1), err: "/c/clouds.yaml:4: cloud a: auth.auth_url: https://k/v2.0 is not of version 3"},
		{name: "a wrong interface", clouds: inA("interface: outside"), err: `/c/clouds.yaml:8: cloud a: interface: "outside" is not public, internal or admin`},
		{name: "a wrong verify", clouds: inA("verify: /ca.pem"), err: `/c/clouds.yaml:8: cloud a: verify: "/ca.pem" is neither`},
		{name: "a key without its certificate", clouds: inA("key: k.pem"), err: "cloud a: cert: missing: there is a key"},
		{name: "a wrong storage URL", clouds: inA("object_store_endpoint_override: http://s"), err: `cloud a: object_store_endpoint_override: "http://s" names no account`},
	} {
		x, err := NoSecrets("/s").Export("c", Defaults{Cloud: "a", Clouds: cloudsOf(c.clouds)}, nil)
		switch {
		case c.err == "" && (err != nil || x.Login != c.want):
			t.Errorf("%s: %v\ngot  %s %+v\nwant %s %+v", c.name, err, reveal(x.Login), x.Login, reveal(c.want), c.want)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s: %v; want %s", c.name, err, c.err)
		}
		if err == nil && (x.InsecureBy != "") != x.Login.Insecure {
			t.Errorf("%s: insecure %v, by %q", c.name, x.Login.Insecure, x.InsecureBy)
		}
	}
}

// TestCloudPrecedence: cloud= before the section, the section before DEFAULT,
// these before OS_CLOUD, and that before the rest of the environment. No
// credentials go to another cloud.
func TestCloudPrecedence(t *testing.T) {
	set := cloudsOf("clouds:\n" +
		"  a: {auth: {auth_url: 'https://a/v3', username: ua, password: pa}, region_name: RA}\n" +
		"  b: {auth: {auth_url: 'https://b/v3', username: ub, password: pb}}\n" +
		"  r: {auth: {auth_url: 'https://r/v3', username: ur, password: pr}, regions: [R1, R2]}\n")
	const own = "[c]\nusername = own\npassword = p\nauthurl = https://own/v3\nregion = RO\nstorage-url = https://own/v1/A\n"
	openrc := []string{"OS_USERNAME=env", "OS_PASSWORD=p", "OS_AUTH_URL=https://env/v3", "OS_REGION_NAME=RE", "OS_INTERFACE=admin", "OS_CACERT=/env.pem"}
	for _, c := range []struct {
		name, file string
		d          Defaults
		env        []string
		want       string // user, URL, region, interface, storage URL, CA
		err        string
	}{
		{name: "cloud= before the section, and nothing of the section's other cloud", file: own, d: Defaults{Cloud: "a"}, want: "ua https://a/v3 RA   "},
		{name: "cloud= before the section's cloud", file: "[c]\ncloud = b\nregion = RB\n", d: Defaults{Cloud: "a"}, want: "ua https://a/v3 RA   "},
		{name: "cloud= as the section's", file: "[c]\ncloud = a\nregion = RB\n", d: Defaults{Cloud: "a"}, want: "ua https://a/v3 RB   "},
		{name: "cloud= with a section without credentials", file: "[c]\nregion = RB\nendpoint-type = internal\n", d: Defaults{Cloud: "a"}, want: "ua https://a/v3 RB internal  "},
		{name: "cloud= before the environment", d: Defaults{Cloud: "a"}, env: openrc, want: "ua https://a/v3 RA   "},
		{name: "cloud= before OS_CLOUD", d: Defaults{Cloud: "a"}, env: []string{"OS_CLOUD=b"}, want: "ua https://a/v3 RA   "},
		{name: "the section's cloud", file: "[c]\ncloud = a\n", want: "ua https://a/v3 RA   "},
		{name: "the section's cloud before OS_CLOUD", file: "[c]\ncloud = a\n", env: append([]string{"OS_CLOUD=b"}, openrc...), want: "ua https://a/v3 RA   "},
		{name: "the section's cloud before DEFAULT's user", file: "[DEFAULT]\nusername = d\npassword = p\nauthurl = https://d/v3\n[c]\ncloud = a\n", want: "ua https://a/v3 RA   "},
		{name: "the section's user before DEFAULT's cloud", file: "[DEFAULT]\ncloud = a\n" + own, want: "own https://own/v3 RO  https://own/v1/A "},
		{name: "DEFAULT's cloud", file: "[DEFAULT]\ncloud = a\n[c]\nstorage-url = https://x/v1/B\ncacert = ca.pem\n", want: "ua https://a/v3 RA  https://x/v1/B /ca.pem"},
		{name: "the section's own before OS_CLOUD", file: own, env: []string{"OS_CLOUD=a"}, want: "own https://own/v3 RO  https://own/v1/A "},
		{name: "the command line beside the cloud", d: Defaults{Cloud: "b", Region: "RX", EndpointType: "adminURL", StorageURL: "https://x/v1/B", CACert: "/x.pem"},
			want: "ub https://b/v3 RX admin https://x/v1/B /x.pem"},
		{name: "OS_CLOUD before OS_*, which fills in", env: append([]string{"OS_CLOUD=b"}, openrc...), want: "ub https://b/v3 RE admin  /env.pem"},
		{name: "OS_CLOUD's own region", env: append([]string{"OS_CLOUD=a"}, openrc...), want: "ua https://a/v3 RA admin  /env.pem"},
		{name: "OS_CLOUD for a section without credentials", file: "[c]\nregion = RB\n", env: []string{"OS_CLOUD=b"}, want: "ub https://b/v3 RB   "},
		{name: "the first region", d: Defaults{Cloud: "r"}, want: "ur https://r/v3 R1   "},
		{name: "another region", d: Defaults{Cloud: "r", Region: "R2"}, want: "ur https://r/v3 R2   "},
		{name: "OS_REGION_NAME chooses", env: []string{"OS_CLOUD=r", "OS_REGION_NAME=R2"}, want: "ur https://r/v3 R2   "},

		{name: "no such cloud in a section", file: "[c]\ncloud = z\n", err: "/s:2: [c] cloud: /c/clouds.yaml: cloud z: no such cloud (there are: a, b, r)"},
		{name: "no such cloud in the environment", env: []string{"OS_CLOUD=z"}, err: "OS_CLOUD=z: /c/clouds.yaml: cloud z: no such cloud (there are: a, b, r)"},
		{name: "no such region", file: "[c]\ncloud = r\nregion = R3\n", err: "/s:3: [c] region: /c/clouds.yaml:4: cloud r: regions: there is no such region, R3 (there are: R1, R2)"},
		{name: "two kinds in a section", file: "[c]\ncloud = a\nusername = u\n", err: "/s:2: [c] cloud: given together with username: use one of them"},
		{name: "two kinds in DEFAULT", file: "[DEFAULT]\ncloud = a\napplication-credential-id = u\n[c]\n", err: "/s:2: [DEFAULT] cloud: given together with application-credential-id: use one of them"},
		{name: "another URL beside the cloud", file: "[c]\ncloud = a\nauthurl = https://z/v3\n", err: "/s:3: [c] authurl: the cloud's is https://a/v3, not https://z/v3"},
		{name: "the same URL beside the cloud", file: "[c]\ncloud = a\nauthurl = https://a/\n", want: "ua https://a/v3 RA   "},
		{name: "another URL on the command line", d: Defaults{Cloud: "a", AuthURL: "https://z/v3"}, err: "cloud=a: authentication URL: the cloud's is https://a/v3, not https://z/v3"},
	} {
		s, err := ParseSecrets("/s", []byte(c.file))
		if err != nil {
			t.Fatal(err)
		}
		c.d.Clouds = set
		x, err := s.Export("c", c.d, environ(c.env...))
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v\nwant %s", c.name, err, c.err)
			}
			continue
		}
		l := x.Login
		if got := strings.Join([]string{l.Username, l.AuthURL, l.Region, l.EndpointType, l.StorageURL, l.CACert}, " "); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// TestInsecure is set by the section, or else by the command line, and it is told
// who has set it.
func TestInsecure(t *testing.T) {
	s, err := ParseSecrets("/s", []byte("[DEFAULT]\nusername = u\npassword = p\nauthurl = https://k/v3\n[yes]\ninsecure = 1\ncert = c.pem\n[no]\ninsecure = 0\n[open]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		container string
		d         Defaults
		by        string
	}{
		{"yes", Defaults{}, "insecure in /s"}, {"no", Defaults{Insecure: true}, ""},
		{"open", Defaults{Insecure: true}, "insecure on the command line"}, {"open", Defaults{}, ""},
	} {
		x, err := s.Export(c.container, c.d, nil)
		if err != nil || x.InsecureBy != c.by || x.Login.Insecure != (c.by != "") {
			t.Errorf("%s: %v, by %q, %v; want %q", c.container, x.Login.Insecure, x.InsecureBy, err, c.by)
		}
	}
	if x, err := s.Export("yes", Defaults{ClientKey: "/k.pem"}, nil); err != nil || x.Login.ClientCert != "/c.pem" || x.Login.ClientKey != "/k.pem" {
		t.Errorf("%+v, %v", x.Login, err)
	}
	if _, err := s.Export("open", Defaults{ClientKey: "/k.pem"}, nil); err == nil || !strings.Contains(err.Error(), "no certificate (cert)") {
		t.Errorf("a key alone: %v", err)
	}
}
