// SPDX-License-Identifier: MIT

package config

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"swiftnbd/internal/clouds"
)

// The names of places that choose a cloud, for messages.
const (
	byParameter   = "cloud="
	byEnvironment = "OS_CLOUD"
)

// choice is the cloud of clouds.yaml that a container uses.
type choice struct {
	name string
	from string // byParameter, byEnvironment, the section or "DEFAULT"
	// replaces says that the command line chose the cloud of a section that has
	// credentials of its own. What the section says about its own cloud (region,
	// storage-url and so on) does not count then.
	replaces bool
}

// choose finds out which cloud a container uses. ok is false if the command line
// and the file name none, or if the section's other credentials count more.
func (s *Secrets) choose(container string, d Defaults) (c choice, ok bool, err error) {
	has := s.Has(container)
	own, ownFrom := "", ""
	other := "" // where the container's other credentials stand
	if has {
		own, ownFrom = s.get(container, "cloud")
		key := ""
		for _, k := range []string{"username", "application-credential-id"} {
			if _, from := s.get(container, k); from == container || from != "" && other == "" {
				other, key = from, k
			}
		}
		switch {
		case ownFrom == "" || other == "":
		case ownFrom == other:
			return c, false, s.fault(ownFrom, "cloud", fmt.Errorf("given together with %s: use one of them", key))
		case other == container:
			own, ownFrom = "", ""
		default:
			other = ""
		}
	}
	switch {
	case d.Cloud != "":
		return choice{d.Cloud, byParameter, other != "" || ownFrom != "" && own != d.Cloud}, true, nil
	case ownFrom != "":
		return choice{own, ownFrom, false}, true, nil
	}
	return c, false, nil
}

// cloudLogin builds the login from a cloud of clouds.yaml. The section's keys
// for the same things count more than the cloud's, and so do the command line's.
// insecure says where the cloud asks that nobody checks its certificate.
func (s *Secrets) cloudLogin(container string, by choice, d Defaults, env Environ) (l Login, insecure string, err error) {
	blame := func(err error) error {
		switch by.from {
		case byParameter:
			return fmt.Errorf("cloud=%s: %w", by.name, err)
		case byEnvironment:
			return fmt.Errorf("OS_CLOUD=%s: %w", by.name, err)
		}
		return s.fault(by.from, "cloud", err)
	}
	get := func(key string) (value, from string) {
		if by.replaces || !s.Has(container) {
			return "", ""
		}
		return s.get(container, key)
	}
	environ := func(names ...string) string {
		if by.from != byEnvironment {
			return "" // the environment speaks of its own cloud only
		}
		return env.first(names...)
	}

	region, regionFrom := get("region")
	region = cmp.Or(region, d.Region)
	c, err := d.Clouds.Cloud(by.name, region)
	if err == nil && region == "" && c.Chooses() {
		if r := environ("OS_REGION_NAME"); r != "" {
			c, err = d.Clouds.Cloud(by.name, r)
		}
	}
	if err != nil && regionFrom != "" && errors.Is(err, clouds.ErrNoRegion) {
		return l, "", s.fault(regionFrom, "region", err)
	}
	if err != nil {
		return l, "", blame(err)
	}
	if l, err = fromCloud(c); err != nil {
		return l, "", blame(err)
	}
	l.Region = cmp.Or(c.Region, environ("OS_REGION_NAME"))

	// What stands beside the choice of the cloud must be about that cloud.
	beside, besideFrom := "", ""
	if by.from == byParameter || by.from == byEnvironment {
		beside = d.AuthURL
	} else if v, from := get("authurl"); from == by.from {
		beside, besideFrom = v, from
	}
	if beside != "" && strings.TrimRight(versioned(beside, l.Version), "/") != strings.TrimRight(l.AuthURL, "/") {
		err := fmt.Errorf("the cloud's is %s, not %s", l.AuthURL, beside)
		if besideFrom != "" {
			return l, "", s.fault(besideFrom, "authurl", err)
		}
		return l, "", blame(fmt.Errorf("authentication URL: %w", err))
	}

	if v, _ := get("storage-url"); v != "" || d.StorageURL != "" {
		if err := l.storage(cmp.Or(v, d.StorageURL), "the token of cloud "+by.name); err != nil {
			return l, "", blame(err)
		}
	}
	if v, from := get("endpoint-type"); from != "" {
		l.EndpointType, _ = parseEndpointType(v) // checked when the file was parsed
	} else if v := cmp.Or(d.EndpointType, environ("OS_INTERFACE", "OS_ENDPOINT_TYPE")); v != "" && (d.EndpointType != "" || l.EndpointType == "") {
		if l.EndpointType, err = parseEndpointType(v); err != nil {
			return l, "", blame(err)
		}
	}
	return s.cloudTLS(c, l, get, environ, d, blame)
}

