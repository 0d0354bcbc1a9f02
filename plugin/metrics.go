// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/metrics"
)

// The socket that the counters are served on is opened in the preflight: then it
// is there when the command of nbdkit --run starts. A Unix socket's file must go
// again however nbdkit ends, also where none of our callbacks is called (the
// port is another's, nbdkit is killed), and where nbdkit may not remove it any
// more (nbdkit -u). So a process stays beside nbdkit and removes it.

// counterSocket is the open socket, in the preflight.
type counterSocket struct {
	address string
	socket  *os.File // nil: none is asked for
	path    string   // of a Unix socket's file, or empty
	alive   *os.File // as long as a process has it, the file stays; nil: nobody removes it
}

// remover is what the process that removes the file does: it waits for the end of
// its standard input, and removes the file if it is still the one that was
// made. It ends by itself, and by no signal that ends nbdkit.
const remover = `trap "" HUP INT QUIT TERM
read -r end
test "$(stat -c %i.%y -- "$1")" = "$2" && rm -f -- "$1"`

// openMetrics opens the socket.
func openMetrics(address string) (*counterSocket, error) {
	c := &counterSocket{address: address}
	if address == "" {
		return c, nil
	}
	f, err := metrics.ListenFile(address)
	if err != nil {
		return nil, fmt.Errorf("metrics=%s: %w", address, err)
	}
	c.socket = f
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		c.path = path
		if err := c.watch(); err != nil {
			warn(fmt.Sprintf("metrics=%s: the socket may be left behind: %v", address, err))
		}
	}
	return c, nil
}

// watch starts the process that removes the file.
func (c *counterSocket) watch() error {
	// Without the environment, which may hold a password.
	env := []string{"PATH=/usr/bin:/bin"}
	stat := exec.Command("stat", "-c", "%i.%y", "--", c.path)
	stat.Env = env
	is, err := stat.Output()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	sh := exec.Command("/bin/sh", "-c", remover, "swiftnbd-metrics-socket", c.path, strings.TrimSpace(string(is)))
	sh.Env, sh.Dir, sh.Stdin = env, "/", r
	sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sh.Start(); err != nil {
		w.Close()
		return err
	}
	c.alive = w
	return nil
}

// pass hands the socket to the process that serves.
func (c *counterSocket) pass() error {
	for _, f := range []*os.File{c.socket, c.alive} {
		if f == nil {
			continue
		}
		if err := nbdkit.PassFile(f); err != nil {
			return err
		}
	}
	return nil
}

// remove is the end of a preflight that has failed.
func (c *counterSocket) remove() {
	if c.path != "" {
		_ = os.Remove(c.path)
	}
}

// keptAlive keeps counterSocket.alive open.
//
//lint:ignore U1000 nobody reads it: a file that nothing refers to is closed
var keptAlive []*os.File

// serveMetrics serves the counters on the socket that openMetrics has opened.
// If that fails, the disk is served without: under --run nbdkit would hang on an
// error here.
func serveMetrics(m *metrics.Metrics, address string) {
	files := nbdkit.PassedFiles()
	if address == "" {
		return
	}
	if len(files) == 0 {
		nbdkit.Errorf("metrics=%s: the socket was not handed over", address)
		return
	}
	keptAlive = files[1:]
	l, err := net.FileListener(files[0])
	files[0].Close()
	if err != nil {
		nbdkit.Errorf("metrics=%s: %v", address, err)
		return
	}
	goLogged(func() {
		if err := m.Serve(l); err != nil {
			nbdkit.Errorf("metrics=%s: %v", address, err)
		}
	})
}

// removeMetrics removes a Unix socket at the end, so that it is gone when nbdkit
// is. It may be another user's directory by now (nbdkit -u): then the process
// that stays beside nbdkit does it.
func removeMetrics(address string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		_ = os.Remove(path)
	}
}
