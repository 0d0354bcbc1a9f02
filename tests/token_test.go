// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// TestTokenDies403 serves a disk from a Swift whose tokens live for seconds and
// then are answered 403, as older gateways do it: the client reads, writes and
// flushes on, the lease is renewed, and the mark goes at the end.
func TestTokenDies403(t *testing.T) {
	t.Parallel()
	objects := harness.TempDir(t)
	cloud, p := harness.OwnDev(t, "--dir", objects, "--token-life", "3s", "--dead-token", "403")
	name, account, params := volume(t, cloud)
	account.Write011(t, name, map[int][]byte{9: harness.Random(91, objectSize)})
	dir := harness.TempDir(t)
	want, got := filepath.Join(dir, "want"), filepath.Join(dir, "got")
	harness.WriteFile(t, want, string(harness.Random(91, objectSize)))
	cache := "cache=2M"
	if harness.Format() == 2 {
		cache = "cache=5M" // its chunks are larger
	}
	n := harness.Serve(t, harness.Options{Mode: harness.Captive, Params: append(params, "lease=10", "timeout=20", cache)})
	client := harness.StartNbdsh(t, n.URI, fmt.Sprintf(`
import time
end = time.monotonic() + 14
i = 0
while time.monotonic() < end:
    h.pwrite(bytes([i %% 255 + 1]) * 4096, (20 + i %% 64) * 65536)
    h.flush()
    assert h.pread(65536, 9 * 65536) == open(%[1]q, "rb").read()
    i += 1
    time.sleep(0.1)
last = (20 + (i - 1) %% 64) * 65536
open(%[2]q, "wb").write(last.to_bytes(8, "little") + h.pread(4096, last))
`, want, got))
	if status := client.Wait(t); status != 0 {
		t.Errorf("client: status %d\n%s", status, client.Output())
	}
	n.Stop(t)
	p.Signal(t, syscall.SIGTERM)
	p.Wait(t)
	// The test's own tokens last.
	cloud, _ = harness.OwnDev(t, "--dir", objects)
	account = cloud.Account(t)
	last, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	offset := 0
	for i, b := range last[:8] {
		offset |= int(b) << (8 * i)
	}
	if !bytes.Equal(account.Read011(t, name)[offset:][:4096], last[8:]) {
		t.Error("Swift does not hold what was flushed last")
	}
	unlocked(t, account, name)
}

// TestRefusedIsEIO has Swift refuse, with tokens that are good, to read an
// object and to change the container: the client gets EIO and not EPERM, for
// which a file system would take its disk for read-only. The mark cannot be
// removed then, and nbdkit does not end with 0.
func TestRefusedIsEIO(t *testing.T) {
	t.Parallel()
	dev, _ := harness.OwnDev(t)
	target, err := url.Parse(dev.AuthURL)
	if err != nil {
		t.Fatal(err)
	}
	target.Path = ""
	var name string
	var refuses atomic.Bool
	relay := httputil.NewSingleHostReverseProxy(target) // with our Host: the login's answer leads here again
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		object := r.Method == http.MethodGet && (strings.HasSuffix(r.URL.Path, "/disk.part/00000009") || strings.HasSuffix(r.URL.Path, "/swiftnbd/log/00000000-000000000001"))
		change := r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/"+name)
		if refuses.Load() && (object || change) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		relay.ServeHTTP(w, r)
	}))
	defer web.Close()
	cloud := &harness.Cloud{AuthURL: web.URL + "/auth/v1.0", User: dev.User, Key: dev.Key}
	name, account, params := volume(t, cloud)
	account.Write011(t, name, map[int][]byte{9: harness.Random(91, objectSize)})
	n := serve(t, append(params, "timeout=5")...)
	client := act(t, n.URI, `
h.pwrite(b"A" * 4096, 0)
h.flush()
reached("refuse")
until("refused")
for i in range(3):
    try: h.pread(4096, 9 * 65536)
    except nbd.Error as e: assert e.errno == "EIO", e
    else: raise SystemExit("no error")
assert h.pread(4096, 0) == b"A" * 4096
h.pwrite(b"B" * 4096, 0)
h.flush()
`)
	client.reached("refuse")
	refuses.Store(true)
	client.tell("refused")
	client.done()
	n.Server.Signal(t, syscall.SIGTERM)
	if status := n.Server.Wait(t); status != 1 {
		t.Errorf("the disk is left locked, and nbdkit ended with status %d; want 1", status)
	}
	n.Said(t, "release the lock mark", "403")
	if account.Holder(t, name) == "" {
		t.Error("there is no mark")
	}
}
