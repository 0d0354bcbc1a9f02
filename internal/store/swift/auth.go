// SPDX-License-Identifier: MIT

package swiftstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
)

// auth is how to log in: a config.Login made complete and checked.
type auth struct {
	source   config.Login // as it was given
	login    config.Login
	url      string // with the version's path
	version  int
	endpoint swift.EndpointType
	service  string
}

// newAuth checks l and fills in its empty fields.
func newAuth(l config.Login) (auth, error) {
	a := auth{source: l, login: l, service: cmp.Or(l.ServiceType, "object-store")}
	l.AuthURL = config.Base(l.AuthURL)
	l.StorageURL = strings.TrimRight(l.StorageURL, "/")
	a.login = l
	if l.StorageURL != "" {
		if err := config.CheckStorageURL(l.StorageURL); err != nil {
			return a, fmt.Errorf("storage URL: %w", err)
		}
	}
	if l.Token != "" && l.StorageURL != "" {
		return a, nil
	}
	if l.Token != "" && l.AuthURL == "" {
		return a, errors.New("a token is given, but neither a storage URL nor an authentication URL")
	}
	u, err := url.Parse(l.AuthURL)
	switch {
	case l.AuthURL == "":
		return a, errors.New("no authentication URL is given")
	case err != nil:
		// The parser's error would quote the URL with a password in it.
		return a, errors.New("the authentication URL is malformed")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return a, fmt.Errorf("authentication URL %q: must be http://HOST… or https://HOST…", u.Redacted())
	}
	a.version = l.Version
	inPath := pathVersion(u)
	if a.version == 0 {
		switch {
		case inPath != 0:
			a.version = inPath
		case l.AppCredentialID != "" || l.AppCredentialName != "" || l.Token != "" || l.TrustID != "" || l.Project != "" || l.ProjectID != "" || l.UserDomain != "" ||
			l.UserDomainID != "" || l.ProjectDomain != "" || l.ProjectDomainID != "":
			a.version = 3
		default:
			a.version = 1
		}
	}
	switch a.version {
	case 1:
	case 2, 3:
		u.Path = strings.TrimRight(u.Path, "/")
		if inPath == 0 {
			u.Path += map[int]string{2: "/v2.0", 3: "/v3"}[a.version]
		}
	default:
		return a, fmt.Errorf("authentication version %d: must be 1, 2 or 3", a.version)
	}
	a.url = u.String()

	switch strings.ToLower(strings.TrimSuffix(l.EndpointType, "URL")) {
	case "", "public":
		a.endpoint = swift.EndpointTypePublic
	case "internal":
		a.endpoint = swift.EndpointTypeInternal
	case "admin":
		a.endpoint = swift.EndpointTypeAdmin
	default:
		return a, fmt.Errorf("endpoint type %q: must be public, internal or admin", l.EndpointType)
	}
	switch {
	case (l.AppCredentialID != "" || l.AppCredentialName != "") && a.version != 3:
		return a, fmt.Errorf("an application credential needs authentication version 3, not %d", a.version)
	case (l.AppCredentialID != "" || l.AppCredentialName != "") && l.AppCredentialSecret == "":
		return a, errors.New("the application credential has no secret")
	case l.Token != "" && a.version != 3:
		return a, fmt.Errorf("a token without a storage URL needs authentication version 3, not %d", a.version)
	case l.TrustID != "" && a.version != 3:
		return a, fmt.Errorf("a trust needs authentication version 3, not %d", a.version)
	case l.UserID != "" && a.version == 1:
		return a, errors.New("a user's ID needs authentication version 2 or 3, not 1")
	case l.AppCredentialID == "" && l.Token == "" && l.Username == "" && l.UserID == "":
		// ncw/swift would send the password as if it were a token.
		return a, errors.New("no username is given")
	}
	return a, nil
}

