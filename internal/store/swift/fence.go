// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"swiftnbd/internal/store"
)

// Fencing
//
// With a fence, a Put or Delete is made only while the right to write holds,
// and signed with its key, as Swift's TempURL middleware has it: the query
// carries HMAC(key, "METHOD\nEXPIRES\nPATH"), and the request has no token.
// Swift refuses it with 401 once the signature has expired or the container
// has another key. The server itself so refuses a former holder, and what was
// late on its way.

// Fenced returns the container of that name, which is written only while f
// holds.
func (c *Client) Fenced(name string, f *store.Fence) store.Store {
	return &container{client: c, name: name, fence: f}
}

// fencedCodes are codes, with 401 as the refusal of a signature.
func fencedCodes(codes map[int]error) map[int]error {
	codes = maps.Clone(codes)
	if codes == nil {
		codes = make(map[int]error)
	}
	codes[http.StatusUnauthorized] = store.ErrFenced
	return codes
}

// doFenced is do for a request with a fence.
func (c *Client) doFenced(ctx context.Context, r request, codes map[int]error, handle func(*exchange) error) error {
	t, err := c.token(ctx) // it knows the account's address
	if err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	guarded, stop, err := r.fence.Guard(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	defer stop()
	g, err := r.fence.Grant()
	if err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	if g.Key == "" {
		return c.withToken(guarded, r, codes, handle)
	}
	r.signed = true
	server, local := g.Expires()
	if r.params, err = c.signature(t, r, g.Key, server); err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	err = c.once(guarded, t, r, fencedCodes(codes), handle)
	if errors.Is(err, store.ErrFenced) {
		r.fence.Doubt()
	}
	if late(err) {
		store.MayLand(ctx, local)
	}
	return err
}

// late says whether the request that ended with err may not have reached the
// proxy yet. What has, has its timestamp, and is older than all that comes
// later. 502 and 504 are a load balancer's.
func late(err error) bool {
	var te *store.TransportError
	if errors.As(err, &te) {
		return te.Sent
	}
	var se *store.StatusError
	return errors.As(err, &se) && (se.Code == http.StatusBadGateway || se.Code == http.StatusGatewayTimeout)
}

// signature returns the query that signs r until expires, unix seconds.
func (c *Client) signature(t *token, r request, key string, expires int64) (url.Values, error) {
	u, err := url.Parse(t.conn.StorageUrl)
	if err != nil {
		return nil, errors.New("the storage URL is malformed")
	}
	account := u.Path
	if i := strings.LastIndex(account, "/v1/"); i >= 0 {
		account = account[i:]
	}
	mac := hmac.New(c.digest(), []byte(key))
	fmt.Fprintf(mac, "%s\n%d\n%s/%s/%s", r.method, expires, strings.TrimRight(account, "/"), r.container, r.object)
	return url.Values{
		"temp_url_sig":     {hex.EncodeToString(mac.Sum(nil))},
		"temp_url_expires": {strconv.FormatInt(expires, 10)},
	}, nil
}

// digest returns the best digest that the cluster is known to take: sha256,
// which all but the oldest do, unless /info says otherwise.
func (c *Client) digest() func() hash.Hash {
	c.mu.Lock()
	info := c.info
	c.mu.Unlock()
	if info != nil && len(info.TempURLDigests) > 0 && !slices.Contains(info.TempURLDigests, "sha256") {
		if slices.Contains(info.TempURLDigests, "sha512") {
			return sha512.New
		}
		return sha1.New
	}
	return sha256.New
}

// ErrNoFence says why writes are not fenced by the cluster.
var ErrNoFence = errors.New("the cluster does not check signed writes")

// probeObject is asked for to see whether signatures work. It never exists.
const probeObject = "swiftnbd/fence"

// CheckFence finds out whether the cluster lets requests to the container pass
// that are signed with g's key, and refuses those that are signed with another:
// nil when it does both. ErrNoFence where it does not; store.ErrFenced where it
// says that it knows signatures, and refuses the good one: it may know an older
// key for some time.
func (c *Client) CheckFence(ctx context.Context, name string, g store.Grant) error {
	if err := c.CanFence(ctx); err != nil {
		return err
	}
	switch err := c.probe(ctx, name, g, g.Key); {
	case errors.Is(err, store.ErrFenced) && c.knowsTempURL():
		return err
	case errors.Is(err, store.ErrFenced):
		return fmt.Errorf("%w: a good signature is refused", ErrNoFence)
	case err != nil:
		return err
	}
	switch err := c.probe(ctx, name, g, rand.Text()); {
	case errors.Is(err, store.ErrFenced):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: a wrong signature is not refused", ErrNoFence)
}

// knowsTempURL says whether the cluster is known to check signatures.
func (c *Client) knowsTempURL() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info != nil && c.info.TempURL
}

// CanFence finds out whether the cluster says that it checks signed writes.
// ErrNoFence where it says that it does not.
func (c *Client) CanFence(ctx context.Context) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if info.Known && !info.TempURL {
		return fmt.Errorf("%w: /info names no tempurl", ErrNoFence)
	}
	for _, method := range []string{http.MethodPut, http.MethodDelete} {
		if len(info.TempURLMethods) > 0 && !slices.Contains(info.TempURLMethods, method) {
			return fmt.Errorf("%w: %s cannot be signed", ErrNoFence, method)
		}
	}
	return nil
}

// probe asks for an object with a signature of key's. It ends with nil where
// that is accepted, whether there is such an object or not.
func (c *Client) probe(ctx context.Context, name string, g store.Grant, key string) error {
	t, err := c.token(ctx)
	if err != nil {
		return err
	}
	r := request{method: http.MethodHead, container: name, object: probeObject, signed: true}
	expires, _ := g.Expires()
	if r.params, err = c.signature(t, r, key, expires); err != nil {
		return err
	}
	err = c.once(ctx, t, r, fencedCodes(getCodes), func(x *exchange) error { return nil })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
