// SPDX-License-Identifier: MIT

package tests

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"swiftnbd/tests/harness"
)

// oldServer is a swiftnbd-server under test: a secrets file with two
// containers, and paths and a port of its own.
type oldServer struct {
	cloud    *harness.Cloud
	account  *harness.Account
	names    []string
	secrets  string
	log, pid string
	port     int
}

func newOldServer(t testing.TB) *oldServer {
	t.Helper()
	dir := harness.TempDir(t)
	s := &oldServer{cloud: harness.Dev(t), log: filepath.Join(dir, "log"), pid: filepath.Join(dir, "pid"), port: harness.FreePort(t)}
	s.account = s.cloud.Account(t)
	var sections []string
	for _, suffix := range []string{"-a", "-b"} {
		name := harness.Name(t) + suffix
		s.account.Setup(t, name, 64, objectSize)
		s.names = append(s.names, name)
		sections = append(sections, harness.Section(name, "username = "+s.cloud.User, "password = "+s.cloud.Key))
	}
	s.secrets = harness.Secrets(t, sections...)
	return s
}

// command returns the command line of 0.11, with these options besides.
func (s *oldServer) command(t testing.TB, more ...string) *exec.Cmd {
	t.Helper()
	args := append([]string{"--secrets", s.secrets, "-a", s.cloud.AuthURL, "-p", strconv.Itoa(s.port), "--pid-file", s.pid}, more...)
	cmd := harness.Command(t, harness.Built(t, "swiftnbd-server"), args...)
	cmd.Env = append(os.Environ(), "SWIFTNBD_PLUGIN="+harness.Plugin(t))
	return cmd
}

// background starts the server, which has to go into the background without a
// word, and returns its process.
func (s *oldServer) background(t testing.TB, more ...string) *harness.Process {
	t.Helper()
	if r := harness.RunCmd(t, s.command(t, more...)); r.Status != 0 || r.Stdout+r.Stderr != "" {
		t.Fatalf("swiftnbd-server %q: status %d\n%s%s%s", more, r.Status, r.Stdout, r.Stderr, s.logged(t))
	}
	return harness.Adopt(t, "swiftnbd-server", s.pidFile(t))
}

// serves waits until a server in the foreground serves. Its pid file is there
// before, for the lock, and has its process id from then on.
func (s *oldServer) serves(t testing.TB, p *harness.Process) {
	t.Helper()
	p.Until(t, s.pid)
	harness.Eventually(t, "the pid file has the server's id", func() bool {
		text, _ := os.ReadFile(s.pid)
		return string(text) == fmt.Sprintf("%d\n", p.Pid)
	})
}

// pidFile returns the process id in the pid file.
func (s *oldServer) pidFile(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(s.pid)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		t.Fatalf("the pid file holds %q", text)
	}
	return pid
}

// noPidFile fails the test if the pid file is there.
func (s *oldServer) noPidFile(t testing.TB) {
	t.Helper()
	if _, err := os.Lstat(s.pid); !os.IsNotExist(err) {
		t.Errorf("the pid file is there after the end: %v", err)
	}
}

