// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// secret must be in no error.
const secret = "s3cret-pässword"

// keystone is a Keystone of versions 2 and 3 with a catalogue, and the account
// behind it; what the real one cannot be made to say.
type keystone struct {
	*httptest.Server
	requests atomic.Int32
	body     atomic.Value // string: the last login's
	answer   http.HandlerFunc
}

const (
	catalogueV3 = `{"token": {"expires_at": "2999-01-01T00:00:00Z", "catalog": [
		{"type": "identity", "endpoints": [{"interface": "public", "region": "One", "url": "http://wrong/"}]},
		{"type": "object-store", "endpoints": [
			{"interface": "admin", "region": "One", "url": "BASE/admin"},
			{"interface": "public", "region": "One", "url": "BASE/one"},
			{"interface": "public", "region_id": "Two", "url": "BASE/two"},
			{"interface": "internal", "region": "Two", "url": "BASE/internal"}]},
		{"type": "other-store", "endpoints": [{"interface": "public", "region": "One", "url": "BASE/other"}]}]}}`
	catalogueV2 = `{"access": {"token": {"id": "tok", "expires": "2999-01-01T00:00:00Z"}, "serviceCatalog": [
		{"type": "object-store", "endpoints": [
			{"region": "One", "publicURL": "BASE/one", "adminURL": "BASE/admin"},
			{"region": "Two", "publicURL": "BASE/two", "internalURL": "BASE/internal"}]}]}}`
)

func newKeystone(t *testing.T) *keystone {
	k := &keystone{}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.requests.Add(1)
		b, _ := io.ReadAll(r.Body)
		k.body.Store(string(b))
		switch {
		case k.answer != nil:
			k.answer(w, r)
		case r.URL.Path == "/id/v3/auth/tokens":
			w.Header().Set("X-Subject-Token", "tok")
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, strings.ReplaceAll(catalogueV3, "BASE", k.URL))
		case r.URL.Path == "/id/v2.0/tokens":
			_, _ = io.WriteString(w, strings.ReplaceAll(catalogueV2, "BASE", k.URL))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(k.Close)
	return k
}

