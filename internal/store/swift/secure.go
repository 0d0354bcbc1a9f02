// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// If TLS ends in a proxy, Swift often does not know that, and gives a storage
// URL of http after a login by https. Nothing is sent there: neither the token,
// which is as valuable as a password, nor the data. The same account is tried
// by https at the same host. If it is not there, the login fails, unless the
// user has named the storage URL.

// errClear marks a login whose storage URL would be used without TLS.
var errClear = errors.New("refused")

// storageURL returns the account's URL. This is the user's, or given, which the
// login gave. old is the token before this login, or nil.
func (a auth) storageURL(ctx context.Context, rt http.RoundTripper, userAgent, given string, old *token) (string, error) {
	if a.login.StorageURL != "" {
		return a.login.StorageURL, nil
	}
	login, err := url.Parse(a.url)
	if err != nil || login.Scheme != "https" {
		return given, nil
	}
	u, err := url.Parse(given)
	if err != nil || u.Scheme != "http" {
		return given, nil
	}
	candidates := secureURLs(login, u)
	if old != nil && slices.Contains(candidates, old.conn.StorageUrl) {
		return old.conn.StorageUrl, nil
	}
	tried := make([]string, 0, len(candidates))
	for _, candidate := range candidates {
		err := answersSwift(ctx, rt, userAgent, candidate)
		if err == nil {
			return candidate, nil
		}
		if ctx.Err() != nil {
			return "", &store.TransportError{Op: a.op(), Err: context.Cause(ctx)}
		}
		tried = append(tried, err.Error())
	}
	return "", fmt.Errorf("%s: %w: the login is by https, and the storage URL that it gives, %s, is not: token and data would go unencrypted (by https: %s); name the right one with storage-url, which may be of http",
		a.op(), errClear, u.Redacted(), strings.Join(tried, "; "))
}

// secureURLs returns the URLs of https at which the account of the storage URL
// may be: at its own host and port, and, if the host names are the same, at
// those of the login.
func secureURLs(login, storage *url.URL) []string {
	own := *storage
	own.Scheme = "https"
	if own.Port() == "80" {
		own.Host = strings.TrimSuffix(own.Host, ":80")
	}
	urls := []string{own.String()}
	if strings.EqualFold(login.Hostname(), storage.Hostname()) {
		beside := own
		beside.Host = login.Host
		if s := beside.String(); s != urls[0] {
			urls = append(urls, s)
		}
	}
	return urls
}

// answersSwift returns nil if Swift answers at the account's URL. The request
// has no token.
func answersSwift(ctx context.Context, rt http.RoundTripper, userAgent, account string) error {
	x := new(exchange)
	c := bare(rt, userAgent)
	c.StorageUrl, c.AuthToken = account, "none"
	x.signed = true // without the token
	_, _, err := c.Call(x.attach(ctx), account, swift.RequestOpts{Operation: http.MethodHead})
	if x.stream != nil {
		x.stream.Close()
	}
	switch {
	case x.status == 0:
		return transportError(account, x, err)
	case x.status < 300, x.status == http.StatusUnauthorized, x.status == http.StatusForbidden:
		return nil
	}
	return fmt.Errorf("%s: %d %s", account, x.status, http.StatusText(x.status))
}
