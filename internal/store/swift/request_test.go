// SPDX-License-Identifier: MIT

package swiftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/devswift"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
	swiftstore "swiftnbd/internal/store/swift"
)

// prepared is an embedded Swift with the container c and the object o in it.
func prepared(t *testing.T, o swiftstore.Options) (*devswift.Server, store.Store, []byte) {
	t.Helper()
	server, login := embedded(t, devswift.Options{})
	o.Login = login
	s := dial(t, o).Container("c")
	if _, err := s.CreateContainer(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	data := storetest.Bytes(300_000, 1)
	if err := s.Put(t.Context(), "o", data, storetest.Sum(data)); err != nil {
		t.Fatal(err)
	}
	return server, s, data
}

// onObjects harms the requests of a method for objects.
func onObjects(method string, a devswift.Action) devswift.FaultFunc {
	return devswift.Rules(devswift.Rule{Method: method, Prefix: "/v1/AUTH_test/c/", Action: a})
}

// TestStatuses is what each answer becomes.
func TestStatuses(t *testing.T) {
	server, s, data := prepared(t, swiftstore.Options{})
	ctx := t.Context()
	do := map[string]func() error{
		"GET": func() error {
			_, err := s.Get(ctx, "o", make([]byte, len(data)), store.GetOptions{})
			return err
		},
		"HEAD":   func() error { _, err := s.Head(ctx, "o"); return err },
		"PUT":    func() error { return s.Put(ctx, "o", data, storetest.Sum(data)) },
		"DELETE": func() error { return s.Delete(ctx, "o") },
	}
	for _, c := range []struct {
		code                 int
		methods              string
		is                   error
		transient, ambiguous bool
	}{
		{202, "PUT", store.ErrSuperseded, false, false},
		{200, "PUT", nil, false, false},
		{204, "PUT GET", nil, false, false},
		{202, "DELETE", nil, false, false},
		{409, "DELETE", store.ErrSuperseded, false, false},
		{409, "PUT GET", nil, true, false},
		{404, "GET HEAD DELETE", store.ErrNotFound, false, false},
		{404, "PUT", store.ErrContainerNotFound, false, false},
		{412, "GET HEAD", store.ErrPrecondition, false, false},
		{403, "GET HEAD PUT DELETE", store.ErrForbidden, false, false},
		{413, "PUT", store.ErrNoSpace, false, false},
		{507, "PUT", store.ErrNoSpace, true, true},
		{408, "GET HEAD PUT DELETE", nil, true, true},
		{429, "GET HEAD PUT DELETE", nil, true, false},
		{498, "GET HEAD PUT DELETE", nil, true, false},
		{497, "GET HEAD PUT DELETE", nil, false, false},
		{500, "GET HEAD PUT DELETE", nil, true, true},
		{502, "GET HEAD PUT DELETE", nil, true, true},
		{503, "GET HEAD PUT DELETE", nil, true, true},
		{504, "GET HEAD PUT DELETE", nil, true, true},
		{422, "PUT", nil, false, false},
	} {
		for _, method := range strings.Fields(c.methods) {
			server.SetFault(onObjects(method, devswift.Action{
				Status: c.code, Header: http.Header{"Retry-After": {"9"}}, Body: "too\nbad",
			}))
			err := do[method]()
			var se *store.StatusError
			if !errors.As(err, &se) || se.Code != c.code {
				t.Errorf("%s %d: %v", method, c.code, err)
				continue
			}
			if c.is != nil && !errors.Is(err, c.is) || c.is == nil && se.Err != nil {
				t.Errorf("%s %d: %v, want %v", method, c.code, se.Err, c.is)
			}
			if store.Transient(err) != c.transient || store.Ambiguous(err) != c.ambiguous {
				t.Errorf("%s %d: transient %v, ambiguous %v", method, c.code, store.Transient(err), store.Ambiguous(err))
			}
			if c.code >= 300 && se.RetryAfter != 9*time.Second {
				t.Errorf("%s %d: Retry-After %v", method, c.code, se.RetryAfter)
			}
			if s := err.Error(); !strings.HasPrefix(s, method+" c/o: ") || strings.Contains(s, "\n") {
				t.Errorf("%s %d: error %q", method, c.code, s)
			}
			if c.code > 404 && method != "HEAD" && se.Body != "too bad" {
				t.Errorf("%s %d: body %q", method, c.code, se.Body)
			}
		}
	}
}

// TestSlowClock is a proxy whose clock is behind: what it is sent is discarded.
func TestSlowClock(t *testing.T) {
	server, s, data := prepared(t, swiftstore.Options{})
	server.SetFault(onObjects("", devswift.Action{Skew: -time.Hour}))
	other := storetest.Bytes(100, 2)
	if err := s.Put(t.Context(), "o", other, storetest.Sum(other)); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("put: %v", err)
	}
	if err := s.Delete(t.Context(), "o"); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("delete: %v", err)
	}
	server.SetFault(nil)
	if info, err := s.Head(t.Context(), "o"); err != nil || info.ETag != storetest.Sum(data) {
		t.Errorf("the store has %+v, %v", info, err)
	}
}

