// SPDX-License-Identifier: MIT

package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/tests/harness"
)

// cloudsFile writes clouds.yaml, with further files beside it, and returns the
// setting of the environment that names it.
func cloudsFile(t testing.TB, text string, more ...[2]string) (env []string) {
	t.Helper()
	dir := harness.TempDir(t)
	for _, f := range more {
		harness.WriteFile(t, filepath.Join(dir, f[0]), f[1])
	}
	return []string{"OS_CLIENT_CONFIG_FILE=" + harness.WriteFile(t, filepath.Join(dir, "clouds.yaml"), text)}
}

// askKeystone makes a request to Keystone with a token, and decodes the answer into out.
func askKeystone(t testing.TB, k *harness.Keystone, token, method, path string, body, out any) http.Header {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(method, k.AuthURL+path, strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Auth-Token", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s, %v\n%s", method, path, resp.Status, err, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		t.Fatal(err)
	}
	return resp.Header
}

// trust has the user of the tests trust another user, guest, with the project,
// and returns the trust's ID.
func trust(t testing.TB, k *harness.Keystone, account *harness.Account) string {
	t.Helper()
	var guest struct {
		Token struct{ User struct{ ID string } }
	}
	askKeystone(t, k, "", "POST", "/auth/tokens", map[string]any{"auth": map[string]any{"identity": map[string]any{"methods": []string{"password"},
		"password": map[string]any{"user": map[string]any{"name": "guest", "domain": map[string]string{"name": k.Domain}, "password": "guesting"}}}}}, &guest)
	var made struct{ Trust struct{ ID string } }
	askKeystone(t, k, account.Token, "POST", "/OS-TRUST/trusts", map[string]any{"trust": map[string]any{
		"trustor_user_id": account.UserID, "trustee_user_id": guest.Token.User.ID, "project_id": account.ProjectID,
		"impersonation": true, "roles": []map[string]string{{"name": "member"}}}}, &made)
	return made.Trust.ID
}

// runWith runs a program with these settings of the environment.
func runWith(t testing.TB, env []string, name string, args ...string) {
	t.Helper()
	cmd := harness.Command(t, name, args...)
	cmd.Env = append(os.Environ(), env...)
	if r := harness.RunCmd(t, cmd); r.Status != 0 {
		t.Fatalf("%s %q: status %d\n%s", name, args, r.Status, r.Stderr)
	}
}

