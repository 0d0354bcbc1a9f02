// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"swiftnbd/internal/config"
)

// At returns the account of the same Swift that has the storage URL, with the
// same login. It is c itself if that is its account. The URL may come from an
// object in Swift: it must lead to a host to which the token goes anyway, or
// whoever can write that object would get the token.
func (c *Client) At(ctx context.Context, storageURL string) (*Client, error) {
	t, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	own, err := url.Parse(t.conn.StorageUrl)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(storageURL)
	if err != nil || u.Scheme != own.Scheme || u.Host != own.Host || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("storage URL %q: it is not at %s://%s, and the token is sent nowhere else", storageURL, own.Scheme, own.Host)
	}
	if samePath(t.conn.StorageUrl, storageURL) {
		return c, nil
	}
	key := strings.TrimRight(storageURL, "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.others[key]; other != nil {
		return other, nil
	}
	login := c.auth.Load().source
	login.StorageURL = key
	o := c.options
	if s := o.Source; s != nil {
		read := func() (config.Login, string, error) {
			now, place, err := s.Read()
			now.StorageURL = key
			return now, place, err
		}
		o.Source = &Source{Read: read, Log: s.Log, Quiet: s.Quiet}
	}
	o.Login, o.Session = login, &Session{StorageURL: key, Own: t.own, Token: config.Secret(t.conn.AuthToken), Expires: t.expires}
	other, err := Dial(o)
	if err != nil {
		return nil, err
	}
	if c.others == nil {
		c.others = map[string]*Client{}
	}
	c.others[key] = other
	return other, nil
}

// StorageURL returns the URL of the account.
func (c *Client) StorageURL(ctx context.Context) (string, error) {
	t, err := c.token(ctx)
	if err != nil {
		return "", err
	}
	return t.conn.StorageUrl, nil
}

// SameAccount says whether two storage URLs name one account of a cluster, which
// may have several hosts.
func SameAccount(a, b string) bool { return samePath(a, b) }
