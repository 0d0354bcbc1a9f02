// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"

	"swiftnbd/internal/clouds"
	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/logdisk"
	"swiftnbd/internal/logdisk/layout"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// handover is what the check before the fork passes to the process that serves.
// It goes through a pipe and is never written anywhere else, because it holds
// passwords and a token.
type handover struct {
	Secrets []byte   // the secrets file's content
	NoFile  bool     // there is no secrets file
	Stamp   stamp    // the file as it was read
	Session *session // with container=
	// CAs are the files with certificates and keys, by path. After nbdkit -u they
	// may not be readable.
	CAs certificates
	// Clouds are clouds.yaml and the files beside it.
	Clouds clouds.Files
}

// session is swiftstore.Session with the token as plain text.
type session struct {
	StorageURL, Own, Token string
}

// stamp tells whether a file has changed.
type stamp struct {
	Size, ModTime int64
	Inode         uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Inode = st.Ino
	}
	return s
}

// readSecrets reads the secrets file, once, in full.
func readSecrets(p *params) (h handover, err error) {
	data, info, err := config.ReadFile(p.secretsPath())
	switch {
	case err == nil:
		h.Secrets, h.Stamp = data, stampOf(info)
	case errors.Is(err, fs.ErrNotExist) && p.secrets == "":
		h.NoFile, err = true, nil
	}
	return h, err
}

// parse returns the secrets that h holds.
func (h *handover) parse(p *params) (*config.Secrets, error) {
	if h.NoFile {
		return config.NoSecrets(p.secretsPath()), nil
	}
	return config.ParseSecrets(p.secretsPath(), h.Secrets)
}