// TestClouds serves a disk with each kind of credentials that clouds.yaml can
// hold, and once in the background, where the files are handed to the server.
func TestClouds(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	account := k.Account(t)
	kinds := map[string]string{
		"password": fmt.Sprintf("{auth: {username: %s, project_name: %s, user_domain_name: %s, project_domain_name: %[3]s}, profile: public, region_name: %s}",
			k.User, k.Project, k.Domain, k.Region), // the rest is in the other files
		"regions":        fmt.Sprintf("{auth: {auth_url: %q, username: %s, password: %s, project_id: %s}, regions: [Atlantis, %s]}", k.AuthURL, k.User, k.Password, account.ProjectID, k.Region),
		"token":          fmt.Sprintf("{auth_type: v3token, auth: {auth_url: %q, token: %s, project_id: %s}}", k.AuthURL, account.Token, account.ProjectID),
		"token-with-url": fmt.Sprintf("{auth_type: token, auth: {token: %s}, object_store_endpoint_override: %q}", account.Token, account.StorageURL),
		"application-credential": fmt.Sprintf("{auth_type: v3applicationcredential, auth: {auth_url: %q, application_credential_id: %s, application_credential_secret: %s}}",
			k.AuthURL, k.AppCredID, k.AppCredSecret),
		"application-credential-by-name": fmt.Sprintf("{auth_type: v3applicationcredential, auth: {auth_url: %q, username: %s, user_domain_name: %s, application_credential_name: saio, application_credential_secret: %s}}",
			k.AuthURL, k.User, k.Domain, k.AppCredSecret),
		"trust": fmt.Sprintf("{auth: {auth_url: %q, username: guest, user_domain_name: %s, password: guesting, trust_id: %s}, interface: internal}", k.AuthURL, k.Domain, trust(t, k, account)),
	}
	text := "clouds:\n"
	for name, c := range kinds {
		text += "  " + name + ": " + c + "\n"
	}
	env := cloudsFile(t, text, [2]string{"secure.yaml", fmt.Sprintf("clouds: {password: {auth: {password: %s}}}", k.Password)},
		[2]string{"clouds-public.yaml", fmt.Sprintf("public-clouds: {public: {auth: {auth_url: %q}}}", k.AuthURL)})
	image := harness.WriteFile(t, filepath.Join(harness.TempDir(t), "image"), strings.Repeat("x", 4*65536))
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			name := harness.Name(t)
			account.Setup(t, name, 4, 65536)
			params := []string{name, "cloud=" + kind}
			if kind == "regions" {
				params = append(params, "region="+k.Region)
			}
			if kind == "password" { // the same, said in a section
				params = []string{name, "secrets=" + harness.Secrets(t, harness.Section(name, "cloud = password"))}
				n := harness.Serve(t, harness.Options{Mode: harness.Background, Env: env, Params: params})
				harness.RoundTrip(t, n.URI, harness.Random(91, 4*65536))
				n.Stop(t)
				unlocked(t, account, name)
				return
			}
			runWith(t, env, "nbdkit", append(append([]string{"-U", "-", harness.Plugin(t)}, params...), "--run", "nbdcopy --flush "+image+" \"$uri\"")...)
			if chunk, ok := account.Get(t, name, "disk.part/00000000"); !ok || chunk[0] != 'x' {
				t.Error("what was written through nbdkit is not in Swift")
			}
		})
	}
	t.Run("swiftnbd-ctl", func(t *testing.T) {
		name := harness.Name(t)
		t.Cleanup(func() { account.Remove(t, name) })
		runWith(t, env, harness.Built(t, "swiftnbd-ctl"), "--cloud", "regions", "--region", k.Region, "setup", name, "4")
		runWith(t, append(env, "OS_CLOUD=application-credential"), harness.Built(t, "swiftnbd-ctl"), "info", name)
	})
	for params, want := range map[string][]string{
		"cloud=nonesuch":                                         {"nonesuch", "clouds.yaml", "there are: application-credential, application-credential-by-name, password, regions, token, token-with-url, trust"},
		"cloud=regions region=Nowhere":                           {"clouds.yaml", "cloud regions", "Nowhere", "there are: Atlantis, " + k.Region},
		"cloud=regions region=Atlantis":                          {"Atlantis", "the catalogue has: admin in region " + k.Region},
		"cloud=application-credential authurl=http://127.0.0.1/": {"http://127.0.0.1/", k.AuthURL},
	} {
		harness.Fail(t, harness.Options{Mode: harness.Background, Env: env, Params: append([]string{"disk"}, strings.Fields(params)...)}).Want(t, want...)
	}
}

// TestInsecure reaches a Swift whose certificate nobody knows: not unless it is
// asked for, and then a warning says so.
func TestInsecure(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	secure := harness.NewFront(t, c, nil).Cloud
	cloud := func(more string) []string {
		return cloudsFile(t, fmt.Sprintf("clouds: {mine: {auth_type: v1password, auth: {auth_url: %q, username: %q, password: %q}%s}}", secure.AuthURL, secure.User, secure.Key, more))
	}
	const warning = "warning: container %s: the cloud's certificate is not verified (%s)"
	harness.Fail(t, harness.Options{Mode: harness.Background, Env: cloud(""), Params: []string{name, "cloud=mine"}}).Want(t, name, "certificate")
	for _, o := range []struct {
		env, params []string
		by          string
	}{
		{cloud(", verify: false"), []string{name, "cloud=mine"}, "verify: false in cloud mine"},
		{cloud(""), []string{name, "cloud=mine", "insecure=1"}, "insecure on the command line"},
		{nil, []string{name, "secrets=" + harness.Secrets(t, secure.Section(name, "insecure = 1"))}, "insecure in "},
	} {
		cmd := harness.Command(t, "nbdkit", append(append([]string{"-U", "-", harness.Plugin(t)}, o.params...), "--run", "nbdinfo --size $uri")...)
		cmd.Env = append(os.Environ(), o.env...)
		r := harness.RunCmd(t, cmd)
		if want := strings.Split(fmt.Sprintf(warning, name, o.by), ")")[0]; r.Status != 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%q: status %d\n%s\nwant %s", o.params, r.Status, r.Stderr, want)
		}
	}
	unlocked(t, account, name)
}

