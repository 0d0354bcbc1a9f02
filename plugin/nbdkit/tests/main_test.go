// SPDX-License-Identifier: MIT

// Package tests drives real nbdkit with plugins built on the binding, and real
// clients (libnbd's nbdsh, nbdinfo and nbdcopy) with that.
package tests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The plugins, built once by TestMain.
var probe, ramdisk, early, dir string

// patience is how long anything may take before a test gives up on it.
const patience = 60 * time.Second

// prSetChildSubreaper is prctl's PR_SET_CHILD_SUBREAPER: an nbdkit that went
// into the background becomes our child, so that its end can be looked at.
const prSetChildSubreaper = 36

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// nbdsh takes python3 from the path, and libnbd's module is the system's.
	os.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH"))
	for _, tool := range []string{"nbdkit", "nbdsh", "nbdinfo", "nbdcopy", "readelf", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintln(os.Stderr, "these tests need nbdkit, libnbd's tools with python3-libnbd, and binutils:", err)
			return 1
		}
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		fmt.Fprintln(os.Stderr, "prctl:", errno)
		return 1
	}
	var err error
	if dir, err = os.MkdirTemp("", "nbdkitgo"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o777) // for nbdkit -u

	probe, ramdisk, early = filepath.Join(dir, "probe.so"), filepath.Join(dir, "ramdisk.so"), filepath.Join(dir, "early.so")
	for so, source := range map[string]string{probe: "testdata/probe", ramdisk: "../examples/ramdisk"} {
		if out, err := exec.Command("../build-plugin.sh", so, source).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building %s: %v\n%s", source, err, out)
			return 1
		}
	}
	if out, err := exec.Command("go", "build", "-buildmode=c-shared", "-o", early, "../examples/early").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building examples/early: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// result is how a command ended.
type result struct {
	status         int // exit status, or -1 after a signal
	stdout, stderr string
}

// command runs a command to its end.
func command(t *testing.T, name string, args ...string) result {
	t.Helper()
	return finish(t, exec.Command(name, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // an orphan may hold the pipe
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%q hung\n%s%s", cmd.Args, stdout.String(), stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// server is an nbdkit that listens on a Unix socket.
type server struct {
	t      *testing.T
	pid    int
	socket string
	log    string // a file
	done   bool
}

func (s *server) uri() string { return "nbd+unix:///?socket=" + s.socket }

// start runs nbdkit in the foreground with these arguments, waits until it
// serves, and sees to it that it ends well with the test.
func start(t *testing.T, args ...string) *server { return startAs(t, true, args...) }

// startBackground lets nbdkit go into the background.
func startBackground(t *testing.T, args ...string) *server { return startAs(t, false, args...) }

func startAs(t *testing.T, foreground bool, args ...string) *server {
	t.Helper()
	d := t.TempDir()
	if err := os.Chmod(d, 0o777); err != nil {
		t.Fatal(err)
	}
	// The path of a socket is short of 108 bytes.
	sockets, err := os.MkdirTemp(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(sockets, 0o777)
	s := &server{t: t, socket: filepath.Join(sockets, "s"), log: filepath.Join(d, "log")}
	pidfile := filepath.Join(sockets, "pid")
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args = append([]string{"-U", s.socket, "-P", pidfile}, args...)
	if foreground {
		args = append([]string{"-f"}, args...)
	}
	cmd := exec.Command("nbdkit", args...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !foreground {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("nbdkit %q: %v\n%s", args, err, s.read())
		}
	}
	t.Cleanup(func() {
		if !s.done {
			s.stop()
		}
	})
	s.pid = -1
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile(pidfile); bytes.HasSuffix(b, []byte("\n")) {
			if s.pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				t.Fatal(err)
			}
			return s
		}
		if foreground {
			s.pid = cmd.Process.Pid
			if pid, _ := syscall.Wait4(s.pid, nil, syscall.WNOHANG, nil); pid == s.pid {
				s.done = true
				t.Fatalf("nbdkit %q ended early\n%s", args, s.read())
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("nbdkit %q did not start\n%s", args, s.read())
		}
	}
}

func (s *server) read() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// stop sends SIGTERM and expects exit status 0.
func (s *server) stop() {
	s.t.Helper()
	if s.pid <= 0 {
		return
	}
	if err := syscall.Kill(s.pid, syscall.SIGTERM); err != nil {
		s.t.Errorf("kill: %v\n%s", err, s.read())
	}
	s.wait()
}

// wait expects the server to end with exit status 0.
func (s *server) wait() {
	s.t.Helper()
	s.done = true
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(s.pid, &ws, syscall.WNOHANG, nil)
		if err != nil {
			s.t.Errorf("wait: %v", err)
			return
		}
		if pid == s.pid {
			if !ws.Exited() || ws.ExitStatus() != 0 {
				s.t.Errorf("nbdkit ended with status %#x\n%s", int(ws), s.read())
			}
			return
		}
		if time.Now().After(deadline) {
			syscall.Kill(s.pid, syscall.SIGKILL)
			s.t.Errorf("nbdkit did not end on SIGTERM\n%s", s.read())
			syscall.Wait4(s.pid, nil, 0, nil)
			return
		}
	}
}

// await waits until a file holds a line: nbdkit learns a little later than the
// client that a connection is closed.
func await(t *testing.T, file, line string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), line+"\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q did not appear in\n%s", line, b)
		}
	}
}

// nbdsh runs Python with a connection h, and returns what it prints.
func (s *server) nbdsh(code string) string {
	s.t.Helper()
	r := command(s.t, "nbdsh", "-u", s.uri(), "-c", code)
	if r.status != 0 {
		s.t.Fatalf("nbdsh: status %d\n%s%s\nnbdkit said:\n%s", r.status, r.stdout, r.stderr, s.read())
	}
	return strings.TrimSpace(r.stdout)
}

// ask reads the probe's answer at offset (its parameter can=answer).
func (s *server) ask(offset int) string {
	s.t.Helper()
	return s.nbdsh(fmt.Sprintf(`print(h.pread(512, %d).decode().rstrip("\n\0"))`, offset))
}

// expect compares.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// expectIn looks for a part.
func expectIn(t *testing.T, what, got, part string) {
	t.Helper()
	if !strings.Contains(got, part) {
		t.Errorf("%s: %q is not in\n%s", what, part, got)
	}
}

// traced reads a trace of the probe: process by process in order of their
// first line, the callbacks by name.
func traced(t *testing.T, file string) (calls [][]string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	index := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		pid, call, _ := strings.Cut(lines.Text(), " ")
		i, ok := index[pid]
		if !ok {
			i = len(calls)
			index[pid] = i
			calls = append(calls, nil)
		}
		calls[i] = append(calls[i], call)
	}
	return calls
}
