// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"fmt"
	"net/http"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// The account's TempURL keys, which Ceph's gateway takes. An existing key is
// used, even if another program has set it.
const (
	accountKey1 = "X-Account-Meta-Temp-Url-Key"
	accountKey2 = "X-Account-Meta-Temp-Url-Key-2"
)

// FencedByAccount says whether the last successful CheckFence or SeeFence found
// that the cluster takes the account's key, and not the container's. In this
// case only the lease's end ends a signature.
func (c *Client) FencedByAccount() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byAccount
}

// signer returns the key and the digest for the signature of a write. key is
// the container's.
func (c *Client) signer(ctx context.Context, key string) (signer, error) {
	if c.FencedByAccount() {
		return c.accountSigner(ctx, true)
	}
	return signer{key, c.digest()}, nil
}

// accountSigner returns the account's key. If the account has none and change
// is true, accountSigner sets one. If change is false, it ends with ErrNoFence.
func (c *Client) accountSigner(ctx context.Context, change bool) (signer, error) {
	c.mu.Lock()
	by := signer{c.accountKey, sha1.New}
	named := c.info != nil && len(c.info.TempURLDigests) > 0
	c.mu.Unlock()
	if named {
		by.digest = c.digest()
	}
	if by.key != "" {
		return by, nil
	}
	var err error
	if by.key, err = c.readAccountKey(ctx); err != nil {
		return signer{}, err
	}
	if by.key == "" {
		if !change {
			return signer{}, fmt.Errorf("%w: the container's key is not looked at, and the account has none", ErrNoFence)
		}
		r := request{method: http.MethodPost, headers: swift.Headers{accountKey2: rand.Text()}, body: []byte{}}
		if err := c.do(ctx, r, nil, func(x *exchange) error { x.drain(); return nil }); err != nil {
			return signer{}, fmt.Errorf("set the account's key: %w", err)
		}
		// Another program may have set its own key at the same moment.
		if by.key, err = c.readAccountKey(ctx); err != nil {
			return signer{}, err
		}
		if by.key == "" {
			return signer{}, fmt.Errorf("%w: the account takes no key", ErrNoFence)
		}
	}
	c.mu.Lock()
	c.accountKey = by.key
	c.mu.Unlock()
	return by, nil
}

// readAccountKey returns a TempURL key of the account, or "".
func (c *Client) readAccountKey(ctx context.Context) (string, error) {
	var key string
	r := request{method: http.MethodHead, headers: swift.Headers{"X-Newest": "true"}}
	err := c.do(ctx, r, map[int]error{http.StatusNotFound: store.ErrForbidden}, func(x *exchange) error {
		if key = x.header.Get(accountKey2); key == "" {
			key = x.header.Get(accountKey1)
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read the account's key: %w", err)
	}
	return key, nil
}

// forgetAccountKey makes the next write read the account's key anew. It does
// nothing if that has happened since key was refused.
func (c *Client) forgetAccountKey(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accountKey == key {
		c.accountKey = ""
	}
}
