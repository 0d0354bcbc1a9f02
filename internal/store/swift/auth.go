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
	login    config.Login
	url      string // with the version's path
	version  int
	endpoint swift.EndpointType
	service  string
}

// newAuth checks l and fills in what it leaves open.
func newAuth(l config.Login) (auth, error) {
	a := auth{login: l, service: cmp.Or(l.ServiceType, "object-store")}
	u, err := url.Parse(l.AuthURL)
	switch {
	case l.AuthURL == "":
		return a, errors.New("no authentication URL is given")
	case err != nil:
		// The error would quote the URL with all that is in it.
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
		case l.AppCredentialID != "" || l.Project != "" || l.ProjectID != "" || l.UserDomain != "" ||
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
	case l.AppCredentialID != "" && a.version != 3:
		return a, fmt.Errorf("an application credential needs authentication version 3, not %d", a.version)
	case l.AppCredentialID != "" && l.AppCredentialSecret == "":
		return a, errors.New("the application credential has no secret")
	case l.AppCredentialID == "" && l.Username == "":
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

// op names a login in errors: the URL and the user, never a secret.
func (a auth) op() string {
	shown := redactURL(a.url)
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
	if l.AppCredentialID != "" {
		c.ApplicationCredentialId = l.AppCredentialID
		c.ApplicationCredentialSecret = l.AppCredentialSecret.Reveal()
	} else {
		c.UserName, c.ApiKey = l.Username, l.Password.Reveal()
		c.Tenant, c.TenantId = l.Project, l.ProjectID
		c.Domain, c.DomainId = l.UserDomain, l.UserDomainID
		c.TenantDomain, c.TenantDomainId = l.ProjectDomain, l.ProjectDomainID
		if a.version == 3 && c.Domain == "" && c.DomainId == "" {
			c.Domain = "Default"
		}
	}
	return c
}

// never is longer than any request: ncw/swift's own timeouts are put out of
// the way, since the context bounds every request, and does not leave a
// goroutine behind that reads into the caller's buffer.
const never = 10 * 365 * 24 * time.Hour

// bare returns a connection without credentials. With Retries -1 Call hands
// every status back, 401 too.
func bare(rt http.RoundTripper, userAgent string) *swift.Connection {
	return &swift.Connection{
		Transport: rt, UserAgent: userAgent, Retries: -1,
		ConnectTimeout: never, Timeout: never,
	}
}

// token is what one login gave, as the connection to use from then on. Its
// address is the token's generation: whoever sees 401 compares it with the
// current one and so knows whether somebody else has logged in since.
type token struct {
	conn    *swift.Connection // StorageUrl and AuthToken, no credentials
	expires time.Time         // zero: not known
	renewAt time.Time         // when to log in ahead of time; zero: never
	ahead   atomic.Bool       // that login has begun; where it fails, the next is left to the 401
}

// newToken makes the token ready for use. A token of known life is renewed a
// minute before its end, or with a fifth of its life left if that is less, so
// that even a life of seconds costs one login each.
func newToken(rt http.RoundTripper, userAgent, storageURL, authToken string, now, expires time.Time) *token {
	t := &token{conn: bare(rt, userAgent), expires: expires}
	t.conn.StorageUrl, t.conn.AuthToken = storageURL, authToken
	if life := expires.Sub(now); !expires.IsZero() && life > 0 {
		t.renewAt = expires.Add(-min(time.Minute, life/5))
	}
	return t
}

// logIn makes one login.
func (a auth) logIn(ctx context.Context, rt http.RoundTripper, userAgent string) (*token, error) {
	op := a.op()
	c := a.connection(rt, userAgent)
	x := &exchange{login: true, probe: a.version == 2}
	now := time.Now()
	err := c.Authenticate(x.attach(ctx))
	switch {
	case x.status == 0:
		x.wrote.Store(false) // a login is never ambiguous
		return nil, transportError(op, x, err)
	case x.status == http.StatusUnauthorized || x.status == http.StatusForbidden:
		return nil, &store.StatusError{Op: op, Code: x.status, Err: store.ErrUnauthorized}
	case x.status >= 300:
		return nil, &store.StatusError{Op: op, Code: x.status, RetryAfter: x.retryAfter(), Body: loginHint(a, x), Unsent: true}
	}
	if a.version == 1 {
		storageURL, authToken := x.header.Get("X-Storage-Url"), x.header.Get("X-Auth-Token")
		if storageURL == "" || authToken == "" {
			return nil, fmt.Errorf("%s: the answer has no X-Storage-Url and X-Auth-Token: is this a version 1 authentication URL?", op)
		}
		var expires time.Time
		if life, err := time.ParseDuration(x.header.Get("X-Auth-Token-Expires") + "s"); err == nil {
			expires = now.Add(life)
		}
		return newToken(rt, userAgent, storageURL, authToken, now, expires), nil
	}
	if c.Auth == nil || c.Auth.Token() == "" {
		return nil, fmt.Errorf("%s: the answer has no token: is this a Keystone version %d URL?", op, a.version)
	}
	storageURL, err := a.findEndpoint(x.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	var expires time.Time
	if e, ok := c.Auth.(swift.Expireser); ok {
		expires = e.Expires()
	}
	return newToken(rt, userAgent, storageURL, c.Auth.Token(), now, expires), nil
}

// loginHint says what an odd answer to a login means.
func loginHint(a auth, x *exchange) string {
	switch {
	case x.location != "":
		return "redirected to " + x.location + ": give that as the authentication URL"
	case x.status == http.StatusNotFound || x.status == http.StatusMultipleChoices || x.status == http.StatusMethodNotAllowed:
		return fmt.Sprintf("no authentication of version %d at this URL", a.version)
	}
	return errorText(x.text)
}

// endpoint is one line of a catalogue.
type endpoint struct{ service, region, kind, url string }

// catalogue reads the services' endpoints out of a version 2 or 3 login's
// answer. ncw/swift knows them too, but tells neither which regions there are
// nor other services than object-store.
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
	case len(services) == 0 && a.login.Project == "" && a.login.ProjectID == "" && a.login.AppCredentialID == "":
		hint = "the catalogue is empty, since no project is given"
	case len(services) == 0:
		hint = "the catalogue is empty"
	case len(others) == 0:
		hint = "the catalogue has only: " + strings.Join(slices.Compact(services), ", ")
	}
	return "", fmt.Errorf("the cloud has no %s endpoint of type %s %s (%s)", a.service, a.endpoint, where, hint)
}
