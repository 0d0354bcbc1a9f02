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

	"swiftnbd/internal/cloud"
	"swiftnbd/internal/clouds"
	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/metrics"
	"swiftnbd/internal/store"
	swiftstore "swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// exports are the disks that this nbdkit serves: one with container=, else one
// for each section of the secrets file. All connections to a disk share one
// device, which opens with the first of them and closes with the last.
//
// LOCK ORDER: disk.mu, then exports.mu. disk.mu is held while a device is
// opened or closed. exports.mu is never held across I/O with Swift.
type exports struct {
	params  *params
	env     config.Environ
	holder  string
	metrics *metrics.Metrics
	// processors counts the requests of all disks.
	processors *processors

	mu      sync.Mutex // guards all below
	secrets *config.Secrets
	stamp   stamp // of the last file that was read, even if it could not be used
	session *session
	forUser config.Login // the login to which session belongs
	cas     certificates
	inCloud *clouds.Set
	closing bool // nbdkit ends: nothing is opened any more
	clouds  map[cloudKey]*cloud.Cloud
	clients map[cloudKey]*swiftstore.Client // of clouds
	origins map[cloudKey]*origin            // of clouds
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
		params: p, env: env, holder: lease.Holder(), metrics: metrics.New(), processors: newProcessors(),
		secrets: secrets, stamp: h.Stamp, session: h.Session, cas: h.CAs, inCloud: clouds.New(h.Clouds),
		clouds: make(map[cloudKey]*cloud.Cloud), clients: make(map[cloudKey]*swiftstore.Client), origins: make(map[cloudKey]*origin), disks: make(map[string]*disk),
	}
	if h.Session != nil {
		x, err := secrets.Export(p.container, p.defaults(e.inCloud), env)
		if err != nil {
			return nil, err
		}
		e.forUser = x.Login
	}
	return e, nil
}

// current returns the secrets. If the file has changed, it reads the file
// again. If the file is wrong or cannot be read any more, the old secrets stay
// in force. After nbdkit -u the file often cannot be read. A pipe has told all
// that it had to the check before the fork.
func (e *exports) current() *config.Secrets {
	e.mu.Lock()
	defer e.mu.Unlock()
	info, err := os.Stat(e.params.secretsPath())
	if err != nil || !info.Mode().IsRegular() || stampOf(info) == e.stamp {
		return e.secrets
	}
	e.stamp = stampOf(info)
	fresh, warning, err := config.ReadSecrets(e.params.secretsPath())
	if err != nil {
		nbdkit.Errorf("the secrets file has changed and is not used, and what was read before counts on: %v", err)
		return e.secrets
	}
	if warning != "" {
		nbdkit.Debug(warning)
	}
	e.secrets = fresh
	return fresh
}

// names returns the names of all exports.
func (e *exports) names() []string {
	if e.params.container != "" {
		return []string{e.params.container}
	}
	return e.current().Containers()
}

// defaultName returns the export for the empty name. It is the only export, or
// none if there are several.
func (e *exports) defaultName() string {
	if names := e.names(); len(names) == 1 {
		return names[0]
	}
	return ""
}