// preflight checks everything that can be checked before nbdkit binds its
// socket and forks. With container= this is the whole way to the volume.
// Without it, it is the secrets file.
func preflight(p *params) ([]byte, error) {
	h, err := readSecrets(p)
	if err != nil {
		return nil, err
	}
	secrets, err := h.parse(p)
	if err != nil {
		return nil, err
	}
	h.Clouds = clouds.Load(os.Getenv)
	defaults := p.defaults(clouds.New(h.Clouds))
	if info, err := os.Stat(p.secretsPath()); err == nil && info.Mode().IsRegular() {
		if w := config.WorldReadable(p.secretsPath(), info.Mode()); w != "" {
			warn(w)
		}
	}
	if !p.keystoneAuth {
		for _, key := range slices.Sorted(maps.Keys(p.seen)) {
			if strings.HasPrefix(key, "keystone-") && key != "keystone-auth" {
				warn(key + "= has no effect without keystone-auth=1")
			}
		}
	}
	if err := h.takeCAs(p, secrets, defaults); err != nil {
		return nil, err
	}
	switch {
	case p.container != "":
		h.Session, err = checkContainer(p, secrets, defaults, h.CAs)
	case len(secrets.Containers()) == 0:
		err = fmt.Errorf("secrets file %s: no section, and no container= parameter", p.secretsPath())
	default:
		err = secrets.Validate(defaults, os.Getenv)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(h)
}

// takeCAs reads the files with certificates and keys of all exports, and warns of
// exports that verify no certificate. It skips an export that is wrong for another
// reason, which other code reports.
func (h *handover) takeCAs(p *params, secrets *config.Secrets, defaults config.Defaults) error {
	names := secrets.Containers()
	if p.container != "" {
		names = []string{p.container}
	}
	h.CAs = make(certificates)
	for _, name := range names {
		x, err := secrets.Export(name, defaults, os.Getenv)
		if err != nil {
			continue
		}
		if x.InsecureBy != "" {
			warn(fmt.Sprintf("container %s: the cloud's certificate is not verified (%s): whoever sits on the way can read and change the disk, and the login", name, x.InsecureBy))
		}
		for _, f := range []struct{ key, what, path, given string }{
			{"cacert", "CA certificate", x.Login.CACert, p.caCert},
			{"cert", "client certificate", x.Login.ClientCert, p.cert},
			{"key", "client certificate's key", x.Login.ClientKey, p.key},
		} {
			if f.path == "" || h.CAs[f.path] != nil {
				continue
			}
			pem, err := os.ReadFile(f.path)
			if err == nil && f.key == "cacert" && !x509.NewCertPool().AppendCertsFromPEM(pem) {
				err = fmt.Errorf("%s has no certificate in PEM form", f.path)
			}
			switch {
			case err == nil:
				h.CAs[f.path] = pem
			case f.path == f.given:
				return fmt.Errorf("%s=%s: %w", f.key, f.given, err)
			case x.From != secrets.Path():
				return fmt.Errorf("container %s: %s: %s: %w", name, x.From, f.what, err)
			default:
				return fmt.Errorf("secrets file %s: container %s: %s: %s: %w", p.secretsPath(), name, f.key, f.what, err)
			}
		}
	}
	return nil
}

// warn prints one line on the command line. It writes to the descriptor itself:
// os.Stderr would end the process if its reader is gone.
func warn(line string) {
	_, _ = syscall.Write(2, []byte("nbdkit: swift: warning: "+line+"\n"))
}

// checkContainer checks the container as opening it would, and does not take
// its lease.
func checkContainer(p *params, secrets *config.Secrets, defaults config.Defaults, cas certificates) (*session, error) {
	x, err := secrets.Export(p.container, defaults, os.Getenv)
	if err != nil {
		return nil, err
	}
	for _, key := range secrets.Overridden(p.container, slices.Sorted(maps.Keys(p.seen))) {
		warn(fmt.Sprintf("%s= has no effect on %s, for which %s says something else", key, p.container, secrets.Path()))
	}
	o := clientOptions(x)
	o.ReadFile = cas.read
	client, err := swiftstore.Dial(o)
	if err != nil {
		return nil, describe(x, err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), x.Disk.Timeout,
		fmt.Errorf("no answer within %v", x.Disk.Timeout))
	defer cancel()
	// There is one try, and no wait for a cloud to come back: a person waits
	// for the result.
	if err := client.Login(ctx); err != nil {
		return nil, describe(x, err)
	}
	foreign := func() (bool, error) { return client.Foreign(ctx) }
	state, err := lease.Inspect(ctx, lease.Options{
		Store: client.Container(x.Container), Name: x.Container, Sibling: client.Container,
	})
	if err != nil {
		return nil, describe(x, refused(err, foreign))
	}
	if state.Meta.Version == volume.Version2 {
		if err := checkLog(ctx, client.Container(x.Container), state.Meta); err != nil {
			return nil, describe(x, refused(err, foreign))
		}
	}
	if x.Disk.Snapshot != "" {
		if err := checkSnapshot(ctx, client.Container(x.Container), state, x.Disk.Snapshot); err != nil {
			return nil, describe(x, secrets.Blame(p.container, "snapshot", err))
		}
	}
	if x.Disk.Follow > 0 {
		if err := checkFollow(state, x.Disk.Snapshot); err != nil {
			return nil, describe(x, secrets.Blame(p.container, "follow", err))
		}
	}
	if x.Disk.Compress && state.Meta.Version == volume.Version1 {
		return nil, describe(x, secrets.Blame(p.container, "compression", device.ErrNoCompression))
	}
	if !x.ReadOnly && !x.Disk.Reads() && !readOnlyOption(os.Args) {
		if err := state.Held(); err != nil {
			return nil, describe(x, err)
		}
		if state.Meta.Version == volume.Version2 && x.Disk.LeaseTerm() == 0 {
			return nil, describe(x, secrets.Blame(p.container, "lease", errors.New("lease=0: a disk of version 2 of the format needs a lease")))
		}
		if err := state.Meta.Versions.Restores(x.Container); err != nil {
			return nil, describe(x, err)
		}
		may, err := client.MayLock(ctx, x.Container)
		if err != nil {
			return nil, describe(x, err)
		}
		if !may {
			warn(fmt.Sprintf("container %s: will be served read-only: it is another account's, and these credentials may read it and not lock it", x.Container))
		}
	} else if err := state.Meta.Versions.Restores(x.Container); err != nil {
		warn(describe(x, err).Error())
	}
	if kept := state.Meta.Versions.Kept(); kept != "" {
		warn(fmt.Sprintf("container %s: %s", x.Container, kept))
	}
	if _, err := device.CacheFor(x.Disk.Cache, state.Meta); err != nil {
		return nil, describe(x, secrets.Blame(p.container, "cache", err))
	}
	s := client.Session()
	return &session{s.StorageURL, s.Own, s.Token.Reveal()}, nil
}

// checkSnapshot finds out whether the disk has the snapshot.
func checkSnapshot(ctx context.Context, s store.Store, state lease.State, name string) error {
	if state.Meta.Version != volume.Version2 {
		return device.ErrNoSnapshots
	}
	list, err := logdisk.Snapshots(ctx, logdisk.Options{
		Store: s, UUID: state.Meta.UUID, Root: state.Meta.Root, Newest: uint32(min(state.Epoch, math.MaxUint32)),
	})
	if err == nil && !slices.ContainsFunc(list, func(s logdisk.Snapshot) bool { return s.Name == name }) {
		err = fmt.Errorf("snapshot %s: %w", name, logdisk.ErrNoSnapshot)
	}
	return err
}

// checkFollow finds out whether the disk can be followed.
func checkFollow(state lease.State, snapshot string) error {
	switch {
	case state.Meta.Version != volume.Version2:
		return device.ErrNoFollow
	case snapshot != "":
		return errors.New("follow and snapshot exclude each other: a snapshot does not change")
	}
	return nil
}

// checkLog finds out whether a disk of version 2 has a root, if the container
// does not name one.
func checkLog(ctx context.Context, s store.Store, meta volume.Meta) error {
	if meta.Root != "" {
		return nil
	}
	page, err := s.List(ctx, store.ListOptions{Prefix: layout.RootPrefix, Limit: 1})
	if err == nil && len(page) == 0 {
		err = fmt.Errorf("a disk of version 2 of the format, and nothing under %s: its setup was interrupted, or its objects are gone", layout.RootPrefix)
	}
	return err
}

// refused adds to Swift's refusal that the container is another account's, if
// foreign says so: what is missing then is an ACL.
func refused(err error, foreign func() (bool, error)) error {
	if !errors.Is(err, store.ErrForbidden) {
		return err
	}
	if is, ferr := foreign(); ferr == nil && is {
		return fmt.Errorf("it is another account's, and its ACL does not let these credentials do this: %w", err)
	}
	return err
}

// describe adds the container's name to the error, and a hint what to do if
// there is one.
func describe(x config.Export, err error) error {
	switch {
	case errors.Is(err, volume.ErrNotSetUp):
		err = fmt.Errorf("%w (see swiftnbd-ctl setup)", err)
	case errors.Is(err, store.ErrContainerNotFound):
		err = fmt.Errorf("does not exist (at %s)", cmp.Or(x.Login.StorageURL, x.Login.AuthURL))
	}
	var locked *lease.LockedError
	if errors.As(err, &locked) && !errors.Is(err, lease.ErrLost) {
		err = fmt.Errorf("%w (if that is over: swiftnbd-ctl unlock %s)", err, x.Container)
	}
	return fmt.Errorf("container %s: %w", x.Container, err)
}

// readOnlyOption says whether nbdkit was started with -r. nbdkit tells a plugin
// about it only when a client comes, and a read-only disk may be locked.
func readOnlyOption(args []string) bool {
	const withValue = "DegiIpPtuU" // nbdkit's short options that take one
	for i := 1; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--" || !strings.HasPrefix(a, "-") || a == "-":
			return false // the plugin: its own parameters follow
		case a == "--readonly" || a == "--read-only":
			return true
		case strings.HasPrefix(a, "--"):
			if !strings.Contains(a, "=") && longWithValue[a] {
				i++
			}
		default:
			for j := 1; j < len(a); j++ {
				if a[j] == 'r' {
					return true
				}
				if strings.IndexByte(withValue, a[j]) >= 0 {
					if j == len(a)-1 {
						i++
					}
					break
				}
			}
		}
	}
	return false
}

// longWithValue are nbdkit's long options that take a value in the next
// argument.
var longWithValue = map[string]bool{
	"--debug": true, "--export": true, "--export-name": true, "--exportname": true,
	"--filter": true, "--group": true, "--ipaddr": true, "--ip-addr": true,
	"--log": true, "--mask-handshake": true, "--pid-file": true, "--pidfile": true,
	"--port": true, "--run": true, "--selinux-label": true, "--swap": false,
	"--threads": true, "--tls": true, "--tls-certificates": true, "--tls-psk": true,
	"--unix": true, "--user": true, "--vsock": false,
}
