// SPDX-License-Identifier: MIT

package tests

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"swiftnbd/tests/harness"
)

// TestStorageURLInClear logs in by https and is given a storage URL of http.
// Where the same host answers by https, that is taken; otherwise one line has
// both URLs, and nothing is sent there, unless storage-url names it.
func TestStorageURLInClear(t *testing.T) {
	t.Parallel()
	c := harness.Dev(t)
	name, account, _ := volume(t, c)
	// The login gives the proxy's own host by http, as from a Swift that does not
	// know of the proxy; or, beside, another host.
	var beside atomic.Bool
	var inClear atomic.Int32 // requests to that host with a token
	var besideURL string
	front := harness.NewFront(t, c, func(f *harness.Front) string {
		if beside.Load() {
			return besideURL
		}
		return strings.Replace(f.URL, "https:", "http:", 1)
	})
	backend, err := url.Parse(front.Backend)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backend) }}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Auth-Token") != "" {
			inClear.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(other.Close)
	besideURL = strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	secure, ca := front.Cloud, front.CACert
	secrets := harness.Secrets(t, secure.Section(name))
	params := []string{name, "secrets=" + secrets, "cacert=" + ca}

	n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
	harness.RoundTrip(t, n.URI, harness.Random(73, diskSize))
	n.Stop(t)
	unlocked(t, account, name)

	beside.Store(true)
	clearURL := besideURL + "/v1/AUTH_test"
	harness.Fail(t, harness.Options{Mode: harness.Background, Params: params}).
		Want(t, name, front.URL+"/auth/v1.0", clearURL, "unencrypted", "storage-url")
	info := []string{"--secrets", secrets, "--cacert", ca, "info", name}
	r := harness.Run(t, harness.Built(t, "swiftnbd-ctl"), info...)
	if r.Status != 1 || !strings.Contains(r.Stderr, clearURL) || !strings.Contains(r.Stderr, front.URL) || strings.Contains(r.Stderr, "tried") {
		t.Errorf("info: status %d, %s", r.Status, r.Stderr)
	}
	if n := inClear.Load(); n != 0 {
		t.Errorf("%d requests have sent a token in clear", n)
	}

	// Told so, by the parameter, by the key and by the option.
	for _, params := range [][]string{
		append(params, "storage-url="+clearURL+"/"),
		{name, "cacert=" + ca, "secrets=" + harness.Secrets(t, secure.Section(name, "storage-url = "+clearURL))},
	} {
		before := inClear.Load()
		n := harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
		harness.RoundTrip(t, n.URI, harness.Random(74, diskSize))
		n.Stop(t)
		if inClear.Load() == before {
			t.Error("the storage URL that was named has not been used")
		}
	}
	harness.Must(t, harness.Built(t, "swiftnbd-ctl"), append([]string{"--storage-url", clearURL}, info...)...)
}
