// SPDX-License-Identifier: MIT

// Package cmdline has the common parts of the command lines of swiftnbd-ctl and
// swiftnbd-server: swiftnbd 0.11's options for the login, under its names, and
// the habits of Python's argparse, which read 0.11's command line. Scripts rely
// on both.
package cmdline

import (
	"github.com/spf13/pflag"

	"swiftnbd/internal/config"
)

// Login are the options for the login.
type Login struct {
	Secrets         string
	AuthURL         string
	Cloud           string
	Keystone        bool
	KeystoneOptions config.KeystoneOptions
}

// keystoneOptions are the options that count only together with
// --keystone-auth.
var keystoneOptions = []string{"keystone-separator", "keystone-service", "keystone-endpoint", "keystone-region"}

// AddLogin adds the options for the login to a command's flags.
func AddLogin(f *pflag.FlagSet) *Login {
	l := new(Login)
	k := &l.KeystoneOptions
	f.StringVar(&l.Secrets, "secrets", config.DefaultPath, "`FILE` with the containers and their credentials")
	f.StringVarP(&l.AuthURL, "auth-url", "a", "", "authentication `URL`, if the secrets file has none for a container")
	f.BoolVarP(&l.Keystone, "keystone-auth", "k", false, "authenticate with Keystone (v2.0, or v3 if the URL says v3). The user name is TENANT.USERNAME")
	f.StringVar(&k.RegionName, "keystone-region", "", "with -k, `REGION` of the endpoint")
	f.StringVar(&k.TenantSeparator, "keystone-separator", ".", "with -k, the `SEPARATOR` of tenant and user name")
	f.StringVar(&k.ServiceType, "keystone-service", "object-store", "with -k, `TYPE` of the service in the catalogue")
	f.StringVar(&k.EndpointType, "keystone-endpoint", "publicURL", "with -k, `TYPE` of the endpoint: publicURL, internalURL or adminURL")
	f.StringVar(&l.Cloud, "cloud", "", "`NAME` of a cloud in clouds.yaml, whose credentials replace those of the secrets file")
	Old(f, append(keystoneOptions, "secrets", "auth-url", "keystone-auth")...)
	Newer(f, "cloud")
	return l
}

// Check returns what is wrong with the options that f has read, or nil. unused
// are the options that were given without effect.
func (l *Login) Check(f *pflag.FlagSet) (unused []string, err error) {
	if f.Changed("auth-url") {
		if err := config.CheckURL(l.AuthURL); err != nil {
			return nil, &optionError{"auth-url", err}
		}
	}
	if err := config.CheckEndpointType(l.KeystoneOptions.EndpointType); err != nil {
		return nil, &optionError{"keystone-endpoint", err}
	}
	if f.Changed("cloud") {
		if err := config.CheckCloud(l.Cloud); err != nil {
			return nil, &optionError{"cloud", err}
		}
	}
	for _, name := range keystoneOptions {
		if f.Changed(name) && !l.Keystone {
			unused = append(unused, name)
		}
	}
	return unused, nil
}

// optionError says that the value of an option is wrong.
type optionError struct {
	option string
	err    error
}

func (e *optionError) Error() string { return "--" + e.option + ": " + e.err.Error() }
func (e *optionError) Unwrap() error { return e.err }
