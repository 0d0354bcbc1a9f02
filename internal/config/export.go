// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"strings"
)

// Export resolves one container in the order that the package's comment gives.
// A container without a section is the environment's, where that gives
// credentials, and ErrNoContainer otherwise. Other errors name the file, the
// section and the key, or the variable, at fault.
func (s *Secrets) Export(container string, d Defaults, env Environ) (Export, error) {
	if err := CheckContainer(container); err != nil {
		return Export{}, fmt.Errorf("container %q: %w", container, err)
	}
	if d.AuthURL != "" {
		if err := CheckURL(d.AuthURL); err != nil {
			return Export{}, fmt.Errorf("authentication URL: %w", err)
		}
	}
	x := Export{Container: container}
	if !s.Has(container) {
		login, ok, err := fromEnviron(env)
		switch {
		case err != nil:
			return Export{}, fmt.Errorf("container %s: %w", printable(container), err)
		case !ok:
			return Export{}, &noContainerError{container, s.path}
		}
		x.Login, err = s.settle(container, login, d)
		return x, err
	}

	if v, from := s.get(container, "read-only"); from != "" {
		x.ReadOnly, _ = parseBool(v) // checked when the file was parsed
	}
	login, ok, err := s.credentials(container, d)
	if err != nil {
		return Export{}, err
	}
	if ok {
		x.Login = login
		return x, nil
	}
	login, ok, err = fromEnviron(env)
	if err != nil {
		return Export{}, &FileError{Path: s.path, Section: container, Err: err}
	}
	if !ok {
		return Export{}, s.fault(container, "username", errors.New(
			"missing (nor is there an application-credential-id, nor credentials in the environment)"))
	}
	x.Login, err = s.settle(container, login, d)
	return x, err
}

// credentials builds the login that the file gives a container. ok is false
// where the file gives neither a username nor an application credential.
func (s *Secrets) credentials(container string, d Defaults) (l Login, ok bool, err error) {
	username, userFrom := s.get(container, "username")
	appID, appFrom := s.get(container, "application-credential-id")
	// The section's own kind of credentials beats [DEFAULT]'s other kind.
	if userFrom != "" && appFrom != "" {
		switch {
		case userFrom == appFrom:
			return l, false, s.fault(userFrom, "username", errors.New(
				"given together with application-credential-id: use one of them"))
		case userFrom == container:
			appFrom = ""
		default:
			userFrom = ""
		}
	}

	l.AuthURL, _ = s.get(container, "authurl")
	if l.AuthURL == "" {
		l.AuthURL = d.AuthURL
	}
	switch {
	case appFrom != "":
		l.Version = 3
		if l.AppCredentialID = appID; appID == "" {
			return l, false, s.fault(appFrom, "application-credential-id", errors.New("empty"))
		}
		secret, from := s.get(container, "application-credential-secret")
		if from == "" || secret == "" {
			return l, false, s.blame(container, "application-credential-secret", errors.New("missing"))
		}
		l.AppCredentialSecret = Secret(secret)
	case userFrom != "":
		if l.Username = username; username == "" {
			return l, false, s.fault(userFrom, "username", errors.New("empty"))
		}
		password, from := s.get(container, "password")
		if from == "" {
			return l, false, s.fault(container, "password", errors.New("missing"))
		}
		l.Password = Secret(password)
		l.Project, _ = s.get(container, "project")
		l.UserDomain, _ = s.get(container, "user-domain")
		l.ProjectDomain, _ = s.get(container, "project-domain")
	default:
		return Login{}, false, nil
	}
	if l.AuthURL == "" {
		return l, false, s.fault(container, "authurl", errors.New(
			"missing, and the command line gives no authentication URL either"))
	}
	if err := s.version(container, &l, d.Keystone); err != nil {
		return l, false, err
	}
	l.Region, _ = s.get(container, "region")
	if v, from := s.get(container, "endpoint-type"); from != "" {
		l.EndpointType, _ = parseEndpointType(v) // checked when the file was parsed
	}
	if err := s.keystone(container, &l, d.Keystone); err != nil {
		return l, false, err
	}
	l.CACert, err = s.cacert(container, "", d)
	return l, err == nil, err
}

// version decides how to authenticate: what auth-version says, else what the
// kind of credentials, the URL, the keys of Keystone v3, -k say, else 1, which
// is all that swiftnbd's secrets knew.
func (s *Secrets) version(container string, l *Login, k *KeystoneOptions) error {
	byURL := VersionOf(l.AuthURL)
	if v, from := s.get(container, "auth-version"); from != "" {
		want, _ := parseVersion(v) // checked when the file was parsed
		if l.Version != 0 && want != l.Version {
			return s.fault(from, "auth-version", errors.New("an application credential needs version 3"))
		}
		if byURL != 0 && byURL != want {
			return s.fault(from, "auth-version", fmt.Errorf("is %s, but the authentication URL is %s", v, l.AuthURL))
		}
		l.Version = want
	}
	switch {
	case l.Version == 3 && byURL != 0 && byURL != 3:
		return s.blame(container, "authurl", fmt.Errorf(
			"%s is not Keystone v3's, which an application credential needs", l.AuthURL))
	case l.Version != 0:
	case byURL != 0:
		l.Version = byURL
	case l.Project != "" || l.UserDomain != "" || l.ProjectDomain != "":
		l.Version = 3
	case k != nil:
		l.Version = 2
	default:
		l.Version = 1
	}
	l.AuthURL = versioned(l.AuthURL, l.Version)
	return nil
}

