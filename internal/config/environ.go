// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"strings"
)

// fromEnviron builds the login from the environment: from the OS_* variables of
// the OpenStack tools, or otherwise from the ST_* variables of the older swift
// tool. ok is false if neither names a user or an application credential. If
// credentials are incomplete, the error names the missing variable.
func fromEnviron(env Environ) (l Login, ok bool, err error) {
	if l, ok, err = osEnviron(env); ok || err != nil {
		return l, ok, err
	}
	return stEnviron(env)
}

// osEnviron reads the OS_* variables.
func osEnviron(env Environ) (l Login, ok bool, err error) {
	kind := env.get("OS_AUTH_TYPE")
	user, userID, appID := env.get("OS_USERNAME"), env.get("OS_USER_ID"), env.get("OS_APPLICATION_CREDENTIAL_ID")
	appName := env.get("OS_APPLICATION_CREDENTIAL_NAME")
	token := env.first("OS_AUTH_TOKEN", "OS_TOKEN")
	l.StorageURL = env.get("OS_STORAGE_URL")
	if l.StorageURL != "" {
		if err := CheckStorageURL(l.StorageURL); err != nil {
			return l, false, fmt.Errorf("OS_STORAGE_URL: %w", err)
		}
	}
	named := user != "" || userID != "" || appID != ""
	if token != "" && (l.StorageURL != "" || !named) {
		// No login is needed then, as with the swift tool.
		l.Version, l.Token, l.CACert = 1, Secret(token), env.get("OS_CACERT")
		return l, true, nil
	}
	if !named {
		return Login{}, false, nil
	}
	l.AuthURL = env.get("OS_AUTH_URL")
	if v := env.get("OS_IDENTITY_API_VERSION"); v != "" {
		if l.Version, err = parseVersion(v); err != nil {
			return l, false, fmt.Errorf("OS_IDENTITY_API_VERSION: %w", err)
		}
	}
	switch kind {
	case "", "password", "v3password", "v2password":
		if kind == "" && user == "" && userID == "" {
			kind = "v3applicationcredential"
		}
	case "v3applicationcredential":
	default:
		return l, false, fmt.Errorf("OS_AUTH_TYPE: %q is not supported (password, v3applicationcredential)", kind)
	}

	if kind == "v3applicationcredential" {
		secret := env.get("OS_APPLICATION_CREDENTIAL_SECRET")
		switch {
		case appID == "" && appName == "":
			return l, false, errors.New("OS_AUTH_TYPE is v3applicationcredential, but OS_APPLICATION_CREDENTIAL_ID is not set")
		case appID == "" && secret == "":
			return l, false, errors.New("OS_APPLICATION_CREDENTIAL_NAME is set, but OS_APPLICATION_CREDENTIAL_SECRET is not")
		case secret == "":
			return l, false, errors.New("OS_APPLICATION_CREDENTIAL_ID is set, but OS_APPLICATION_CREDENTIAL_SECRET is not")
		}
		l.Version = 3
		l.AppCredentialID, l.AppCredentialSecret = appID, Secret(secret)
		if appID == "" {
			// The name is the user's, who must be named too: named is true.
			l.AppCredentialName, l.Username, l.UserID = appName, user, userID
			l.UserDomain, l.UserDomainID = env.get("OS_USER_DOMAIN_NAME"), env.get("OS_USER_DOMAIN_ID")
			l.preferIDs()
		}
	} else {
		password := env.get("OS_PASSWORD")
		switch {
		case user == "" && userID == "":
			return l, false, fmt.Errorf("OS_AUTH_TYPE is %s, but neither OS_USERNAME nor OS_USER_ID is set", kind)
		case password == "" && user == "":
			return l, false, errors.New("OS_USER_ID is set, but OS_PASSWORD is not")
		case password == "":
			return l, false, errors.New("OS_USERNAME is set, but OS_PASSWORD is not")
		}
		switch kind {
		case "v3password":
			l.Version = 3
		case "v2password":
			l.Version = 2
		}
		l.Username, l.UserID, l.Password = user, userID, Secret(password)
		l.Project, l.ProjectID = env.first("OS_PROJECT_NAME", "OS_TENANT_NAME"), env.first("OS_PROJECT_ID", "OS_TENANT_ID")
		l.UserDomain, l.UserDomainID = env.get("OS_USER_DOMAIN_NAME"), env.get("OS_USER_DOMAIN_ID")
		l.ProjectDomain, l.ProjectDomainID = env.get("OS_PROJECT_DOMAIN_NAME"), env.get("OS_PROJECT_DOMAIN_ID")
		l.preferIDs()
		if l.TrustID = env.get("OS_TRUST_ID"); l.TrustID != "" { // which names the project
			l.Project, l.ProjectID, l.ProjectDomain, l.ProjectDomainID = "", "", "", ""
		}
	}
	if err := l.environRest(env); err != nil {
		return l, false, err
	}
	return l, true, nil
}

