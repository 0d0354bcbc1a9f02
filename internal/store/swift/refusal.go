// SPDX-License-Identifier: MIT

package swiftstore

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"swiftnbd/internal/store"
)

// A 403 means one of two things: this token may not do that, or, from older
// gateways, this token has expired. The answers look the same. Only a new token
// shows the difference: if the request is answered 403 again, the refusal is
// real.
//
//
// A 403 is therefore worth one login, with these limits:
//
//   - A token that is younger than freshFor has not expired. Many refusals at
//     once, for example of a list of containers, therefore cost one login.
//   - A refusal that a new token has confirmed is remembered for refusedFor,
//     for the same method and container. An ACL that lets a user read but not
//     write refuses every PUT, and each of them must not cause a login.
//   - A login may return the same token again, as tempauth does while that
//     token lives. It is not sent a second time then.

const (
	// freshFor is how long after its login a token is known to be alive,
	// unless the login has named an earlier end.
	freshFor = time.Second
	// refusedFor is how long a refusal is remembered that was confirmed.
	refusedFor = time.Minute
	// maxRefused bounds the memory: when so many are known, all are forgotten.
	maxRefused = 1000
)

// refusal is what an ACL may refuse: a method on a container.
type refusal struct{ method, container string }

// refusals are the refusals that a new token has confirmed. The zero value is
// ready for use.
type refusals struct {
	any atomic.Bool // whether there are any; mostly there are none

	mu    sync.Mutex
	until map[refusal]time.Time
}

// known says whether such a request was refused a short time ago, with any
// token.
func (f *refusals) known(r request, now time.Time) bool {
	if !f.any.Load() {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return now.Before(f.until[refusal{r.method, r.container}])
}

// confirm remembers that the request was refused with a new token.
func (f *refusals) confirm(r request, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil || len(f.until) >= maxRefused {
		f.until = make(map[refusal]time.Time)
	}
	f.until[refusal{r.method, r.container}] = now.Add(refusedFor)
	f.any.Store(true)
}

// granted forgets a refusal: such a request has succeeded.
func (f *refusals) granted(r request) {
	if !f.any.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.until, refusal{r.method, r.container})
	f.any.Store(len(f.until) > 0)
}

// fresh says whether the token cannot have expired when a request came to Swift that was
// sent and answered then.
func (t *token) fresh(sent, answered time.Time) bool {
	return sent.Sub(t.issued) < freshFor && (t.expires.IsZero() || answered.Before(t.expires))
}

// forbidden says whether the request was answered 403.
func forbidden(err error) bool {
	var se *store.StatusError
	return errors.As(err, &se) && se.Code == http.StatusForbidden && errors.Is(err, store.ErrForbidden)
}
