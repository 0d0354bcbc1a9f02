// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Export resolves one container in the order of the package's comment. If the
// container has no section, the environment's credentials count. Without them,
// Export returns ErrNoContainer. Other errors name the file, section and key,
// or the variable, at fault.
func (s *Secrets) Export(container string, d Defaults, env Environ) (Export, error) {
	if err := CheckContainer(container); err != nil {
		return Export{}, fmt.Errorf("container %q: %w", container, err)
	}
	if d.AuthURL != "" {
		if err := CheckURL(d.AuthURL); err != nil {
			return Export{}, fmt.Errorf("authentication URL: %w", err)
		}
	}
	if d.StorageURL != "" {
		if err := CheckStorageURL(d.StorageURL); err != nil {
			return Export{}, fmt.Errorf("storage URL: %w", err)
		}
	}
	x := Export{Container: container, Disk: d.Disk.complete()}
	if s.Has(container) {
		x.Disk = s.disk(container, d.Disk)
		if v, from := s.get(container, "read-only"); from != "" {
			x.ReadOnly, _ = ParseBool(v) // checked when the file was parsed
		}
	}
	by, ok, err := s.choose(container, d)
	if err != nil {
		return Export{}, err
	}
	if ok {
		return s.fromCloud(x, by, d, env)
	}
	osCloud := choice{name: env.get("OS_CLOUD"), from: byEnvironment}
	if !s.Has(container) {
		if osCloud.name != "" {
			return s.fromCloud(x, osCloud, d, env)
		}
		x.From, x.Place = "the environment", "the environment"
		login, ok, err := fromEnviron(env)
		switch {
		case err != nil:
			return Export{}, fmt.Errorf("container %s: %w", printable(container), err)
		case !ok:
			return Export{}, &noContainerError{container, s.path, env.Lacks()}
		}
		if x.Login, err = s.fitLogin(container, login, d); err != nil {
			return x, err
		}
		return s.certificates(x, d)
	}

	x.From = s.path
	login, ok, err := s.credentials(container, d)
	if err != nil {
		return Export{}, err
	}
	if ok {
		key := "password"
		if login.AppCredentialID != "" {
			key = "application-credential-secret"
		}
		_, section := s.get(container, key)
		x.Login, x.Place = login, fmt.Sprintf("section [%s] of %s", printable(section), s.path)
		return s.certificates(x, d)
	}
	if osCloud.name != "" {
		return s.fromCloud(x, osCloud, d, env)
	}
	x.From, x.Place = "the environment", "the environment"
	login, ok, err = fromEnviron(env)
	if err != nil {
		return Export{}, &FileError{Path: s.path, Section: container, Err: err}
	}
	if !ok {
		return Export{}, s.fault(container, "username", errors.New(
			"missing (nor is there an application-credential-id, nor credentials in the environment)"+env.Lacks()))
	}
	if x.Login, err = s.fitLogin(container, login, d); err != nil {
		return x, err
	}
	return s.certificates(x, d)
}

// fromCloud gives an export the credentials of a cloud of clouds.yaml.
func (s *Secrets) fromCloud(x Export, by choice, d Defaults, env Environ) (_ Export, err error) {
	x.From = "cloud " + printable(by.name)
	if x.Login, x.InsecureBy, err = s.cloudLogin(x.Container, by, d, env); err != nil {
		return Export{}, err
	}
	c, err := d.Clouds.Cloud(by.name, "")
	if err != nil {
		return Export{}, err
	}
	x.Place = x.From + " of " + c.Where("auth.password", "auth.application_credential_secret", "auth.token")
	return x, nil
}

// certificates fills in the client's certificate, and whether the server's are
// verified, where no cloud of clouds.yaml is used.
func (s *Secrets) certificates(x Export, d Defaults) (_ Export, err error) {
	get := func(key string) (value, from string) {
		if !s.Has(x.Container) {
			return "", ""
		}
		return s.get(x.Container, key)
	}
	if d.Region != "" && x.Login.Region == "" {
		x.Login.Region = d.Region
	}
	if d.EndpointType != "" && x.Login.EndpointType == "" {
		if x.Login.EndpointType, err = parseEndpointType(d.EndpointType); err != nil {
			return Export{}, fmt.Errorf("endpoint-type: %w", err)
		}
	}
	for _, f := range []struct {
		to        *string
		key, flag string
	}{{&x.Login.ClientCert, "cert", d.ClientCert}, {&x.Login.ClientKey, "key", d.ClientKey}} {
		if v, from := get(f.key); v != "" {
			if *f.to, err = resolve(s.path, v); err != nil {
				return Export{}, s.fault(from, f.key, err)
			}
		} else if f.flag != "" {
			*f.to = f.flag
		}
	}
	if x.Login.ClientKey != "" && x.Login.ClientCert == "" {
		return Export{}, s.blame(x.Container, "key", errors.New("there is a key for a client certificate, and no certificate (cert)"))
	}
	x.InsecureBy = s.insecure(&x.Login, get, d, "")
	return x, nil
}

