// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
)

// A password or an application credential may be changed while a disk is served,
// for months. When a login is refused, the place that it came from is read again.
// If it has another login, that one is tried, and counts from then on.
//
// The new login must lead to the same account at the same host. Another account
// may have a container of the same name: the disk would change under its client.

// readAgain is how long the source of a login is not read again after it was.
const readAgain = 5 * time.Second

// Source is the place that a login came from.
type Source struct {
	// Read reads the place again. It returns the login that is there now, and the
	// name of the place for messages.
	Read func() (now config.Login, place string, err error)
	// Quiet says that nothing is said if there is no other login.
	Quiet bool
	// Used, if not nil, is told the login that counts from now on.
	Used func(now config.Login)
	// Log gets lines for the operator.
	Log func(format string, args ...any)
}

// again is what is known of the Source. Only the login under way uses it, and
// there is never more than one.
type again struct {
	until time.Time // the source is not read before
	now   config.Login
	place string
	err   error
	told  string // the last line, which is not repeated
}

// read reads the source, or returns what it had a moment ago.
func (g *again) read(s *Source) (config.Login, string, error) {
	if time.Now().After(g.until) {
		g.now, g.place, g.err = s.Read()
		g.until = time.Now().Add(readAgain)
	}
	return g.now, g.place, g.err
}

// log logs a line of the login under way, unless it was the last one.
func (c *Client) log(format string, args ...any) {
	line := store.OneLine(fmt.Sprintf(format, args...))
	if line == c.again.told {
		return
	}
	c.again.told = line
	c.options.Source.Log("%s", line)
}

// logIn makes a login. If it is refused, and its source has another one now, it
// makes that one. It returns which of them has succeeded.
func (c *Client) logIn(ctx context.Context, old *token) (*auth, *token, error) {
	a, s := c.auth.Load(), c.options.Source
	t, err := a.logIn(ctx, c.rt, c.userAgent, old)
	if s == nil || !refusedLogin(err) {
		return a, t, err
	}
	now, place, readErr := c.again.read(s)
	if readErr != nil {
		c.log("the login is refused, and where it came from cannot be used: %v", readErr)
		return a, nil, fmt.Errorf("%w; where it came from cannot be used: %w", err, readErr)
	}
	if config.SameLogin(a.source, now) {
		if s.Quiet {
			return a, nil, err
		}
		c.log("the login is refused, and %s has no other: change it there, it is read again: %v", place, err)
		return a, nil, fmt.Errorf("%w; %s has no other login", err, place)
	}
	// The connections were made with these, and stay.
	now.CACert, now.ClientCert, now.ClientKey, now.Insecure = a.source.CACert, a.source.ClientCert, a.source.ClientKey, a.source.Insecure
	next, badErr := newAuth(now)
	if badErr != nil {
		c.log("the login is refused, and %s has one that cannot be used: %v", place, badErr)
		return a, nil, fmt.Errorf("%w; %s has one that cannot be used: %w", err, place, badErr)
	}
	t, nextErr := next.logIn(ctx, c.rt, c.userAgent, old)
	if nextErr == nil && old != nil {
		nextErr = samePlace(old.conn.StorageUrl, t.conn.StorageUrl)
	}
	switch {
	case nextErr == nil:
		c.again.told = "" // another change is told again
		c.log("the login was refused, and the one that %s has now counts: %s", place, next.op())
		if s.Used != nil {
			s.Used(now)
		}
		return &next, t, nil
	case errors.Is(nextErr, store.ErrUnauthorized):
		c.log("the login is refused, and the one that %s has now is not used: %v", place, nextErr)
		return a, nil, fmt.Errorf("%w; the one that %s has now is not used: %w", err, place, nextErr)
	}
	return a, nil, nextErr // it may succeed later
}

// refusedLogin says whether a login was answered that its credentials are not
// good (any more).
func refusedLogin(err error) bool {
	var se *store.StatusError
	return errors.Is(err, store.ErrUnauthorized) && errors.As(err, &se)
}

// samePlace returns an error if two storage URLs are not of one account at one
// host. sameAccount is enough as long as the credentials are the same. With others,
// the same path at another host may be another cluster's.
func samePlace(before, now string) error {
	a, err := url.Parse(before)
	if err != nil {
		return err
	}
	b, err := url.Parse(now)
	if err != nil {
		return err
	}
	if a.Scheme != b.Scheme || a.Host != b.Host || strings.TrimRight(a.Path, "/") != strings.TrimRight(b.Path, "/") {
		return fmt.Errorf("%w: it leads to %s, and the containers that are in use are at %s: another account is used after a restart only",
			store.ErrUnauthorized, b.Redacted(), a.Redacted())
	}
	return nil
}