// logged returns what is in the log.
func (s *oldServer) logged(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// uri is where a container is served.
func (s *oldServer) uri(name string) string {
	return fmt.Sprintf("nbd://127.0.0.1:%d/%s", s.port, name)
}

// roundTrip writes a disk through the server, and reads it back.
func (s *oldServer) roundTrip(t testing.TB, seed uint64, name string) {
	t.Helper()
	data := harness.Random(seed, 64*objectSize)
	harness.RoundTrip(t, s.uri(name), data)
	if !bytes.Equal(s.account.Read011(t, name), data) {
		t.Errorf("what was flushed is not in %s", name)
	}
}

// TestServerBackground starts the server as an init script of 0.11 did: it
// goes into the background when it serves, both containers are exports, the pid
// file is the server's until it ends, and the log has 0.11's form.
func TestServerBackground(t *testing.T) {
	t.Parallel()
	s := newOldServer(t)
	harness.WriteFile(t, s.log, "older\n")
	cache := "2"
	if harness.Format() == 2 { // whose chunks are larger
		cache = "80"
	}
	p := s.background(t, "-l", s.log, "-c", cache)
	if names, _ := listExports(t, s.uri("")); !slices.Equal(names, s.names) {
		t.Errorf("the exports are %q, want %q", names, s.names)
	}
	for i, name := range s.names {
		s.roundTrip(t, uint64(i), name)
	}
	second := *s
	second.port = harness.FreePort(t)
	if r := harness.RunCmd(t, second.command(t)); r.Status != 1 || !strings.Contains(r.Stderr, s.pid+" found: is the server already running?") {
		t.Errorf("a second server with the same pid file: status %d, %s", r.Status, r.Stderr)
	}
	if s.pidFile(t) != p.Pid {
		t.Error("the second server has changed the first one's pid file")
	}
	p.Signal(t, syscall.SIGTERM)
	if status := p.Wait(t); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
	s.noPidFile(t)
	for _, name := range s.names {
		unlocked(t, s.account, name)
	}
	form := regexp.MustCompile(`^older\n(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: swiftnbd: [A-Z]+: .+\n)+$`)
	log := s.logged(t)
	if !form.MatchString(log) || !strings.Contains(log, fmt.Sprintf("INFO: Starting to serve on 127.0.0.1:%d\n", s.port)) ||
		!strings.Contains(log, "INFO: Stopping (terminated)\n") || !strings.HasSuffix(log, "INFO: Exiting...\n") {
		t.Errorf("the log is\n%s", log)
	}
}

// TestServerForeground starts the server as a unit file does, and ends it with
// each signal that 0.11 took, and with those that nbdkit takes.
func TestServerForeground(t *testing.T) {
	t.Parallel()
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newOldServer(t)
			p := harness.Start(t, s.command(t, "-f", "-v"))
			s.serves(t, p)
			s.roundTrip(t, uint64(i), s.names[1])
			p.Signal(t, sig)
			if status := p.Wait(t); status != 0 {
				t.Errorf("after %v it ended with status %d", sig, status)
			}
			s.noPidFile(t)
			unlocked(t, s.account, s.names[1])
			if !strings.Contains(p.Output(), "debug: ") {
				t.Errorf("-v said nothing:\n%s", p.Output())
			}
		})
	}
}

// TestServerStopsUnderClients stops the server while both disks have clients
// that do not leave: what they have written and nobody has flushed is in Swift,
// the containers are unlocked, and the server ends.
func TestServerStopsUnderClients(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"foreground", "background"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newOldServer(t)
			var p *harness.Process
			if mode == "foreground" {
				p = harness.Start(t, s.command(t, "-f"))
				harness.Eventually(t, "it serves", func() bool { return harness.Run(t, "nbdinfo", "--size", s.uri(s.names[0])).Status == 0 })
			} else {
				p = s.background(t, "-l", s.log)
			}
			dir := harness.TempDir(t)
			for i, name := range s.names {
				ready := filepath.Join(dir, name)
				client := harness.StartNbdsh(t, s.uri(name), fmt.Sprintf(`
import time
h.pwrite(b"%d" * 5000, 70000)
open("%s", "w").close()
time.sleep(600)
`, i, ready))
				client.Until(t, ready)
			}
			p.Signal(t, syscall.SIGTERM)
			if status := p.Wait(t); status != 0 {
				t.Errorf("it ended with status %d:\n%s%s", status, p.Output(), s.logged(t))
			}
			s.noPidFile(t)
			for i, name := range s.names {
				if got := s.account.Read011(t, name)[70000:75000]; !bytes.Equal(got, bytes.Repeat([]byte{byte('0' + i)}, 5000)) {
					t.Errorf("%s lacks what was written", name)
				}
				if holder := s.account.Holder(t, name); holder != "" {
					t.Errorf("%s is locked by %s", name, holder)
				}
			}
		})
	}
}