// TestBrokenConnections are transport errors that say whether the request may
// have taken effect.
func TestBrokenConnections(t *testing.T) {
	server, s, data := prepared(t, swiftstore.Options{Timeout: 700 * time.Millisecond})
	ctx := t.Context()
	p := make([]byte, len(data))
	for name, c := range map[string]struct {
		fault  devswift.FaultFunc
		do     func() error
		writes bool
		says   string
	}{
		"dropped GET": {onObjects("GET", devswift.Action{Drop: true}),
			func() error { _, err := s.Get(ctx, "o", p, store.GetOptions{}); return err }, false, ""},
		"dropped PUT": {onObjects("PUT", devswift.Action{Drop: true}),
			func() error { return s.Put(ctx, "o2", data, storetest.Sum(data)) }, true, ""},
		"dropped PUT after the effect": {onObjects("PUT", devswift.Action{Drop: true, After: true}),
			func() error { return s.Put(ctx, "o2", data, storetest.Sum(data)) }, true, ""},
		"dropped DELETE": {onObjects("DELETE", devswift.Action{Drop: true}),
			func() error { return s.Delete(ctx, "o2") }, true, ""},
		"hanging PUT": {onObjects("PUT", devswift.Action{Hang: true}),
			func() error { return s.Put(ctx, "o2", data, storetest.Sum(data)) }, true, "no answer in time"},
		"hanging GET": {onObjects("GET", devswift.Action{Hang: true}),
			func() error { _, err := s.Get(ctx, "o", p, store.GetOptions{}); return err }, false, "no answer in time"},
		"short GET": {onObjects("GET", devswift.Action{ShortBody: 100_000}),
			func() error { _, err := s.Get(ctx, "o", p, store.GetOptions{Whole: true}); return err }, false, "cut short after 100000 bytes"},
		"GET of headers alone": {onObjects("GET", devswift.Action{ShortBody: -1}),
			func() error { _, err := s.Get(ctx, "o", p, store.GetOptions{}); return err }, false, "cut short after 0 bytes"},
		"slow GET": {onObjects("GET", devswift.Action{SlowBody: 1000}),
			func() error { _, err := s.Get(ctx, "o", p, store.GetOptions{}); return err }, false, "no answer in time"},
		"short listing": {devswift.Rules(devswift.Rule{Method: "GET", Prefix: "/v1/AUTH_test/c", Action: devswift.Action{ShortBody: 10}}),
			func() error { _, err := s.List(ctx, store.ListOptions{}); return err }, false, "cut short"},
	} {
		server.SetFault(c.fault)
		err := c.do()
		var te *store.TransportError
		if !errors.As(err, &te) || !store.Transient(err) || c.writes && !te.Sent || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %#v", name, err)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v looks like the object's end", name, err)
		}
	}
	// All is well again.
	server.SetFault(nil)
	if _, err := s.Get(ctx, "o", p, store.GetOptions{}); err != nil || !bytes.Equal(p, data) {
		t.Error(err)
	}
}