// preferIDs drops a name if the ID of the same thing is given. An openrc file
// gives both, and an ID is never ambiguous.
func (l *Login) preferIDs() {
	if l.UserID != "" {
		// A user's ID needs no domain.
		l.Username, l.UserDomain, l.UserDomainID = "", "", ""
	}
	if l.ProjectID != "" {
		// A project's ID needs no domain.
		l.Project, l.ProjectDomain, l.ProjectDomainID = "", "", ""
	}
	if l.UserDomainID != "" {
		l.UserDomain = ""
	}
	if l.ProjectDomainID != "" {
		l.ProjectDomain = ""
	}
}

// environRest reads the OS_* variables that both kinds of credentials share.
func (l *Login) environRest(env Environ) (err error) {
	if l.AuthURL != "" {
		if err := CheckURL(l.AuthURL); err != nil {
			return fmt.Errorf("OS_AUTH_URL: %w", err)
		}
	}
	l.Region = env.get("OS_REGION_NAME")
	for _, name := range []string{"OS_INTERFACE", "OS_ENDPOINT_TYPE"} {
		if v := env.get(name); v != "" && l.EndpointType == "" {
			if l.EndpointType, err = parseEndpointType(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	l.CACert = env.get("OS_CACERT")
	return nil
}

// stEnviron reads the ST_* variables.
func stEnviron(env Environ) (l Login, ok bool, err error) {
	user, key := env.get("ST_USER"), env.get("ST_KEY")
	switch {
	case user == "":
		return Login{}, false, nil
	case key == "":
		return l, false, errors.New("ST_USER is set, but ST_KEY is not")
	}
	l.Username, l.Password = user, Secret(key)
	if l.AuthURL = env.get("ST_AUTH"); l.AuthURL != "" {
		if err := CheckURL(l.AuthURL); err != nil {
			return l, false, fmt.Errorf("ST_AUTH: %w", err)
		}
	}
	l.Version = VersionOf(l.AuthURL)
	if v := env.get("ST_AUTH_VERSION"); v != "" {
		if l.Version, err = parseVersion(v); err != nil {
			return l, false, fmt.Errorf("ST_AUTH_VERSION: %w", err)
		}
	}
	switch l.Version {
	case 0:
		l.Version = 1
	case 2, 3:
		// The swift tool took TENANT:USER here.
		if tenant, user, found := strings.Cut(l.Username, ":"); found {
			l.Project, l.Username = tenant, user
		}
	}
	return l, true, nil
}

// Lacks says why the environment gives no credentials, as a clause for the end
// of a message. It is empty if the environment has no such variable at all.
func (e Environ) Lacks() string {
	var set []string
	for _, name := range []string{"OS_AUTH_URL", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_PROJECT_ID", "OS_STORAGE_URL", "ST_AUTH", "ST_KEY"} {
		if e.get(name) != "" {
			set = append(set, name)
		}
	}
	const users = "OS_USERNAME, OS_USER_ID, OS_APPLICATION_CREDENTIAL_ID, OS_AUTH_TOKEN or ST_USER"
	switch {
	case len(set) == 0:
		return ""
	case len(set) == 1:
		return fmt.Sprintf(", and the environment has %s, but lacks a user: %s", set[0], users)
	}
	return fmt.Sprintf(", and the environment has %s and %s, but lacks a user: %s",
		strings.Join(set[:len(set)-1], ", "), set[len(set)-1], users)
}

// first returns the value of the first of these variables that is set.
func (e Environ) first(names ...string) string {
	for _, n := range names {
		if v := e.get(n); v != "" {
			return v
		}
	}
	return ""
}
