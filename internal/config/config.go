// SPDX-License-Identifier: MIT

// Package config is what the user tells us: the secrets file with a section a
// container, the OS_* and ST_* environment, sizes, and the Secret type that
// keeps passwords out of logs.
//
// # Precedence
//
// Each setting of a container comes from the first of these that has it:
//
//  1. the container's own section of the secrets file;
//  2. the file's [DEFAULT] section;
//  3. the command line: nbdkit's authurl= and cacert=, swiftnbd-ctl's
//     -a/--auth-url and --keystone-*, which are defaults for the sections that
//     name none, as they were in swiftnbd 0.11;
//  4. the environment, first OS_*, then ST_*.
//
// The environment counts only as a whole and only where the file gives no
// credentials (neither a username nor an application credential) for the
// container: what belongs to one cloud is never sent to another. With
// credentials in the file nothing at all is read from the environment; with
// those of the environment its authentication URL has to agree with what the
// file or the command line say, or be absent.
package config

// Login is all that is needed to authenticate: credentials, where to send
// them, and which of the catalogue's endpoints to use then.
type Login struct {
	// AuthURL is the authentication URL: http(s)://HOST/auth/v1.0 for
	// version 1, the Keystone's …/v2.0 or …/v3 otherwise.
	AuthURL string

	// Version is the authentication's: 1 (tempauth and its like), 2 or 3
	// (Keystone v2.0, v3). Secrets.Export never leaves it 0; in a Login made by
	// hand 0 stands for what VersionOf says of the URL.
	Version int

	// Username and Password are the account's. For version 2 the tenant has
	// been split off into Project. Both are empty with an application
	// credential.
	Username string
	Password Secret

	// Project is the project's (the tenant's) name, ProjectID its ID: one of
	// them, or neither, where the user's default project serves.
	Project   string
	ProjectID string

	// The domains of the user and of the project, version 3 only, by name or
	// by ID: never both. Where the user named no domain the names are
	// "Default".
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
	// credential, in place of Username, Password, project and domains.
	AppCredentialID     string
	AppCredentialSecret Secret

	// CACert is the absolute path of a PEM file with the authorities that are
	// trusted for this cloud beside the system's; empty is the system's alone.
	CACert string
}

// Export is one container that can be served: its name and how to reach it.
type Export struct {
	Container string
	ReadOnly  bool
	Login     Login
}

// Defaults are the command line's settings, for sections that name none.
type Defaults struct {
	AuthURL string
	CACert  string
	// Keystone, when not nil, authenticates username and password with
	// Keystone as swiftnbd 0.11 did (swiftnbd-ctl -k).
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
