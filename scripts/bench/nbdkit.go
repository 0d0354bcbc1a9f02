// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// server is an nbdkit that serves one disk. The bench keeps a connection to it
// from the start, so that opening the disk is never part of what a client is
// measured at, and a client that leaves does not close it.
type server struct {
	uri    string
	socket string
	held   *nbdConn
	cmd    *exec.Cmd
	said   bytes.Buffer
	wait   chan error // the end of cmd
	gone   bool

	unlock *exec.Cmd // frees the disk when nbdkit was killed; nil: there is no need
}

// startTimeout is how long nbdkit may take to begin or to end. Ending it
// writes back what is dirty.
const startTimeout = 2 * time.Minute

// serve starts nbdkit with the plugin on a disk. The disk's metadata is set up
// anew before, whatever an earlier nbdkit has left.
func (s *suite) serve(v *disk, params ...string) (*server, error) {
	return s.serveArgs(v, false, nil, params...)
}

// serveArgs is serve for a disk that may be blank, with options of nbdkit's.
func (s *suite) serveArgs(v *disk, blank bool, args []string, params ...string) (*server, error) {
	if err := v.setUp(blank); err != nil {
		return nil, err
	}
	secrets, err := s.secrets(v)
	if err != nil {
		return nil, err
	}
	plugin, err := filepath.Abs(filepath.Join(s.build, "nbdkit-swift-plugin.so"))
	if err != nil {
		return nil, err
	}
	all := []string{v.container, "secrets=" + secrets}
	if !hasParam(params, "connections") && !hasParam(s.extra, "connections") {
		all = append(all, fmt.Sprintf("connections=%d", s.conns))
	}
	all = append(all, params...)
	for _, p := range s.extra {
		if key, _, _ := strings.Cut(p, "="); !hasParam(params, key) {
			all = append(all, p)
		}
	}
	n, err := s.nbdkit(append(append(args, plugin), all...)...)
	if err == nil {
		n.unlock = exec.Command(filepath.Join(s.build, "swiftnbd-ctl"), "--secrets", secrets, "unlock", v.container)
	}
	return n, err
}

// secrets writes a file of credentials for a disk and for other containers, and
// returns its name.
func (s *suite) secrets(v *disk, others ...string) (string, error) {
	path := s.path("secrets")
	text := ""
	for _, name := range append([]string{v.container}, others...) {
		text += fmt.Sprintf("[%s]\nusername = %s\npassword = %s\nauthurl = %s\n", name, userName, userKey, v.cloud.authURL)
	}
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func hasParam(params []string, key string) bool {
	for _, p := range params {
		if strings.HasPrefix(p, key+"=") {
			return true
		}
	}
	return false
}

// nbdkit starts nbdkit with these arguments on a Unix socket.
func (s *suite) nbdkit(args ...string) (*server, error) {
	socket, pid := s.path("sock"), s.path("pid")
	n := &server{socket: socket, uri: "nbd+unix:///?socket=" + url.QueryEscape(socket)}
	n.cmd = exec.Command("nbdkit", append([]string{"-f", "-U", socket, "-P", pid}, args...)...)
	n.cmd.Stdout, n.cmd.Stderr = &n.said, &n.said
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- n.cmd.Wait() }()
	deadline := time.Now().Add(startTimeout)
	for {
		if _, err := os.Stat(pid); err == nil {
			break
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("nbdkit did not start: %w\n%s", err, n.said.String())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			n.cmd.Process.Kill()
			return nil, errors.New("nbdkit did not start in time")
		}
	}
	n.wait = ended
	s.atEnd(n.kill)
	var err error
	if n.held, err = dialNBD(socket); err != nil {
		return nil, fmt.Errorf("%w\n%s", errors.Join(err, n.kill()), n.said.String())
	}
	return n, nil
}

// stop ends nbdkit as its user does, which writes back what is dirty.
func (n *server) stop() error {
	if n.gone {
		return nil
	}
	n.held.Close()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-n.wait:
		n.gone = true
		if err != nil {
			return fmt.Errorf("nbdkit ended: %w\n%s", err, n.said.String())
		}
		return nil
	case <-time.After(startTimeout):
		return errors.Join(errors.New("nbdkit did not end in time"), n.kill())
	}
}

// kill ends nbdkit with what is dirty lost.
func (n *server) kill() error {
	if n.gone {
		return nil
	}
	n.gone = true
	if n.held != nil {
		n.held.Close()
	}
	if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-n.wait // its status is SIGKILL's
	if n.unlock != nil {
		// The disk may have been given back just before.
		if out, err := n.unlock.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("is not locked")) {
			return fmt.Errorf("unlock: %w\n%s", err, out)
		}
	}
	return nil
}

// memory starts nbdkit's own memory plugin with a disk of that size, full of
// random bytes.
func (s *suite) memory(size int64) (*server, error) {
	n, err := s.nbdkit("memory", fmt.Sprint(size))
	if err != nil {
		return nil, err
	}
	return n, n.held.fill(size)
}

// rss returns the largest resident size that the server had, bytes.
func (n *server) rss() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(data)) {
		var kib int64
		if k, err := fmt.Sscanf(l, "VmHWM: %d kB", &kib); err == nil && k == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/PID/status has no VmHWM")
}
