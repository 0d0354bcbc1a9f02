// SPDX-License-Identifier: MIT

// Package swiftstore is the store in OpenStack Swift. It reaches containers with
// HTTP through ncw/swift, with a connection pool and a login of its own, and it
// reads the answers itself. docs/PROTOCOL.md has the facts behind each of these.
//
// # Logging in
//
// The current token is a *token in an atomic pointer, and its address is its
// generation. A request that is answered 401 hands in the generation that it has
// used. If the current generation is another one, the request is repeated with
// that. If it is the same, one login is made for all requests that ask meanwhile.
// A login never changes a connection that is in use: it makes a new one.
// refusal.go says what a 403 means.
package swiftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
)

const (
	// DefaultConnections is how many requests at once the connection pool
	// is made for, unless Options say.
	DefaultConnections = 16
	// DefaultTimeout bounds one request, unless Options say.
	DefaultTimeout = 60 * time.Second
	// loginTimeout bounds one login.
	loginTimeout = 30 * time.Second
	// refusalHold is how long the answer to a refused login counts for later
	// requests: a cloud may lock an account after a few wrong passwords. A
	// login that failed in another way counts for a part of that time at first,
	// and for longer each time it fails again. If the answer asks for a time,
	// it counts for that, up to maxHold. If every request logged in by itself,
	// a server that limits logins would never let us in again.
	refusalHold = 5 * time.Second
	firstHold   = 100 * time.Millisecond
	maxHold     = 30 * time.Second
)

// Options is how to reach a Swift account.
type Options struct {
	Login config.Login
	// Container is the name that Store uses; Container takes any.
	Container string
	// Connections is how many requests at once the pool of connections is
	// made for; 0 means DefaultConnections.
	Connections int
	// Timeout bounds one request, with sending and reading its body; 0
	// means DefaultTimeout.
	Timeout time.Duration
	// Believe is how long 404s are believed after an answer of the account, as absent.go
	// says; 0 means 10 s. Negative: never without a question. Tests set it, whose account
	// servers come and go quickly.
	Believe   time.Duration
	UserAgent string
	// Session, if not nil, is the result of an earlier login. No login is made
	// until it is refused.
	Session *Session
	// ReadFile reads Login.CACert, ClientCert and ClientKey; nil means os.ReadFile. A process that has
	// given up the right to read the file has kept its content elsewhere.
	ReadFile func(path string) ([]byte, error)
	// Source, if not nil, is where Login came from. It is read again when the
	// login is refused; see again.go.
	Source *Source
}

// Session is the result of a login. One process may hand it to another. The
// token is as valuable as a password. Only code that calls Reveal can write it.
type Session struct {
	StorageURL string
	Own        string // the storage URL of the login's own account; empty: not known
	Token      config.Secret
	Expires    time.Time // zero: not known
}

// Format implements fmt.Formatter without the token. config.Secret's own Format
// is not enough: if a verb does not fit the type, fmt calls no methods of its
// fields.
func (s Session) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "session at "+s.StorageURL) }

// Format implements fmt.Formatter without secrets; see Session.Format.
func (o Options) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "container %q, user %q at %s, %d connections, timeout %v",
		o.Container, o.Login.Username, redactURL(o.Login.AuthURL), o.Connections, o.Timeout)
}

// Format implements fmt.Formatter without secrets; see Session.Format.
func (c *Client) Format(f fmt.State, verb rune) { c.auth.Load().Format(f, verb) }

// Client is a Swift account. It may be used by many goroutines.
type Client struct {
	auth      atomic.Pointer[auth] // a login changes it, and nothing else
	container string
	timeout   time.Duration
	believe   time.Duration
	userAgent string
	transport *http.Transport
	rt        roundTripper

	life context.Context // ends with Close
	end  context.CancelCauseFunc
	work sync.WaitGroup // logins

	current atomic.Pointer[token] // nil until the first login
	logins  atomic.Int64
	again   again // of the login that is being made
	refused refusals
	firsts  firsts

	// mu guards the rest. It is never held across a request.
	mu        sync.Mutex
	flight    *flight   // the login that is being made, or nil
	failed    error     // the error of the last login, if it failed
	failures  int       // the number of logins that have failed one after the other
	heldUntil time.Time // no login before
	sticky    bool      // a login returned the token that we had already
	info      *Info     // once known
	// byAccount says that writes are signed with the account's key. accountKey
	// is that key, if it is known; see fence.go.
	byAccount  bool
	accountKey string

	limits  limits // the limits that have refused PUTs
	account account

	options Options            // of Dial
	others  map[string]*Client // by their storage URLs: see At
}

