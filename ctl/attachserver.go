// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"swiftnbd/internal/config"
	"swiftnbd/internal/nbd"
)

// server is the server of an attached disk: one that runs already, or an nbdkit
// of ours.
type server struct {
	target nbd.Target

	dir  string   // of the socket of an nbdkit of ours
	argv []string // its command line; nil: the server is not ours
	disk string   // the container, for messages

	served atomic.Bool // a client has got the disk of it
}

// server returns the server of the disk. Without --persist an nbdkit of ours
// runs in the background when it returns, and ends when the last client has left
// it (nbdkit-exitlast-filter).
func (t *tool) server(ctx context.Context, o attachOptions, name string, params []string) (*server, error) {
	if o.uri != "" {
		target, err := nbd.ParseURI(o.uri)
		return &server{target: target, disk: name}, err
	}
	dir, err := os.MkdirTemp("/run", "swiftnbd-attach-") // it is short, and only root can look into it
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, disk: name}
	socket := filepath.Join(dir, "socket")
	s.target = nbd.Target{Network: "unix", Address: socket, Export: name}
	plugin := t.env("SWIFTNBD_PLUGIN")
	if plugin == "" {
		plugin = "swift"
	}
	s.argv = []string{"nbdkit", "-U", socket}
	if o.readOnly {
		s.argv = append(s.argv, "-r")
	}
	if t.verbose {
		s.argv = append(s.argv, "-v")
	}
	if o.persist {
		s.argv = append(s.argv, "-f")
	} else {
		s.argv = append(s.argv, "-P", s.pidFile(), "--filter=exitlast")
	}
	s.argv = append(s.argv, plugin, "container="+name)
	s.argv = append(s.argv, t.pluginLogin()...)
	s.argv = append(s.argv, params...)
	if o.persist {
		return s, nil
	}
	cmd := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		s.close()
		if ctx.Err() != nil {
			return nil, &interruptedError{name}
		}
		return nil, s.unstarted(err)
	}
	return s, nil
}

// unstarted is the error of an nbdkit of ours that has ended with err before it served.
func (s *server) unstarted(err error) error {
	if i := strings.LastIndexByte(s.disk, '@'); i > 0 {
		return fmt.Errorf("nbdkit does not start: %w; if %s is a snapshot: %s attach %s -- snapshot=%s", err, s.disk, program, s.disk[:i], s.disk[i+1:])
	}
	return fmt.Errorf("nbdkit does not start: %w", err)
}

// pluginLogin returns the plugin's parameters for the options of the login.
func (t *tool) pluginLogin() []string {
	var p []string
	add := func(key, value, none string) {
		if value != none {
			p = append(p, key+"="+value)
		}
	}
	l, k := t.login, t.login.KeystoneOptions
	add("secrets", l.Secrets, config.DefaultPath)
	add("authurl", l.AuthURL, "")
	add("cacert", t.cacert, "")
	add("storage-url", t.storageURL, "")
	add("cloud", l.Cloud, "")
	add("region", t.region, "")
	add("endpoint-type", t.endpoint, "")
	add("cert", t.cert, "")
	add("key", t.key, "")
	if t.insecure {
		add("insecure", "1", "")
	}
	if l.Keystone {
		add("keystone-auth", "1", "")
		add("keystone-region", k.RegionName, "")
		add("keystone-separator", k.TenantSeparator, "")
		add("keystone-service", k.ServiceType, "")
		add("keystone-endpoint", k.EndpointType, "")
	}
	return p
}

func (s *server) pidFile() string { return filepath.Join(s.dir, "pid") }

// stop ends an nbdkit of ours in the background to which nobody has connected.
func (s *server) stop() {
	if s.argv == nil {
		return
	}
	b, err := os.ReadFile(s.pidFile())
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
}

// close removes the socket. Connections that were made stay.
func (s *server) close() {
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// keepRunning runs an nbdkit of ours until ctx ends, and starts it again whenever
// it has ended. If it ends before anybody has got the disk, that is an error: the next
// one would say the same. Each value of restart ends it in good order. When ctx ends,
// nobody is connected any more: nbdkit gets SIGTERM, and has the time it wants. So it
// does if we are killed.
func (s *server) keepRunning(ctx context.Context, restart <-chan os.Signal, log func(format string, args ...any)) error {
	// Linux sends Pdeathsig when the thread ends that has started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		_ = os.Remove(s.target.Address) // of the one before
		begun := time.Now()
		cmd := exec.Command(s.argv[0], s.argv[1:]...)
		cmd.Stderr = os.Stderr
		// What ends us by the terminal must not end it: we do that.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("nbdkit does not start: %w", err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		asked := false
		var err error
	running:
		for {
			select {
			case err = <-ended:
				break running
			case <-restart:
				log("nbdkit is restarted")
				asked = true
				_ = cmd.Process.Signal(syscall.SIGTERM)
			case <-ctx.Done():
				_ = cmd.Process.Signal(syscall.SIGTERM)
				return <-ended
			}
		}
		if !asked {
			if err == nil {
				err = errors.New("exit status 0")
			}
			if !s.served.Load() {
				return s.unstarted(err)
			}
			log("nbdkit has ended (%v), and is started again", err)
		}
		if pause := time.Second - time.Since(begun); pause > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	}
}