// TestProxyVariables: requests go through the proxy that http_proxy names, but
// for the hosts of no_proxy.
func TestProxyVariables(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	const host = "http://swift.invalid" // nobody but the proxy knows it; Go goes to loopback itself
	real := strings.TrimSuffix(c.AuthURL, "/auth/v1.0")
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		out, err := http.NewRequestWithContext(r.Context(), r.Method, real+r.URL.RequestURI(), r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		out.Header, out.ContentLength = r.Header.Clone(), r.ContentLength
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for key := range resp.Header {
			w.Header().Set(key, strings.Replace(resp.Header.Get(key), real, host, 1))
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(proxy.Close)
	far := harness.Cloud{AuthURL: host + "/auth/v1.0", User: c.User, Key: c.Key}
	o := harness.Options{Mode: harness.Background, Env: []string{"http_proxy=" + proxy.URL, "no_proxy="},
		Params: []string{name, "secrets=" + harness.Secrets(t, far.Section(name))}}
	n := harness.Serve(t, o)
	harness.RoundTrip(t, n.URI, harness.Random(93, diskSize))
	n.Stop(t)
	unlocked(t, account, name)
	if asked.Load() == 0 {
		t.Error("nothing went through the proxy")
	}
	before := asked.Load()
	o.Env = append(o.Env[:1:1], "no_proxy=.invalid")
	harness.Fail(t, o).Want(t, name, "swift.invalid")
	if asked.Load() != before {
		t.Error("a request for a host of no_proxy went through the proxy")
	}
}

// TestInfoHurts sets a storage policy and quotas on the real Swift, and has info
// tell of them.
func TestInfoHurts(t *testing.T) {
	t.Parallel()
	c := harness.Real(t)
	account, name := c.Account(t), harness.Name(t)
	params := []string{name, "secrets=" + harness.Secrets(t, c.Section(name))}
	t.Cleanup(func() { account.Remove(t, name) })
	r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", strings.TrimPrefix(params[1], "secrets="), "setup", name, "8", "--policy", "tin")
	if r.Status != 1 || !strings.Contains(r.Stderr, "there are: Policy-0 (the default), Second") {
		t.Errorf("a policy that does not exist: status %d\n%s", r.Status, r.Stderr)
	}
	ctl(t, params, "setup", name, "8", "--policy", "second")
	warnings := func() (policy string, warnings []string) {
		t.Helper()
		var in struct {
			Policy   string
			Warnings []string
		}
		if err := json.Unmarshal([]byte(ctl(t, params, "info", "--json", name)), &in); err != nil {
			t.Fatal(err)
		}
		return in.Policy, in.Warnings
	}
	if policy, w := warnings(); policy != "Second" || len(w) != 0 {
		t.Errorf("policy %q, warnings %q", policy, w)
	}
	r = harness.Run(t, harness.Built(t, "swiftnbd-ctl"), "--secrets", strings.TrimPrefix(params[1], "secrets="), "setup", name, "8", "--force", "--policy", "Policy-0")
	if r.Status != 1 || !strings.Contains(r.Stderr, "with the storage policy Second") {
		t.Errorf("another policy than it has: status %d\n%s", r.Status, r.Stderr)
	}
	status, _, _ := account.Do(t, "POST", "/"+name, map[string]string{"X-Container-Meta-Quota-Bytes": "1000"}, nil)
	if _, w := warnings(); status != 204 || len(w) != 1 || !strings.Contains(w[0], "the quota of the container has room for 1000 B more") {
		t.Errorf("%d, %q", status, w)
	}
}
