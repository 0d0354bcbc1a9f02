// SPDX-License-Identifier: MIT

// Package swiftstore is the store in OpenStack Swift: containers reached with
// HTTP through ncw/swift, with its own connection pool, its own login and its
// own reading of the answers. FACTS behind each are in docs/DESIGN.md.
//
// # Logging in
//
// The current token is a *token in an atomic pointer, and its address is its
// generation. A request that is answered 401 hands in the generation that it
// used: where the current one is another, the request is repeated with that;
// where it is the same, one login is made for all who ask meanwhile. A login
// never changes a connection that is in use: it makes a new one.
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
	// refusalHold is how long a refused login's answer stands for the
	// requests that come after it: a cloud may lock an account after a few
	// wrong passwords. A login that failed in another way stands for a part
	// of that first, for longer each time it fails again, or for as long as
	// the answer asks, up to maxHold: with all requests asking by themselves
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
	Timeout   time.Duration
	UserAgent string
	// Session, when not nil, is an earlier login's: none is made until it
	// is refused.
	Session *Session
	// ReadFile reads Login.CACert; nil means os.ReadFile. Whoever has given
	// up the right to read it has it kept elsewhere.
	ReadFile func(path string) ([]byte, error)
}

// Session is what a login gave, for handing it from one process to another.
// The token is as good as a password: it is written only by who reveals it.
type Session struct {
	StorageURL string
	Token      config.Secret
	Expires    time.Time // zero: not known
}

// Format implements fmt.Formatter without the token. config.Secret's own does
// not do for it: fmt calls no methods where a verb does not fit the type.
func (s Session) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "session at "+s.StorageURL) }

// Format implements fmt.Formatter without secrets; see Session.Format.
func (o Options) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "container %q, user %q at %s, %d connections, timeout %v",
		o.Container, o.Login.Username, redactURL(o.Login.AuthURL), o.Connections, o.Timeout)
}

// Format implements fmt.Formatter without secrets; see Session.Format.
func (c *Client) Format(f fmt.State, verb rune) { c.auth.Format(f, verb) }

// Client is a Swift account. It may be used by many goroutines.
type Client struct {
	auth      auth
	container string
	timeout   time.Duration
	userAgent string
	transport *http.Transport
	rt        roundTripper

	life context.Context // ends with Close
	end  context.CancelCauseFunc
	work sync.WaitGroup // logins

	current atomic.Pointer[token] // nil until the first login
	logins  atomic.Int64

	// mu guards the rest. It is never held across a request.
	mu        sync.Mutex
	flight    *flight   // the login that is being made, or nil
	failed    error     // the last login's end, where it failed
	failures  int       // how many have failed one after the other
	heldUntil time.Time // no login before
	sticky    bool      // a login gave the token that there was already
	info      *Info     // once known
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
	t, err := newHTTPTransport(cmp.Or(o.Connections, DefaultConnections), o.Login.CACert, o.ReadFile)
	if err != nil {
		return nil, err
	}
	c := &Client{
		auth: a, container: o.Container, timeout: cmp.Or(o.Timeout, DefaultTimeout),
		userAgent: cmp.Or(o.UserAgent, "swiftnbd"), transport: t, rt: roundTripper{t},
	}
	c.life, c.end = context.WithCancelCause(context.Background())
	if s := o.Session; s != nil && s.StorageURL != "" && s.Token != "" {
		c.current.Store(newToken(c.rt, c.userAgent, s.StorageURL, s.Token.Reveal(), time.Now(), s.Expires))
	}
	return c, nil
}

// Login makes one login now, whatever is known already. It ends with
// store.ErrUnauthorized where the credentials are refused.
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
	return Session{StorageURL: t.conn.StorageUrl, Token: config.Secret(t.conn.AuthToken), Expires: t.expires}
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
	c.mu.Unlock()
	c.work.Wait()
	c.transport.CloseIdleConnections()
}

// token returns the current token, and logs in first where there is none.
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

// renew returns a token newer than seen. One login serves all who wait for it
// at the same time; force makes one even after a refusal a moment ago.
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
		return nil, &store.TransportError{Op: c.auth.op(), Err: context.Cause(ctx)}
	}
}

// renewAhead begins a login for t, whose end is near, unless one is under way.
// Nobody waits for it: t still holds.
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
		// Not the context of a request: others wait for this login too.
		ctx, cancel := context.WithTimeoutCause(c.life, min(loginTimeout, c.timeout), errTimeout)
		defer cancel()
		c.logins.Add(1)
		f.token, f.err = c.auth.logIn(ctx, c.rt, c.userAgent)
		c.mu.Lock()
		if old := c.current.Load(); f.err == nil && old != nil {
			f.err = sameAccount(old.conn.StorageUrl, f.token.conn.StorageUrl)
		}
		f.err = c.holdLocked(f.err)
		c.flight = nil
		if f.err == nil {
			// tempauth gives out the token that it has until it ends:
			// asking ahead of time is no use there.
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

// holdLocked notes how a login has ended, and until when nobody asks again. It
// returns the error that the login ends with.
func (c *Client) holdLocked(err error) error {
	var se *store.StatusError
	answered := errors.As(err, &se)
	if err == nil || !answered && !errors.Is(err, store.ErrUnauthorized) {
		// A server that does not answer is not made worse by asking.
		c.failed, c.failures = nil, 0
		return err
	}
	if answered && se.Code == http.StatusForbidden && c.current.Load() != nil {
		// A wrong password is 401. Servers that limit logins say this too.
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

// sameAccount ends with an error where a login leads to another account than
// the one before it: half of a disk here and half of it there is worse than
// none. Another host, or the way to it, may be the same cluster's.
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