// pathVersion finds the version in the last elements of the URL's path
// (/v3, /identity/v2.0, /auth/v1.0), or 0.
func pathVersion(u *url.URL) int {
	for _, element := range slices.Backward(strings.Split(u.Path, "/")) {
		switch strings.ToLower(element) {
		case "v3":
			return 3
		case "v2", "v2.0":
			return 2
		case "v1", "v1.0":
			return 1
		}
	}
	return 0
}

// redactURL hides a password in the URL.
func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "a malformed URL"
	}
	return u.Redacted()
}

// given says whether there is no login: a token was given, and where it counts.
func (a auth) given() bool { return a.login.Token != "" && a.login.StorageURL != "" }

// op names a login in errors: the URL and the user, never a secret.
func (a auth) op() string {
	if a.given() {
		return "the token for " + a.login.StorageURL
	}
	shown := redactURL(a.url)
	if a.login.Token != "" {
		return fmt.Sprintf("login at %s with a token", shown)
	}
	if a.login.AppCredentialName != "" {
		return fmt.Sprintf("login at %s with application credential %s of user %s", shown, a.login.AppCredentialName, cmp.Or(a.login.UserID, a.login.Username))
	}
	if a.login.UserID != "" {
		return fmt.Sprintf("login at %s with user ID %s", shown, a.login.UserID)
	}
	if a.login.AppCredentialID != "" {
		return fmt.Sprintf("login at %s with application credential %s", shown, a.login.AppCredentialID)
	}
	return fmt.Sprintf("login at %s as %q", shown, a.login.Username)
}

// Format implements fmt.Formatter without secrets; see Session.Format.
func (a auth) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.op()) }

// connection returns the throw-away connection of one login.
func (a auth) connection(rt http.RoundTripper, userAgent string) *swift.Connection {
	l := a.login
	c := bare(rt, userAgent)
	c.AuthUrl, c.AuthVersion = a.url, a.version
	switch {
	case l.AppCredentialID != "":
		c.ApplicationCredentialId = l.AppCredentialID
		c.ApplicationCredentialSecret = l.AppCredentialSecret.Reveal()
	case l.AppCredentialName != "":
		c.ApplicationCredentialName, c.ApplicationCredentialSecret = l.AppCredentialName, l.AppCredentialSecret.Reveal()
		c.UserName, c.UserId, c.Domain, c.DomainId = l.Username, l.UserID, l.UserDomain, l.UserDomainID
		if c.UserId == "" && c.Domain == "" && c.DomainId == "" {
			c.Domain = "Default"
		}
	case l.Token != "":
		c.Token, c.Tenant, c.TenantId = l.Token.Reveal(), l.Project, l.ProjectID
		c.TenantDomain, c.TenantDomainId, c.TrustId = l.ProjectDomain, l.ProjectDomainID, l.TrustID
	default:
		c.UserName, c.UserId, c.ApiKey = l.Username, l.UserID, l.Password.Reveal()
		c.Tenant, c.TenantId = l.Project, l.ProjectID
		c.Domain, c.DomainId = l.UserDomain, l.UserDomainID
		c.TenantDomain, c.TenantDomainId, c.TrustId = l.ProjectDomain, l.ProjectDomainID, l.TrustID
		if a.version == 3 && c.Domain == "" && c.DomainId == "" && c.UserId == "" {
			c.Domain = "Default"
		}
	}
	return c
}

// never is longer than any request. It disables ncw/swift's own timeouts. The
// context bounds every request instead, and leaves no goroutine behind that
// reads into the caller's buffer.
const never = 10 * 365 * 24 * time.Hour

// bare returns a connection without credentials. With Retries -1, Call returns
// every status to us, 401 too.
func bare(rt http.RoundTripper, userAgent string) *swift.Connection {
	return &swift.Connection{
		Transport: rt, UserAgent: userAgent, Retries: -1,
		ConnectTimeout: never, Timeout: never,
	}
}

