// SPDX-License-Identifier: MIT

package swiftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/storetest"
)

func TestInfoURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://h:8080/v1/AUTH_test":      "http://h:8080/info",
		"http://h:8080/v1/AUTH_test/":     "http://h:8080/info",
		"https://h/swift/v1/AUTH_x":       "https://h/swift/info",
		"https://h/swift/v1":              "https://h/swift/info",
		"https://h/":                      "https://h/info",
		"https://h/v1/AUTH_%C3%BC?x=1":    "https://h/info",
		"https://h/object-store/v1/AUTH_": "https://h/object-store/info",
	} {
		if got, err := infoURL(in); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestBulkError(t *testing.T) {
	for _, c := range []struct {
		body string
		code int // 0: no error
		is   error
		says string
	}{
		{`{"Response Status": "200 OK", "Number Deleted": 3, "Number Not Found": 1, "Errors": []}`, 0, nil, ""},
		{`{"Response Status": "404 Not Found", "Number Deleted": 0, "Number Not Found": 1, "Errors": []}`, 0, nil, ""},
		{"   \n" + `{"Response Status": "400 Bad Request", "Errors": [["/c/o%201", "409 Conflict"], ["/c/p", "403 Forbidden"]]}`,
			409, store.ErrSuperseded, "/c/o 1"},
		{`{"Response Status": "400 Bad Request", "Errors": [["/c/o", "403 Forbidden"]]}`, 403, store.ErrForbidden, "/c/o"},
		{`{"Response Status": "502 Bad Gateway", "Errors": [["/c/o", "503 Service Unavailable"]]}`, 503, nil, "/c/o"},
		{`{"Response Status": "502 Bad Gateway", "Response Body": "broken", "Errors": []}`, 502, nil, "broken"},
		{`{"Response Status": "401 Unauthorized", "Errors": []}`, 401, errToken, ""},
	} {
		_, err := bulkResult("BULK DELETE c", []byte(c.body))
		if c.code == 0 {
			if err != nil {
				t.Errorf("%s: %v", c.body, err)
			}
			continue
		}
		var se *store.StatusError
		if !errors.As(err, &se) || se.Code != c.code || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.body, err)
		}
	}
	if _, err := bulkResult("BULK DELETE c", []byte(`{"Response Sta`)); !store.Transient(err) || !store.Ambiguous(err) {
		t.Errorf("cut short: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for v, want := range map[string]time.Duration{
			"": 0, "7": 7 * time.Second, "0": 0, "-3": 0, "soon": 0, "99999999999": 24 * time.Hour, "1000000": 24 * time.Hour,
			time.Now().Add(30 * time.Second).UTC().Format(http.TimeFormat):  30 * time.Second,
			time.Now().Add(-30 * time.Second).UTC().Format(http.TimeFormat): 0,
		} {
			x := exchange{header: http.Header{"Retry-After": {v}}}
			if got := x.retryAfter(); got != want {
				t.Errorf("%q: %v, want %v", v, got, want)
			}
		}
	})
}

func TestErrorText(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "",
		"plain\r\n words\t": "plain words",
		"<html><h1>Not Found</h1><p>The resource</p></html>": "Not Found The resource",
		"a > b":             "a > b",
		"\xff\x00<unclosed": "",
	} {
		if got := errorText([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := errorText([]byte(strings.Repeat("word ", 1000))); len(got) > 220 {
		t.Errorf("%d bytes of text", len(got))
	}
}

func TestRenewAt(t *testing.T) {
	now := time.Now()
	for life, left := range map[time.Duration]time.Duration{
		24 * time.Hour: time.Minute, 10 * time.Minute: time.Minute, 100 * time.Second: 20 * time.Second, 2 * time.Second: 400 * time.Millisecond,
	} {
		tok := newToken(nil, "", "u", "t", now, now.Add(life))
		if got := now.Add(life).Sub(tok.renewAt); got != left {
			t.Errorf("life %v: renewed with %v left, want %v", life, got, left)
		}
	}
	for name, expires := range map[string]time.Time{"unknown": {}, "a clock that is ahead": now.Add(-time.Hour)} {
		if tok := newToken(nil, "", "u", "t", now, expires); !tok.renewAt.IsZero() {
			t.Errorf("%s: renewed at %v, want never", name, tok.renewAt)
		}
	}
}

// TestNothingShowsSecrets prints what has a secret in it with every verb.
func TestNothingShowsSecrets(t *testing.T) {
	const secret = "hunter2"
	o := Options{
		Login:   config.Login{AuthURL: "http://h/v3", Username: "u", Password: secret, AppCredentialSecret: secret},
		Session: &Session{StorageURL: "http://h/v1/AUTH_x", Token: secret},
	}
	c, err := Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, v := range []any{o, &o, *o.Session, o.Session, c.Session(), c, c.auth.Load()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, secret) || strings.Contains(s, "68756e74657232") {
				t.Errorf("%T with %s shows the secret", v, verb)
			}
		}
	}
}

