// SPDX-License-Identifier: MIT

package main

import (
	"slices"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/config"
	"swiftnbd/internal/store/swift"
)

// origin is where a shared cloud's login came from: the containers that use it, and
// the secrets that named it.
type origin struct {
	e       *exports
	secrets *config.Secrets
	warned  string // of readers of the file

	// e.mu guards the rest.
	key        cloudKey
	former     []config.Login // that were refused, and have been replaced
	containers []string       // in the order in which they came
}

// source returns the origin for a client, which asks for it when its login is
// refused.
func (o *origin) source() *swiftstore.Source {
	return &swiftstore.Source{Read: o.read, Used: o.used, Log: nbdkit.Errorf}
}

// read looks for another login in what the files say now. Containers that share
// a login may have it in their own sections each: the first that has another one
// counts. One that was refused before is tried only if there is nothing else: a section
// that nobody has changed since then must not hide the new login of another.
func (o *origin) read() (now config.Login, place string, err error) {
	e := o.e
	e.mu.Lock()
	containers, inCloud, was, former := slices.Clone(o.containers), e.inCloud, o.key.login, slices.Clone(o.former)
	e.mu.Unlock()
	best := 0 // how good the one is that was found: the present one, a former one
	for _, name := range containers {
		x, clouds, warning, failed := o.secrets.Again(name, e.params.defaults(inCloud), e.env)
		if failed != nil {
			if err == nil {
				err = failed
			}
			continue
		}
		if warning != "" && warning != o.warned {
			o.warned = warning
			nbdkit.Errorf("%s", warning)
		}
		if x.FromCloud() {
			e.mu.Lock()
			e.inCloud = clouds
			e.mu.Unlock()
		}
		good := 1
		if !config.SameLogin(x.Login, was) {
			if good = 2; !slices.ContainsFunc(former, func(l config.Login) bool { return config.SameLogin(x.Login, l) }) {
				return x.Login, x.Place, nil
			}
		}
		if good > best {
			now, place, best = x.Login, x.Place, good
		}
	}
	if place != "" {
		err = nil
	}
	return now, place, err
}

// used notes that the cloud has another login from now on. Disks that are opened
// later share it, and none takes it for the old login.
func (o *origin) used(now config.Login) {
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	old := o.key
	o.key.login = now
	o.former = slices.DeleteFunc(o.former, func(l config.Login) bool { return config.SameLogin(l, now) })
	o.former = append(o.former, old.login)
	if e.origins[old] != o {
		return // another client has taken its place
	}
	c, client := e.clouds[old], e.clients[old]
	delete(e.clouds, old)
	delete(e.clients, old)
	delete(e.origins, old)
	if e.clouds[o.key] == nil {
		e.clouds[o.key], e.clients[o.key], e.origins[o.key] = c, client, o
	}
}
