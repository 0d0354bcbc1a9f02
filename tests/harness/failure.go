// SPDX-License-Identifier: MIT

package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Failure is an nbdkit that refused to start.
type Failure struct {
	Status int
	Stderr string
	mode   Mode
}

// Fail starts nbdkit with options that should be an error. It fails the test
// unless nbdkit ends by itself with a non-zero status, and leaves no pid file,
// no socket and no process behind.
func Fail(t testing.TB, o Options) Failure {
	t.Helper()
	dir := TempDir(t)
	pidFile, socket := filepath.Join(dir, "pid"), filepath.Join(dir, "s")
	ran := filepath.Join(dir, "ran")
	var cmd *exec.Cmd
	switch o.Mode {
	case Foreground:
		cmd = o.cmd(o.command(t, "-f", "-P", pidFile, "-U", socket))
	case Background:
		cmd = o.cmd(o.command(t, "-P", pidFile, "-U", socket))
	case Captive:
		o.Params = append(o.Params[:len(o.Params):len(o.Params)], "--run", "touch "+ran)
		cmd = o.cmd(o.command(t, "-P", pidFile, "-U", "-"))
	case Inetd:
		cmd = o.cmd(o.command(t, "-s", "-P", pidFile))
	case Activated:
		cmd = activatedFailure(t, o, pidFile, socket)
	}
	r := RunCmd(t, cmd)
	f := Failure{Status: r.Status, Stderr: r.Stderr, mode: o.Mode}
	if r.Status <= 0 {
		t.Errorf("nbdkit (%v) %v: exit status %d, want an error's\n%s", o.Mode, o.Params, r.Status, r.Stderr)
	}
	if r.Stdout != "" {
		t.Errorf("nbdkit (%v) printed on standard output, which may be an NBD socket: %q", o.Mode, r.Stdout)
	}
	if _, err := os.Stat(pidFile); err == nil {
		t.Errorf("nbdkit (%v) failed and left a pid file", o.Mode)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("nbdkit --run failed and ran its command all the same")
	}
	// The directory's name is on the command line of every process that nbdkit
	// has started.
	if !within(Patience, func() bool { return len(Mentioning(t, dir)) == 0 }) {
		t.Errorf("nbdkit (%v) failed and left processes running: %v", o.Mode, Mentioning(t, dir))
	}
	return f
}

func activatedFailure(t testing.TB, o Options, pidFile, socket string) *exec.Cmd {
	t.Helper()
	cmd := o.cmd(append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, o.command(t, "-P", pidFile)...))
	f := listen(t, "unix", socket)
	t.Cleanup(func() { f.Close() })
	cmd.ExtraFiles = []*os.File{f}
	return cmd
}

// Line returns the "nbdkit: error:" line. It fails the test unless there is
// exactly one.
func (f Failure) Line(t testing.TB) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(f.Stderr) {
		if strings.Contains(line, "error:") {
			found = append(found, strings.TrimSuffix(line, "\n"))
		}
	}
	if len(found) != 1 || !strings.HasPrefix(found[0], "nbdkit: ") {
		t.Errorf("nbdkit (%v) printed %d error lines, want 1:\n%s", f.mode, len(found), f.Stderr)
		return ""
	}
	return found[0]
}

// Want fails the test unless the one error line has all of these words, in any
// case. The line must not contain a password.
func (f Failure) Want(t testing.TB, words ...string) {
	t.Helper()
	line := f.Line(t)
	for _, w := range words {
		if !strings.Contains(strings.ToLower(line), strings.ToLower(w)) {
			t.Errorf("nbdkit (%v) said %q, which lacks %q", f.mode, line, w)
		}
	}
	if strings.Contains(f.Stderr, "panic") || strings.Contains(f.Stderr, "goroutine ") {
		t.Errorf("nbdkit (%v) panicked:\n%s", f.mode, f.Stderr)
	}
}

// StartNbdkit starts nbdkit with just these options before the plugin, without
// waiting for anything.
func StartNbdkit(t testing.TB, o Options, where ...string) *Process {
	t.Helper()
	return Start(t, o.cmd(o.command(t, where...)))
}
