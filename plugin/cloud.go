// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"os"
	"slices"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
)

// cloudKey is the key of the shared clouds. Disks of one account share their
// requests, unless their sections have their own connections or timeout.
type cloudKey struct {
	login       config.Login
	connections int
	timeout     time.Duration
}

func clientOptions(x config.Export) swiftstore.Options {
	return swiftstore.Options{
		Login:       x.Login,
		Container:   x.Container,
		Connections: x.Disk.Connections,
		Timeout:     x.Disk.Timeout,
		UserAgent:   "swiftnbd/" + version.Version,
	}
}

// certificates are files with certificates and keys, by path, as the check before the
// fork has read them.
type certificates map[string][]byte

// read reads such a file as it is now. If it cannot be read any more, as often after
// nbdkit has given up its privileges, or could be read only once, it is as it was.
func (c certificates) read(path string) ([]byte, error) {
	kept := c[path]
	if kept != nil && config.ReadOnce(path) {
		return kept, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil && kept != nil {
		return kept, nil
	}
	return pem, err
}

// cloud returns the way to x's account.
func (e *exports) cloud(x config.Export) (*cloud.Cloud, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := cloudKey{x.Login, x.Disk.Connections, x.Disk.Timeout}
	c := e.clouds[key]
	if c == nil {
		o := clientOptions(x)
		o.ReadFile = e.cas.read
		from := &origin{e: e, secrets: e.secrets, key: key}
		o.Source = from.source()
		// The secrets may have changed since then. A token must not be used for
		// another login.
		if e.session != nil && x.Login == e.forUser {
			o.Session = &swiftstore.Session{StorageURL: e.session.StorageURL, Own: e.session.Own, Token: config.Secret(e.session.Token)}
		}
		var err error
		var client *swiftstore.Client
		if c, client, err = cloud.Dial(o, e.requests(x)); err != nil {
			return nil, err
		}
		e.clouds[key], e.clients[key], e.origins[key] = c, client, from
	}
	if from := e.origins[key]; !slices.Contains(from.containers, x.Container) {
		from.containers = append(from.containers, x.Container)
	}
	return c, nil
}

// requests returns how requests are made for x's disk. All are counted, and
// failed ones are reported.
func (e *exports) requests(x config.Export) cloud.Options {
	return cloud.Options{
		Connections: x.Disk.Connections,
		Watch:       func(_ string, s store.Store) store.Store { return e.metrics.Store(s) },
		Policy: store.Policy{
			Timeout: x.Disk.Timeout,
			OnRetry: func(r store.Retrying) {
				e.metrics.Retried()
				if debugStore() {
					nbdkit.Debugf("%s: attempt %d failed, next in %v: %v", r.Op, r.Attempt, r.Wait, r.Err)
				}
			},
		},
	}
}

// reader returns the way to x's container for a client that does not write.
func (e *exports) reader(x config.Export) (store.Store, error) {
	c, err := e.cloud(x)
	if err != nil {
		return nil, err
	}
	return c.Reader(x.Container), nil
}

// foreign says whether x's container is in another account than the login's.
func (e *exports) foreign(ctx context.Context, x config.Export) (bool, error) {
	if _, err := e.cloud(x); err != nil {
		return false, err
	}
	e.mu.Lock()
	client := e.clients[cloudKey{x.Login, x.Disk.Connections, x.Disk.Timeout}]
	e.mu.Unlock()
	return client.Foreign(ctx)
}
