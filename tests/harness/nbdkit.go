// SPDX-License-Identifier: MIT

package harness

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Mode is a way in which nbdkit can be started.
type Mode int

// The modes. In all of them the test reaches the server at Nbdkit.URI, and the
// server's process is Nbdkit.Server.
const (
	Foreground Mode = iota // -f
	Background             // the default: nbdkit goes into the background
	Captive                // --run, with -U -
	Inetd                  // -s: a process for each connection, its socket on 0 and 1
	Activated              // LISTEN_PID and LISTEN_FDS, as systemd does it
)

func (m Mode) String() string {
	return [...]string{"foreground", "background", "captive", "inetd", "activated"}[m]
}

// Options say how nbdkit is to be started. The zero value serves the plugin
// under test in the foreground on a Unix socket.
type Options struct {
	Mode   Mode
	Plugin string   // name or path; "" is the plugin under test
	Params []string // the plugin's parameters
	Args   []string // nbdkit's own options
	Env    []string // added to the environment
	TCP    bool     // listen on a loopback port rather than on a Unix socket
	Port   int      // with TCP, this port; 0: a free one
}

// Nbdkit is an nbdkit that serves.
type Nbdkit struct {
	URI     string // of the default export
	Port    int    // when Options.TCP
	Server  *Process
	PidFile string

	mode    Mode
	front   *Process // Captive: the nbdkit that runs the command
	release string   // Captive: the command ends when this file exists
	inetd   *inetd
}

// command returns nbdkit's command line for all modes but -s.
func (o Options) command(t testing.TB, where ...string) []string {
	plugin := o.Plugin
	if plugin == "" {
		plugin = Plugin(t)
	}
	args := append([]string{Tool(t, "nbdkit")}, where...)
	args = append(args, o.Args...)
	args = append(args, plugin)
	return append(args, o.Params...)
}

// UnixURI returns the NBD URI of an export on a Unix socket.
func UnixURI(socket, export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(socket)
}

// Export returns the NBD URI of a named export of the server.
func (n *Nbdkit) Export(name string) string {
	if base, query, ok := strings.Cut(n.URI, "?"); ok {
		return base + url.PathEscape(name) + "?" + query
	}
	return n.URI + url.PathEscape(name)
}

// Serve starts nbdkit, waits until it serves, and stops it when the test ends.
func Serve(t testing.TB, o Options) *Nbdkit {
	t.Helper()
	dir := TempDir(t)
	if o.Mode == Inetd {
		return serveInetd(t, o, dir)
	}
	n := &Nbdkit{mode: o.Mode, PidFile: filepath.Join(dir, "pid")}
	socket := filepath.Join(dir, "s")
	where := []string{"-P", n.PidFile}
	switch {
	case o.TCP:
		if n.Port = o.Port; n.Port == 0 {
			n.Port = FreePort(t)
		}
		n.URI = fmt.Sprintf("nbd://127.0.0.1:%d/", n.Port)
		where = append(where, "-i", "127.0.0.1", "-p", strconv.Itoa(n.Port))
	case o.Mode == Captive:
		where = append(where, "-U", "-")
	case o.Mode == Activated:
	default:
		where = append(where, "-U", socket)
	}
	if !o.TCP && o.Mode != Captive {
		n.URI = UnixURI(socket, "")
	}
	switch o.Mode {
	case Foreground:
		n.Server = Start(t, o.cmd(o.command(t, append(where, "-f")...)))
		n.waitPidFile(t, n.Server)
	case Background:
		r := RunCmd(t, o.cmd(o.command(t, where...)))
		if r.Status != 0 {
			t.Fatalf("nbdkit did not go into the background: exit status %d\n%s", r.Status, r.Stderr)
		}
		// The child writes the file, and may not have done so yet.
		Eventually(t, "nbdkit writes its pid file", n.hasPidFile)
		n.Server = Adopt(t, "nbdkit", n.readPid(t))
	case Captive:
		n.captive(t, o, where, dir)
	case Activated:
		n.activated(t, o, where, socket)
	}
	return n
}

func (o Options) cmd(argv []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), o.Env...)
	return cmd
}

// captive starts nbdkit with a command. The command writes where the server is,
// and then runs until it is released. The test can work meanwhile.
func (n *Nbdkit) captive(t testing.TB, o Options, where []string, dir string) {
	uri := filepath.Join(dir, "uri")
	n.release = filepath.Join(dir, "release")
	o.Params = append(o.Params[:len(o.Params):len(o.Params)], "--run", fmt.Sprintf(
		`echo "$uri" >%s.new; mv %s.new %s; while [ ! -e %s ]; do sleep 0.05; done`, uri, uri, uri, n.release))
	n.front = Start(t, o.cmd(o.command(t, where...)))
	n.waitPidFile(t, n.front)
	n.Server = Adopt(t, "nbdkit", n.readPid(t))
	Eventually(t, "nbdkit --run runs its command", func() bool {
		b, err := os.ReadFile(uri)
		n.URI = strings.TrimSpace(string(b))
		return err == nil
	})
}

// activated starts nbdkit with a listening socket as file descriptor 3. A shell
// sets LISTEN_PID to its own process id, which exec keeps.
func (n *Nbdkit) activated(t testing.TB, o Options, where []string, socket string) {
	network, address := "unix", socket
	if o.TCP {
		network, address = "tcp", fmt.Sprintf("127.0.0.1:%d", n.Port)
		where = where[:2] // -P only: the socket has the address
	}
	f := listen(t, network, address)
	defer f.Close()
	argv := append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, o.command(t, where...)...)
	cmd := o.cmd(argv)
	cmd.ExtraFiles = []*os.File{f}
	n.Server = Start(t, cmd)
	n.waitPidFile(t, n.Server)
}

