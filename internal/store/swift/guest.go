// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"swiftnbd/internal/store"
)

// storage-url may name a container of another account, which we may read but
// not lock. The lock is in the container's metadata. A container's ACL gives
// rights to objects, and never the right to change the metadata
// (swift/common/middleware/tempauth.py and keystoneauth.py; POST and PUT are
// 403). The account's own ACL may give it.

// Foreign says whether the user's storage URL belongs to another account than
// the login's own. If the login names no account, Foreign tries a HEAD of the
// account, which Swift does not refuse to the owner.
func (c *Client) Foreign(ctx context.Context) (bool, error) {
	if c.auth.Load().login.StorageURL == "" {
		return false, nil
	}
	t, err := c.token(ctx)
	if err != nil {
		return false, err
	}
	if t.own != "" {
		return !samePath(t.own, c.auth.Load().login.StorageURL), nil
	}
	err = c.do(ctx, request{method: "HEAD"}, nil, func(x *exchange) error {
		x.drain()
		return nil
	})
	if errors.Is(err, store.ErrForbidden) {
		return true, nil
	}
	return false, err
}

// MayLock says whether these credentials may change the metadata of the
// container, which is needed to lock it. If the account is foreign, MayLock
// tries this with a POST that changes nothing. Otherwise it makes no request.
func (c *Client) MayLock(ctx context.Context, container string) (bool, error) {
	if foreign, err := c.Foreign(ctx); err != nil || !foreign {
		return err == nil, err
	}
	err := c.Container(container).SetMetadata(ctx, nil)
	if errors.Is(err, store.ErrForbidden) {
		return false, nil
	}
	return err == nil, err
}

// samePath says whether two storage URLs name one account: a cluster may have
// several hosts.
func samePath(a, b string) bool {
	x, err := url.Parse(a)
	if err != nil {
		return false
	}
	y, err := url.Parse(b)
	return err == nil && strings.TrimRight(x.Path, "/") == strings.TrimRight(y.Path, "/")
}