// credentials builds the login that the file gives a container. ok is false if
// the file gives neither a username nor an application credential.
func (s *Secrets) credentials(container string, d Defaults) (l Login, ok bool, err error) {
	username, userFrom := s.get(container, "username")
	appID, appFrom := s.get(container, "application-credential-id")
	// The section's own kind of credentials counts more than another kind in
	// [DEFAULT].
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
	if l.StorageURL, _ = s.get(container, "storage-url"); l.StorageURL == "" {
		l.StorageURL = d.StorageURL
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

// version decides which version of authentication to use. auth-version counts
// first. Then come the kind of credentials, the URL, the keys of Keystone v3,
// and -k. Otherwise the version is 1, the only one that 0.11's secrets file
// knew.
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
				return fmt.Errorf("keystone-endpoint: %w", err)
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

// defaultDomains sets a domain that the user did not name to "Default". An
// application credential has its own domain.
func (l *Login) defaultDomains() {
	if l.AppCredentialID != "" {
		return // it has its own
	}
	if l.UserDomain == "" && l.UserDomainID == "" && l.UserID == "" && l.Token == "" {
		l.UserDomain = "Default"
	}
	if l.ProjectDomain == "" && l.ProjectDomainID == "" && l.Project != "" {
		l.ProjectDomain = "Default"
	}
}

// fitLogin combines the environment's login with the settings of the file and
// the command line for the same container. If the authentication URLs differ,
// it is an error: the environment's password belongs to another cloud.
func (s *Secrets) fitLogin(container string, l Login, d Defaults) (Login, error) {
	if !s.Has(container) {
		// [DEFAULT] is the defaults of the file's containers.
		if err := l.storage(d.StorageURL, environToken); err != nil {
			return l, err
		}
		return l.forURL(d.AuthURL, d.CACert)
	}
	storage, storageFrom := s.get(container, "storage-url")
	if storage == "" {
		storage = d.StorageURL
	}
	if err := l.storage(storage, environToken); err != nil && storageFrom != "" {
		return l, s.fault(storageFrom, "storage-url", err)
	} else if err != nil {
		return l, &FileError{Path: s.path, Section: container, Err: err}
	}
	authURL, from := s.get(container, "authurl")
	if authURL == "" {
		authURL = d.AuthURL
	}
	cacert, err := s.cacert(container, l.CACert, d)
	if err != nil {
		return l, err
	}
	l, err = l.forURL(authURL, cacert)
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

// environToken names the environment's token in messages.
const environToken = "the environment's token"

// storage replaces the login's storage URL by one that was given elsewhere, if
// there is one. If a token came with a storage URL, it is not sent to another
// host. whose names the token.
func (l *Login) storage(given, whose string) error {
	if l.Token != "" && given != "" && l.StorageURL != "" {
		mine, err := url.Parse(l.StorageURL)
		theirs, err2 := url.Parse(given)
		if err != nil || err2 != nil || mine.Scheme != theirs.Scheme || mine.Host != theirs.Host {
			return fmt.Errorf("the only credentials are %s, and that is for %s, not for %s", whose, l.StorageURL, given)
		}
	}
	if given != "" {
		l.StorageURL = given
	}
	if l.Token != "" && l.StorageURL == "" && l.AuthURL == "" {
		return errors.New("the environment has a token (OS_AUTH_TOKEN or OS_TOKEN), but lacks OS_STORAGE_URL, and nothing else gives a storage URL")
	}
	return nil
}

// forURL compares the environment's login with the authentication URL that was
// given elsewhere. If the environment has no such URL, it takes this one. If a
// CA file is given, it takes that too.
func (l Login) forURL(authURL, cacert string) (Login, error) {
	if cacert != "" {
		l.CACert = cacert
	}
	switch {
	case l.Token != "":
		return l, nil
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
		// The URLs of the OpenStack tools' environment often lack the version.
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

// cacert returns the path of the authorities' file: from the secrets file, or
// from the command line, or otherwise.
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
