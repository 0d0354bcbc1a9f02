// SPDX-License-Identifier: MIT

package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// wire is one connection on which requests are written byte by byte.
type wire struct {
	*run
	conn net.Conn
	in   *bufio.Reader
	head string // of the last request that was written
}

func (r *run) dial() *wire {
	u, err := url.Parse(r.root)
	if err != nil {
		r.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &wire{run: r, conn: conn, in: bufio.NewReader(conn)}
}

// write sends a request's head, its lines separated by "|", and a body.
func (w *wire) write(head, body string) {
	w.head = head
	head = strings.ReplaceAll(w.names.Replace(head), "|", "\r\n")
	method, rest, _ := strings.Cut(head, " ")
	path, fields, _ := strings.Cut(rest, "\r\n")
	if fields != "" {
		fields += "\r\n"
	}
	fmt.Fprintf(w.conn, "%s %s/v1/%s/%s HTTP/1.1\r\nHost: swift\r\nX-Auth-Token: %s\r\n%s\r\n%s",
		method, strings.TrimPrefix(w.root, w.origin), w.account, path, w.token, fields, body)
}

// read reads one answer from the connection.
func (w *wire) read(method string) (*http.Response, string, error) {
	resp, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// expect reads an answer of a PUT with this status.
func (w *wire) expect(status int) *http.Response {
	w.Helper()
	resp, body, err := w.read(http.MethodPut)
	if err != nil {
		w.Fatalf("want status %d: %v", status, err)
	}
	if resp.StatusCode != status {
		w.fault(w.head, fmt.Sprintf("status %d, want %d; body %q", resp.StatusCode, status, body))
	}
	return resp
}

// alive says whether the connection still takes a request.
func (w *wire) alive() bool {
	w.Helper()
	last := w.head
	w.write("HEAD {c}", "")
	resp, _, err := w.read(http.MethodHead)
	var timeout net.Error
	switch {
	case err == nil:
		if resp.StatusCode != http.StatusNoContent {
			w.fault(last, fmt.Sprintf("next request: status %d, want 204", resp.StatusCode))
		}
		return true
	case errors.As(err, &timeout) && timeout.Timeout():
		w.fault(last, fmt.Sprintf("no answer to the next request, want one or an end: %v", err))
	}
	return false
}

var connectionCases = map[string]func(*run){
	// If a client waits for 100 Continue and is refused, its connection is
	// closed. The answer does not announce that.
	"ExpectRefused": func(r *run) {
		r.do(s("PUT {c}/o", 201).send("x"))
		for head, status := range map[string]int{
			"PUT {d}/o|Content-Length: 5|Expect: 100-continue":                           404,
			"PUT {c}/o|Content-Length: 5|Expect: 100-continue|If-None-Match: *":          412,
			"PUT {c}/o|Content-Length: 5|Expect: 100-continue|If-None-Match: x":          400,
			"PUT {c}/o|Content-Length: 5368709123|Expect: 100-continue":                  413,
			"PUT {c}/o|Transfer-Encoding: chunked|Expect: 100-continue|If-None-Match: *": 412,
		} {
			w := r.dial()
			w.write(head, "")
			resp := w.expect(status)
			if resp.Close {
				r.fault(head, "the answer announces that the connection closes, want no such header")
			}
			if w.alive() {
				r.fault(head, "the connection goes on, want its end")
			}
		}
	},
	"ExpectGranted": func(r *run) {
		w := r.dial()
		w.write("PUT {c}/o|Content-Length: 5|Expect: 100-continue", "")
		w.expect(100)
		io.WriteString(w.conn, "hello")
		w.expect(201)
		w.write("PUT {c}/o|Content-Length: 5|Expect: 100-continue|Etag: wrong", "")
		w.expect(100)
		io.WriteString(w.conn, "other")
		w.expect(422)
		if !w.alive() {
			r.fault(w.head, "the connection ended, want another request")
		}
		r.do(s("GET {c}/o", 200).text("hello"))
	},
	// Without Expect the body of a refused request is read, and the connection goes on.
	"BodyOfRefused": func(r *run) {
		long := strings.Repeat("x", 1<<20)
		for _, c := range []struct {
			head, body string
			status     int
		}{
			{"PUT {d}/o|Content-Length: 5", "hello", 404},
			{"PUT {d}/o|Content-Length: 1048576", long, 404},
			{"PUT {c}/o|Content-Length: 1048576|If-None-Match: x", long, 400},
			{"PUT {c}/o|Content-Length: 1048576|Etag: wrong", long, 422},
			{"PUT {d}/o|Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", 404},
		} {
			w := r.dial()
			w.write(c.head, c.body)
			w.expect(c.status)
			if !w.alive() {
				r.fault(c.head, "the connection ended, want another request")
			}
		}
	},
	"Length": func(r *run) {
		w := r.dial()
		w.write("PUT {c}/o", "")
		w.expect(411)
		if !w.alive() {
			r.fault(w.head, "the connection ended, want another request")
		}
		w.write("PUT {c}/o|Content-Length: x", "")
		w.expect(400)
		w = r.dial()
		w.write("PUT {c}/o|Content-Length: 5368709123", "")
		w.expect(413)
		// A body that ends early stores nothing.
		w = r.dial()
		w.write("PUT {c}/o|Content-Length: 10", "short")
		w.conn.Close()
		r.do(s("GET {c}/o", 404))
	},
}