// fromCloud builds the login that a cloud describes.
func fromCloud(c *clouds.Cloud) (l Login, err error) {
	r := &cloudReader{cloud: c}
	kind := r.get("auth_type", "auth_plugin")
	l.Username, l.UserID, l.Password = r.get("auth.username", "auth.user_name"), r.get("auth.user_id"), Secret(r.get("auth.password"))
	l.Project, l.ProjectID = r.get("auth.project_name", "auth.tenant_name"), r.get("auth.project_id", "auth.tenant_id")
	l.TrustID = r.get("auth.trust_id")
	l.AppCredentialID, l.AppCredentialName = r.get("auth.application_credential_id"), r.get("auth.application_credential_name")
	l.AppCredentialSecret = Secret(r.get("auth.application_credential_secret"))
	l.Token = Secret(r.get("auth.token", "auth.auth_token"))
	domain, domainID := r.get("auth.domain_name"), r.get("auth.domain_id")
	if domain == "" && domainID == "" {
		domain, domainID = r.get("auth.default_domain_name"), r.get("auth.default_domain_id", "auth.default_domain")
	}
	l.UserDomain, l.UserDomainID = r.get("auth.user_domain_name"), r.get("auth.user_domain_id")
	if l.UserDomain == "" && l.UserDomainID == "" {
		l.UserDomain, l.UserDomainID = domain, domainID
	}
	l.ProjectDomain, l.ProjectDomainID = r.get("auth.project_domain_name"), r.get("auth.project_domain_id")
	if l.ProjectDomain == "" && l.ProjectDomainID == "" && (l.Project != "" || l.ProjectID != "") {
		l.ProjectDomain, l.ProjectDomainID = domain, domainID
	}
	if r.err != nil {
		return l, r.err
	}

	switch kind = strings.ToLower(kind); kind {
	case "", "password", "v3password", "v2password", "v1password":
		if kind == "" && l.Username == "" && l.UserID == "" {
			switch {
			case l.Token != "":
				kind = "token"
			case l.AppCredentialID != "" || l.AppCredentialName != "":
				kind = "v3applicationcredential"
			}
		}
	case "token", "v3token", "v2token", "v3applicationcredential":
	default:
		return l, c.Fault("auth_type", fmt.Errorf(
			"%q is not supported (there are: password, v3password, v2password, v1password, token, v3token, v2token, v3applicationcredential)", kind), "auth_plugin")
	}
	if err := l.cloudKind(c, kind); err != nil {
		return l, err
	}

	l.AuthURL = strings.ReplaceAll(r.get("auth.auth_url"), "{region_name}", c.Region)
	l.StorageURL = strings.ReplaceAll(r.get("object_store_endpoint_override", "object_store_endpoint"), "{region_name}", c.Region)
	l.ServiceType = r.get("object_store_service_type")
	if v := r.get("object_store_interface", "endpoint_type", "interface"); v != "" {
		l.EndpointType, err = parseEndpointType(v)
		r.fault(err, "object_store_interface", "endpoint_type", "interface")
	}
	if v := r.get("object_store_region_name"); v != "" {
		c.Region = v
	}
	if l.StorageURL != "" {
		r.fault(CheckStorageURL(l.StorageURL), "object_store_endpoint_override", "object_store_endpoint")
	}
	if l.AuthURL == "" && (l.Token == "" || l.StorageURL == "") {
		r.fault(errors.New("missing"), "auth.auth_url")
	}
	if l.AuthURL != "" {
		r.fault(CheckURL(l.AuthURL), "auth.auth_url")
	}
	if r.err == nil {
		r.err = l.cloudVersion(r, kind)
	}
	return l, r.err
}

// cloudKind checks that the cloud has what its kind of credentials needs, and
// drops what belongs to another kind.
func (l *Login) cloudKind(c *clouds.Cloud, kind string) error {
	missing := func(key string) error { return c.Fault(key, errors.New("missing")) }
	user := l.Username != "" || l.UserID != ""
	switch kind {
	case "token", "v3token", "v2token":
		if l.Token == "" {
			return missing("auth.token")
		}
		l.Username, l.UserID, l.Password, l.UserDomain, l.UserDomainID = "", "", "", "", ""
		l.AppCredentialID, l.AppCredentialName, l.AppCredentialSecret = "", "", ""
	case "v3applicationcredential":
		switch {
		case l.AppCredentialID == "" && l.AppCredentialName == "":
			return missing("auth.application_credential_id")
		case l.AppCredentialSecret == "":
			return missing("auth.application_credential_secret")
		case l.AppCredentialID == "" && !user:
			return c.Fault("auth.username", errors.New("missing: an application credential that is given by its name needs its user (username with user_domain_name, or user_id)"))
		}
		if l.AppCredentialID != "" {
			l.AppCredentialName, l.Username, l.UserID, l.UserDomain, l.UserDomainID = "", "", "", "", ""
		}
		l.Token, l.Password, l.TrustID = "", "", ""
		l.Project, l.ProjectID, l.ProjectDomain, l.ProjectDomainID = "", "", "", ""
	default:
		switch {
		case !user:
			return missing("auth.username")
		case l.Password == "":
			return missing("auth.password")
		}
		l.Token, l.AppCredentialID, l.AppCredentialName, l.AppCredentialSecret = "", "", "", ""
	}
	l.preferIDs()
	if l.TrustID != "" { // the trust names the project
		l.Project, l.ProjectID, l.ProjectDomain, l.ProjectDomainID = "", "", "", ""
	}
	return nil
}

