// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"os"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/config"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
)

// cloud is one way into Swift, shared by the containers that are reached with
// the same credentials.
type cloud struct {
	client  *swiftstore.Client
	limiter *store.Limiter
}

func clientOptions(p *params, x config.Export) swiftstore.Options {
	return swiftstore.Options{
		Login:       x.Login,
		Container:   x.Container,
		Connections: p.connections,
		Timeout:     p.timeout,
		UserAgent:   "swiftnbd/" + version.Version,
	}
}

// readCA reads an authorities' file, or, where that is not possible any more,
// returns what it was before the privileges were given up.
func (e *exports) readCA(path string) ([]byte, error) {
	pem, err := os.ReadFile(path)
	if kept := e.cas[path]; err != nil && kept != nil {
		return kept, nil
	}
	return pem, err
}

// cloud returns the way to x's account.
func (e *exports) cloud(x config.Export) (*cloud, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.clouds[x.Login]
	if c == nil {
		o := clientOptions(e.params, x)
		o.ReadFile = e.readCA
		// The secrets may have changed since: another's token is another
		// account's door.
		if e.session != nil && x.Login == e.forUser {
			o.Session = &swiftstore.Session{StorageURL: e.session.StorageURL, Token: config.Secret(e.session.Token)}
		}
		client, err := swiftstore.Dial(o)
		if err != nil {
			return nil, err
		}
		c = &cloud{client, store.NewLimiter(e.params.connections)}
		e.clouds[x.Login] = c
	}
	return c, nil
}

// patient returns s counted, and with retries.
func (e *exports) patient(s store.Store) store.Store {
	return store.Retry(e.metrics.Store(s), store.Policy{
		Timeout: e.params.timeout,
		OnRetry: func(r store.Retrying) {
			e.metrics.Retried()
			if debugStore() {
				nbdkit.Debugf("%s: attempt %d failed, next in %v: %v", r.Op, r.Attempt, r.Wait, r.Err)
			}
		},
	})
}

// look returns the way to x's container for whoever does not write.
func (e *exports) look(x config.Export) (store.Store, error) {
	c, err := e.cloud(x)
	if err != nil {
		return nil, err
	}
	return c.limiter.Store(e.patient(c.client.Container(x.Container))), nil
}

// writer returns the way to x's container for its writer, and how its lease is
// taken. They share a fence, so they are made anew for each device.
func (e *exports) writer(x config.Export) (store.Store, lease.Options, error) {
	c, err := e.cloud(x)
	if err != nil {
		return nil, lease.Options{}, err
	}
	fence := new(store.Fence)
	l := lease.Options{
		Name:  x.Container,
		Term:  e.params.leaseTerm(),
		Fence: fence,
		Sibling: func(name string) store.Store {
			return e.patient(c.client.Container(name))
		},
		CheckFence: func(ctx context.Context, g store.Grant) error {
			return c.client.CheckFence(ctx, x.Container, g)
		},
	}
	return store.Settle(c.limiter.Store(e.patient(c.client.Fenced(x.Container, fence)))), l, nil
}