// resolve returns the export that a client asks for by name.
func (e *exports) resolve(name string) (config.Export, error) {
	secrets := e.current()
	e.mu.Lock()
	defaults := e.params.defaults(e.inCloud)
	e.mu.Unlock()
	if e.params.container != "" {
		// As in most plugins, there is one disk, and any name means it.
		return secrets.Export(e.params.container, defaults, e.env)
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
	return secrets.Export(name, defaults, e.env)
}

// open is called for a new client. The first client opens the disk.
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

	readonly = readonly || x.ReadOnly || x.Disk.Reads()
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.ends() { // since then: closeAll may have had this disk before us
		return nil, toErrno(device.ErrClosed)
	}
	if d.device != nil && d.clients == 0 && (d.readOnly && !readonly || d.device.Lost() != nil) {
		err := d.close()
		switch {
		case d.device != nil:
			return nil, describe(x, err)
		case err != nil:
			nbdkit.Errorf("%s: %v", x.Container, err) // the client gets a new device
		}
	}
	if d.device != nil {
		if err := d.full(x.Disk.Clients); err != nil {
			return nil, describe(x, err)
		}
	}
	if d.device == nil {
		way, err := e.cloud(x)
		if err != nil {
			return nil, describe(x, err)
		}
		s, l := way.Writer(x.Container, x.Disk.LeaseTerm())
		ctx, cancel := context.WithTimeout(context.Background(), x.Disk.Timeout)
		defer cancel()
		o := device.Options{
			Store: s, Holder: e.holder, Lease: l, ReadOnly: readonly, Snapshot: x.Disk.Snapshot, Follow: x.Disk.Follow, Bases: way.Base,
			WriteThrough: x.Disk.WriteThrough, Cache: x.Disk.Cache,
			Connections: x.Disk.Connections, Readahead: x.Disk.Readahead,
			Age: x.Disk.Age, FlushTime: x.Disk.FlushTime, GC: x.Disk.GC, Compress: x.Disk.Compress, Timeout: x.Disk.Timeout,
			Log: func(format string, args ...any) {
				nbdkit.Errorf("%s: %s", x.Container, fmt.Sprintf(format, args...))
			},
		}
		d.device, err = device.Open(ctx, o)
		if !readonly && errors.Is(err, store.ErrForbidden) {
			// The container may belong to another account, whose ACL lets us
			// read it. The lock is in its metadata, which we may not change. A
			// refusal to the owner is an error.
			why := err
			if foreign, ferr := e.foreign(ctx, x); ferr == nil && foreign {
				readonly, o.ReadOnly = true, true
				if d.device, err = device.Open(ctx, o); err == nil {
					nbdkit.Errorf("%s: served read-only, since these credentials may read it and not lock it: %v", x.Container, why)
				}
			}
		}
		var small *device.CacheSizeError
		switch {
		case errors.As(err, &small):
			err = e.current().Blame(x.Container, "cache", err)
		case errors.Is(err, device.ErrNoCompression):
			err = e.current().Blame(x.Container, "compression", err)
		}
		if err != nil {
			return nil, describe(x, refused(err, func() (bool, error) { return e.foreign(ctx, x) }))
		}
		d.readOnly, d.clients = readonly, 0
		dev := d.device
		d.counts = e.metrics.Watch(x.Container, func() metrics.Counts { return metrics.Counts(dev.Stats()) })
		if debugCache() {
			go report(x.Container, d.device)
		}
		if debugLock() {
			nbdkit.Debugf("%s: opened, read-only=%t", x.Container, readonly)
		}
	}
	if err := d.device.Lost(); err != nil {
		return nil, describe(x, err) // until the clients of the lost device have left
	}
	d.clients++
	d.removed = x.Disk.EndRemoved
	return &connection{
		disk: d, device: d.device, counts: d.counts, processors: e.processors, readOnly: readonly || d.readOnly, alone: x.Disk.Clients == 1,
		description: describeVolume(d.device, readonly || d.readOnly),
	}, nil
}

// ends says whether nbdkit ends: nothing is opened any more.
func (e *exports) ends() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing
}

// closeAll is called at nbdkit's end. Connections may still be open. With last,
// data that cannot be written is reported and given up. Without last, closeAll
// tries until all is written, or until it is called for the last time.
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

// list returns the exports with their descriptions. If an export cannot be
// reached, its description says what is wrong.
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
	s, err := e.reader(x)
	if err != nil {
		return err.Error()
	}
	meta, err := volume.ReadHint(ctx, s)
	if err != nil {
		return describe(x, err).Error()
	}
	return description(meta, x.ReadOnly || x.Disk.Reads())
}
