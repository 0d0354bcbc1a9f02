// SPDX-License-Identifier: MIT

package devswift_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/devswift/conformance"
)

// session is a logged-in client of an embedded Swift.
type session struct {
	t          *testing.T
	url, token string
}

func login(t *testing.T, target conformance.Target) *session {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, target.AuthURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-User", target.User)
	req.Header.Set("X-Auth-Key", target.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return &session{t, resp.Header.Get("X-Storage-Url"), resp.Header.Get("X-Auth-Token")}
}

// try sends a request; the body is read to its end or to the error.
func (s *session) try(ctx context.Context, method, path, body string) (*http.Response, string, error) {
	s.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", s.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp, string(data), err
}

// must sends a request and asks for a status; it gives the body.
func (s *session) must(status int, method, path, body string) string {
	s.t.Helper()
	resp, data, err := s.try(s.t.Context(), method, path, body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	if resp.StatusCode != status {
		s.t.Fatalf("%s %s: status %d, want %d", method, path, resp.StatusCode, status)
	}
	return data
}

func one(a devswift.Action) devswift.FaultFunc {
	return devswift.Rules(devswift.Rule{Prefix: "/v1/AUTH_test/c/o", Times: 1, Action: a})
}

func TestFaultStatus(t *testing.T) {
	srv, target := start(t, devswift.Options{})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")

	srv.SetFault(one(devswift.Action{Status: 503}))
	s.must(503, "PUT", "/c/o", "one")
	s.must(404, "GET", "/c/o", "")

	srv.SetFault(one(devswift.Action{Status: 429, Header: http.Header{"Retry-After": {"7"}}, Body: "slow down"}))
	resp, body, err := s.try(t.Context(), "GET", "/c/o", "")
	if err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" || body != "slow down" {
		t.Errorf("got %v %q, %v", resp, body, err)
	}

	srv.SetFault(one(devswift.Action{Status: 504, After: true}))
	s.must(504, "PUT", "/c/o", "two")
	if got := s.must(200, "GET", "/c/o", ""); got != "two" {
		t.Errorf("a PUT that took effect left %q", got)
	}
}

func TestFaultConnection(t *testing.T) {
	srv, target := start(t, devswift.Options{})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")

	srv.SetFault(one(devswift.Action{Drop: true}))
	if resp, _, err := s.try(t.Context(), "PUT", "/c/o", "one"); err == nil {
		t.Errorf("a dropped connection gave %s", resp.Status)
	}
	s.must(404, "GET", "/c/o", "")

	srv.SetFault(one(devswift.Action{Drop: true, After: true}))
	if resp, _, err := s.try(t.Context(), "PUT", "/c/o", "one"); err == nil {
		t.Errorf("a dropped connection gave %s", resp.Status)
	}
	s.must(200, "GET", "/c/o", "")

	for _, after := range []bool{false, true} {
		srv.SetFault(one(devswift.Action{Hang: true, After: after}))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, _, err := s.try(ctx, "PUT", "/c/o", fmt.Sprint("hung ", after))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hanging request gave %v", err)
		}
		want := map[bool]string{false: "one", true: "hung true"}[after]
		if got := s.must(200, "GET", "/c/o", ""); got != want {
			t.Errorf("behind a hanging PUT, after %v, is %q", after, got)
		}
	}
}

// A client that gave up must not keep a hanging request, and with it
// Server.Close, alive.
func TestFaultHangEnds(t *testing.T) {
	srv, target := start(t, devswift.Options{})
	s := login(t, target)
	srv.SetFault(devswift.Rules(devswift.Rule{Action: devswift.Action{Hang: true}}))
	failed := make(chan error, 1)
	go func() {
		_, _, err := s.try(t.Context(), "GET", "/c/o", "")
		failed <- err
	}()
	underWay(t, srv, 1)
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("a request that hung until Close got an answer")
	}
}