// TestNeverSent is a connection that never came about.
func TestNeverSent(t *testing.T) {
	session := swiftstore.Session{StorageURL: "http://127.0.0.1:1/v1/AUTH_test", Token: "tok"}
	c := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: "http://127.0.0.1:1/auth/v1.0", Username: "u"}})
	err := c.Container("c").Put(t.Context(), "o", nil, "")
	var te *store.TransportError
	if !errors.As(err, &te) || te.Sent {
		t.Errorf("%#v", err)
	}
}

// TestCancelledGet lets go of the buffer: the race detector watches.
func TestCancelledGet(t *testing.T) {
	server, s, data := prepared(t, swiftstore.Options{})
	server.SetFault(onObjects("GET", devswift.Action{SlowBody: 100_000}))
	for range 5 {
		gone := errors.New("unloaded")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
		p := make([]byte, len(data))
		if _, err := s.Get(ctx, "o", p, store.GetOptions{}); !errors.Is(err, gone) {
			t.Errorf("get: %v", err)
		}
		clear(p)
		// Until the server has noticed, it sends.
		eventually(t, "the server has noticed", func() bool { return server.Active() == 0 })
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Error("something wrote into the buffer after Get had returned")
		}
	}
}

// TestEarlyAnswer refuses a PUT before its body has been read; the data is the
// caller's again when Put returns: the race detector watches.
func TestEarlyAnswer(t *testing.T) {
	var expect atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Expect") != "" {
			expect.Add(1)
		}
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	defer web.Close()
	session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok"}
	c := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL, Username: "u"}})
	s := c.Container("c")
	data := make([]byte, 8<<20)
	refused := 0
	for i := range 20 {
		err := s.Put(t.Context(), "o", data, "")
		if errors.Is(err, store.ErrNoSpace) {
			refused++
		} else if !store.Ambiguous(err) { // the connection was closed under it
			t.Errorf("%v", err)
		}
		data[i]++
		data[len(data)-1-i]++
	}
	if refused == 0 {
		t.Error("the answer was never seen")
	}
	if expect.Load() != 0 {
		t.Error("the Expect header was sent")
	}
}

// TestConnectionsAreKept makes every kind of request, good and bad, one after
// the other, over one connection.
func TestConnectionsAreKept(t *testing.T) {
	server, err := devswift.New(devswift.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var opened atomic.Int32
	web := httptest.NewUnstartedServer(server)
	web.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	web.Start()
	defer web.Close()
	c := dial(t, swiftstore.Options{Login: config.Login{AuthURL: web.URL + "/auth/v1.0", Username: "test:tester", Password: "testing"}})
	s := c.Container("c")
	ctx := t.Context()
	data := storetest.Bytes(500_000, 1)
	p := make([]byte, len(data))
	long := strings.Repeat("sorry ", 20_000)
	server.SetFault(devswift.Rules(devswift.Rule{Method: "GET", Prefix: "/v1/AUTH_test/c/broken", Action: devswift.Action{Status: 500, Body: long}}))
	for i := range 10 {
		name := fmt.Sprint("o", i)
		_, _ = s.Get(ctx, "broken", p, store.GetOptions{})
		_, _ = s.CreateContainer(ctx, nil)
		_ = s.Put(ctx, name, data, storetest.Sum(data))
		_ = s.Put(ctx, name, data, "0123456789abcdef0123456789abcdef") // 422
		_, _ = s.Get(ctx, name, p, store.GetOptions{Whole: true})
		_, _ = s.Get(ctx, name, p[:1000], store.GetOptions{Offset: 1000})
		_, _ = s.Get(ctx, name, p[:len(p)-1000], store.GetOptions{Whole: true})
		_, _ = s.Get(ctx, name, p[:10], store.GetOptions{Offset: 1 << 30}) // 416
		_, _ = s.Get(ctx, name, p[:10], store.GetOptions{IfMatch: "0"})    // 412
		_, _ = s.Get(ctx, name, p[:10], store.GetOptions{Offset: 499_995}) // short
		_, _ = s.Get(ctx, "absent", p, store.GetOptions{})                 // 404
		_, _ = s.Head(ctx, name)
		_, _ = s.MetadataHint(ctx) // the other, several at once
		_ = s.SetMetadata(ctx, map[string]string{"A": "b"})
		_, _ = s.List(ctx, store.ListOptions{})
		_ = s.DeleteContainer(ctx) // 409
		_ = s.BulkDelete(ctx, []string{"absent"})
		_ = s.Delete(ctx, name)
		_ = s.Delete(ctx, name) // 404
		if i%3 == 0 {
			server.RevokeTokens()
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections were opened for requests one after the other", n)
	}
}

// TestRedirect is not followed: the token would go with it.
func TestRedirect(t *testing.T) {
	var leaked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	defer other.Close()
	for _, code := range []int{301, 302, 303, 307, 308} {
		web := httptest.NewServer(http.RedirectHandler(other.URL+"/elsewhere", code))
		session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok"}
		c := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL, Username: "u"}})
		s := c.Container("c")
		_, err := s.Get(t.Context(), "o", make([]byte, 10), store.GetOptions{})
		if err == nil || store.Transient(err) || !strings.Contains(err.Error(), "redirected to "+other.URL) {
			t.Errorf("get, %d: %v", code, err)
		}
		if err := s.Put(t.Context(), "o", []byte("x"), ""); err == nil {
			t.Errorf("put, %d: no error", code)
		}
		web.Close()
	}
	if leaked.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// TestOddAnswers come from servers that are not quite Swift.