// flight is one login that several requests may wait for. token and err are
// set before done is closed.
type flight struct {
	done  chan struct{}
	token *token
	err   error
}

var errClosed = errors.New("the connection to Swift has been closed")

// Dial prepares a Client and checks its options; no request is made yet.
func Dial(o Options) (*Client, error) {
	a, err := newAuth(o.Login)
	if err != nil {
		return nil, err
	}
	if o.Connections < 0 || o.Timeout < 0 {
		return nil, fmt.Errorf("connections %d, timeout %v: must not be negative", o.Connections, o.Timeout)
	}
	if o.ReadFile == nil {
		o.ReadFile = os.ReadFile
	}
	t, err := newHTTPTransport(cmp.Or(o.Connections, DefaultConnections), o.Login, o.ReadFile)
	if err != nil {
		return nil, err
	}
	c := &Client{
		container: o.Container, timeout: cmp.Or(o.Timeout, DefaultTimeout), believe: cmp.Or(o.Believe, defaultBelieve),
		userAgent: cmp.Or(o.UserAgent, "swiftnbd"), transport: t, rt: roundTripper{t},
	}
	c.options = o
	c.auth.Store(&a)
	c.life, c.end = context.WithCancelCause(context.Background())
	if s := o.Session; s != nil && s.StorageURL != "" && s.Token != "" {
		t := newToken(c.rt, c.userAgent, s.StorageURL, s.Token.Reveal(), time.Now(), s.Expires)
		t.own = s.Own
		t.issued = time.Time{} // its age is not known
		c.current.Store(t)
	}
	return c, nil
}

// Login makes one login now, even if there is a token. If the credentials are
// refused, it ends with store.ErrUnauthorized.
func (c *Client) Login(ctx context.Context) error {
	_, err := c.renew(ctx, c.current.Load(), true)
	return err
}

// Session returns the current token for handing over; it is empty before the
// first login.
func (c *Client) Session() Session {
	t := c.current.Load()
	if t == nil {
		return Session{}
	}
	return Session{StorageURL: t.conn.StorageUrl, Own: t.own, Token: config.Secret(t.conn.AuthToken), Expires: t.expires}
}

// Logins returns how many logins have been made, successful or not.
func (c *Client) Logins() int64 { return c.logins.Load() }

// Container returns the container of that name, which need not exist.
func (c *Client) Container(name string) store.Store { return &container{client: c, name: name} }

// Store returns the container that Options named.
func (c *Client) Store() store.Store { return c.Container(c.container) }

// Close ends logins that are being made and closes connections that are not in
// use. Requests under way are ended by their contexts.
func (c *Client) Close() {
	c.mu.Lock() // so that no login begins after the Wait
	c.end(errClosed)
	others := c.others
	c.mu.Unlock()
	for _, other := range others {
		other.Close()
	}
	c.work.Wait()
	c.transport.CloseIdleConnections()
}

// token returns the current token. If there is none, it logs in first.
func (c *Client) token(ctx context.Context) (*token, error) {
	t := c.current.Load()
	if t == nil {
		return c.renew(ctx, nil, false)
	}
	if !t.renewAt.IsZero() && time.Now().After(t.renewAt) {
		if t.ahead.CompareAndSwap(false, true) {
			c.renewAhead(t)
		}
	}
	return t, nil
}