// cloudVersion decides which version of authentication a cloud has.
func (l *Login) cloudVersion(r *cloudReader, kind string) (err error) {
	byURL := VersionOf(l.AuthURL)
	switch {
	case kind == "v1password":
		l.Version = 1
	case strings.HasPrefix(kind, "v2"):
		l.Version = 2
	case strings.HasPrefix(kind, "v3"):
		l.Version = 3
	case byURL != 0:
		l.Version = byURL
	default:
		l.Version = 3
		if v := r.get("identity_api_version"); v != "" && r.err == nil {
			if l.Version, err = parseVersion(v); err != nil {
				return r.cloud.Fault("identity_api_version", err)
			}
		}
	}
	if r.err != nil {
		return r.err
	}
	if l.Token != "" && l.StorageURL != "" {
		l.Version, l.AuthURL = 1, "" // nobody logs in
		return nil
	}
	if byURL != 0 && byURL != l.Version {
		return r.cloud.Fault("auth.auth_url", fmt.Errorf("%s is not of version %d, which %s needs", l.AuthURL, l.Version, kind))
	}
	l.AuthURL = versioned(l.AuthURL, l.Version)
	if l.Version == 3 {
		l.defaultDomains()
	}
	return nil
}

// cloudReader reads a cloud's keys and keeps the first error.
type cloudReader struct {
	cloud *clouds.Cloud
	err   error
}

func (r *cloudReader) get(keys ...string) string {
	v, err := r.cloud.Get(keys...)
	if r.err == nil {
		r.err = err
	}
	return v
}

func (r *cloudReader) fault(err error, key string, more ...string) {
	if err != nil && r.err == nil {
		r.err = r.cloud.Fault(key, err, more...)
	}
}

// cloudTLS fills in what a cloud says about certificates.
func (s *Secrets) cloudTLS(c *clouds.Cloud, l Login, get func(string) (string, string), environ func(...string) string,
	d Defaults, blame func(error) error) (Login, string, error) {
	for _, f := range []struct {
		to               *string
		key, flag, other string
	}{
		{&l.CACert, "cacert", d.CACert, environ("OS_CACERT")},
		{&l.ClientCert, "cert", d.ClientCert, environ("OS_CERT")},
		{&l.ClientKey, "key", d.ClientKey, environ("OS_KEY")},
	} {
		v, from := get(f.key)
		if v != "" {
			file, err := resolve(s.path, v)
			if err != nil {
				return l, "", s.fault(from, f.key, err)
			}
			*f.to = file
			continue
		}
		file, err := c.File(f.key)
		if err != nil {
			return l, "", blame(err)
		}
		*f.to = cmp.Or(f.flag, file, f.other)
	}
	if l.ClientKey != "" && l.ClientCert == "" {
		return l, "", blame(c.Fault("cert", errors.New("missing: there is a key for a client certificate, and no certificate")))
	}
	insecure := ""
	for _, asks := range []struct {
		key string
		bad bool
	}{{"verify", false}, {"insecure", true}} {
		v, err := c.Get(asks.key)
		if err != nil {
			return l, "", blame(err)
		}
		if v == "" {
			continue
		}
		b, err := ParseBool(v)
		if err != nil {
			return l, "", blame(c.Fault(asks.key, err))
		}
		if b == asks.bad {
			insecure = fmt.Sprintf("%s: %s in cloud %s", asks.key, v, c.Name)
		}
	}
	l.Insecure = insecure != ""
	return l, s.insecure(&l, get, d, insecure), nil
}

// insecure sets Insecure as the section or the command line say it, and returns
// who asked for it, or "". by is who did so far.
func (s *Secrets) insecure(l *Login, get func(string) (string, string), d Defaults, by string) string {
	if v, from := get("insecure"); from != "" {
		l.Insecure, _ = ParseBool(v) // checked when the file was parsed
		by = "insecure in " + s.path
	} else if d.Insecure {
		l.Insecure, by = true, "insecure on the command line"
	}
	if !l.Insecure {
		return ""
	}
	return by
}
