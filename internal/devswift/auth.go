// SPDX-License-Identifier: MIT

package devswift

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tokens has the tokens that were given out. Like tempauth, it gives a user the
// same token again until the token expires.
type tokens struct {
	mu      sync.RWMutex
	byToken map[string]token
	byUser  map[string]string
}

type token struct {
	account string // AUTH_…
	user    string // ACCOUNT:NAME
	expires time.Time
}

// issue gives the user's token and what is left of its life.
func (t *tokens) issue(u User, now time.Time, life time.Duration) (string, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	user := u.Account + ":" + u.Name
	if name, ok := t.byUser[user]; ok {
		if left := t.byToken[name].expires.Sub(now); left > 0 {
			return name, left
		}
		delete(t.byToken, name)
	}
	var b [16]byte
	rand.Read(b[:])
	name := "AUTH_tk" + hex.EncodeToString(b[:])
	if t.byToken == nil {
		t.byToken, t.byUser = map[string]token{}, map[string]string{}
	}
	t.byToken[name] = token{account: "AUTH_" + u.Account, user: user, expires: now.Add(life)}
	t.byUser[user] = name
	return name, life
}

// account returns the account that a token opens, and whether it opens any.
func (t *tokens) account(name string, now time.Time) (token, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	tok, ok := t.byToken[name]
	if !ok || !tok.expires.After(now) {
		return token{}, false
	}
	return tok, true
}

// cleanACL returns a container's ACL as Swift keeps it, or the text of a refusal
// (swift.common.middleware.acl.clean_acl).
func cleanACL(header, acl string) (clean, refusal string) {
	var values []string
	for raw := range strings.SplitSeq(acl, ",") {
		raw = strings.TrimSpace(raw)
		first, second, colon := strings.Cut(raw, ":")
		first, second = strings.TrimSpace(first), strings.TrimSpace(second)
		switch {
		case raw == "":
		case !colon || !strings.HasPrefix(first, "."):
			values = append(values, raw)
		case first != ".r" && first != ".ref" && first != ".referer" && first != ".referrer":
			return "", "Unknown designator '" + first + "' in ACL: '" + raw + "'"
		case header == "X-Container-Write":
			return "", "Referrers not allowed in write ACL: '" + raw + "'"
		default:
			second, minus := strings.CutPrefix(second, "-")
			second = strings.TrimSpace(second)
			if second != "*" {
				second = strings.TrimSpace(strings.TrimPrefix(second, "*"))
			}
			if second == "" || second == "." {
				return "", "No host/domain value after referrer designation in ACL: '" + raw + "'"
			}
			if minus {
				second = "-" + second
			}
			values = append(values, ".r:"+second)
		}
	}
	return strings.Join(values, ","), ""
}

// ownerHeaders are not shown to those whom only an ACL lets in (Swift's
// swift_owner_headers).
var ownerHeaders = map[string]bool{
	"X-Container-Read": true, "X-Container-Write": true,
	"X-Container-Meta-Temp-Url-Key": true, "X-Container-Meta-Temp-Url-Key-2": true,
}

// permitted says whether the container's ACL lets a guest do this, or somebody
// without a token. Of referrers only "*" is known.
func (c *call) permitted(tok token) bool {
	a := c.s.accounts[c.accountName]
	if a == nil || c.containerName == "" {
		return false
	}
	list := "X-Container-Read"
	switch c.method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPut, http.MethodPost, http.MethodDelete:
		if list = "X-Container-Write"; c.objectName == "" {
			return false
		}
	default:
		return false
	}
	box := a.container(c.containerName)
	if box == nil {
		return false
	}
	box.mu.RLock()
	acl := strings.Split(box.meta[list], ",")
	box.mu.RUnlock()
	if slices.Contains(acl, ".r:*") && (c.objectName != "" || slices.Contains(acl, ".rlistings")) {
		return true
	}
	return tok.account != "" && (slices.Contains(acl, tok.user) || slices.Contains(acl, strings.TrimPrefix(tok.account, "AUTH_")))
}

