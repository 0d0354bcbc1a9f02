// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/clouds"
	"swiftnbd/internal/config"
	"swiftnbd/internal/volume"
)

const (
	defaultSecrets = "/etc/swiftnbd/secrets.conf"
	volumeFormat   = volume.Version1 // for programs that know one version only
)

// params are the values of nbdkit's key=value parameters.
type params struct {
	container    string // empty: every section of the secrets file is an export
	secrets      string // absolute; empty: the default file, if it is there
	authURL      string
	caCert       string // absolute
	storageURL   string
	cloud        string // of clouds.yaml
	region       string
	endpointType string
	cert, key    string // absolute
	insecure     bool
	keystone     config.KeystoneOptions
	keystoneAuth bool        // swiftnbd 0.11's -k: keystone counts
	metrics      string      // "HOST:PORT" or "unix:PATH"; empty: not served
	disk         config.Disk // for the disks whose sections do not set them

	seen map[string]bool
}

// param is one parameter: how to set it, and its lines in --help.
type param struct {
	usage string
	help  string
	set   func(p *params, value string) error
}

// paramTable has every parameter by its key; init adds those of a disk.
var paramTable = map[string]param{
	"container": {"[container=]NAME", "The container that holds the disk. Without it each section of the secrets file is an export.",
		func(p *params, v string) error {
			p.container = v
			return config.CheckContainer(v)
		}},
	"secrets": {"secrets=FILE", "User names and passwords (default: " + defaultSecrets + ").",
		func(p *params, v string) (err error) {
			p.secrets, err = absolute(v)
			return err
		}},
	"authurl": {"authurl=URL", "The authentication URL, for containers whose section names none.",
		func(p *params, v string) error {
			p.authURL = v
			return config.CheckURL(v)
		}},
	"storage-url": {"storage-url=URL", "The account's URL instead of the login's, for containers whose section names none.",
		func(p *params, v string) error {
			p.storageURL = v
			return config.CheckStorageURL(v)
		}},
	"cacert": {"cacert=FILE", "Certificates of authorities to trust (PEM), for containers whose section names none.",
		func(p *params, v string) (err error) {
			p.caCert, err = absolute(v)
			return err
		}},
	"cloud": {"cloud=NAME", "A cloud of clouds.yaml, whose credentials replace those of the sections.",
		func(p *params, v string) error { p.cloud = v; return nil }},
	"region": {"region=REGION", "The region of the endpoint, for containers whose section names none.",
		func(p *params, v string) error { p.region = v; return nil }},
	"endpoint-type": {"endpoint-type=TYPE", "The interface of the endpoint, for containers whose section names none (default: public).",
		func(p *params, v string) error {
			p.endpointType = v
			return config.CheckEndpointType(v)
		}},
	"cert": {"cert=FILE", "A client's certificate (PEM), for containers whose section names none.",
		func(p *params, v string) (err error) {
			p.cert, err = absolute(v)
			return err
		}},
	"key": {"key=FILE", "The key of the client's certificate, if it is not in the same file.",
		func(p *params, v string) (err error) {
			p.key, err = absolute(v)
			return err
		}},
	"insecure": {"insecure=0|1", "Do not verify the cloud's certificates (default: 0).",
		func(p *params, v string) (err error) {
			p.insecure, err = config.ParseBool(v)
			return err
		}},
	"keystone-auth": {"keystone-auth=0|1", "Log in to Keystone with a user name TENANT.USERNAME, as swiftnbd 0.11's -k does (default: 0).",
		func(p *params, v string) (err error) {
			p.keystoneAuth, err = config.ParseBool(v)
			return err
		}},
	"keystone-endpoint": {"keystone-endpoint=TYPE", "With keystone-auth=1, the type of the endpoint (default: publicURL).",
		func(p *params, v string) error {
			p.keystone.EndpointType = v
			return config.CheckEndpointType(v)
		}},
	"keystone-region": {"keystone-region=REGION", "With keystone-auth=1, the region of the endpoint.",
		func(p *params, v string) error { p.keystone.RegionName = v; return nil }},
	"keystone-separator": {"keystone-separator=TEXT", "With keystone-auth=1, the text between tenant and user name (default: .).",
		func(p *params, v string) error { p.keystone.TenantSeparator = v; return nil }},
	"keystone-service": {"keystone-service=TYPE", "With keystone-auth=1, the type of the service in the catalogue (default: object-store).",
		func(p *params, v string) error { p.keystone.ServiceType = v; return nil }},
	"metrics": {"metrics=HOST:PORT|unix:PATH", "Serve counters to Prometheus at this address (default: none).",
		func(p *params, v string) (err error) {
			if path, ok := strings.CutPrefix(v, "unix:"); ok {
				if path == "" {
					return errors.New("the socket's path is missing (unix:PATH)")
				}
				path, err = absolute(path)
				if err == nil && len(path) > maxSocketPath {
					err = fmt.Errorf("the path of a Unix socket may have at most %d bytes, and this one has %d: %s", maxSocketPath, len(path), path)
				}
				p.metrics = "unix:" + path
				return err
			}
			p.metrics = v
			_, port, err := net.SplitHostPort(v)
			if err != nil || port == "" {
				return errors.New("must be HOST:PORT or unix:PATH")
			}
			if n, err := strconv.Atoi(port); err == nil && (n < 0 || n > 65535) {
				return fmt.Errorf("there is no port %s: they go from 1 to 65535", port)
			}
			return nil
		}},
}

// maxSocketPath is how long a Unix socket's path may be, bytes: what fits into
// sockaddr_un with a zero behind it.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

func init() {
	for _, d := range config.DiskParameters {
		paramTable[d.Key] = param{d.Key + "=" + d.Usage, d.Help,
			func(p *params, v string) error { return d.Set(&p.disk, v) }}
	}
}

func configHelp() string {
	keys := make([]string, 0, len(paramTable))
	for k := range paramTable {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%-34s %s", paramTable[k].usage, paramTable[k].help)
	}
	return b.String()
}

// set takes one parameter. Errors name it.
func (p *params) set(key, value string) error {
	t, ok := paramTable[key]
	if !ok {
		return fmt.Errorf("unknown parameter '%s'", key)
	}
	if p.seen[key] {
		return fmt.Errorf("parameter '%s' is given twice", key)
	}
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	p.seen[key] = true
	if value == "" {
		return fmt.Errorf("parameter '%s' is empty", key)
	}
	if err := t.set(p, value); err != nil {
		return fmt.Errorf("%s=%s: %w", key, value, err)
	}
	return nil
}

// defaults are the settings for sections that name none, with the clouds that
// there are.
func (p *params) defaults(c *clouds.Set) config.Defaults {
	d := config.Defaults{AuthURL: p.authURL, CACert: p.caCert, StorageURL: p.storageURL, Disk: p.disk,
		Cloud: p.cloud, Clouds: c, Region: p.region, EndpointType: p.endpointType,
		ClientCert: p.cert, ClientKey: p.key, Insecure: p.insecure}
	if p.keystoneAuth {
		d.Keystone = &p.keystone
	}
	return d
}

// secretsPath returns the secrets file's path.
func (p *params) secretsPath() string {
	if p.secrets == "" {
		return defaultSecrets
	}
	return p.secrets
}

func absolute(path string) (string, error) {
	return nbdkit.AbsolutePath(path)
}