// TestSameAccount: a disk must not be continued in another account.
func TestSameAccount(t *testing.T) {
	for _, c := range []struct {
		before, now string
		same        bool
	}{
		{"http://a/v1/AUTH_x", "http://a/v1/AUTH_x", true},
		{"http://a/v1/AUTH_x", "https://b:8080/v1/AUTH_x", true},
		{"http://a/v1/AUTH_x", "http://a/v1/AUTH_y", false},
	} {
		if err := sameAccount(c.before, c.now); (err == nil) != c.same {
			t.Errorf("sameAccount(%q, %q) = %v", c.before, c.now, err)
		}
	}
}

// TestConnReadFrom hands bodies of several lengths to a connection, and looks
// at what comes out at its other end.
func TestConnReadFrom(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := storetest.Bytes(3*pieceSize+17, 1)
	held := new(store.Fence)
	held.Set(store.Grant{})
	lost := new(store.Fence)
	lost.Lose(store.ErrLapsed)
	for _, c := range []struct {
		name  string
		limit int
		body  func() io.Reader
		want  []byte
		err   error
	}{
		{"all", len(data), func() io.Reader { return &requestBody{rest: data, fence: held} }, data, nil},
		{"longer than the limit", pieceSize + 1, func() io.Reader { return &requestBody{rest: data} }, data[:pieceSize+1], nil},
		{"shorter than the limit", len(data) + 1, func() io.Reader { return &requestBody{rest: data} }, data, nil},
		{"nothing", 0, func() io.Reader { return &requestBody{rest: data} }, nil, nil},
		{"not allowed", len(data), func() io.Reader { return &requestBody{rest: data, fence: lost} }, nil, store.ErrLapsed},
		{"another reader", len(data), func() io.Reader { return bytes.NewReader(data) }, data, nil},
	} {
		there, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		here, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte)
		go func() {
			b, err := io.ReadAll(here)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		limited := &io.LimitedReader{R: c.body(), N: int64(c.limit)}
		n, err := conn{there.(*net.TCPConn)}.ReadFrom(limited)
		there.Close()
		if b := <-got; !bytes.Equal(b, c.want) || n != int64(len(c.want)) || !errors.Is(err, c.err) || limited.N != int64(c.limit)-n {
			t.Errorf("%s: %d bytes and %v, %d left to send, %d came; want %d and %v", c.name, n, err, limited.N, len(b), len(c.want), c.err)
		}
		here.Close()
	}
}

// TestBelieved is which 404s count: what was sent after the account's answer, and answered
// within ten seconds of it.
func TestBelieved(t *testing.T) {
	now := time.Now()
	ago := func(s float64) time.Time { return now.Add(-time.Duration(s * float64(time.Second))) }
	for _, tc := range []struct {
		account account
		sent    time.Time
		want    bool
	}{
		{account{}, ago(1), false},
		{account{answered: ago(2)}, ago(1), true},
		{account{answered: ago(1)}, ago(2), false},
		{account{answered: ago(9.9)}, ago(9), true},
		{account{answered: ago(10)}, ago(9), false},
		{account{answered: ago(1), refused: true}, ago(2), true},
		{account{answered: ago(10), refused: true}, ago(2), false},
	} {
		c := &Client{believe: defaultBelieve, account: tc.account}
		if got := c.believed(tc.sent, now); got != tc.want {
			t.Errorf("%+v, sent %v ago: %t", tc.account, now.Sub(tc.sent), got)
		}
	}
}

// TestAccountForgotten has the account not answer a question, after it has answered one
// before: then nothing is believed.
func TestAccountForgotten(t *testing.T) {
	var status atomic.Int64
	var web *httptest.Server
	web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/auth/v1.0" { // a 403 is worth a login
			w.Header().Set("X-Storage-Url", web.URL)
			w.Header().Set("X-Auth-Token", "new")
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer web.Close()
	c, err := Dial(Options{
		Login:   config.Login{AuthURL: web.URL + "/auth/v1.0", Version: 1, Username: "u", Password: "p"},
		Session: &Session{StorageURL: web.URL, Token: "t"}, Believe: time.Nanosecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tc := range []struct {
		status            int64
		answered, refused bool
	}{{204, true, false}, {503, false, false}, {403, true, true}, {204, true, false}, {404, true, true}, {429, false, false}} {
		status.Store(tc.status)
		if refused, err := c.askAccount(t.Context()); refused != tc.refused || (err == nil) != tc.answered {
			t.Errorf("%d: refused is %t, %v", tc.status, refused, err)
		}
		if a := c.account; a.answered.IsZero() == tc.answered || a.refused != tc.refused || a.asking != nil {
			t.Errorf("%d: known is %+v", tc.status, a)
		}
	}
}