func TestEndpoints(t *testing.T) {
	k := newKeystone(t)
	l := config.Login{AuthURL: k.URL + "/id/v3", Username: "u", Password: secret, Project: "p"}
	for _, c := range []struct {
		change func(*config.Login)
		want   string // a path, or the error's words
	}{
		{func(l *config.Login) {}, "/one"},
		{func(l *config.Login) { l.AuthURL += "/" }, "/one"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/id" }, "/one"}, // the project says version 3
		{func(l *config.Login) { l.AuthURL = k.URL + "/id/"; l.Version = 3 }, "/one"},
		{func(l *config.Login) { l.Region = "Two" }, "/two"},
		{func(l *config.Login) { l.EndpointType = "internal" }, "/internal"},
		{func(l *config.Login) { l.EndpointType = "adminURL"; l.Region = "One" }, "/admin"},
		{func(l *config.Login) { l.ServiceType = "other-store" }, "/other"},
		{func(l *config.Login) { l.Region = "Three" }, `no object-store endpoint of type public in region "Three" (the catalogue has: admin in region One, internal in region Two, public in region One, public in region Two)`},
		{func(l *config.Login) { l.Region = "Two"; l.EndpointType = "admin" }, `of type admin in region "Two"`},
		{func(l *config.Login) { l.ServiceType = "compute" }, "no compute endpoint of type public in any region (the catalogue has only: identity, object-store, other-store)"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/id/v2.0" }, "/one"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/id"; l.Version = 2; l.Region = "Two" }, "/two"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/id/v2.0"; l.EndpointType = "internalURL" }, "/internal"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/id/v2.0"; l.EndpointType = "admin"; l.Region = "Two" }, "no object-store endpoint of type admin"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/nowhere/v3" }, "no authentication of version 3 at this URL"},
		{func(l *config.Login) { l.AuthURL = k.URL + "/nowhere/v1.0" }, "no authentication of version 1 at this URL"},
	} {
		l := l
		c.change(&l)
		client := dial(t, swiftstore.Options{Login: l})
		err := client.Login(t.Context())
		if strings.HasPrefix(c.want, "/") {
			if s := client.Session(); err != nil || s.StorageURL != k.URL+c.want || s.Token != "tok" {
				t.Errorf("%+v: %s, %v; want %s", l, s.StorageURL, err, c.want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || store.Transient(err) {
			t.Errorf("%+v: %v; want %q", l, err, c.want)
		}
	}
}

// TestEmptyCatalogue is what a token without a project gets.
func TestEmptyCatalogue(t *testing.T) {
	k := newKeystone(t)
	k.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Subject-Token", "tok")
		_, _ = io.WriteString(w, `{"token": {}}`)
	}
	c := dial(t, swiftstore.Options{Login: config.Login{AuthURL: k.URL + "/v3", Username: "u", Password: secret}})
	if err := c.Login(t.Context()); err == nil || !strings.Contains(err.Error(), "since no project is given") {
		t.Error(err)
	}
}

// TestLoginBody is what Keystone is sent.
func TestLoginBody(t *testing.T) {
	k := newKeystone(t)
	base := config.Login{AuthURL: k.URL + "/id/v3", Username: "u", Password: secret}
	password := func(domain, scope string) string {
		return fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"domain":%s,"name":"u","password":%q}}}%s}}`, domain, secret, scope)
	}
	for _, c := range []struct {
		change func(*config.Login)
		want   string
	}{
		{func(l *config.Login) {}, password(`{"name":"Default"}`, "")},
		{func(l *config.Login) { l.Project, l.UserDomain, l.ProjectDomain = "p", "ud", "pd" },
			password(`{"name":"ud"}`, `,"scope":{"project":{"name":"p","domain":{"name":"pd"}}}`)},
		{func(l *config.Login) { l.ProjectID, l.UserDomainID = "pid", "default" },
			password(`{"id":"default"}`, `,"scope":{"project":{"id":"pid"}}`)},
		{func(l *config.Login) { l.Project, l.UserDomain, l.ProjectDomainID = "p", "ud", "default" },
			password(`{"name":"ud"}`, `,"scope":{"project":{"name":"p","domain":{"id":"default"}}}`)},
		{func(l *config.Login) {
			l.Username, l.Password, l.AppCredentialID, l.AppCredentialSecret = "", "", "acid", secret
		}, fmt.Sprintf(`{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"acid","secret":%q,"user":{}}}}}`, secret)},
		{func(l *config.Login) { l.AuthURL, l.Project = k.URL+"/id/v2.0", "ten" },
			fmt.Sprintf(`{"auth":{"passwordCredentials":{"username":"u","password":%q},"tenantName":"ten"}}`, secret)},
	} {
		l := base
		c.change(&l)
		if err := dial(t, swiftstore.Options{Login: l}).Login(t.Context()); err != nil {
			t.Error(err)
		}
		got, _ := k.body.Load().(string)
		if normal(t, got) != normal(t, c.want) {
			t.Errorf("sent %s, want %s", got, c.want)
		}
	}
}

// normal brings JSON into one form.
func normal(t *testing.T, s string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	b, _ := json.Marshal(v)
	return string(b)
}

// TestLoginErrors are clear, final or not as they should be, name the URL and
// the user, never the password, and cost one request.
func TestLoginErrors(t *testing.T) {
	answer := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, "<html><h1>Oh</h1>\nno</html>")
		}
	}
	for _, c := range []struct {
		answer    http.HandlerFunc
		is        error
		transient bool
		says      string
	}{
		{answer(401), store.ErrUnauthorized, false, "authentication failed"},
		{answer(403), store.ErrUnauthorized, false, "authentication failed"},
		{answer(400), nil, false, "Oh no"},
		{answer(404), nil, false, "no authentication of version"},
		{answer(300), nil, false, "no authentication of version"},
		{answer(301, "Location", "https://other.example/v3"), nil, false, "redirected to https://other.example/v3"},
		{answer(307, "Location", "https://other.example/v3"), nil, false, "redirected to https://other.example/v3"},
		{answer(429), nil, true, "429"},
		{answer(503), nil, true, "503"},
		{answer(500), nil, true, "500"},
		{answer(200), nil, false, "the answer has no"},
		{func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, true, "closed before an answer"},
	} {
		for _, path := range []string{"/auth/v1.0", "/v2.0", "/v3"} {
			k := newKeystone(t)
			k.answer = c.answer
			client := dial(t, swiftstore.Options{Login: config.Login{AuthURL: k.URL + path, Username: "üser", Password: secret, Project: "p"}})
			err := client.Login(t.Context())
			if err == nil || c.is != nil && !errors.Is(err, c.is) || store.Transient(err) != c.transient || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if s := err.Error(); strings.Contains(s, secret) || strings.ContainsAny(s, "\n<") || !strings.Contains(s, k.URL) || !strings.Contains(s, "üser") {
				t.Errorf("%s: error %q", path, s)
			}
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrForbidden) {
				t.Errorf("%s: %v is mistaken for an object's error", path, err)
			}
			// Version 2 has two forms of the request.
			if n := k.requests.Load(); n != 1 && !(path == "/v2.0" && n == 2) && c.says != "closed before an answer" {
				t.Errorf("%s: %d requests for %v", path, n, err)
			}
		}
	}
}

func TestLoginUnreachable(t *testing.T) {
	c := dial(t, swiftstore.Options{Login: config.Login{AuthURL: "http://127.0.0.1:1/auth/v1.0", Username: "u", Password: secret}})
	data := []byte("x")
	err := c.Container("c").Put(t.Context(), "o", data, storetest.Sum(data))
	if !store.Transient(err) || store.Ambiguous(err) || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := config.Login{AuthURL: "http://localhost/v3", Username: "u", Password: secret}
	for _, c := range []struct {
		change func(*config.Login)
		says   string
	}{
		{func(l *config.Login) { l.AuthURL = "" }, "no authentication URL"},
		{func(l *config.Login) { l.AuthURL = "http://u:" + secret + "@[host" }, "malformed"},
		{func(l *config.Login) { l.AuthURL = "localhost:5000/v3" }, "must be http"},
		{func(l *config.Login) { l.AuthURL = "ftp://u:s3cret@host/v3" }, "must be http"},
		{func(l *config.Login) { l.Version = 4 }, "version 4"},
		{func(l *config.Login) { l.EndpointType = "secret" }, `endpoint type "secret"`},
		{func(l *config.Login) { l.Username = "" }, "no username"},
		{func(l *config.Login) { l.AppCredentialID = "x" }, "no secret"},
		{func(l *config.Login) {
			l.AppCredentialID, l.AppCredentialSecret, l.AuthURL = "x", "y", "http://localhost/auth/v1.0"
		}, "needs authentication version 3"},
		{func(l *config.Login) { l.CACert = garbage }, garbage},
		{func(l *config.Login) { l.CACert = filepath.Join(dir, "absent") }, filepath.Join(dir, "absent")},
	} {
		l := good
		c.change(&l)
		_, err := swiftstore.Dial(swiftstore.Options{Login: l})
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", c.says, err)
		}
	}
	if _, err := swiftstore.Dial(swiftstore.Options{Login: good, Connections: -1}); err == nil {
		t.Error("negative connections: no error")
	}
}

// TestTLS knows an authority from a file, speaks HTTP/1.1, and says what is
// missing.
func TestTLS(t *testing.T) {
	var proto atomic.Value
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		w.Header().Set("X-Storage-Url", "https://"+r.Host+"/v1/AUTH_test")
		w.Header().Set("X-Auth-Token", "tok")
	}))
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	login := config.Login{AuthURL: web.URL + "/auth/v1.0", Username: "u", Password: secret}
	err := dial(t, swiftstore.Options{Login: login}).Login(t.Context())
	if err == nil || store.Transient(err) || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the authority: %v", err)
	}
	login.CACert = filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(login.CACert, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	c := dial(t, swiftstore.Options{Login: login})
	if err := c.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Container("c").Metadata(t.Context()); err != nil || proto.Load() != "HTTP/1.1" {
		t.Errorf("%v, over %v", err, proto.Load())
	}
	login.AuthURL = strings.Replace(login.AuthURL, "127.0.0.1", "localhost", 1)
	err = dial(t, swiftstore.Options{Login: login}).Login(t.Context())
	if err == nil || store.Transient(err) || !strings.Contains(err.Error(), "localhost") {
		t.Errorf("under another name: %v", err)
	}
}

// TestKeystoneReal is what the real one says to wrong input.
func TestKeystoneReal(t *testing.T) {
	good := storetest.KeystoneLogin(t)
	for says, change := range map[string]func(*config.Login){
		"authentication failed":        func(l *config.Login) { l.Password = secret },
		`in region "RegionTwo"`:        func(l *config.Login) { l.Region = "RegionTwo" },
		"no authentication of version": func(l *config.Login) { l.AuthURL += "/v3" },
	} {
		l := good
		change(&l)
		err := dial(t, swiftstore.Options{Login: l}).Login(t.Context())
		if err == nil || !strings.Contains(err.Error(), says) || store.Transient(err) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	for _, kind := range []string{"internal", "admin"} {
		l := good
		l.EndpointType = kind
		if err := dial(t, swiftstore.Options{Login: l}).Login(t.Context()); err != nil {
			t.Errorf("endpoint type %s: %v", kind, err)
		}
	}
}

// TestClientCertificate shows a certificate to a server that asks for one, from
// two files and from one; Insecure takes a server that nobody knows.
func TestClientCertificate(t *testing.T) {
	var shown atomic.Int32
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Add(int32(len(r.TLS.PeerCertificates)))
		w.Header().Set("X-Storage-Url", "https://"+r.Host+"/v1/AUTH_test")
		w.Header().Set("X-Auth-Token", "tok")
	}))
	web.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	web.StartTLS()
	defer web.Close()
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		t.Helper()
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// Any certificate will do; the server's own is at hand.
	der, err := x509.MarshalPKCS8PrivateKey(web.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certBlock, keyBlock := &pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}, &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	cert, key, both := write("cert.pem", certBlock), write("key.pem", keyBlock), write("both.pem", certBlock, keyBlock)
	login := config.Login{AuthURL: web.URL + "/auth/v1.0", Username: "u", Password: secret, Insecure: true}
	if err := dial(t, swiftstore.Options{Login: login}).Login(t.Context()); err == nil {
		t.Error("without a certificate: no error")
	}
	for i, files := range [][2]string{{cert, key}, {both, ""}} {
		login.ClientCert, login.ClientKey = files[0], files[1]
		if err := dial(t, swiftstore.Options{Login: login}).Login(t.Context()); err != nil || shown.Load() != int32(i+1) {
			t.Errorf("%q: %v, %d certificates shown", files, err, shown.Load())
		}
	}
	login.Insecure = false
	if err := dial(t, swiftstore.Options{Login: login}).Login(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("not insecure: %v", err)
	}
	for want, files := range map[string][2]string{"key " + cert: {cert, ""}, filepath.Join(dir, "absent"): {cert, filepath.Join(dir, "absent")}} {
		login.ClientCert, login.ClientKey = files[0], files[1]
		if _, err := swiftstore.Dial(swiftstore.Options{Login: login}); err == nil || !strings.Contains(err.Error(), "client certificate: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", files, err, want)
		}
	}
}
