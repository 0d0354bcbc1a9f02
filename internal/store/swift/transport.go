// SPDX-License-Identifier: MIT

package swiftstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/store"
)

const (
	dialTimeout = 10 * time.Second
	// idleTimeout is how long an unused connection is kept. It is below
	// the 60 s after which Swift's proxy closes it (client_timeout), since a
	// request on a connection that is being closed ends ambiguously.
	idleTimeout = 45 * time.Second
	// bufferSize lets one system call carry a request's header with the
	// first part of its body: with all of it, where a chunk has 64 KiB.
	bufferSize = 64 << 10
	headerRoom = 4 << 10
	// pieceSize is how much of a body is sent between two looks at the right
	// to write.
	pieceSize = 256 << 10
	// errorBody is how much of an unwanted answer's body is kept, errorDrain
	// how much more is read so that the connection can be used again.
	errorBody  = 1 << 10
	errorDrain = 256 << 10
	// loginBody bounds a login's answer: Keystone catalogues are large.
	loginBody = 8 << 20
	// spareConnections are those beyond Options.Connections, for the
	// requests that no limit holds back: a lease's renewal, a login.
	spareConnections = 4
)

// newHTTPTransport returns the connections' pool.
func newHTTPTransport(connections int, caCert string, readFile func(string) ([]byte, error)) (*http.Transport, error) {
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 4,
		},
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if tcp, ok := c.(*net.TCPConn); ok {
				// A connection that is closed, or whose process was killed, is
				// cut: or else the kernel goes on for a minute or two to send
				// what it has taken, and a request that was given up, because
				// the right to write has ended, is completed without us.
				_ = tcp.SetLinger(0) // best effort
				return conn{tcp}, nil
			}
			return c, err
		},
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: connections + spareConnections,
		MaxConnsPerHost:     connections + spareConnections,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true, // chunks are read as they are
		WriteBufferSize:     bufferSize + headerRoom,
		ReadBufferSize:      bufferSize,
		Protocols:           new(http.Protocols),
	}
	// HTTP/2 would carry all requests over a single TCP connection.
	t.Protocols.SetHTTP1(true)
	if caCert != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := readFile(caCert)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA certificate: %s has no certificate in PEM form", caCert)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

// exchange is one HTTP request and what came of it. It travels in the
// request's context through ncw/swift, which keeps neither an error answer's
// headers nor its body. Its fields are set before Connection.Call returns.
type exchange struct {
	// data, when not nil, is the request's body. It is handed over here and
	// not through Call, which would put a timer around every read of it, and
	// add an Expect header: after a refused PUT with one the connection's
	// next request fails.
	data []byte
	// login marks a login: the whole answer's body is kept, and a refused
	// one is not tried again in another form, unless probe is set.
	login, probe bool
	// fence, when not nil, has to hold as long as the body is being sent.
	fence *store.Fence
	// signed says that the request goes without the token.
	signed bool

	ctx   context.Context // the request's own, for telling why it ended
	open  sync.WaitGroup  // request bodies that the transport has not closed yet
	wrote atomic.Bool     // a whole request header has been written

	status   int
	header   http.Header
	location string        // the Location header of a redirect, which is not followed
	text     []byte        // the body of a login, or the beginning of an error's
	stream   io.ReadCloser // the body of a 2xx answer
}

type exchangeKey struct{}

// attach returns a context in which x records the request made with it.
func (x *exchange) attach(ctx context.Context) context.Context {
	x.ctx = ctx
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { x.wrote.Store(true) },
	})
}

// retryAfter is the answer's Retry-After header, which holds seconds or a
// date; 0 where there is none. It is a day at most.
func (x *exchange) retryAfter() time.Duration {
	const most = 24 * time.Hour
	v := x.header.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s > 0 {
		return time.Duration(min(s, int(most/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(0, time.Until(at)), most)
	}
	return 0
}

// requestBody is the body of one request; the transport closes it once it no
// longer looks at the data, which may be after RoundTrip has returned.
type requestBody struct {
	rest  []byte // what is still to be sent
	fence *store.Fence
	once  sync.Once
	done  func()
}

// next gives the next n bytes, or those that are left, as long as the right to
// write holds: a process that was stopped in the middle must not finish what it
// began when it wakes.
func (b *requestBody) next(n int) ([]byte, error) {
	if b.fence != nil {
		if err := b.fence.Check(); err != nil {
			return nil, err
		}
	}
	if len(b.rest) == 0 {
		return nil, io.EOF
	}
	piece := b.rest[:min(n, len(b.rest))]
	b.rest = b.rest[len(piece):]
	return piece, nil
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	piece, err := b.next(len(p))
	return copy(p, piece), err
}

func (b *requestBody) Close() error {
	b.once.Do(b.done)
	return nil
}

func (x *exchange) newBody() io.ReadCloser {
	x.open.Add(1)
	return &requestBody{rest: x.data, done: x.open.Done, fence: x.fence}
}

// conn is a connection that takes a request's body from where it lies. The
// transport would copy it, and make a system call of each 32 KiB.
type conn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom for what the transport sends through it.
func (c conn) ReadFrom(r io.Reader) (n int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	body, ok := limited.R.(*requestBody)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	for limited.N > 0 {
		piece, err := body.next(int(min(limited.N, pieceSize)))
		if err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		limited.N -= int64(len(piece))
		sent, err := c.Write(piece)
		n += int64(sent)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// errRefused ends a login that ncw/swift wants to try a second time.
var errRefused = errors.New("login refused")

// roundTripper sits between ncw/swift and the transport. It adds the body; it
// lets no redirect be followed, since the token would be sent along; and it
// records what ncw/swift does not pass on.
//
// It has no method CloseIdleConnections: ncw/swift calls that at every login.
type roundTripper struct{ base *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	x, _ := req.Context().Value(exchangeKey{}).(*exchange)
	if x == nil {
		return nil, errors.New("swiftstore: request without an exchange")
	}
	if x.login && x.status != 0 && !x.probe {
		return nil, errRefused
	}
	r := req.WithContext(req.Context()) // a shallow copy
	if x.signed {
		r.Header = r.Header.Clone()
		r.Header.Del("X-Auth-Token")
	}
	if x.data != nil {
		r.TransferEncoding = nil // ncw/swift wants it chunked
		r.ContentLength = int64(len(x.data))
		if len(x.data) == 0 {
			r.Body = http.NoBody
		} else {
			r.Body = x.newBody()
			r.GetBody = func() (io.ReadCloser, error) { return x.newBody(), nil }
		}
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	good := resp.StatusCode >= 200 && resp.StatusCode <= 299
	if x.status != 0 && !good {
		resp.Body.Close()
		return nil, errRefused // the first answer tells more
	}
	x.status, x.header = resp.StatusCode, resp.Header
	x.location = resp.Header.Get("Location")
	if resp.StatusCode >= 300 && resp.StatusCode <= 399 {
		resp.Header.Del("Location") // or else http.Client follows it
	}
	switch {
	case x.login:
		x.text, err = io.ReadAll(io.LimitReader(resp.Body, loginBody))
		resp.Body.Close()
		if err != nil {
			x.status = 0
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(x.text))
	case good:
		x.stream = resp.Body
	default:
		// What cannot be read is not missed: the status is known.
		x.text, _ = io.ReadAll(io.LimitReader(resp.Body, errorBody))
		_, _ = io.CopyN(io.Discard, resp.Body, errorDrain)
		resp.Body.Close()
		resp.Body = http.NoBody
	}
	return resp, nil
}
