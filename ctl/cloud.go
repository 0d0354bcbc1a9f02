// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
	"swiftnbd/internal/volume"
)

// container is one container that a verb works on.
type container struct {
	store.Store             // with much patience
	contact     store.Store // with less, for a verb's first requests
	name        string
	export      config.Export
	where       string // the secrets file, or "the environment"
	client      *swiftstore.Client
	sibling     func(name string) store.Store // another container of the account
	say         func(format string, args ...any)
}

// load reads the secrets file, once. Where the default one does not exist the
// environment may give the credentials, so that is not yet an error.
func (t *tool) load() error {
	if t.secrets != nil {
		return nil
	}
	secrets, warning, err := config.ReadSecrets(t.secretsPath)
	if warning != "" {
		t.warn("%s", warning)
	}
	if errors.Is(err, fs.ErrNotExist) && !t.named {
		t.noFile = err
		secrets, err = config.NoSecrets(t.secretsPath), nil
	}
	if err != nil {
		return err
	}
	t.secrets = secrets
	return nil
}

// open resolves a container's credentials and prepares the way to it. No
// request is made yet.
func (t *tool) open(name string) (*container, error) {
	if err := t.load(); err != nil {
		return nil, err
	}
	x, err := t.secrets.Export(name, t.defaults, t.env)
	if errors.Is(err, config.ErrNoContainer) && t.noFile != nil {
		return nil, fmt.Errorf("%w, and the environment gives no credentials", t.noFile)
	}
	if err != nil {
		return nil, err
	}
	client := t.clouds[x.Login]
	if client == nil {
		client, err = swiftstore.Dial(swiftstore.Options{
			Login:       x.Login,
			Connections: maxConnections,
			UserAgent:   program + "/" + version.Version,
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if t.clouds == nil {
			t.clouds = make(map[config.Login]*swiftstore.Client)
		}
		t.clouds[x.Login] = client
	}
	where := t.secrets.Path()
	if !t.secrets.Has(name) {
		where = "the environment"
	}
	trace := func(name string) store.Store { return traced(client.Container(name), t.log.With("container", name)) }
	s := trace(name)
	return &container{
		Store:   t.patient(s, name, workPolicy),
		contact: t.patient(s, name, contactPolicy),
		sibling: func(name string) store.Store { return t.patient(trace(name), name, contactPolicy) },
		say:     t.warn,
		client:  client, name: name, export: x, where: where,
	}, nil
}

// close ends the connections.
func (t *tool) close() {
	for _, c := range t.clouds {
		c.Close()
	}
}

// explain puts an error of a request into the words that 0.11 had for it, and
// names the container.
func (c *container) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: interrupted", c.name)
	case errors.Is(err, store.ErrContainerNotFound):
		return fmt.Errorf("%s doesn't exist (auth-url: %s)", c.name, c.export.Login.AuthURL)
	case errors.Is(err, volume.ErrNotSetUp):
		return fmt.Errorf("%s hasn't been setup to be used with swiftnbd", c.name)
	case errors.Is(err, store.ErrUnauthorized):
		return fmt.Errorf("%s: %w (credentials from %s)", c.name, err, c.where)
	}
	return fmt.Errorf("%s: %w", c.name, oneLine{err})
}

// oneLine keeps a server's answer, which an error may quote, to one line.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.Join(strings.Fields(e.error.Error()), " ") }
func (e oneLine) Unwrap() error { return e.error }
