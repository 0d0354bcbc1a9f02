// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"io/fs"
	"strings"

	"swiftnbd/internal/clouds"
)

// SameLogin says whether two logins have the same credentials and lead to the same
// place. Certificates do not count.
func SameLogin(a, b Login) bool {
	b.CACert, b.ClientCert, b.ClientKey, b.Insecure = a.CACert, a.ClientCert, a.ClientKey, a.Insecure
	return a == b
}

// FromCloud says whether the credentials are those of a cloud of clouds.yaml.
func (x Export) FromCloud() bool { return strings.HasPrefix(x.From, "cloud ") }

// Again is Export with what the secrets file, clouds.yaml and the files beside it
// hold now. It also returns the clouds that it has read, and ReadSecrets' warning.
// A container whose section is gone does not take its credentials from elsewhere:
// that is an error. If the file can be read only once, it counts as it was.
func (s *Secrets) Again(container string, d Defaults, env Environ) (x Export, now *clouds.Set, warning string, err error) {
	fresh, err := s, error(nil)
	if !ReadOnce(s.path) {
		fresh, warning, err = ReadSecrets(s.path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.values == nil:
		fresh = s // there was none before either
	case err != nil:
		return Export{}, nil, "", err
	}
	if s.Has(container) && !fresh.Has(container) {
		return Export{}, nil, "", &FileError{Path: s.path, Section: container, Err: errors.New("there is no such section any more")}
	}
	d.Clouds = d.Clouds.Again()
	x, err = fresh.Export(container, d, env)
	return x, d.Clouds, warning, err
}
