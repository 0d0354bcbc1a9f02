// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"swiftnbd/internal/config"
	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/metrics"
	"swiftnbd/internal/store"
	"swiftnbd/internal/store/swift"
	"swiftnbd/internal/volume"
)

// handover is what the check before the fork leaves to the process that
// serves. It goes through a pipe and is never written anywhere else: it holds
// passwords, and a token.
type handover struct {
	Secrets []byte   // the secrets file's content
	NoFile  bool     // there is no secrets file
	Stamp   stamp    // the file as it was read
	Session *session // with container=
	// CAs are the authorities' files, by path: after nbdkit -u they may not
	// be readable.
	CAs map[string][]byte
}

// session is swiftstore.Session with the token in the open.
type session struct {
	StorageURL, Token string
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
	path := p.secretsPath()
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = errors.New("is a directory")
	}
	if err == nil {
		h.Stamp = stampOf(info)
		h.Secrets, err = os.ReadFile(path)
	}
	var pe *fs.PathError
	switch {
	case err == nil:
		return h, nil
	case errors.Is(err, fs.ErrNotExist) && p.secrets == "":
		h.NoFile = true
		return h, nil
	case errors.As(err, &pe):
		err = pe.Err
	}
	return h, fmt.Errorf("secrets file %s: %w", path, err)
}

// parse returns the secrets that h holds.
func (h *handover) parse(p *params) (*config.Secrets, error) {
	if h.NoFile {
		return config.NoSecrets(p.secretsPath()), nil
	}
	return config.ParseSecrets(p.secretsPath(), h.Secrets)
}

// preflight checks all that can be checked before nbdkit binds its socket and
// forks: with container= the whole way to the volume, without it the secrets
// file.
func preflight(p *params) ([]byte, error) {
	h, err := readSecrets(p)
	if err != nil {
		return nil, err
	}
	secrets, err := h.parse(p)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(p.secretsPath()); err == nil && info.Mode().IsRegular() {
		if w := config.WorldReadable(p.secretsPath(), info.Mode()); w != "" {
			warn(w)
		}
	}
	if p.metrics != "" {
		// Whether it can be opened; the process that serves opens it again.
		l, err := metrics.Listen(p.metrics)
		if err != nil {
			return nil, fmt.Errorf("metrics=%s: %w", p.metrics, err)
		}
		l.Close()
	}
	if err := h.takeCAs(p, secrets); err != nil {
		return nil, err
	}
	switch {
	case p.container != "":
		h.Session, err = checkContainer(p, secrets)
	case len(secrets.Containers()) == 0:
		err = fmt.Errorf("secrets file %s: no section, and no container= parameter", p.secretsPath())
	default:
		err = secrets.Validate(p.defaults(), os.Getenv)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(h)
}

// takeCAs reads the authorities' files of everything that will be served. An
// export that makes no sense for other reasons is reported by others.
func (h *handover) takeCAs(p *params, secrets *config.Secrets) error {
	names := secrets.Containers()
	if p.container != "" {
		names = []string{p.container}
	}
	h.CAs = make(map[string][]byte)
	for _, name := range names {
		x, err := secrets.Export(name, p.defaults(), os.Getenv)
		if err != nil || x.Login.CACert == "" || h.CAs[x.Login.CACert] != nil {
			continue
		}
		pem, err := os.ReadFile(x.Login.CACert)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s has no certificate in PEM form", x.Login.CACert)
		}
		switch {
		case err == nil:
			h.CAs[x.Login.CACert] = pem
		case x.Login.CACert == p.caCert:
			return fmt.Errorf("cacert=%s: %w", p.caCert, err)
		default:
			return fmt.Errorf("secrets file %s: container %s: cacert: CA certificate: %w", p.secretsPath(), name, err)
		}
	}
	return nil
}

// warn prints one line on the command line. It writes to the descriptor
// itself: os.Stderr would end the process where nobody reads it any more.
func warn(line string) {
	_, _ = syscall.Write(2, []byte("nbdkit: swift: warning: "+line+"\n"))
}

// checkContainer looks at the container as opening it would, and takes nothing.
func checkContainer(p *params, secrets *config.Secrets) (*session, error) {
	x, err := secrets.Export(p.container, p.defaults(), os.Getenv)
	if err != nil {
		return nil, err
	}
	client, err := swiftstore.Dial(clientOptions(p, x))
	if err != nil {
		return nil, describe(x, err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), p.timeout,
		fmt.Errorf("no answer within %v", p.timeout))
	defer cancel()
	// One try, and no waiting for a cloud to come back: somebody sits there.
	if err := client.Login(ctx); err != nil {
		return nil, describe(x, err)
	}
	state, err := lease.Inspect(ctx, lease.Options{
		Store: client.Container(x.Container), Name: x.Container, Sibling: client.Container,
	})
	if err != nil {
		return nil, describe(x, err)
	}
	if !x.ReadOnly && !readOnlyOption(os.Args) {
		if err := state.Held(); err != nil {
			return nil, describe(x, err)
		}
	}
	if _, err := device.CacheSize(p.cache, state.Meta.Geometry.ObjectSize()); err != nil {
		return nil, describe(x, err)
	}
	s := client.Session()
	return &session{s.StorageURL, s.Token.Reveal()}, nil
}

// describe names the container, and says what to do where that helps.
func describe(x config.Export, err error) error {
	switch {
	case errors.Is(err, volume.ErrNotSetUp):
		err = fmt.Errorf("%w (see swiftnbd-ctl setup)", err)
	case errors.Is(err, store.ErrContainerNotFound):
		err = fmt.Errorf("does not exist (at %s)", x.Login.AuthURL)
	}
	var locked *lease.LockedError
	if errors.As(err, &locked) && !errors.Is(err, lease.ErrLost) {
		err = fmt.Errorf("%w (if that is over: swiftnbd-ctl unlock %s)", err, x.Container)
	}
	return fmt.Errorf("container %s: %w", x.Container, err)
}

// readOnlyOption says whether nbdkit was started with -r, which it tells a
// plugin only when a client comes: a read-only disk does not mind a lock.
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