func TestFaultBody(t *testing.T) {
	srv, target := start(t, devswift.Options{})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	body := strings.Repeat("0123456789", 100)
	s.must(201, "PUT", "/c/o", body)

	srv.SetFault(one(devswift.Action{ShortBody: 10}))
	if _, got, err := s.try(t.Context(), "GET", "/c/o", ""); !errors.Is(err, io.ErrUnexpectedEOF) || got != body[:10] {
		t.Errorf("a short body of 10 bytes gave %d bytes and %v", len(got), err)
	}
	srv.SetFault(one(devswift.Action{ShortBody: -1}))
	if _, got, err := s.try(t.Context(), "GET", "/c/o", ""); !errors.Is(err, io.ErrUnexpectedEOF) || got != "" {
		t.Errorf("a body cut at once gave %q and %v", got, err)
	}
	srv.SetFault(one(devswift.Action{Corrupt: true}))
	if got := s.must(200, "GET", "/c/o", ""); got[0] != ^body[0] || got[1:] != body[1:] {
		t.Errorf("a corrupt body begins with %q", got[:5])
	}
	if got := s.must(200, "GET", "/c/o", ""); got != body {
		t.Error("the corruption is in the object itself")
	}
	srv.SetFault(one(devswift.Action{SlowBody: 10_000, Delay: time.Millisecond}))
	if got := s.must(200, "GET", "/c/o", ""); got != body {
		t.Error("a slow body is not whole")
	}
}

