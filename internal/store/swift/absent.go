// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"swiftnbd/internal/store"
)

// A 404 does not always mean that the thing is not there. While no account server
// answers, and the proxies have forgotten what they knew (after a minute at most), Swift
// takes no container for there: every request to one is 404, and so are PUT and DELETE of
// an object, also within a bulk delete. It does not say 503, since its proxy looks only
// whether it has found the account (swift/proxy/controllers/base.py, account_info and
// container_info). GET and HEAD of an object then look in the first storage policy: an
// object of another policy is 404, too. If we believed that, a lease would be lost for
// good, a chunk with data would be a hole, and garbage would never be deleted.
//
// So a 404 counts only if its request was sent after the account had answered a HEAD, and
// was answered soon after that: the HEAD has put the account into the proxies' memory.
// Otherwise the account is asked first, once for all that wait, and the request is made
// once more. A request that is signed needs no such care: without the account Swift has no
// key, and answers 401. Nor does a GET or HEAD of an object in a container of the first
// policy, once an answer of the container has named that: it is found in any case.

const (
	// defaultBelieve is how long 404s are believed after an answer of the account, unless
	// Options say. The proxies remember the account for 60 s
	// (recheck_account_existence), if they have a memcached that does not fail.
	defaultBelieve = 10 * time.Second
	// askTimeout bounds the question. Together with defaultBelieve it is well within what
	// the proxies remember.
	askTimeout = 20 * time.Second
)

// firstPolicy is the name of the storage policy with the number 0. No other one may have
// it (swift/common/storage_policy.py).
const firstPolicy = "Policy-0"

// firsts are the containers that are known to be of the first storage policy. The zero
// value is ready for use.
type firsts struct {
	mu    sync.Mutex // guards names
	names map[string]bool
}

// found says whether Swift looks in the right place for what the request reads, with the
// account or without it.
func (f *firsts) found(r request) bool {
	if r.object == "" || r.method != http.MethodGet && r.method != http.MethodHead {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.names[r.container]
}

// see notes the policy that a container's answer names.
func (f *firsts) see(container string, h http.Header) {
	policy := h.Get("X-Storage-Policy")
	if policy == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = make(map[string]bool)
	}
	f.names[container] = policy == firstPolicy
}

// account is what is known of the account. Client.mu guards it.
type account struct {
	answered time.Time // when it answered last; zero if it did not when it was asked last
	refused  bool      // the answer was that we may not ask, which guests get
	asking   *question // that is being asked, or nil
}

// question is a HEAD of the account that several requests may wait for. refused and err
// are set before done is closed.
type question struct {
	done    chan struct{}
	refused bool
	err     error
}

// certain makes a request. If its answer is that something is missing, and that cannot be
// believed, it makes the request once more when the account has answered. What the request
// says then counts: it was sent after that.
func (c *Client) certain(ctx context.Context, op string, request func() (missing bool, err error)) error {
	sent := time.Now()
	missing, err := request()
	if !missing || c.believed(sent, time.Now()) {
		return err
	}
	switch refused, asked := c.askAccount(ctx); {
	case asked != nil && ctx.Err() != nil:
		return &store.TransportError{Op: op, Err: context.Cause(ctx)}
	case asked != nil:
		return notCertain(op, asked)
	case refused:
		return err // nobody can find out
	}
	_, err = request()
	return err
}

// believed says whether a 404 counts, to a request that was sent and answered then.
func (c *Client) believed(sent, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &c.account
	return c.rememberedLocked(now) && (a.refused || !sent.Before(a.answered))
}

// rememberedLocked says whether the account has answered a short time ago.
func (c *Client) rememberedLocked(now time.Time) bool {
	return !c.account.answered.IsZero() && now.Sub(c.account.answered) < c.believe
}

// askAccount makes a HEAD of the account, unless it has answered a short time ago. A
// final answer other than success is no error: it is refused, and we cannot find out.
func (c *Client) askAccount(ctx context.Context) (refused bool, err error) {
	c.mu.Lock()
	if c.rememberedLocked(time.Now()) {
		defer c.mu.Unlock()
		return c.account.refused, nil
	}
	q := c.account.asking
	if q == nil {
		if c.life.Err() != nil {
			c.mu.Unlock()
			return false, errClosed
		}
		q = &question{done: make(chan struct{})}
		c.account.asking = q
		c.work.Add(1)
		go c.ask(q)
	}
	c.mu.Unlock()
	select {
	case <-q.done:
		return q.refused, q.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// ask asks the question. It does not use the context of a request, since others wait for
// it, too.
func (c *Client) ask(q *question) {
	defer c.work.Done()
	ctx, cancel := context.WithTimeoutCause(c.life, min(askTimeout, c.timeout), errTimeout)
	defer cancel()
	q.err = c.withTokens(ctx, request{method: http.MethodHead}, nil, func(x *exchange) error {
		x.drain()
		return nil
	})
	var se *store.StatusError
	if errors.As(q.err, &se) && !store.Transient(q.err) && !se.Unsent {
		q.refused, q.err = true, nil
	}
	c.mu.Lock()
	c.account = account{refused: q.refused}
	if q.err == nil {
		c.account.answered = time.Now()
	}
	c.mu.Unlock()
	close(q.done)
}

// absent says whether the request was answered that the thing is not there.
func absent(err error) bool {
	var se *store.StatusError
	return errors.As(err, &se) && se.Code == http.StatusNotFound && !se.Unsent
}

// notCertain is the error for a 404 that cannot be believed, since the account does not
// answer. The request has had no effect, and may be made again, unless what failed is final.
func notCertain(op string, err error) error {
	err = fmt.Errorf("404 Not Found, which is not certain, since the account does not answer: %w", err)
	if !store.Transient(err) {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &store.TransportError{Op: op, Err: err}
}
