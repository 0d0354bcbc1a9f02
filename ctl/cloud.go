// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/clouds"
	"swiftnbd/internal/config"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
	"swiftnbd/internal/volume"
)

// container is one container that a verb works on.
type container struct {
	store.Store             // tries for long
	contact     store.Store // tries for less long, for a verb's first requests
	name        string
	export      config.Export
	where       string // the secrets file, "the environment" or "cloud NAME"
	section     bool   // the secrets file has a section of this name
	hint        string // what to add where there is no such container
	client      *swiftstore.Client
	sibling     func(name string) store.Store // another container of the account
	bases       logdisk.Bases                 // the container of a clone's parent
	say         func(format string, args ...any)
	watch       func(name string, s store.Store) store.Store // traces the requests
	pace        *pace
}

// load reads the secrets file, once. If the default file does not exist, this
// is not yet an error: the environment may give the credentials.
func (t *tool) load() error {
	if t.secrets != nil {
		return nil
	}
	secrets, warning, err := config.ReadSecrets(t.login.Secrets)
	if warning != "" {
		t.warn("%s", warning)
	}
	if errors.Is(err, fs.ErrNotExist) && !t.named {
		t.noFile = err
		secrets, err = config.NoSecrets(t.login.Secrets), nil
	}
	if err != nil {
		return err
	}
	t.defaults.Clouds = clouds.New(clouds.Load(t.env))
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
		if lacks := t.env.Lacks(); lacks != "" {
			return nil, fmt.Errorf("%w%s", t.noFile, lacks)
		}
		return nil, fmt.Errorf("%w, and the environment gives no credentials", t.noFile)
	}
	if errors.Is(err, config.ErrNoContainer) {
		return nil, fmt.Errorf("%w%s", err, t.snapshotHint(name, ": without a section of this name it is a snapshot, which only download, clone and diff take"))
	}
	if err != nil {
		return nil, err
	}
	client := t.clients[x.Login]
	if client == nil {
		client, err = swiftstore.Dial(swiftstore.Options{
			Login:       x.Login,
			Connections: maxConnections,
			UserAgent:   program + "/" + version.Version,
			Source:      t.origin(name),
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if t.clients == nil {
			t.clients = make(map[config.Login]*swiftstore.Client)
		}
		t.clients[x.Login] = client
		if x.InsecureBy != "" {
			t.warn("%s: the cloud's certificate is not verified (%s): whoever sits on the way can read and change the disk, and the login", name, x.InsecureBy)
		}
	}
	watch := func(name string, s store.Store) store.Store { return traced(s, t.log.With("container", name)) }
	account := cloud.New(placed{client, t.policy}, cloud.Options{Watch: watch})
	work := cloud.New(placed{client, t.policy}, cloud.Options{Watch: watch, Policy: t.telling(name, t.pace.work)})
	contact := func(name string) store.Store { return account.Patient(name, t.telling(name, t.pace.contact)) }
	return &container{
		Store:   account.Patient(name, t.telling(name, t.pace.work)),
		contact: contact(name),
		sibling: contact,
		bases:   work.Base,
		say:     t.warn,
		watch:   watch,
		pace:    &t.pace,
		hint:    t.snapshotHint(name, ": only download, clone and diff take CONTAINER@SNAPSHOT"),
		client:  client, name: name, export: x, where: x.From, section: t.secrets.Has(name),
	}, nil
}

// origin is where a container's login came from, for verbs that take long: the
// password may be changed meanwhile.
func (t *tool) origin(name string) *swiftstore.Source {
	secrets := t.secrets
	return &swiftstore.Source{
		Read: func() (config.Login, string, error) {
			x, _, _, err := secrets.Again(name, t.defaults, t.env)
			return x.Login, x.Place, err
		},
		Log:   t.warn,
		Quiet: true, // explain says where the credentials come from
	}
}

// placed is an account whose new containers get a storage policy. If it is empty,
// Swift chooses.
type placed struct {
	*swiftstore.Client
	policy string
}

func (p placed) Container(name string) store.Store { return p.ContainerIn(name, p.policy) }

// close ends the connections.
func (t *tool) close() {
	for _, c := range t.clients {
		c.Close()
	}
}

// explain returns the error of a request in 0.11's words, with the container's
// name.
func (c *container) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &interruptedError{c.name}
	case errors.Is(err, store.ErrContainerNotFound):
		return fmt.Errorf("%s doesn't exist (auth-url: %s)%s", c.name, cmp.Or(c.export.Login.AuthURL, c.export.Login.StorageURL), c.hint)
	case errors.Is(err, volume.ErrNotSetUp):
		return fmt.Errorf("%s hasn't been setup to be used with swiftnbd", c.name)
	case errors.Is(err, store.ErrUnauthorized):
		return fmt.Errorf("%s: %w (credentials from %s)", c.name, err, c.where)
	}
	if errors.Is(err, store.ErrForbidden) {
		if foreign, ferr := c.client.Foreign(ctx); ferr == nil && foreign {
			return fmt.Errorf("%s: it is another account's, and its ACL does not let these credentials do this: %w", c.name, oneLine{err})
		}
	}
	return fmt.Errorf("%s: %w", c.name, oneLine{err})
}

// namesSnapshot says whether the container's name is that of a snapshot for
// splitSnapshot.
func (c *container) namesSnapshot() bool { return !c.section && strings.Contains(c.name, "@") }

// cut returns err, which has not to do with Swift, or that the verb was interrupted.
func (c *container) cut(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &interruptedError{c.name}
	}
	return err
}

// interruptedError is the end of a verb that a signal has stopped.
type interruptedError struct{ container string }

func (e *interruptedError) Error() string { return e.container + ": interrupted" }

// oneLine prints an error on one line. The error may quote a server's answer,
// which may have several.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.Join(strings.Fields(e.error.Error()), " ") }
func (e oneLine) Unwrap() error { return e.error }
