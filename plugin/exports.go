// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/metrics"
	"swiftnbd/internal/store"
	"swiftnbd/internal/volume"
)

// exports are the disks that this nbdkit serves: one with container=, else one
// for each section of the secrets file. All connections to a disk share one
// device, which opens with the first of them and closes with the last.
//
// LOCK ORDER: disk.mu, then exports.mu. disk.mu is held while a device is
// opened or closed, exports.mu never across I/O with Swift.
type exports struct {
	params  *params
	env     config.Environ
	holder  string
	metrics *metrics.Metrics

	mu      sync.Mutex // guards all below
	secrets *config.Secrets
	stamp   stamp // of the file that secrets come from, or that could not be used
	session *session
	forUser config.Login // whose session is
	cas     map[string][]byte
	closing bool // nbdkit ends: nothing is opened any more
	clouds  map[config.Login]*cloud
	disks   map[string]*disk
}

func newExports(p *params, state []byte, env config.Environ) (*exports, error) {
	var h handover
	if err := json.Unmarshal(state, &h); err != nil {
		return nil, fmt.Errorf("take over from the check before the fork: %w", err)
	}
	secrets, err := h.parse(p)
	if err != nil {
		return nil, err
	}
	e := &exports{
		params: p, env: env, holder: lease.Holder(), metrics: metrics.New(),
		secrets: secrets, stamp: h.Stamp, session: h.Session, cas: h.CAs,
		clouds: make(map[config.Login]*cloud), disks: make(map[string]*disk),
	}
	if h.Session != nil {
		x, err := secrets.Export(p.container, p.defaults(), env)
		if err != nil {
			return nil, err
		}
		e.forUser = x.Login
	}
	return e, nil
}

// current returns the secrets, read again when the file has changed. A file
// that cannot be read any more, or is wrong, leaves the old ones in force:
// after nbdkit -u it often cannot.
func (e *exports) current() *config.Secrets {
	e.mu.Lock()
	defer e.mu.Unlock()
	info, err := os.Stat(e.params.secretsPath())
	if err != nil || stampOf(info) == e.stamp {
		return e.secrets
	}
	e.stamp = stampOf(info)
	fresh, warning, err := config.ReadSecrets(e.params.secretsPath())
	if err != nil {
		nbdkit.Errorf("the secrets file has changed and is not used: %v", err)
		return e.secrets
	}
	if warning != "" {
		nbdkit.Debug(warning)
	}
	e.secrets = fresh
	return fresh
}

// names returns what there is to connect to.
func (e *exports) names() []string {
	if e.params.container != "" {
		return []string{e.params.container}
	}
	return e.current().Containers()
}

// defaultName is the export that the empty name stands for: the only one
// there is, or none.
func (e *exports) defaultName() string {
	if names := e.names(); len(names) == 1 {
		return names[0]
	}
	return ""
}

// resolve returns the export that a client asks for by name.
func (e *exports) resolve(name string) (config.Export, error) {
	secrets := e.current()
	if e.params.container != "" {
		// As in most plugins: one disk, whatever it is called.
		return secrets.Export(e.params.container, e.params.defaults(), e.env)
	}
	if name == "" {
		name = e.defaultName()
	}
	if name == "" {
		return config.Export{}, errors.New("there are several exports: the client must name one")
	}
	if !secrets.Has(name) {
		return config.Export{}, fmt.Errorf("export %q: no such section in %s", name, secrets.Path())
	}
	return secrets.Export(name, e.params.defaults(), e.env)
}

// open is a client's: it opens the disk when it is the first.
func (e *exports) open(name string, readonly bool) (*connection, error) {
	x, err := e.resolve(name)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil, toErrno(device.ErrClosed)
	}
	d := e.disks[x.Container]
	if d == nil {
		d = &disk{name: x.Container}
		e.disks[x.Container] = d
	}
	e.mu.Unlock()

	readonly = readonly || x.ReadOnly
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.device != nil && d.clients == 0 && (d.readOnly && !readonly || d.device.Lost() != nil) {
		if err := d.close(); d.device != nil {
			return nil, describe(x, err)
		}
	}
	if d.device == nil {
		s, l, err := e.writer(x)
		if err != nil {
			return nil, describe(x, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), e.params.timeout)
		defer cancel()
		d.device, err = device.Open(ctx, device.Options{
			Store: s, Holder: e.holder, Lease: l, ReadOnly: readonly,
			WriteThrough: e.params.writeThrough, Cache: e.params.cache,
			Connections: e.params.connections, Readahead: e.params.readahead,
			Age: e.params.age, Timeout: e.params.timeout,
			Log: func(format string, args ...any) {
				nbdkit.Errorf("%s: %s", x.Container, fmt.Sprintf(format, args...))
			},
		})
		if err != nil {
			return nil, describe(x, err)
		}
		d.readOnly = readonly
		d.counts = e.metrics.Watch(x.Container, d.device.Cache())
		if debugCache() {
			go report(x.Container, d.device)
		}
		if debugLock() {
			nbdkit.Debugf("%s: opened, read-only=%t", x.Container, readonly)
		}
	}
	if err := d.device.Lost(); err != nil {
		return nil, describe(x, err) // until those who had it have left
	}
	d.clients++
	return &connection{disk: d, device: d.device, counts: d.counts, readOnly: readonly || d.readOnly, description: describeVolume(d.device, readonly || d.readOnly)}, nil
}

// closeAll is nbdkit's end: connections may be open still. With last, what
// cannot be written is said and given up; without it, there is time yet: it is
// tried until it is done, or until closeAll is called for the last time.
func (e *exports) closeAll(last bool) {
	e.mu.Lock()
	e.closing = true
	disks := make([]*disk, 0, len(e.disks))
	for _, d := range e.disks {
		disks = append(disks, d)
	}
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, d := range disks {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer recovered()
			for !d.end(last) {
				time.Sleep(time.Second)
			}
		}()
	}
	wg.Wait()
}

// listed is an export as nbdkit lists it.
type listed struct{ name, description string }

// listTimeout bounds looking at all exports for their descriptions.
const listTimeout = 5 * time.Second

// list returns the exports with their descriptions. One that cannot be reached
// is listed with what is wrong.
func (e *exports) list() []listed {
	names := e.names()
	out := make([]listed, len(names))
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer recovered()
			out[i] = listed{name, e.describe(ctx, name)}
		}()
	}
	wg.Wait()
	return out
}

func (e *exports) describe(ctx context.Context, name string) string {
	x, err := e.resolve(name)
	if err != nil {
		return err.Error()
	}
	s, err := e.look(x)
	if err != nil {
		return err.Error()
	}
	meta, err := volume.Read(store.WithHint(store.WithClass(ctx, store.Unlimited)), s)
	if err != nil {
		return describe(x, err).Error()
	}
	return description(meta.Geometry, x.ReadOnly)
}