// listen returns a listening socket as a file. A Unix socket's name stays.
func listen(t testing.TB, network, address string) *os.File {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var f *os.File
	switch l := l.(type) {
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		f, err = l.File()
	case *net.TCPListener:
		f, err = l.File()
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// waitPidFile waits for nbdkit's -P file, which it writes when it listens.
func (n *Nbdkit) waitPidFile(t testing.TB, p *Process) {
	t.Helper()
	Eventually(t, "nbdkit writes its pid file", func() bool {
		if !p.Running() {
			t.Fatalf("nbdkit ended before it served: %s\n%s", p.how(), p.Output())
		}
		return n.hasPidFile()
	})
}

func (n *Nbdkit) hasPidFile() bool {
	b, err := os.ReadFile(n.PidFile)
	return err == nil && strings.HasSuffix(string(b), "\n")
}

func (n *Nbdkit) readPid(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(n.PidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatalf("%s: %v", n.PidFile, err)
	}
	return pid
}

// Stop sends SIGTERM to the server, as people and systemd do, and waits for its
// end. It fails the test unless the exit status is 0.
func (n *Nbdkit) Stop(t testing.TB) {
	t.Helper()
	if n.inetd != nil {
		n.inetd.stop(t)
		return
	}
	n.Server.Signal(t, syscall.SIGTERM)
	if status := n.Server.Wait(t); status != 0 {
		t.Errorf("nbdkit (%v) ended with status %d after SIGTERM; want 0", n.mode, status)
	}
	if n.front != nil {
		n.Release(t)
	}
}

// Mode returns the way in which nbdkit was started.
func (n *Nbdkit) Mode() Mode { return n.mode }

// Terminate makes nbdkit begin to end, as its mode wants it: by a signal, or
// with --run by the end of the command.
func (n *Nbdkit) Terminate(t testing.TB) {
	t.Helper()
	switch n.mode {
	case Captive:
		WriteFile(t, n.release, "")
	case Inetd:
		n.inetd.process(t).Signal(t, syscall.SIGTERM)
	default:
		n.Server.Signal(t, syscall.SIGTERM)
	}
}

// End waits for the end after Terminate. It returns the exit status that the
// process which started nbdkit sees, or in the background nbdkit's own.
func (n *Nbdkit) End(t testing.TB) int {
	t.Helper()
	switch n.mode {
	case Captive:
		return n.front.Wait(t)
	case Inetd:
		return n.inetd.process(t).Wait(t)
	}
	return n.Server.Wait(t)
}

// Output returns nbdkit's messages so far. It returns false in the background,
// where they go to syslog.
func (n *Nbdkit) Output() (string, bool) {
	switch n.mode {
	case Captive:
		return n.front.Output(), true
	case Inetd:
		return n.inetd.newest().Output(), true
	}
	return n.Server.Output(), n.mode != Background
}

// Kill sends SIGKILL to the server, as a crash does, and waits for its end.
func (n *Nbdkit) Kill(t testing.TB) {
	t.Helper()
	n.Server.Signal(t, syscall.SIGKILL)
	n.Server.Wait(t)
}

// Release lets the command of a captive nbdkit end, waits for the end of
// nbdkit, and returns its exit status.
func (n *Nbdkit) Release(t testing.TB) int {
	t.Helper()
	WriteFile(t, n.release, "")
	return n.front.Wait(t)
}

// inetd starts an `nbdkit -s` for each connection, as inetd(8) does. The
// connected socket is nbdkit's standard input and output. The next connection
// waits until the one before has ended, since the volume has one writer.
type inetd struct {
	mu   sync.Mutex
	last *Process
	err  error
}

func serveInetd(t testing.TB, o Options, dir string) *Nbdkit {
	t.Helper()
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := &inetd{}
	argv := o.command(t, "-s")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				err = d.serve(o.cmd(argv), conn)
			}
			if err != nil {
				d.mu.Lock()
				d.err = err
				d.mu.Unlock()
				return
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if p := d.newest(); p != nil {
			p.kill() // the next connection waits for it
		}
		<-ended
		if p := d.newest(); p != nil {
			p.end(t)
		}
	})
	return &Nbdkit{mode: Inetd, URI: UnixURI(socket, ""), inetd: d}
}

func (d *inetd) serve(cmd *exec.Cmd, conn *net.UnixConn) error {
	f, err := conn.File()
	conn.Close()
	if err != nil {
		return err
	}
	defer f.Close()
	if last := d.newest(); last != nil {
		<-last.done
	}
	cmd.Stdin, cmd.Stdout = f, f
	p, err := start(cmd)
	if err == nil {
		d.mu.Lock()
		d.last = p
		d.mu.Unlock()
	}
	return err
}

func (d *inetd) newest() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// process waits for the first connection and returns the nbdkit that serves
// the newest one.
func (d *inetd) process(t testing.TB) *Process {
	t.Helper()
	var p *Process
	Eventually(t, "somebody connects to nbdkit -s", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.err != nil {
			t.Fatal(d.err)
		}
		p = d.last
		return p != nil
	})
	return p
}

// stop ends the newest nbdkit by a signal, unless it has ended with its
// connection. It fails the test unless the status is 0.
func (d *inetd) stop(t testing.TB) {
	t.Helper()
	p := d.process(t)
	if p.Running() {
		// It may end by itself at this moment.
		_ = syscall.Kill(p.Pid, syscall.SIGTERM)
	}
	if status := p.Wait(t); status != 0 {
		t.Errorf("nbdkit -s ended with status %d; want 0\n%s", status, p.Output())
	}
}
