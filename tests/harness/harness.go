// SPDX-License-Identifier: MIT

// Package harness owns the processes of the black-box tests: real nbdkit in all
// of its modes, the embedded Swift and the real one, the clients, and the files
// that they need. It imports nothing of swiftnbd, so a test sees swiftnbd only
// from the outside. If a tool is missing, the test fails. Nothing here skips a
// test.
package harness

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a test waits for something that should come at once. It
// is long, since the machine may be busy. No test measures speed with it.
const Patience = 60 * time.Second

// prSetChildSubreaper is PR_SET_CHILD_SUBREAPER of prctl(2), which the syscall
// package does not name.
const prSetChildSubreaper = 36

// Main runs the tests of a package and then stops what they shared. Its caller
// is TestMain, which passes the status on to os.Exit.
func Main(m *testing.M) int {
	// nbd-client, mke2fs and e2fsck are in sbin, which PATH may lack.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	// Variables that the person who runs the tests has set must not give us a
	// login.
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "OS_") || strings.HasPrefix(name, "ST_") ||
			strings.HasSuffix(strings.ToLower(name), "_proxy") {
			os.Unsetenv(name)
		}
	}
	// An nbdkit that went into the background becomes our child, so that we can
	// read its exit status.
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		fmt.Fprintln(os.Stderr, "harness: prctl(PR_SET_CHILD_SUBREAPER):", errno)
		return 1
	}
	defer stopShared()
	return m.Run()
}

var (
	sharedMu sync.Mutex
	shared   []func()
)

// atEnd registers f, which is called when all tests of the package are done.
func atEnd(f func()) {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	shared = append(shared, f)
}

func stopShared() {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	for i := len(shared) - 1; i >= 0; i-- {
		shared[i]()
	}
	shared = nil
}

// Root returns the directory of the project.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "saio.sh")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("these tests run inside the project's tree: no scripts/saio.sh above the current directory")
		}
		dir = up
	}
}

// Built returns the path of a program that `make` has built: build/NAME, or
// NAME in the directory that SWIFTNBD_BUILD names.
func Built(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("SWIFTNBD_BUILD")
	if dir == "" {
		dir = filepath.Join(Root(t), "build")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make first", err)
	}
	return path
}

// Plugin returns the path of the plugin that is under test.
func Plugin(t testing.TB) string {
	t.Helper()
	return Built(t, "nbdkit-swift-plugin.so")
}

// Tool returns the path of a program, and fails the test without it.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: scripts/deps.sh install check brings it", err)
	}
	return path
}

// NeedRoot fails a test that needs root but does not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test changes the user, which takes root: run it as root")
	}
}

// TempDir returns a new directory with a short path, since the names of Unix
// sockets must be short. Everybody may write in it, because nbdkit does after
// its -u.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "swiftnbd-t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

var serial atomic.Int64

// Name returns a name for a container that no other test uses.
func Name(t testing.TB) string {
	t.Helper()
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, strings.TrimPrefix(t.Name(), "Test"))
	return fmt.Sprintf("t%d-%d-%s", os.Getpid(), serial.Add(1), clean)
}

// FreePort returns a TCP port of the loopback address that no server listens on,
// and that nobody else is given until the test ends: not another test, nor
// another test's process (a socket in Linux's abstract name space says that it is
// taken). It is below the ports that Linux gives to outgoing connections
// (net.ipv4.ip_local_port_range, 32768 and up by default): one of those would be
// some client's before the server that the test starts listens on it.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		taken, err := net.Listen("unix", fmt.Sprintf("@swiftnbd-test-port-%d", port))
		if err != nil {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			t.Cleanup(func() { taken.Close() })
			return port
		}
		taken.Close()
	}
	t.Fatal("no free port from 20000 to 31999")
	return 0
}

// Eventually waits until cond is true. If this takes longer than Patience, it
// fails the test.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !within(Patience, cond) {
		t.Fatalf("still not after %v: %s", Patience, what)
	}
}

// EventuallyWithin is Eventually with a limit of its own.
func EventuallyWithin(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	if !within(limit, cond) {
		t.Fatalf("still not after %v: %s", limit, what)
	}
}

func within(d time.Duration, cond func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// Result is how a program ended.
type Result struct {
	Status int // exit status, or -1 when a signal ended it
	Stdout string
	Stderr string
}

// Run runs a program to its end and returns how it ended. If this takes longer
// than a few times Patience, the test fails.
func Run(t testing.TB, name string, args ...string) Result {
	t.Helper()
	return RunCmd(t, Command(t, name, args...))
}

// RunCmd is Run for a command that the caller has made. The caller may have set
// its environment or standard input.
func RunCmd(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A daemon that the program leaves behind may hold its standard error open.
	// We must not wait for it.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(4*Patience, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%v did not end in %v\n%s%s", cmd.Args, 4*Patience, stdout.String(), stderr.String())
	}
	if cmd.ProcessState == nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Must runs a program, fails the test unless it succeeds, and returns its
// standard output.
func Must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := Run(t, name, args...)
	if r.Status != 0 {
		t.Fatalf("%s %s: exit status %d\n%s%s", name, strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// WriteFile writes a file of the test, with mode 0600.
func WriteFile(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Command returns a command that is not started yet.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(Tool(t, name), args...)
}
