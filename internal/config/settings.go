// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
)

// settings are the keys of a section, each with the check of its value that
// needs no other key. A nil check takes every value.
var settings = map[string]func(value string) error{
	"username":                      nil,
	"password":                      nil,
	"read-only":                     func(v string) error { _, err := ParseBool(v); return err },
	"authurl":                       CheckURL,
	"auth-version":                  func(v string) error { _, err := parseVersion(v); return err },
	"project":                       nil,
	"user-domain":                   nil,
	"project-domain":                nil,
	"region":                        nil,
	"endpoint-type":                 func(v string) error { _, err := parseEndpointType(v); return err },
	"application-credential-id":     nil,
	"application-credential-secret": nil,
	"cacert":                        nil,
	"cert":                          nil,
	"key":                           nil,
	"insecure":                      func(v string) error { _, err := ParseBool(v); return err },
	"cloud":                         CheckCloud,
	"storage-url":                   CheckStorageURL,
}

// CheckCloud says why v cannot be the name of a cloud in clouds.yaml, or nil.
func CheckCloud(v string) error {
	if v == "" {
		return errors.New("empty: it is the name of a cloud in clouds.yaml")
	}
	return nil
}

// ParseBool reads the values that swiftnbd 0.11 took ("0" and "1") and the
// usual words.
func ParseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "1", "yes", "true", "on":
		return true, nil
	case "0", "no", "false", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither 0 nor 1 (no, yes, false, true, off, on)", v)
}

// parseVersion reads the version of an authentication: 1, 2 or 3.
func parseVersion(v string) (int, error) {
	switch strings.TrimPrefix(strings.ToLower(v), "v") {
	case "1", "1.0":
		return 1, nil
	case "2", "2.0":
		return 2, nil
	case "3", "3.0":
		return 3, nil
	}
	return 0, fmt.Errorf("%q is not 1, 2 or 3", v)
}

// parseEndpointType reads an endpoint's interface in the forms that the
// OpenStack tools take: "public", "publicURL" and so on.
func parseEndpointType(v string) (string, error) {
	switch t := strings.TrimSuffix(strings.ToLower(v), "url"); t {
	case "public", "internal", "admin":
		return t, nil
	}
	return "", fmt.Errorf("%q is not public, internal or admin", v)
}

// CheckEndpointType says why v is no endpoint's interface, or nil.
func CheckEndpointType(v string) error {
	_, err := parseEndpointType(v)
	return err
}

// CheckURL returns why v cannot be an authentication URL, or nil. It must be an
// absolute http or https URL with a host and without a user name, query or
// fragment. If the URL cannot be parsed or may carry a password, the error does
// not quote it.
func CheckURL(v string) error {
	u, err := url.Parse(v)
	switch {
	case err != nil:
		return errors.New("not a URL")
	case u.User != nil:
		return errors.New("holds a user name: credentials belong into username and password")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q does not begin with http:// or https://", v)
	case u.Hostname() == "":
		return fmt.Errorf("%q names no host", v)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q has a query or fragment", v)
	}
	return nil
}

// CheckStorageURL returns why v cannot be an account's URL, or nil. It must
// satisfy CheckURL and have a path. The last part of the path is the account.
func CheckStorageURL(v string) error {
	if err := CheckURL(v); err != nil {
		return err
	}
	if u, err := url.Parse(v); err != nil || strings.Trim(u.Path, "/") == "" {
		return fmt.Errorf("%q names no account (http://HOST/v1/ACCOUNT)", v)
	}
	return nil
}

// CheckContainer says why Swift would refuse a container of that name, or nil:
// a name has 1 to 256 bytes of UTF-8 and no slash.
func CheckContainer(name string) error {
	switch {
	case name == "":
		return errors.New("a container needs a name")
	case len(name) > 256:
		return fmt.Errorf("a container's name has at most 256 bytes, this one has %d", len(name))
	case strings.Contains(name, "/"):
		return errors.New("a container's name cannot contain a slash")
	case name == "." || name == "..":
		return errors.New("not a container's name")
	}
	return nil
}

// VersionOf returns the version of authentication that the last part of an
// authentication URL's path names (…/v1.0, …/v2.0, …/v3), or 0 where it names
// none.
func VersionOf(authURL string) int {
	u, err := url.Parse(Base(authURL))
	if err != nil {
		return 0
	}
	last := path.Base(u.Path)
	if !strings.HasPrefix(last, "v") {
		return 0
	}
	v, err := parseVersion(last)
	if err != nil {
		return 0
	}
	return v
}

// Base returns an authentication URL without the path of a login behind its
// version (…/v3/auth/tokens, …/v2.0/tokens). Examples with curl have such
// paths.
func Base(authURL string) string {
	u, err := url.Parse(authURL)
	if err != nil {
		return authURL
	}
	p := strings.TrimRight(u.Path, "/")
	for _, rest := range []string{"/auth/tokens", "/tokens"} {
		cut, found := strings.CutSuffix(p, rest)
		if found && (rest == "/auth/tokens" && path.Base(cut) == "v3" || strings.HasPrefix(path.Base(cut), "v2")) {
			u.Path, u.RawPath = cut, ""
			return u.String()
		}
	}
	return authURL
}

// versioned returns the URL with its version as the path's last part. The URL
// of a Keystone in an openrc file often lacks it. With version 1 nothing is
// added.
func versioned(authURL string, version int) string {
	authURL = Base(authURL)
	if VersionOf(authURL) != 0 {
		return authURL
	}
	switch version {
	case 2:
		return strings.TrimRight(authURL, "/") + "/v2.0"
	case 3:
		return strings.TrimRight(authURL, "/") + "/v3"
	}
	return authURL
}

// resolve makes a file's path absolute, relative to the folder that holds the
// secrets file.
func resolve(secretsPath, file string) (string, error) {
	if file == "" || filepath.IsAbs(file) {
		return file, nil
	}
	return filepath.Abs(filepath.Join(filepath.Dir(secretsPath), file))
}