// RevokeTokens revokes every token that was given out so far. Requests with
// them get 401.
func (s *Server) RevokeTokens() {
	s.tokens.mu.Lock()
	defer s.tokens.mu.Unlock()
	s.tokens.byToken, s.tokens.byUser = nil, nil
}

// RevokeToken revokes one token. Requests with it get 401.
func (s *Server) RevokeToken(name string) {
	s.tokens.mu.Lock()
	defer s.tokens.mu.Unlock()
	delete(s.tokens.byToken, name)
	for user, have := range s.tokens.byUser {
		if have == name {
			delete(s.tokens.byUser, user)
		}
	}
}

// SetKey changes a user's key. The tokens that were given out stay good.
func (s *Server) SetKey(account, name, key string) {
	s.tokens.mu.Lock()
	defer s.tokens.mu.Unlock()
	for i, u := range s.users {
		if u.Account == account && u.Name == name {
			s.users[i].Key = key
		}
	}
}

// login is tempauth's /auth/v1.0, and its older form /auth/v1/ACCOUNT/auth.
func (c *call) login() {
	if c.method != http.MethodGet {
		c.answer(http.StatusMethodNotAllowed)
		return
	}
	parts := strings.Split(strings.Trim(c.r.URL.Path, "/"), "/")
	h := c.r.Header
	user := first(h.Get("X-Auth-User"), h.Get("X-Storage-User"))
	key := first(h.Get("X-Auth-Key"), h.Get("X-Storage-Pass"))
	account, name, ok := "", "", false
	switch {
	case len(parts) == 2 && parts[1] == "v1.0":
		account, name, ok = strings.Cut(user, ":")
	case len(parts) == 4 && parts[1] == "v1" && parts[3] == "auth":
		account, name, ok = parts[2], first(h.Get("X-Storage-User"), h.Get("X-Auth-User")), true
		_, name, _ = cutLast(name, ":")
	default:
		c.answer(http.StatusBadRequest)
		return
	}
	if !ok {
		c.unauthorized("unknown")
		return
	}
	c.s.tokens.mu.RLock()
	users := slices.Clone(c.s.users)
	c.s.tokens.mu.RUnlock()
	for _, u := range users {
		if u.Account != account || u.Name != name {
			continue
		}
		if subtle.ConstantTimeCompare([]byte(u.Key), []byte(key)) != 1 {
			c.unauthorized("unknown")
			return
		}
		tok, left := c.s.tokens.issue(u, c.s.clock(), c.s.opts.TokenLife)
		c.header("X-Auth-Token", tok)
		c.header("X-Storage-Token", tok)
		c.header("X-Auth-Token-Expires", strconv.FormatInt(int64(left/time.Second), 10))
		scheme := "http"
		if c.r.TLS != nil {
			scheme = "https"
		}
		c.header("X-Storage-Url", scheme+"://"+c.r.Host+"/v1/AUTH_"+u.Account)
		c.answer(http.StatusOK)
		return
	}
	c.unauthorized(account)
}

// cutLast splits at the last separator; without one, all is after.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// authorized says whether the request's token opens the account. If not, it
// answers the request.
func (c *call) authorized() bool {
	name := first(c.r.Header.Get("X-Auth-Token"), c.r.Header.Get("X-Storage-Token"))
	tok, ok := c.s.tokens.account(name, c.s.clock())
	switch {
	case ok && tok.account == c.accountName:
		return true
	case (ok || name == "") && c.permitted(tok):
		c.guest = true
		return true
	case c.accountName == "":
		return true // there is nothing behind such a path
	case !ok && c.s.opts.DeadToken != 0:
		c.answer(c.s.opts.DeadToken)
	case !ok:
		c.unauthorized(c.accountName)
	case c.version != "v1" && c.version != "v1.0":
		return true // the proxy refuses these
	default:
		c.answer(http.StatusForbidden)
	}
	return false
}
