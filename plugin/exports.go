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
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/version"
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

// cloud is one way into Swift, shared by the containers that are reached with
// the same credentials.
type cloud struct {
	client  *swiftstore.Client
	limiter *store.Limiter
}

// disk is one container, open or not.
type disk struct {
	name string

	mu       sync.Mutex // guards all below; held while the device opens or closes
	clients  int
	device   *device.Device // nil: not open
	counts   *metrics.Volume
	readOnly bool // the device is
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

func clientOptions(p *params, x config.Export) swiftstore.Options {
	return swiftstore.Options{
		Login:       x.Login,
		Container:   x.Container,
		Connections: p.connections,
		Timeout:     p.timeout,
		UserAgent:   "swiftnbd/" + version.Version,
	}
}

// readCA reads an authorities' file, or, where that is not possible any more,
// returns what it was before the privileges were given up.
func (e *exports) readCA(path string) ([]byte, error) {
	pem, err := os.ReadFile(path)
	if kept := e.cas[path]; err != nil && kept != nil {
		return kept, nil
	}
	return pem, err
}

// cloud returns the way to x's account.
func (e *exports) cloud(x config.Export) (*cloud, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.clouds[x.Login]
	if c == nil {
		o := clientOptions(e.params, x)
		o.ReadFile = e.readCA
		// The secrets may have changed since: another's token is another
		// account's door.
		if e.session != nil && x.Login == e.forUser {
			o.Session = &swiftstore.Session{StorageURL: e.session.StorageURL, Token: config.Secret(e.session.Token)}
		}
		client, err := swiftstore.Dial(o)
		if err != nil {
			return nil, err
		}
		c = &cloud{client, store.NewLimiter(e.params.connections)}
		e.clouds[x.Login] = c
	}
	return c, nil
}

// patient returns s counted, and with retries.
func (e *exports) patient(s store.Store) store.Store {
	return store.Retry(e.metrics.Store(s), store.Policy{
		Timeout: e.params.timeout,
		OnRetry: func(r store.Retrying) {
			e.metrics.Retried()
			if debugStore() {
				nbdkit.Debugf("%s: attempt %d failed, next in %v: %v", r.Op, r.Attempt, r.Wait, r.Err)
			}
		},
	})
}

// look returns the way to x's container for whoever does not write.
func (e *exports) look(x config.Export) (store.Store, error) {
	c, err := e.cloud(x)
	if err != nil {
		return nil, err
	}
	return c.limiter.Store(e.patient(c.client.Container(x.Container))), nil
}

// writer returns the way to x's container for its writer, and how its lease is
// taken. They share a fence, so they are made anew for each device.
func (e *exports) writer(x config.Export) (store.Store, lease.Options, error) {
	c, err := e.cloud(x)
	if err != nil {
		return nil, lease.Options{}, err
	}
	fence := new(store.Fence)
	l := lease.Options{
		Name:  x.Container,
		Term:  e.params.leaseTerm(),
		Fence: fence,
		Sibling: func(name string) store.Store {
			return e.patient(c.client.Container(name))
		},
		CheckFence: func(ctx context.Context, g store.Grant) error {
			return c.client.CheckFence(ctx, x.Container, g)
		},
	}
	return store.Settle(c.limiter.Store(e.patient(c.client.Fenced(x.Container, fence)))), l, nil
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

// close ends the device. d.mu is held.
func (d *disk) close() error {
	err := d.device.Close()
	var undrained *device.DrainError
	if errors.As(err, &undrained) {
		return err // it goes on
	}
	var lost *device.LostError
	if errors.As(err, &lost) && lost.Chunks > 0 {
		fail()
	}
	d.device = nil
	d.counts.Close()
	if debugLock() {
		nbdkit.Debugf("%s: closed", d.name)
	}
	return err
}

// leave is a client's end: the last one closes the disk.
func (d *disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients--
	if d.clients > 0 || d.device == nil {
		return
	}
	if err := d.close(); err != nil {
		nbdkit.Errorf("%s: %v", d.name, err)
		if d.device != nil {
			go d.closeLater()
		}
	}
}

// closeLater goes on trying to write back what the last client left, until it
// is done or another client comes.
func (d *disk) closeLater() {
	defer recovered()
	for again := true; again; {
		time.Sleep(time.Second)
		d.mu.Lock()
		again = d.clients == 0 && d.device != nil && d.close() != nil && d.device != nil
		d.mu.Unlock()
	}
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

// end closes the disk if it is open, and says whether it is closed now.
func (d *disk) end(last bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.device == nil {
		return true
	}
	err := d.close()
	if err == nil {
		return true
	}
	nbdkit.Errorf("%s: %v", d.name, err)
	if d.device != nil && last {
		nbdkit.Errorf("%s: the lock is kept: the disk in Swift lacks these bytes", d.name)
		fail()
		d.counts.Close()
		d.device.Abandon()
		d.device = nil
	}
	return d.device == nil
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