// token is the result of one login: the connection to use from then on. Its
// address is the token's generation. A request that gets 401 compares its own
// with the current one, and knows whether there was another login since.
type token struct {
	conn    *swift.Connection // StorageUrl and AuthToken, no credentials
	own     string            // the storage URL of the login's own account; empty: not known
	issued  time.Time         // when the login was answered; zero: by another process
	expires time.Time         // zero: not known
	renewAt time.Time         // when to log in ahead of time; zero: never
	ahead   atomic.Bool       // that login has begun; if it fails, the next login waits for a 401
}

// newToken makes the token ready for use. If the token's end is known, the
// token is renewed a minute before it, or when a fifth of its life is left if
// that is less. Even a token that lives for seconds then costs one login.
func newToken(rt http.RoundTripper, userAgent, storageURL, authToken string, now, expires time.Time) *token {
	t := &token{conn: bare(rt, userAgent), issued: now, expires: expires}
	t.conn.StorageUrl, t.conn.AuthToken = storageURL, authToken
	if life := expires.Sub(now); !expires.IsZero() && life > 0 {
		t.renewAt = expires.Add(-min(time.Minute, life/5))
	}
	return t
}

// logIn makes one login. old is the token that there is, or nil.
func (a auth) logIn(ctx context.Context, rt http.RoundTripper, userAgent string, old *token) (*token, error) {
	op := a.op()
	if given := a.login.Token.Reveal(); a.given() {
		if old != nil && old.conn.AuthToken == given {
			return nil, &store.StatusError{Op: op, Code: http.StatusUnauthorized, Unsent: true,
				Err: fmt.Errorf("%w: it has expired, or is another cluster's, and there are no credentials to get another with", store.ErrUnauthorized)}
		}
		return newToken(rt, userAgent, a.login.StorageURL, given, time.Now(), time.Time{}), nil
	}
	c := a.connection(rt, userAgent)
	x := &exchange{login: true, probe: a.version == 2}
	now := time.Now()
	err := c.Authenticate(x.attach(ctx))
	switch {
	case x.status == 0:
		x.wrote.Store(false) // a login is never ambiguous
		return nil, transportError(op, x, err)
	case x.status == http.StatusUnauthorized || x.status == http.StatusForbidden || a.unknownCredential(x):
		return nil, &store.StatusError{Op: op, Code: x.status, Body: errorText(x.text, a.login.Password.Reveal(), a.login.AppCredentialSecret.Reveal(), a.login.Token.Reveal()), Err: store.ErrUnauthorized}
	case x.status >= 300:
		return nil, &store.StatusError{Op: op, Code: x.status, RetryAfter: x.retryAfter(), Body: loginHint(a, x), Unsent: true}
	}
	if a.version == 1 {
		storageURL, authToken := x.header.Get("X-Storage-Url"), x.header.Get("X-Auth-Token")
		if storageURL == "" && a.login.StorageURL == "" || authToken == "" {
			return nil, fmt.Errorf("%s: the answer has no X-Storage-Url and X-Auth-Token: is this a version 1 authentication URL?", op)
		}
		var expires time.Time
		if life, err := time.ParseDuration(x.header.Get("X-Auth-Token-Expires") + "s"); err == nil {
			expires = now.Add(life)
		}
		own := storageURL
		if storageURL, err = a.storageURL(ctx, rt, userAgent, storageURL, old); err != nil {
			return nil, err
		}
		t := newToken(rt, userAgent, storageURL, authToken, now, expires)
		t.own = own
		return t, nil
	}
	if c.Auth == nil || c.Auth.Token() == "" {
		return nil, fmt.Errorf("%s: the answer has no token: is this a Keystone version %d URL?", op, a.version)
	}
	storageURL := ""
	if storageURL, err = a.findEndpoint(x.text); err != nil {
		if a.login.StorageURL == "" {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
		storageURL = "" // the account of another user need not be in our catalogue
	}
	own := storageURL
	if storageURL, err = a.storageURL(ctx, rt, userAgent, storageURL, old); err != nil {
		return nil, err
	}
	var expires time.Time
	if e, ok := c.Auth.(swift.Expireser); ok {
		expires = e.Expires()
	}
	t := newToken(rt, userAgent, storageURL, c.Auth.Token(), now, expires)
	if a.login.Token != "" {
		t.renewAt = time.Time{} // a new token would end when this one does
	}
	t.own = own
	return t, nil
}

// unknownCredential says whether Keystone has answered that there is no such
// application credential (any more). For one that is given by its ID it answers
// 404 then, with the ID (keystone/auth/plugins/core.py, AppCredInfo).
func (a auth) unknownCredential(x *exchange) bool {
	id := a.login.AppCredentialID
	return x.status == http.StatusNotFound && id != "" && strings.Contains(string(x.text), id)
}

// loginHint explains an unusual answer to a login.
func loginHint(a auth, x *exchange) string {
	switch {
	case x.location != "":
		return "redirected to " + x.location + ": give that as the authentication URL"
	case x.status == http.StatusNotFound || x.status == http.StatusMultipleChoices || x.status == http.StatusMethodNotAllowed:
		return fmt.Sprintf("no authentication of version %d at this URL", a.version)
	}
	return errorText(x.text, a.login.Password.Reveal(), a.login.AppCredentialSecret.Reveal(), a.login.Token.Reveal())
}

// endpoint is one line of a catalogue.
type endpoint struct{ service, region, kind, url string }

// catalogue reads the services' endpoints from the answer to a login of version
// 2 or 3. ncw/swift reads them too, but does not give the regions, or other
// services than object-store.
func catalogue(body []byte) []endpoint {
	var answer struct {
		Token struct {
			Catalog []struct {
				Type      string
				Endpoints []struct{ Interface, Region, Region_id, URL string }
			}
		}
		Access struct {
			ServiceCatalog []struct {
				Type      string
				Endpoints []struct{ Region, PublicURL, InternalURL, AdminURL string }
			}
		}
	}
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	var all []endpoint
	for _, s := range answer.Token.Catalog {
		for _, e := range s.Endpoints {
			all = append(all, endpoint{s.Type, cmp.Or(e.Region, e.Region_id), e.Interface, e.URL})
		}
	}
	for _, s := range answer.Access.ServiceCatalog {
		for _, e := range s.Endpoints {
			for kind, u := range map[string]string{"public": e.PublicURL, "internal": e.InternalURL, "admin": e.AdminURL} {
				all = append(all, endpoint{s.Type, e.Region, kind, u})
			}
		}
	}
	return all
}

// findEndpoint picks the storage URL from a login's answer.
func (a auth) findEndpoint(body []byte) (string, error) {
	var services, others []string
	for _, e := range catalogue(body) {
		services = append(services, e.service)
		if e.service != a.service || e.url == "" {
			continue
		}
		if e.kind == string(a.endpoint) && (a.login.Region == "" || a.login.Region == e.region) {
			return e.url, nil
		}
		others = append(others, fmt.Sprintf("%s in region %s", e.kind, e.region))
	}
	where := "in any region"
	if a.login.Region != "" {
		where = fmt.Sprintf("in region %q", a.login.Region)
	}
	slices.Sort(services)
	slices.Sort(others)
	hint := "the catalogue has: " + strings.Join(slices.Compact(others), ", ")
	switch {
	case len(services) == 0 && a.login.Project == "" && a.login.ProjectID == "" && a.login.AppCredentialID == "" && a.login.TrustID == "":
		hint = "the catalogue is empty, since no project is given"
	case len(services) == 0:
		hint = "the catalogue is empty"
	case len(others) == 0:
		hint = "the catalogue has only: " + strings.Join(slices.Compact(services), ", ")
	}
	return "", fmt.Errorf("the cloud has no %s endpoint of type %s %s (%s)", a.service, a.endpoint, where, hint)
}