// TestServerLoses stops the server after Swift has gone for good, with bytes
// that nobody has flushed: it gives up after the section's timeout, the log says
// how many are lost, and the status is 1.
func TestServerLoses(t *testing.T) {
	t.Parallel()
	c, swift := harness.OwnDev(t)
	s := &oldServer{cloud: c, account: c.Account(t), log: filepath.Join(harness.TempDir(t), "log"), port: harness.FreePort(t)}
	s.pid = s.log + ".pid"
	name := harness.Name(t)
	s.account.Setup(t, name, 64, objectSize)
	s.secrets = harness.Secrets(t, c.Section(name, "timeout = 1.5", "writeback-age = 3600"))
	p := s.background(t, "-l", s.log)
	dir := harness.TempDir(t)
	ready, leave := filepath.Join(dir, "ready"), filepath.Join(dir, "leave")
	client := harness.StartNbdsh(t, s.uri(name), fmt.Sprintf(`
import os, time
h.pwrite(b"x" * 8192, 0)
open("%s", "w").close()
while not os.path.exists("%s"):
    time.sleep(0.05)
os._exit(0)
`, ready, leave))
	client.Until(t, ready)
	swift.Signal(t, syscall.SIGKILL)
	swift.Wait(t)
	p.Signal(t, syscall.SIGTERM)
	harness.WriteFile(t, leave, "")
	if status := p.Wait(t); status != 1 {
		t.Errorf("it ended with status %d, want 1", status)
	}
	s.noPidFile(t)
	if log := s.logged(t); !regexp.MustCompile(`ERROR: .*8192 bytes`).MatchString(log) {
		t.Errorf("the log does not say that 8192 bytes are lost:\n%s", log)
	}
}