// renew returns a token newer than seen. One login serves all requests that
// wait for it at the same time. With force it logs in even if a login was
// refused a moment ago.
func (c *Client) renew(ctx context.Context, seen *token, force bool) (*token, error) {
	c.mu.Lock()
	if t := c.current.Load(); t != seen && !force {
		c.mu.Unlock()
		return t, nil
	}
	if left := time.Until(c.heldUntil); !force && c.failed != nil && left > 0 {
		err := c.failed
		c.mu.Unlock()
		var se *store.StatusError
		if errors.As(err, &se) && se.RetryAfter > 0 {
			still := *se
			still.RetryAfter = left
			err = &still
		}
		return nil, err
	}
	f, err := c.flyLocked()
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return nil, &store.TransportError{Op: c.auth.Load().op(), Err: context.Cause(ctx)}
	}
}

// renewAhead begins a login, unless one is under way, because the end of t is
// near. No request waits for it: t is still valid.
func (c *Client) renewAhead(t *token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current.Load() == t {
		_, _ = c.flyLocked()
	}
}

// flyLocked joins the login that is being made, or begins one.
func (c *Client) flyLocked() (*flight, error) {
	if c.flight != nil {
		return c.flight, nil
	}
	if c.life.Err() != nil {
		return nil, errClosed
	}
	f := &flight{done: make(chan struct{})}
	c.flight = f
	c.work.Add(1)
	go func() {
		defer c.work.Done()
		// The login does not use the context of a request, since others wait
		// for it too.
		ctx, cancel := context.WithTimeoutCause(c.life, min(loginTimeout, c.timeout), errTimeout)
		defer cancel()
		c.logins.Add(1)
		var by *auth
		by, f.token, f.err = c.logIn(ctx, c.current.Load())
		c.mu.Lock()
		if old := c.current.Load(); f.err == nil && old != nil {
			f.err = sameAccount(old.conn.StorageUrl, f.token.conn.StorageUrl)
		}
		f.err = c.holdLocked(f.err)
		c.flight = nil
		if f.err == nil {
			if by != c.auth.Load() {
				c.auth.Store(by)
				c.sticky = false
			}
			// tempauth returns the same token until it ends. A login ahead of
			// time is of no use there.
			if old := c.current.Load(); old != nil && old.conn.AuthToken == f.token.conn.AuthToken {
				c.sticky = true
			}
			if c.sticky {
				f.token.renewAt = time.Time{}
			}
			c.current.Store(f.token)
		}
		c.mu.Unlock()
		close(f.done)
	}()
	return f, nil
}

// holdLocked notes how a login has ended, and until when no other is made. It
// returns the error of the login.
func (c *Client) holdLocked(err error) error {
	var se *store.StatusError
	answered := errors.As(err, &se)
	if err == nil || !answered && !errors.Is(err, store.ErrUnauthorized) {
		// To ask a server that does not answer does no harm.
		c.failed, c.failures = nil, 0
		return err
	}
	if answered && se.Code == http.StatusForbidden && c.current.Load() != nil {
		// The answer to a wrong password is 401. Servers that limit logins
		// answer 403.
		err = &store.TransportError{Op: se.Op, Err: errors.New("403 Forbidden, though these credentials were good before")}
	}
	hold := refusalHold
	if answered && !errors.Is(err, store.ErrUnauthorized) {
		hold = firstHold << min(c.failures, 10)
		hold = max(min(hold, refusalHold, c.timeout/8), min(se.RetryAfter, maxHold, c.timeout/2))
	}
	c.failures++
	c.failed, c.heldUntil = err, time.Now().Add(hold)
	return err
}

// sameAccount returns an error if a login leads to another account than the one
// before: half of a disk here and half of it there is worse than none. Another
// host or scheme is allowed, since it may belong to the same cluster.
func sameAccount(before, now string) error {
	a, err := url.Parse(before)
	if err != nil {
		return err
	}
	b, err := url.Parse(now)
	if err != nil {
		return err
	}
	if a.Path != b.Path {
		return fmt.Errorf("%w: it leads to the account %s now, and led to %s", store.ErrUnauthorized, b.Path, a.Path)
	}
	return nil
}