func TestOddAnswers(t *testing.T) {
	content := "0123456789"
	var answer http.HandlerFunc
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer web.Close()
	session := swiftstore.Session{StorageURL: web.URL + "/v1/AUTH_test", Token: "tok"}
	c := dial(t, swiftstore.Options{Session: &session, Login: config.Login{AuthURL: web.URL, Username: "u"}})
	s := c.Container("c")
	p := make([]byte, 3)
	get := func(o store.GetOptions) (string, store.ObjectInfo, error) {
		info, err := s.Get(t.Context(), "o", p, o)
		return string(p), info, err
	}

	// Ranges are ignored, the ETag is quoted and upper case.
	answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Etag", `"ABC"`)
		w.Header().Set("Last-Modified", "Fri, 20 Nov 2026 07:33:58 GMT")
		_, _ = io.WriteString(w, content)
	}
	if got, info, err := get(store.GetOptions{Offset: 4}); err != nil || got != "456" || info.Size != 10 || info.ETag != "abc" ||
		!info.LastModified.Equal(time.Date(2026, 11, 20, 7, 33, 58, 0, time.UTC)) {
		t.Errorf("ranges ignored: %q, %+v, %v", got, info, err)
	}
	// The length is not given.
	answer = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, content[:5])
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, content[5:])
	}
	if got, info, err := get(store.GetOptions{Whole: true}); err != nil || got != "012" || info.Size != 10 {
		t.Errorf("without a length: %q, %+v, %v", got, info, err)
	}
	// Another range than was asked for, or none that can be read.
	for _, v := range []string{"bytes 0-2/10", "bytes 4-6/*", "4-6/10", "bytes 4-6/5", ""} {
		answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", v)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "012")
		}
		if _, _, err := get(store.GetOptions{Offset: 4}); err == nil || !strings.Contains(err.Error(), "Content-Range") {
			t.Errorf("Content-Range %q: %v", v, err)
		}
	}
	// Stored, but not what was sent.
	answer = func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Etag", "0123")
		w.WriteHeader(http.StatusCreated)
	}
	if err := s.Put(t.Context(), "o", []byte("x"), storetest.Sum([]byte("x"))); err == nil || !strings.Contains(err.Error(), "0123") {
		t.Errorf("another ETag: %v", err)
	}
	// A listing that is none.
	answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "o1\no2\n") }
	if _, err := s.List(t.Context(), store.ListOptions{}); err == nil {
		t.Error("a plain listing: no error")
	}
}