// TestServerKilled kills nbdkit under the server, which says so and ends, and
// the server, with which nbdkit ends. A pid file that is left over is no
// obstacle to the next one, a link in its place is.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	s := newOldServer(t)
	p := s.background(t, "-l", s.log)
	nbdkit := child(t, p.Pid)
	if err := syscall.Kill(nbdkit, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := p.Wait(t); status != 128+int(syscall.SIGKILL) {
		t.Errorf("after nbdkit was killed the server ended with %d", status)
	}
	s.noPidFile(t)

	p = s.background(t, "-l", s.log)
	orphan := harness.Adopt(t, "nbdkit", child(t, p.Pid))
	p.Signal(t, syscall.SIGKILL)
	p.Wait(t)
	if status := orphan.Wait(t); status != 0 {
		t.Errorf("nbdkit, whose server was killed, ended with status %d", status)
	}
	if old := s.pidFile(t); old != p.Pid {
		t.Errorf("the pid file has %d, want that of the server that was killed, %d", old, p.Pid)
	}
	p = s.background(t, "-l", s.log)
	p.Signal(t, syscall.SIGTERM)
	p.Wait(t)

	// After a power failure the number is somebody else's; but 0.11's server does
	// not lock its file.
	harness.WriteFile(t, s.pid, fmt.Sprintf("%d\n", os.Getpid()))
	p = s.background(t, "-l", s.log)
	p.Signal(t, syscall.SIGTERM)
	p.Wait(t)
	s.noPidFile(t)
	old := harness.Start(t, harness.Command(t, "bash", "-c", "exec -a /usr/bin/swiftnbd-server sleep 600"))
	harness.Eventually(t, "0.11's server runs", func() bool {
		words, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", old.Pid))
		return strings.HasPrefix(string(words), "/usr/bin/swiftnbd-server")
	})
	harness.WriteFile(t, s.pid, fmt.Sprintf("%d\n", old.Pid))
	if r := harness.RunCmd(t, s.command(t)); r.Status != 1 || !strings.Contains(r.Stderr, s.pid+" found") {
		t.Errorf("beside 0.11's server: status %d, %s", r.Status, r.Stderr)
	}
	if s.pidFile(t) != old.Pid {
		t.Error("0.11's pid file was changed")
	}
	if err := os.Remove(s.pid); err != nil {
		t.Fatal(err)
	}

	victim := harness.WriteFile(t, s.pid+".victim", "do not touch\n")
	if err := os.Symlink(victim, s.pid); err != nil {
		t.Fatal(err)
	}
	if r := harness.RunCmd(t, s.command(t)); r.Status != 1 || !strings.Contains(r.Stderr, s.pid) {
		t.Errorf("with a link for a pid file: status %d, %s", r.Status, r.Stderr)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "do not touch\n" {
		t.Errorf("the file behind the link is %q, %v", text, err)
	}
}

// child returns the one child of a process.
func child(t testing.TB, pid int) int {
	t.Helper()
	out := strings.Fields(harness.Must(t, "ps", "-o", "pid=", "--ppid", strconv.Itoa(pid)))
	if len(out) != 1 {
		t.Fatalf("the server has the children %q, want one", out)
	}
	n, err := strconv.Atoi(out[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestServerMistakes gives the server what it cannot work with. It says so in
// the foreground and in the background alike, ends with 0.11's status, and
// leaves no pid file.
func TestServerMistakes(t *testing.T) {
	t.Parallel()
	s := newOldServer(t)
	busy, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	text := harness.WriteFile(t, s.log+".text", "some text\n")
	for _, c := range []struct {
		status int
		words  string // separated by "|"
		args   string
	}{
		{2, "unknown flag: --nonsense", "--nonsense"},
		{2, "unknown shorthand flag: 'x'", "-x"},
		{2, "flag needs an argument", "-l"},
		{2, "--bind-port|many", "-p many"},
		{2, "--bind-port|65535", "-p 65536"},
		{2, "--bind-port|65535", "--bind-p 0"},
		{2, `"many"|--bind-port|must be a whole number, not less than 1 and not more than 65535`, "-p many"},
		{2, "--bind-port|must be a whole number", "-p 99999999999999999999"},
		{2, "--bind-address: is empty", "--bind-address="},
		{2, "--cache-limit|must be a whole number, not less than 1 and not more than 16777216", "-c 99999999999999"},
		{2, `"maybe"|"--syslog"|takes no value`, "--syslog=maybe"},
		{2, "--cache-limit|less than 1", "-c 0"},
		{2, "--cache-limit|less than 1", "--cache-limit -5"},
		{2, "--cache-limit|64M", "-c 64M"},
		{2, "--auth-url|http://", "-a example.com"},
		{2, "--keystone-endpoint|private", "-k --keystone-endpoint private"},
		{2, "ambiguous option --keystone-s", "--keystone-s :"},
		{2, "mydisk|nbdkit swift mydisk", "mydisk"},
		{2, "load secrets|/nonexistent/secrets.conf|no such file", "--secrets /nonexistent/secrets.conf"},
		{1, "Address already in use", ""}, // the port is another's
		{1, "--log-file|/nonexistent/log", "-l /nonexistent/log"},
		{1, "--pid-file|/nonexistent/pid", "--pid-file /nonexistent/pid"},
		{1, "TEXT|something else than a process id", "--pid-file TEXT"},
		{1, "no section", "--secrets /dev/null"},
	} {
		for _, mode := range [][]string{{"-l", s.log}, {"-f"}} {
			args := strings.Fields(strings.ReplaceAll(c.args, "TEXT", text))
			cmd := s.command(t, append(mode, args...)...)
			r := harness.RunCmd(t, cmd)
			if r.Status != c.status || r.Stdout != "" {
				t.Errorf("%q: status %d, want %d:\n%s%s", cmd.Args, r.Status, c.status, r.Stdout, r.Stderr)
			}
			for word := range strings.SplitSeq(strings.ReplaceAll(c.words, "TEXT", text), "|") {
				if !strings.Contains(r.Stderr, word) {
					t.Errorf("%q does not say %q:\n%s", cmd.Args, word, r.Stderr)
				}
			}
			if strings.Contains(r.Stderr, "strconv") {
				t.Errorf("%q shows Go's words:\n%s", cmd.Args, r.Stderr)
			}
			s.noPidFile(t)
		}
	}
	if _, err := os.Stat(text); err != nil {
		t.Error(err)
	}

	cmd := s.command(t, "-f")
	cmd.Env = append(cmd.Env, "PATH="+harness.TempDir(t))
	if r := harness.RunCmd(t, cmd); r.Status != 1 || !strings.Contains(r.Stderr, "nbdkit is not installed") {
		t.Errorf("without nbdkit: status %d, %s", r.Status, r.Stderr)
	}
	if out := harness.Must(t, harness.Built(t, "swiftnbd-server"), "--vers"); !regexp.MustCompile(`^swiftnbd-server \S+\n$`).MatchString(out) {
		t.Errorf("--version prints %q", out)
	}
}

// TestServerKeystone logs in to a real Keystone with 0.11's options: tenant and
// user in one name, and a separator, service, endpoint and region that are told
// from wrong ones.
func TestServerKeystone(t *testing.T) {
	t.Parallel()
	k := keystone(t)
	s := newOldServer(t)
	s.account = k.Account(t)
	name := harness.Name(t)
	s.account.Setup(t, name, 64, objectSize)
	s.secrets = harness.Secrets(t, harness.Section(name, "username = "+k.Project+":"+k.User, "password = "+k.Password))
	s.cloud = &harness.Cloud{AuthURL: k.AuthURL}
	right := []string{"-k", "--keystone-sep", ":", "--keystone-serv", "object-store", "--keystone-endpoint", "publicURL", "--keystone-region", k.Region}
	p := s.background(t, append(right, "-l", s.log)...)
	s.roundTrip(t, 7, name)
	p.Signal(t, syscall.SIGTERM)
	if status := p.Wait(t); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
	for _, wrong := range [][]string{{"--keystone-separator", "/"}, {"--keystone-service", "volume"}, {"--keystone-region", "Atlantis"}} {
		p := s.background(t, append(append(slices.Clone(right), wrong...), "-l", s.log)...)
		if r := harness.Run(t, "nbdinfo", "--size", s.uri(name)); r.Status == 0 {
			t.Errorf("the disk is served with %q", wrong)
		}
		p.Signal(t, syscall.SIGTERM)
		p.Wait(t)
	}
}

// TestServerCloud takes the credentials of --cloud, and not those of the secrets
// file. A cloud that does not exist is one line that lists those that do.
func TestServerCloud(t *testing.T) {
	t.Parallel()
	s := newOldServer(t)
	harness.WriteFile(t, s.secrets, harness.Section(s.names[0], "username = nobody", "password = wrong"))
	env := cloudsFile(t, fmt.Sprintf("clouds: {mine: {auth_type: v1password, auth: {auth_url: %q, username: %q, password: %q}}}", s.cloud.AuthURL, s.cloud.User, s.cloud.Key))
	command := func(cloud string) *exec.Cmd {
		cmd := harness.Command(t, harness.Built(t, "swiftnbd-server"), "--secrets", s.secrets, "-p", strconv.Itoa(s.port), "--pid-file", s.pid, "--cloud", cloud, "-f")
		cmd.Env = append(append(os.Environ(), "SWIFTNBD_PLUGIN="+harness.Plugin(t)), env...)
		return cmd
	}
	r := harness.RunCmd(t, command("other"))
	if r.Status == 0 || !strings.Contains(r.Stderr, "other") || !strings.Contains(r.Stderr, "there are: mine") {
		t.Errorf("a cloud that does not exist: status %d\n%s", r.Status, r.Stderr)
	}
	s.noPidFile(t)
	p := harness.Start(t, command("mine"))
	s.serves(t, p)
	s.roundTrip(t, 1, s.names[0])
	p.Signal(t, syscall.SIGTERM)
	if status := p.Wait(t); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
	unlocked(t, s.account, s.names[0])
}
