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

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
)

const (
	dialTimeout = 10 * time.Second
	// idleTimeout is how long an unused connection is kept. It is below
	// the 60 s after which Swift's proxy closes it (client_timeout), since a
	// request on a connection that is being closed ends ambiguously.
	idleTimeout = 45 * time.Second
	// bufferSize lets one system call carry a request's header and the first
	// part of its body, or all of it if a chunk has 64 KiB.
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
	// spareConnections are the connections beyond Options.Connections. They are
	// for requests without a limit: a lease's renewal, a login.
	spareConnections = 4
)

// newHTTPTransport returns the connections' pool.
func newHTTPTransport(connections int, l config.Login, readFile func(string) ([]byte, error)) (*http.Transport, error) {
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
				// If a connection is closed or its process is killed, the
				// kernel cuts it. Otherwise the kernel would go on sending for
				// a minute or two, and complete a request that was given up
				// because the right to write has ended.
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
	if l.CACert != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := readFile(l.CACert)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA certificate: %s has no certificate in PEM form", l.CACert)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	if l.ClientCert != "" {
		cert, err := clientCertificate(l, readFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{cert}
	}
	t.TLSClientConfig.InsecureSkipVerify = l.Insecure // the user has asked for it
	return t, nil
}

// clientCertificate reads the client's certificate and its key, which may be in
// one file.
func clientCertificate(l config.Login, readFile func(string) ([]byte, error)) (tls.Certificate, error) {
	cert, err := readFile(l.ClientCert)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, from := cert, l.ClientCert
	if l.ClientKey != "" {
		from = l.ClientKey
		if key, err = readFile(from); err != nil {
			return tls.Certificate{}, err
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("%s, key %s: %w", l.ClientCert, from, err)
	}
	return pair, nil
}

// exchange is one HTTP request and its answer. It goes through ncw/swift in the
// request's context, since ncw/swift keeps neither the headers nor the body of
// an error. Its fields are set before Connection.Call returns.
type exchange struct {
	// data, if not nil, is the request's body. It is passed here and not
	// through Call. Call would put a timer around every read of it, and add an
	// Expect header. After a refused PUT with this header, the next request on
	// the connection fails.
	data []byte
	// login marks a login: the whole answer's body is kept, and a refused
	// one is not tried again in another form, unless probe is set.
	login, probe bool
	// fence, if not nil, must hold as long as the body is being sent.
	fence *store.Fence
	// signed says that the request goes without the token.
	signed bool
	// reads says that the request changes nothing.
	reads bool
	// listing says that the answer is JSON.
	listing bool

	ctx   context.Context // the request's own, whose cause says why the request ended
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

// next returns the next n bytes, or the rest, as long as the right to write
// holds. A process that was stopped in the middle must not finish the request
// when it wakes.
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

// conn is a connection that sends a request's body without a copy. The
// transport would copy the body, and make a system call for each 32 KiB.
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
		if errors.Is(err, io.EOF) {
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

// codingError says that a JSON answer has a coding that was not asked for.
type codingError struct{ coding string }

func (e *codingError) Error() string {
	return fmt.Sprintf("the answer is compressed (Content-Encoding: %s), which was not asked for: a proxy on the way does that", e.coding)
}

// errRefused ends a login that ncw/swift wants to try a second time.
var errRefused = errors.New("login refused")

// roundTripper is between ncw/swift and the transport. It adds the body. It
// stops redirects, since the token would be sent along. It records what
// ncw/swift does not pass on.
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
		return nil, errRefused // the first answer says more
	}
	if coding := resp.Header.Get("Content-Encoding"); good && coding != "" && (x.login || x.listing) {
		resp.Body.Close()
		return nil, &codingError{coding}
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
		// A body that cannot be read does not matter: the status is known.
		x.text, _ = io.ReadAll(io.LimitReader(resp.Body, errorBody))
		_, _ = io.CopyN(io.Discard, resp.Body, errorDrain)
		resp.Body.Close()
		resp.Body = http.NoBody
	}
	return resp, nil
}
