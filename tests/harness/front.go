// SPDX-License-Identifier: MIT

package harness

import (
	"encoding/pem"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// Front is a proxy before a Swift with v1 authentication that is reached by
// https, with a certificate that nobody knows.
type Front struct {
	Cloud   *Cloud // the Swift, reached through the proxy
	URL     string // of the proxy, without a path
	Backend string // the Swift's own, without a path
	CACert  string // a file with the certificate, as cacert takes it
}

// NewFront returns a proxy before a Swift. storage is asked at each login where
// the storage is said to be, and returns a URL without a path; nil stands for
// the proxy.
func NewFront(t testing.TB, c *Cloud, storage func(*Front) string) *Front {
	t.Helper()
	f := &Front{Backend: strings.TrimSuffix(c.AuthURL, "/auth/v1.0")}
	backend, err := url.Parse(f.Backend)
	if err != nil {
		t.Fatal(err)
	}
	if storage == nil {
		storage = func(f *Front) string { return f.URL }
	}
	s := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backend) },
		ModifyResponse: func(r *http.Response) error {
			if said := r.Header.Get("X-Storage-Url"); said != "" {
				r.Header.Set("X-Storage-Url", strings.Replace(said, f.Backend, storage(f), 1))
			}
			return nil
		},
	})
	s.Config.ErrorLog = stdlog.New(io.Discard, "", 0) // the refused handshakes
	s.StartTLS()
	t.Cleanup(s.Close)
	f.URL, f.CACert = s.URL, certificate(t, s)
	f.Cloud = &Cloud{AuthURL: s.URL + "/auth/v1.0", User: c.User, Key: c.Key}
	return f
}

// certificate writes a server's certificate to a file.
func certificate(t testing.TB, s *httptest.Server) (path string) {
	t.Helper()
	block := pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	return WriteFile(t, filepath.Join(TempDir(t), "ca.pem"), string(pem.EncodeToMemory(&block)))
}

// Authority returns a file with some certificate in it.
func Authority(t testing.TB) (path string) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	return certificate(t, s)
}
