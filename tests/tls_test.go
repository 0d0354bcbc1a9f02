// SPDX-License-Identifier: MIT

package tests

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"swiftnbd/tests/harness"
)

// TestTLS reaches Swift by https with a certificate that only cacert knows,
// given as a parameter and as a key of the secrets file; without it nothing
// is served.
func TestTLS(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	backend, err := url.Parse(strings.TrimSuffix(c.AuthURL, "/auth/v1.0"))
	if err != nil {
		t.Fatal(err)
	}
	var front *httptest.Server
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backend) },
		ModifyResponse: func(r *http.Response) error {
			if storage := r.Header.Get("X-Storage-Url"); storage != "" {
				r.Header.Set("X-Storage-Url", strings.Replace(storage, backend.String(), front.URL, 1))
			}
			return nil
		},
	}
	front = httptest.NewUnstartedServer(proxy)
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshakes
	front.StartTLS()
	t.Cleanup(front.Close)

	ca := certificate(t, front)
	secure := harness.Cloud{AuthURL: front.URL + "/auth/v1.0", User: c.User, Key: c.Key}
	plain := []string{name, "secrets=" + harness.Secrets(t, secure.Section(name))}

	harness.Fail(t, harness.Options{Mode: harness.Background, Params: plain}).Want(t, name, "certificate")
	for _, params := range [][]string{
		append(plain, "cacert="+ca),
		{name, "secrets=" + harness.Secrets(t, secure.Section(name, "cacert = "+ca))},
	} {
		n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
		harness.RoundTrip(t, n.URI, harness.Random(71, diskSize))
		n.Stop(t)
		unlocked(t, account, name)
	}
}

// certificate writes a server's certificate to a file, as cacert takes it.
func certificate(t testing.TB, s *httptest.Server) (path string) {
	path = filepath.Join(harness.TempDir(t), "ca.pem")
	harness.WriteFile(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return path
}

// authority returns a file with some certificate in it.
func authority(t testing.TB) (path string) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	return certificate(t, s)
}

// TestCACertUnprivileged gives a cacert that only root can read to an nbdkit
// that serves as nobody.
func TestCACertUnprivileged(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, _, _ := volume(t, c)
	secrets := harness.Secrets(t, c.Section(name, "cacert = "+authority(t)))
	n := harness.Serve(t, harness.Options{Mode: harness.Background, Args: []string{"-u", "nobody", "-g", "nogroup"},
		Params: []string{name, "secrets=" + secrets}})
	harness.RoundTrip(t, n.URI, harness.Random(72, diskSize))
	n.Stop(t)
}
