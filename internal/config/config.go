// SPDX-License-Identifier: MIT

// Package config reads what the user configures: the secrets file with a section
// for each container, the OS_* and ST_* environment, and sizes. Its type Secret
// keeps passwords out of logs.
//
// # Precedence
//
// Each setting of a container comes from the first of these that has it:
//
//  1. cloud= on the command line, which names a cloud of clouds.yaml. It replaces
//     the credentials of every section;
//  2. the container's section of the secrets file;
//  3. the file's [DEFAULT] section;
//  4. the command line's other settings: nbdkit's parameters, and swiftnbd-ctl's
//     -a/--auth-url and --keystone-*. They are defaults for the sections that name
//     none, as in swiftnbd 0.11;
//  5. clouds.yaml, if one of these or OS_CLOUD names a cloud (cloud.go);
//  6. the environment: first OS_*, then ST_*.
//
// The environment counts only as a whole, and only if the file gives the
// container no credentials (neither a username nor an application credential).
// In this way the credentials of one cloud never go to another. If the file gives
// credentials, nothing is read from the environment. If the environment gives
// them, its authentication URL has to agree with the file's or the command line's,
// or be absent.
package config

import "swiftnbd/internal/clouds"

// Login is everything that is needed to authenticate: the credentials, where to
// send them, and which endpoint of the catalogue to use.
type Login struct {
	// AuthURL is the authentication URL: http(s)://HOST/auth/v1.0 for
	// version 1, the Keystone's …/v2.0 or …/v3 otherwise.
	AuthURL string

	// Version is the version of the authentication: 1 (tempauth and similar), 2
	// or 3 (Keystone v2.0, v3). Secrets.Export never leaves it 0. In a Login
	// from other code, 0 means the result of VersionOf for the URL.
	Version int

	// StorageURL is the account's URL (http or https). It replaces the one that
	// the login gives. If it is empty, the login's counts. It may belong to
	// another account.
	StorageURL string

	// Token is a token that another program has obtained; there are no other
	// credentials. With StorageURL there is no login. Without it the token is
	// exchanged at Keystone for one of the project.
	Token Secret

	// UserID is the user's ID. With versions 2 and 3 it may replace Username
	// and the user's domain.
	UserID string

	// Username and Password are the account's. For version 2 the tenant has
	// been split off into Project. Both are empty with an application
	// credential.
	Username string
	Password Secret

	// Project is the project's (the tenant's) name, and ProjectID its ID. One
	// of them is given, or neither to use the user's default project.
	Project   string
	ProjectID string

	// The domains of the user and of the project, with version 3 only. Each is
	// given by name or by ID, never both. If the user has named no domain, the
	// names are "Default".
	UserDomain      string
	UserDomainID    string
	ProjectDomain   string
	ProjectDomainID string

	// Region selects among the catalogue's endpoints; empty takes the first.
	Region string

	// ServiceType is the catalogue's type of service; empty stands for
	// "object-store".
	ServiceType string

	// EndpointType is "public", "internal" or "admin"; empty stands for
	// "public".
	EndpointType string

	// AppCredentialID and AppCredentialSecret are a Keystone v3 application
	// credential. It replaces Username, Password, project and domains. If it is
	// given by AppCredentialName, the user is given too, whose name for it that is.
	AppCredentialID     string
	AppCredentialName   string
	AppCredentialSecret Secret

	// TrustID is the ID of a Keystone v3 trust: the user acts for the trustor, in
	// the trust's project.
	TrustID string

	// CACert is the absolute path of a PEM file with authorities that are
	// trusted for this cloud in addition to the system's. If it is empty, only
	// the system's are trusted.
	CACert string

	// ClientCert and ClientKey are the absolute paths of PEM files with a
	// certificate for the client and its key. ClientKey is empty if ClientCert has
	// both.
	ClientCert, ClientKey string

	// Insecure says that the cloud's certificates are not verified.
	Insecure bool
}

// Export is one container that can be served: its name and how to reach it.
type Export struct {
	Container string
	ReadOnly  bool
	Login     Login
	Disk      Disk
	// From says where the credentials come from, for messages. Place says it in
	// full: the section or the cloud, and the file.
	From, Place string
	// InsecureBy says who asked for Login.Insecure; empty if it is not set.
	InsecureBy string
}

// Defaults are the command line's settings, for sections that lack them.
type Defaults struct {
	AuthURL    string
	CACert     string
	StorageURL string
	// Cloud names a cloud of clouds.yaml, whose credentials replace those of every
	// section. Clouds are the clouds that there are, if a container may use one.
	Cloud  string
	Clouds *clouds.Set
	// Region, EndpointType, ClientCert and ClientKey (absolute paths) and Insecure
	// are those of Login.
	Region, EndpointType  string
	ClientCert, ClientKey string
	Insecure              bool
	Disk                  Disk
	// Keystone, if not nil, says that Keystone checks username and password, as
	// with swiftnbd 0.11 (its -k, the plugin's keystone-auth=).
	Keystone *KeystoneOptions
}

// KeystoneOptions are swiftnbd 0.11's --keystone-* options.
type KeystoneOptions struct {
	RegionName      string // empty: the first region
	TenantSeparator string // between TENANT and USERNAME; empty: "."
	ServiceType     string // empty: "object-store"
	EndpointType    string // "publicURL" or "public" and so on; empty: public
}

// Environ looks up an environment variable; os.Getenv in production. A nil
// Environ is an empty environment.
type Environ func(string) string

// get returns the variable's value, or "".
func (e Environ) get(name string) string {
	if e == nil {
		return ""
	}
	return e(name)
}