// TestRefusedAndGone sends a request that is refused, with its body, and is gone
// before the answer: the server's connection ends, and not by a panic of
// net/http, which would read the body a second time.
func TestRefusedAndGone(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	s, err := devswift.New(devswift.Options{Latency: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(&said, "", 0)
	server.Start()
	for k := range 160 {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		size := []int{10, 3000, 100_000, 300_000}[k%4]
		fmt.Fprintf(conn, "PUT /v1/AUTH_test/c/o HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size-size*(k/4%2)/3))
		time.Sleep(time.Duration(k%40) * time.Millisecond)
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	server.Close() // waits for the connections, and so for all that they say
	if said.Len() > 0 {
		t.Error(said.String())
	}
}

// underWay waits until the server has n requests under way.
func underWay(t *testing.T, s *devswift.Server, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); s.Active() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests are under way; want %d", s.Active(), n)
		}
	}
}

// TestLatency sends requests at many moments, and looks that none is answered
// before its time, and some not long after it; and that who has gone, or waits
// when the server ends, is let go.
func TestLatency(t *testing.T) {
	const latency = 30 * time.Millisecond
	s, err := devswift.New(devswift.Options{Latency: latency})
	if err != nil {
		t.Fatal(err)
	}
	ask := func() time.Duration {
		start := time.Now()
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/healthcheck", nil))
		return time.Since(start)
	}
	var wg sync.WaitGroup
	answers := make([]time.Duration, 200)
	for k := range answers {
		wg.Go(func() {
			time.Sleep(time.Duration(k*k%97) * time.Millisecond)
			answers[k] = ask()
		})
	}
	wg.Wait()
	if first := slices.Min(answers); first < latency || first > latency*3/2 {
		t.Errorf("of %d answers the fastest took %v", len(answers), first)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	slow, err := devswift.New(devswift.Options{Latency: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s = slow
	gone, leave := context.WithCancel(t.Context())
	wg.Go(func() {
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, "GET", "/healthcheck", nil))
	})
	underWay(t, slow, 1)
	leave()
	wg.Wait()
	for range 3 {
		wg.Go(func() { ask() })
	}
	underWay(t, slow, 3)
	if err := slow.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestSkew is the proxy with the slow clock: what it accepts is discarded.
func TestSkew(t *testing.T) {
	srv, target := start(t, devswift.Options{})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	s.must(201, "PUT", "/c/o", "new")
	slow := devswift.Action{Skew: -time.Hour}

	srv.SetFault(one(slow))
	s.must(202, "PUT", "/c/o", "old")
	srv.SetFault(one(slow))
	s.must(409, "DELETE", "/c/o", "")
	srv.SetFault(one(slow))
	s.must(409, "POST", "/c/o", "")
	if got := s.must(200, "GET", "/c/o", ""); got != "new" {
		t.Errorf("a slow proxy's PUT left %q", got)
	}
	s.must(204, "DELETE", "/c/o", "")
	srv.SetFault(one(slow))
	s.must(202, "PUT", "/c/o", "old")
	s.must(404, "GET", "/c/o", "")
	srv.SetFault(one(devswift.Action{Skew: time.Hour}))
	s.must(201, "PUT", "/c/o", "future")
	s.must(202, "PUT", "/c/o", "now")
}

// TestOverlappingPuts is the PUT that starts earlier and ends later than
// another one: it is answered with 201, and lost.
func TestOverlappingPuts(t *testing.T) {
	_, target := start(t, devswift.Options{})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	r, w := io.Pipe()
	req, err := http.NewRequest("PUT", s.url+"/c/o", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", s.token)
	status := make(chan int, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	// More than any buffer on the way holds: once it is written, the server
	// is reading this PUT's body.
	if _, err := w.Write(bytes.Repeat([]byte("early"), 4<<20)); err != nil {
		t.Fatal(err)
	}
	s.must(201, "PUT", "/c/o", "late")
	w.Close()
	if got := <-status; got != 201 {
		t.Errorf("the overlapped PUT gave %d", got)
	}
	if got := s.must(200, "GET", "/c/o", ""); got != "late" {
		t.Errorf("the PUT that began earlier won, with %d bytes", len(got))
	}
}

func TestTokens(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	srv, target := start(t, devswift.Options{Clock: clock, TokenLife: time.Minute})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	if again := login(t, target); again.token != s.token {
		t.Error("a second login gave another token while the first was good")
	}
	mu.Lock()
	now = now.Add(61 * time.Second)
	mu.Unlock()
	s.must(401, "HEAD", "/c", "")
	s = login(t, target)
	s.must(204, "HEAD", "/c", "")
	srv.RevokeTokens()
	s.must(401, "HEAD", "/c", "")
	s = login(t, target)
	s.must(204, "HEAD", "/c", "")
	srv.RevokeToken(s.token)
	s.must(401, "HEAD", "/c", "")
}

func TestJournal(t *testing.T) {
	srv, target := start(t, devswift.Options{Journal: 2})
	s := login(t, target)
	srv.ResetRequests()
	s.must(201, "PUT", "/c", "")
	s.must(201, "PUT", "/c/o", "hello")
	s.must(200, "GET", "/c/o", "")
	s.must(404, "GET", "/c/p", "")
	for _, c := range []struct {
		want   int64
		method string
		status []int
	}{{4, "", nil}, {2, "PUT", nil}, {2, "PUT", []int{201}}, {1, "GET", []int{404}}, {2, "GET", []int{200, 404}}, {0, "DELETE", nil}, {1, "", []int{404}}} {
		if got := srv.Count(c.method, c.status...); got != c.want {
			t.Errorf("Count(%q, %v) is %d, want %d", c.method, c.status, got, c.want)
		}
	}
	records := srv.Requests()
	if len(records) != 2 {
		t.Fatalf("%d records, want the limit of 2", len(records))
	}
	if r := records[1]; r.Method != "PUT" || r.Path != "/v1/AUTH_test/c/o" || r.Status != 201 || r.Received != 5 || r.TransID == "" {
		t.Errorf("record %+v", r)
	}
	srv.ResetRequests()
	if srv.Count("") != 0 || len(srv.Requests()) != 0 {
		t.Error("ResetRequests left something")
	}
}

func TestWithout(t *testing.T) {
	_, target := start(t, devswift.Options{Without: []string{"tempurl", "bulk_delete"}})
	s := login(t, target)
	s.must(201, "PUT", "/c", "")
	s.must(201, "PUT", "/c/o", "x")
	root, _, _ := strings.Cut(s.url, "/v1/")
	resp, err := http.Get(root + "/info")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), `"swift"`) || strings.Contains(string(body), "tempurl") || strings.Contains(string(body), "bulk") {
		t.Errorf("/info %s, %v", body, err)
	}
	s.must(204, "POST", "?bulk-delete", "/c/o") // a POST of the account, and no more
	s.must(200, "GET", "/c/o", "")
}