// keystone fills in what swiftnbd 0.11 took from --keystone-* and from
// TENANT.USERNAME, and Keystone v3's usual domain.
func (s *Secrets) keystone(container string, l *Login, k *KeystoneOptions) error {
	if l.Version == 1 {
		return nil
	}
	separator := "."
	if k != nil {
		if k.TenantSeparator != "" {
			separator = k.TenantSeparator
		}
		if l.Region == "" {
			l.Region = k.RegionName
		}
		if l.EndpointType == "" && k.EndpointType != "" {
			t, err := parseEndpointType(k.EndpointType)
			if err != nil {
				return fmt.Errorf("--keystone-endpoint-type: %w", err)
			}
			l.EndpointType = t
		}
		l.ServiceType = k.ServiceType
	}
	// With version 3 a dot in a user's name is only a dot, unless -k was
	// given.
	if l.Username != "" && l.Project == "" && (l.Version == 2 || k != nil) {
		tenant, user, found := strings.Cut(l.Username, separator)
		switch {
		case found && tenant != "" && user != "":
			l.Project, l.Username = tenant, user
		case l.Version == 2:
			return s.blame(container, "username", fmt.Errorf(
				"names no tenant (TENANT%sUSERNAME, or a project key), which Keystone v2.0 needs", separator))
		}
	}
	if l.Version == 3 {
		l.defaultDomains()
	}
	return nil
}

// defaultDomains names "Default" where the user named no domain. An
// application credential carries its own.
func (l *Login) defaultDomains() {
	if l.AppCredentialID != "" {
		return
	}
	if l.UserDomain == "" && l.UserDomainID == "" {
		l.UserDomain = "Default"
	}
	if l.ProjectDomain == "" && l.ProjectDomainID == "" && l.Project != "" {
		l.ProjectDomain = "Default"
	}
}

// settle fits the environment's login into what the file and the command line
// say about the same container. An authentication URL that differs from the
// environment's is an error: its password belongs to the other cloud.
func (s *Secrets) settle(container string, l Login, d Defaults) (Login, error) {
	if !s.Has(container) {
		// [DEFAULT] is the defaults of the file's containers.
		return l.settled(d.AuthURL, d.CACert)
	}
	url, from := s.get(container, "authurl")
	if url == "" {
		url = d.AuthURL
	}
	cacert, err := s.cacert(container, l.CACert, d)
	if err != nil {
		return l, err
	}
	l, err = l.settled(url, cacert)
	if err != nil && from != "" {
		return l, s.fault(from, "authurl", err)
	}
	if v, f := s.get(container, "region"); f != "" {
		l.Region = v
	}
	if v, f := s.get(container, "endpoint-type"); f != "" {
		l.EndpointType, _ = parseEndpointType(v) // checked when the file was parsed
	}
	return l, err
}

// settled checks the environment's login against the authentication URL that
// was given elsewhere, takes that where the environment has none, and puts the
// CA file in where one is given.
func (l Login) settled(authURL, cacert string) (Login, error) {
	if cacert != "" {
		l.CACert = cacert
	}
	switch {
	case l.AuthURL == "" && authURL == "":
		return l, errors.New("the environment gives credentials but no authentication URL (OS_AUTH_URL or ST_AUTH), and nothing else does")
	case authURL == "":
	case l.AuthURL == "":
		l.AuthURL = authURL
	default:
		version := l.Version
		if version == 0 {
			version = VersionOf(l.AuthURL)
		}
		mine, theirs := versioned(l.AuthURL, version), versioned(authURL, version)
		if strings.TrimRight(mine, "/") != strings.TrimRight(theirs, "/") {
			return l, fmt.Errorf("the only credentials are the environment's, and those are for %s, not for %s", l.AuthURL, authURL)
		}
	}
	byURL := VersionOf(l.AuthURL)
	switch {
	case l.Version == 0 && byURL == 0:
		// The environment of the OpenStack tools, whose URLs often lack it.
		l.Version = 3
	case l.Version == 0:
		l.Version = byURL
	case byURL != 0 && byURL != l.Version:
		return l, fmt.Errorf("the environment's authentication is version %d, but its URL is %s", l.Version, l.AuthURL)
	}
	l.AuthURL = versioned(l.AuthURL, l.Version)
	if l.Version == 3 {
		l.defaultDomains()
	}
	return l, nil
}

// cacert returns the authorities' file: the file's, the command line's, or
// otherwise.
func (s *Secrets) cacert(container, otherwise string, d Defaults) (string, error) {
	v, from := s.get(container, "cacert")
	if v == "" {
		if d.CACert != "" {
			return d.CACert, nil
		}
		return otherwise, nil
	}
	file, err := resolve(s.path, v)
	if err != nil {
		return "", s.fault(from, "cacert", err)
	}
	return file, nil
}
