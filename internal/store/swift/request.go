// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// errTimeout is the cause of a request's end by Options.Timeout.
var errTimeout = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// maxRenewals is how many new tokens one request asks for before its 401 is
// final. One is enough unless tokens live for seconds: then the second token
// may have been old already when it was used.
const maxRenewals = 2

// request is one request to the account, or to a container or object in it.
type request struct {
	method    string
	container string
	object    string
	params    url.Values
	headers   swift.Headers
	body      []byte // nil: none
	target    string // another URL than the storage URL's, or ""
	bulk      bool   // a bulk request: Op says so
	// fence, when not nil, is the right to make this request; see fence.go.
	fence  *store.Fence
	signed bool // params has a signature
}

// op is the request's name in errors.
func (r *request) op() string {
	s := r.method
	if r.bulk {
		s = "BULK DELETE"
	}
	if r.container != "" {
		s += " " + r.container
	}
	if r.object != "" {
		s += "/" + r.object
	}
	if r.target != "" {
		s += " " + r.target
	}
	return store.OneLine(s)
}

// do makes the request, again with a new token where it is answered 401. Any
// answer of 2xx is handed to handle with its body still to be read, within the
// request's time; every other becomes an error, with the sentinel that codes
// has for it.
func (c *Client) do(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	if r.fence != nil {
		return c.doFenced(ctx, r, codes, handle)
	}
	return c.withToken(ctx, r, codes, handle)
}

// withToken is do, whoever has the right to make the request.
func (c *Client) withToken(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	t, err := c.token(ctx)
	for renewals := 0; ; renewals++ {
		if err != nil {
			return fmt.Errorf("%s: %w", r.op(), err)
		}
		err = c.once(ctx, t, r, codes, handle)
		if !errors.Is(err, errToken) || renewals == maxRenewals {
			return err
		}
		t, err = c.renew(ctx, t, false)
	}
}

// errToken marks a 401: the token is not, or no longer, good.
var errToken = fmt.Errorf("the token is refused: %w", store.ErrUnauthorized)

// once makes the request with the token t.
func (c *Client) once(ctx context.Context, t *token, r request, codes map[int]error, handle func(*exchange) error) error {
	x := &exchange{data: r.body, fence: r.fence, signed: r.signed}
	bounded, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer func() {
		// The transport may still be sending the body after an early
		// answer or an error. It has to let go of it before the caller
		// may change it: cancel ends it, unless all has been read.
		cancel()
		x.open.Wait()
	}()
	target := t.conn.StorageUrl
	if r.target != "" {
		target = r.target
	}
	headers := r.headers
	_, _, err := t.conn.Call(x.attach(bounded), target, swift.RequestOpts{
		Container: r.container, ObjectName: r.object, Operation: r.method,
		Parameters: r.params, Headers: headers,
	})
	switch {
	case x.status == 0:
		return transportError(r.op(), x, err)
	case x.status < 200 || x.status > 299:
		return statusError(r.op(), x, codes)
	}
	// Read to the end, or else the connection cannot be used again.
	defer x.stream.Close()
	return handle(x)
}

// drain reads what is left of a 2xx answer's body, which should be little, so
// that the connection can be used again. It returns the number of bytes.
func (x *exchange) drain() int64 {
	n, _ := io.CopyN(io.Discard, x.stream, errorDrain)
	return n
}

// readError is the error for a 2xx answer whose body could not be read.
func readError(op string, x *exchange, got int, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		// Not wrapped: io.ErrUnexpectedEOF is a Get behind the object's end.
		err = fmt.Errorf("the answer was cut short after %d bytes", got)
	}
	return transportError(op, x, err)
}

// transportError is the error for a request without a usable answer.
func transportError(op string, x *exchange, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which op says better
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return &store.TransportError{Op: op, Sent: x.wrote.Load(), Err: cause}
	}
	var (
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
	)
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("%s: %w (if the cloud has an authority of its own, give its certificate)", op, err)
	case errors.As(err, &verify), errors.As(err, &host):
		return fmt.Errorf("%s: %w", op, err) // trying again will not help
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("the connection was closed before an answer came: %w", err)
	case err == nil:
		err = errors.New("no answer")
	}
	return &store.TransportError{Op: op, Sent: x.wrote.Load(), Err: err}
}

// general has the sentinels that hold for every request.
var general = map[int]error{
	http.StatusUnauthorized:          errToken,
	http.StatusForbidden:             store.ErrForbidden,
	http.StatusRequestEntityTooLarge: store.ErrNoSpace, // a quota
	http.StatusInsufficientStorage:   store.ErrNoSpace,
}

// statusError is the error for an answer that was not wanted.
func statusError(op string, x *exchange, codes map[int]error) error {
	e := &store.StatusError{Op: op, Code: x.status, RetryAfter: x.retryAfter(), Body: errorText(x.text)}
	if e.Err = codes[x.status]; e.Err == nil {
		e.Err = general[x.status]
	}
	if x.location != "" {
		e.Body = "redirected to " + x.location
	}
	return e
}

// errorText makes one line of the beginning of an error's body. A page of HTML
// is cut to its words.
func errorText(body []byte) string {
	var b strings.Builder
	tag := false
	for _, r := range string(body) {
		switch {
		case r == utf8.RuneError || r < ' ' || r == 0x7f:
			b.WriteByte(' ')
		case r == '<':
			tag = true
		case r == '>' && tag:
			tag = false
			b.WriteByte(' ')
		case !tag:
			b.WriteRune(r)
		}
		if b.Len() > 200 {
			break
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
