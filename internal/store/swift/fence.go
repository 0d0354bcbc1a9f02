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
//
// With a fence, a Put or Delete is made only while the right to write holds. It
// is signed with the fence's key, in the form of Swift's TempURL middleware:
// the query carries HMAC(key, "METHOD\nEXPIRES\nPATH"), and the request has no
// token. Swift refuses the request with 401 if the signature has expired or the
// container has another key. In this way the server itself refuses a former
// holder, and a request that comes late.
//
//
// Ceph's gateway (RGW) refuses with 403. It does not look at a container's
// keys. It looks at the account's keys and takes SHA-1. All disks of the
// account share these keys, so nobody changes them. A signature ends there with
// the lease, and the gateway refuses later requests. But an "unlock" ends
// nothing before that.

// Fenced returns the container of that name. It is written only while f holds.
// Writes that were sent and not answered are reported to late, which may be
// nil.
func (c *Client) Fenced(name string, f *store.Fence, late *store.Stragglers) store.Store {
	return &container{client: c, name: name, fence: f, late: late}
}

// fencedCodes returns codes with 401 and 403 added as refusals of a signature.
func fencedCodes(codes map[int]error) map[int]error {
	codes = maps.Clone(codes)
	if codes == nil {
		codes = make(map[int]error)
	}
	codes[http.StatusUnauthorized] = store.ErrFenced
	codes[http.StatusForbidden] = store.ErrFenced
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
	by, err := c.signer(ctx, g.Key)
	if err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	server, local := g.Expires()
	if r.params, err = signature(t, r, by, server); err != nil {
		return fmt.Errorf("%s: %w", r.op(), err)
	}
	err = c.once(guarded, t, r, fencedCodes(codes), handle)
	if errors.Is(err, store.ErrFenced) {
		c.forgetAccountKey(by.key) // it may have been changed
		r.fence.Doubt()
	}
	if store.OnItsWay(err) {
		r.late.MayLand(r.object, local)
	}
	return err
}

// signer is the key and the digest for the signature of a request.
type signer struct {
	key    string
	digest func() hash.Hash
}

// signature returns the query that signs r until expires, unix seconds.
func signature(t *token, r request, by signer, expires int64) (url.Values, error) {
	u, err := url.Parse(t.conn.StorageUrl)
	if err != nil {
		return nil, errors.New("the storage URL is malformed")
	}
	account := u.Path
	if i := strings.LastIndex(account, "/v1/"); i >= 0 {
		account = account[i:]
	}
	mac := hmac.New(by.digest, []byte(by.key))
	fmt.Fprintf(mac, "%s\n%d\n%s/%s/%s", r.method, expires, strings.TrimRight(account, "/"), r.container, r.object)
	return url.Values{
		"temp_url_sig":     {hex.EncodeToString(mac.Sum(nil))},
		"temp_url_expires": {strconv.FormatInt(expires, 10)},
	}, nil
}

// digest returns the best digest that the cluster is known to take. This is
// sha256 unless /info says otherwise: all but the oldest clusters take it.
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

// probeObject is the object of the requests that test signatures. It never
// exists.
const probeObject = "swiftnbd/fence"

// CheckFence finds out whether the cluster accepts requests to the container
// that are signed with g's key, and refuses requests that are signed with
// another key. It returns nil if the cluster does both, and ErrNoFence if it
// does not. It returns store.ErrFenced if the cluster says that it knows
// signatures but refuses the good one: it may know an older key for some time.
// If the cluster takes the account's key and not the container's, and the
// account has none, CheckFence sets one.
func (c *Client) CheckFence(ctx context.Context, name string, g store.Grant) error {
	return c.checkFence(ctx, name, g, true)
}

// SeeFence is CheckFence, but changes nothing.
func (c *Client) SeeFence(ctx context.Context, name string, g store.Grant) error {
	return c.checkFence(ctx, name, g, false)
}

func (c *Client) checkFence(ctx context.Context, name string, g store.Grant, change bool) error {
	if err := c.CanFence(ctx); err != nil {
		return err
	}
	by := signer{g.Key, c.digest()}
	err := c.probe(ctx, name, g, by)
	account := signatureForbidden(err)
	if account {
		if by, err = c.accountSigner(ctx, change); err == nil {
			err = c.probe(ctx, name, g, by)
		}
	}
	switch {
	case account && (signatureForbidden(err) || errors.Is(err, store.ErrForbidden)):
		return fmt.Errorf("%w: good signatures are refused, with the container's key and with the account's", ErrNoFence)
	case errors.Is(err, store.ErrFenced) && c.knowsTempURL():
		return err
	case errors.Is(err, store.ErrFenced):
		return fmt.Errorf("%w: a good signature is refused", ErrNoFence)
	case err != nil:
		return err
	}
	switch err := c.probe(ctx, name, g, signer{rand.Text(), by.digest}); {
	case errors.Is(err, store.ErrFenced):
		c.mu.Lock()
		c.byAccount = account
		c.mu.Unlock()
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: a wrong signature is not refused", ErrNoFence)
}

// signatureForbidden says whether a signature was refused with 403.
func signatureForbidden(err error) bool {
	var se *store.StatusError
	return errors.Is(err, store.ErrFenced) && errors.As(err, &se) && se.Code == http.StatusForbidden
}

// knowsTempURL says whether the cluster is known to check signatures.
func (c *Client) knowsTempURL() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info != nil && c.info.TempURL
}

// CanFence asks the cluster whether it checks signed writes. If the cluster
// says that it does not, CanFence returns ErrNoFence.
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

// probe asks for an object with a signature of by's key. It returns nil if the
// signature is accepted, with or without such an object.
func (c *Client) probe(ctx context.Context, name string, g store.Grant, by signer) error {
	t, err := c.token(ctx)
	if err != nil {
		return err
	}
	r := request{method: http.MethodHead, container: name, object: probeObject, signed: true}
	expires, _ := g.Expires()
	if r.params, err = signature(t, r, by, expires); err != nil {
		return err
	}
	err = c.once(ctx, t, r, fencedCodes(getCodes), func(x *exchange) error { return nil })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
