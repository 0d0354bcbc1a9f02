// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/config"
	"swiftnbd/internal/volume"
)

const (
	defaultSecrets     = "/etc/swiftnbd/secrets.conf"
	defaultConnections = 16
	defaultTimeout     = 60 * time.Second
	maxConnections     = 4096
	// defaultLease is long enough for a few lost requests in a row, and for a
	// restart of Swift's proxies, and short enough to wait for after a crash.
	defaultLease = 30 * time.Second
	// minLease leaves a holder more than the second by which it may misread
	// Swift's clock.
	minLease     = 5 * time.Second
	volumeFormat = volume.FormatVersion
)

// params are nbdkit's key=value, read.
type params struct {
	container    string // empty: every section of the secrets file is an export
	secrets      string // absolute; empty: the default file, if it is there
	authURL      string
	caCert       string // absolute
	connections  int
	timeout      time.Duration
	cache        int64 // bytes; 0: chosen from the object size
	writeThrough bool
	readahead    int64 // bytes; 0: chosen, negative: none
	age          time.Duration
	lease        time.Duration
	metrics      string // "HOST:PORT" or "unix:PATH"; empty: not served

	seen map[string]bool
}

// param is one parameter: how to set it, and its lines in --help.
type param struct {
	usage string
	help  string
	set   func(p *params, value string) error
}

// paramTable has every parameter by its key.
var paramTable = map[string]param{
	"container": {"[container=]NAME", "The container that holds the disk; without it, each section of the secrets file is an export.",
		func(p *params, v string) error {
			p.container = v
			return config.CheckContainer(v)
		}},
	"secrets": {"secrets=FILE", "User names and passwords (default: " + defaultSecrets + ").",
		func(p *params, v string) (err error) {
			p.secrets, err = absolute(v)
			return err
		}},
	"authurl": {"authurl=URL", "Authentication URL, for containers whose section names none.",
		func(p *params, v string) error {
			p.authURL = v
			return config.CheckURL(v)
		}},
	"cacert": {"cacert=FILE", "Authorities to trust (PEM), for containers whose section names none.",
		func(p *params, v string) (err error) {
			p.caCert, err = absolute(v)
			return err
		}},
	"connections": {"connections=N", fmt.Sprintf("Requests to Swift at once (default: %d).", defaultConnections),
		func(p *params, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxConnections {
				return fmt.Errorf("must be a whole number from 1 to %d", maxConnections)
			}
			p.connections = n
			return nil
		}},
	"timeout": {"timeout=SECONDS", fmt.Sprintf("How long Swift may fail before a client sees it (default: %.0f).", defaultTimeout.Seconds()),
		func(p *params, v string) (err error) {
			p.timeout, err = seconds(v)
			return err
		}},
	"cache": {"cache=SIZE", "Memory for the cache, clean and dirty (default: 64M, or more for large objects).",
		func(p *params, v string) (err error) {
			if p.cache, err = config.ParseSize(v); err == nil && p.cache < 1 {
				err = errors.New("must be more than 0")
			}
			return err
		}},
	"cache-mode": {"cache-mode=writeback|writethrough", "When writes go to Swift: by and by and on flush, or at once (default: writeback).",
		func(p *params, v string) error {
			if v != "writeback" && v != "writethrough" {
				return errors.New("must be writeback or writethrough")
			}
			p.writeThrough = v == "writethrough"
			return nil
		}},
	"lease": {"lease=SECONDS", fmt.Sprintf("How long the volume stays ours after our last sign of life; 0 sets the mark only (default: %.0f).", defaultLease.Seconds()),
		func(p *params, v string) (err error) {
			if v == "0" {
				p.lease = -1
				return nil
			}
			p.lease, err = seconds(v)
			if err == nil && p.lease < minLease {
				err = fmt.Errorf("must be 0 or at least %.0f", minLease.Seconds())
			}
			return err
		}},
	"metrics": {"metrics=HOST:PORT|unix:PATH", "Serve counters to Prometheus there (default: not at all).",
		func(p *params, v string) (err error) {
			if path, ok := strings.CutPrefix(v, "unix:"); ok {
				path, err = absolute(path)
				p.metrics = "unix:" + path
				return err
			}
			p.metrics = v
			if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
				return errors.New("must be HOST:PORT or unix:PATH")
			}
			return nil
		}},
	"readahead": {"readahead=SIZE", "How far to read ahead of a sequential reader; 0 is not at all (default: connections x object size).",
		func(p *params, v string) (err error) {
			if p.readahead, err = config.ParseSize(v); err == nil && p.readahead == 0 {
				p.readahead = -1
			}
			return err
		}},
	"writeback-age": {"writeback-age=SECONDS", "When a part-written object is written to Swift without a flush (default: 5).",
		func(p *params, v string) (err error) {
			p.age, err = seconds(v)
			return err
		}},
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

// complete fills in the defaults.
func (p *params) complete() error {
	if p.connections == 0 {
		p.connections = defaultConnections
	}
	if p.timeout == 0 {
		p.timeout = defaultTimeout
	}
	if p.lease == 0 {
		p.lease = defaultLease
	}
	return nil
}

// leaseTerm returns the lease's length, 0 for none.
func (p *params) leaseTerm() time.Duration { return max(0, p.lease) }

// defaults are the settings for sections that name none.
func (p *params) defaults() config.Defaults {
	return config.Defaults{AuthURL: p.authURL, CACert: p.caCert}
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

// seconds reads a positive number of seconds, which may have a fraction.
func seconds(v string) (time.Duration, error) {
	f, err := strconv.ParseFloat(strings.TrimSuffix(v, "s"), 64)
	if err != nil || !(f > 0 && f <= 24*3600) {
		return 0, errors.New("must be a number of seconds, more than 0 and at most 86400")
	}
	return time.Duration(f * float64(time.Second)), nil
}
