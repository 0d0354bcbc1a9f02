// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
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
	late   *store.Stragglers // gets a report if the request was sent and not answered
	signed bool              // params contains a signature
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

// do makes the request. After 401 it repeats the request with a new token, and
// also after 403 from a gateway that means the same by it (see refusals). It
// passes an answer of 2xx to handle, with its body still to be read within the
// request's time. Every other answer becomes an error, with its sentinel from
// codes.
func (c *Client) do(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	if r.fence != nil {
		return c.doFenced(ctx, r, codes, handle)
	}
	return c.withToken(ctx, r, codes, handle)
}

// withToken is do without a look at the fence. A 404 counts only if it is certain; see
// absent.go.
func (c *Client) withToken(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	if r.container == "" {
		return c.withTokens(ctx, r, codes, handle)
	}
	return c.certain(ctx, r.op(), func() (missing bool, err error) {
		err = c.withTokens(ctx, r, codes, handle)
		return absent(err) && !c.firsts.found(r), err
	})
}

// withTokens makes the request, with a new token where it needs one.
func (c *Client) withTokens(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	t, err := c.token(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	for renewals := 0; ; renewals++ {
		sent := time.Now()
		err := c.once(ctx, t, r, codes, handle)
		refused := forbidden(err)
		switch {
		case err == nil:
			c.refused.granted(r)
			return nil
		case refused && t.fresh(sent, time.Now()):
			c.refused.confirm(r, time.Now())
			return err
		case refused && c.auth.Load().login.Token.Reveal() != "":
			return c.refusedGiven(err) // there is no other token
		case refused && c.refused.known(r, time.Now()):
			return err
		case !refused && !errors.Is(err, errToken) || renewals == maxRenewals:
			return err
		}
		next, renewErr := c.renew(ctx, t, false)
		if renewErr != nil {
			return fmt.Errorf("%s: %w", r.op(), renewErr)
		}
		if refused && next.conn.AuthToken == t.conn.AuthToken {
			c.refused.confirm(r, time.Now())
			return err
		}
		t = next
	}
}

// refusedGiven is a 403 to a token that was given to us ready-made. No login can
// tell whether the token may not do that, or has expired.
func (c *Client) refusedGiven(err error) error {
	return fmt.Errorf("%w; the token was given (OS_AUTH_TOKEN), and if it has expired, some gateways answer so", err)
}

// errToken marks a 401: the token is not valid, or no longer.
var errToken = fmt.Errorf("the token is refused: %w", store.ErrUnauthorized)

// once makes the request with the token t.
func (c *Client) once(ctx context.Context, t *token, r request, codes map[int]error, handle func(*exchange) error) error {
	x := &exchange{data: r.body, fence: r.fence, signed: r.signed, reads: r.method == http.MethodGet || r.method == http.MethodHead,
		listing: r.params.Get("format") == "json"}
	bounded, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer func() {
		// After an early answer or an error, the transport may still be sending
		// the body. The caller may change the body only after that. cancel ends
		// the sending, unless all of the body has been read.
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
		return statusError(r.op(), x, codes, append(r.keys(), t.conn.AuthToken)...)
	}
	if r.container != "" && r.object == "" {
		c.firsts.see(r.container, x.header)
	}
	// Read to the end, or else the connection cannot be used again.
	defer x.stream.Close()
	return handle(x)
}

// drain reads the rest of a 2xx answer's body, which should be small. The
// connection can be used again then. drain returns the number of bytes.
func (x *exchange) drain() int64 {
	n, _ := io.CopyN(io.Discard, x.stream, errorDrain)
	return n
}

// readError is the error for a 2xx answer whose body could not be read.
func readError(op string, x *exchange, got int, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		// The error is not wrapped: for a Get, io.ErrUnexpectedEOF means that
		// the object has ended.
		err = fmt.Errorf("the answer was cut short after %d bytes", got)
	}
	return transportError(op, x, err)
}

// transportError is the error for a request without a usable answer.
func transportError(op string, x *exchange, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, since op names the request better
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return &store.TransportError{Op: op, Sent: x.wrote.Load(), Err: cause}
	}
	var (
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
	)
	var (
		dns    *net.DNSError
		record tls.RecordHeaderError
	)
	if coded := new(codingError); errors.As(err, &coded) {
		return fmt.Errorf("%s: %w", op, coded)
	}
	switch {
	case x.wrote.Load():
		// The connection was made, so the network is not the fault.
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s: the server speaks http there, and not https: should the URL begin with http://, or have another port?", op)
	case errors.As(err, &record):
		return fmt.Errorf("%s: what answers there does not speak TLS: should the URL begin with http://, or have another port?", op)
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%s: there is no host of the name %q", op, dns.Name)
	}
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("%s: %w (if the cloud has an authority of its own, give its certificate)", op, err)
	case errors.As(err, &verify), errors.As(err, &host):
		return fmt.Errorf("%s: %w", op, err) // another attempt will not help
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

// keys returns the keys for signatures that the request sets.
func (r *request) keys() (keys []string) {
	for name, v := range r.headers {
		if strings.Contains(strings.ToLower(name), "temp-url-key") {
			keys = append(keys, v)
		}
	}
	return keys
}

// statusError returns the error for an answer that was not expected. It cuts
// the secrets that the request carried from the server's words.
func statusError(op string, x *exchange, codes map[int]error, secrets ...string) error {
	e := &store.StatusError{Op: op, Code: x.status, RetryAfter: x.retryAfter(), Body: errorText(x.text, secrets...)}
	if e.Err = codes[x.status]; e.Err == nil {
		e.Err = general[x.status]
	}
	if errors.Is(e.Err, store.ErrNoSpace) && x.reads {
		e.Err = nil // a read needs no room
	}
	// Swift's pages begin with the status again.
	e.Body = strings.TrimPrefix(e.Body, http.StatusText(x.status)+" ")
	if x.location != "" {
		e.Body = "redirected to " + x.location
	}
	return e
}

// signedURL finds a TempURL's signature in a URL, which some gateways repeat.
var signedURL = regexp.MustCompile(`(?i)(temp_url_sig=)[^&\s"'<>]+`)

// errorWords is how many bytes of an error's body are shown.
const errorWords = 200

// errorText makes one line of the beginning of an error's body. It keeps only
// the words of a page of HTML, and removes the secrets and any signature.
func errorText(body []byte, secrets ...string) string {
	text := signedURL.ReplaceAllString(string(body), "${1}[cut]")
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[cut]")
		}
		// The body may end within a secret.
		for n := len(s) - 1; n >= 4; n-- {
			text = strings.TrimSuffix(text, s[:n])
		}
	}
	var b strings.Builder
	tag := false
	for _, r := range text {
		switch {
		case r == utf8.RuneError || unicode.IsControl(r):
			b.WriteByte(' ')
		case r == '<':
			tag = true
		case r == '>' && tag:
			tag = false
			b.WriteByte(' ')
		case !tag:
			b.WriteRune(r)
		}
		if b.Len() > errorWords {
			break
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
