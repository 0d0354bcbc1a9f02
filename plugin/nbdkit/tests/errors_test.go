// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestErrorBeforeFork: whatever is wrong is said once, in one line, on
// standard error, with exit status 1, and before a socket is bound.
func TestErrorBeforeFork(t *testing.T) {
	for _, test := range []struct{ name, arg, want string }{
		{"unknown key", "colour=blue", "unknown parameter 'colour'"},
		{"bad value", "size=1Q", "'1Q' is not a size: 'Q' is not a unit"},
		{"Config", "fail=Config=plain", ""}, // takes effect with the next parameter
		{"ConfigComplete", "fail=ConfigComplete=plain", "a plain error; of two lines"},
		{"GetReady", "fail=GetReady=value:5", "a PluginError"},
		{"Preflight", "fail=Preflight=wrapped:13", "request 1: a PluginError (errno 13)"},
		{"pointer", "fail=Preflight=pointer:13", "a *PluginError"},
		{"killed", "fail=Preflight=signal", "the check before serving was killed by signal 9 (Killed)"},
		{"os.Exit(0)", "fail=GetReady=exit:0", "the check before serving ended early with exit status 0 (a fatal error in Go, or a call of os.Exit)"},
		{"os.Exit(3)", "fail=Preflight=exit:3", "the check before serving ended early with exit status 3 (a fatal error in Go, or a call of os.Exit)"},
		{"password file", "password=+/nonexistent", "open /nonexistent: No such file or directory"},
	} {
		for _, mode := range []string{"-f", "--exit-with-parent", "background", "--run"} {
			t.Run(test.name+" "+mode, func(t *testing.T) {
				d := t.TempDir()
				socket := filepath.Join(d, "s")
				args := []string{mode, "-U", socket, probe, "size=1M", test.arg}
				want := test.want
				if want == "" {
					args, want = append(args, "size=2M"), "a plain error; of two lines"
				}
				switch mode {
				case "background":
					args = args[1:]
				case "--run":
					args = append(args[1:], "--run", "echo must not run")
				}
				r := command(t, "nbdkit", args...)
				expect(t, "status", r.status, 1)
				expect(t, "stderr", r.stderr, "nbdkit: error: "+want+"\n")
				expect(t, "stdout", r.stdout, "")
				if _, err := os.Stat(socket); err == nil {
					t.Error("the socket was bound")
				}
			})
		}
	}
}

func TestPanicBeforeFork(t *testing.T) {
	for _, callback := range []string{"Config", "ConfigComplete", "GetReady", "Preflight"} {
		r := command(t, "nbdkit", "-U", "-", probe, "fail="+callback+"=panic", "size=1M")
		expect(t, "status", r.status, 1)
		lines := strings.Split(r.stderr, "\n")
		expect(t, "first line", lines[0], "nbdkit: error: panic in "+callback+": assignment to entry in nil map")
		expectIn(t, "stack", r.stderr, "probe/main.go")
		expect(t, "panics", strings.Count(r.stderr, "panic in"), 1)
	}
}

// TestFatalBeforeFork: Go ends a process whose goroutine panics; the user has
// to learn of it.
func TestFatalBeforeFork(t *testing.T) {
	r := command(t, "nbdkit", "-U", "-", probe, "fail=Preflight=fatal")
	expect(t, "status", r.status, 1)
	expectIn(t, "stderr", r.stderr, "panic: in a goroutine")
	expectIn(t, "stderr", r.stderr, "nbdkit: error: the check before serving ")
}

// TestKilledBeforeFork: the preflight process goes with nbdkit.
func TestKilledBeforeFork(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("nbdkit", "-f", "-U", "-", probe, "trace="+trace, "fail=Preflight=sleep")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, trace, "Preflight in=true")
	cmd.Process.Kill()
	cmd.Wait()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(b), &child); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		pid, err := syscall.Wait4(child, &ws, syscall.WNOHANG, nil) // orphans are ours
		if err != nil {
			t.Fatal(err)
		}
		if pid == child {
			break
		}
		if time.Now().After(deadline) {
			syscall.Kill(child, syscall.SIGKILL)
			t.Fatal("the preflight process outlived nbdkit")
		}
	}
	if !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("the preflight process ended with status %#x", int(ws))
	}
}

func TestAfterForkFails(t *testing.T) {
	r := command(t, "nbdkit", "-f", "-U", "-", probe, "fail=AfterFork=os:5")
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: chunk 7: write /x: input/output error\n")
}

func TestNothingRegistered(t *testing.T) {
	so := filepath.Join(t.TempDir(), "nothing.so")
	if r := command(t, "../build-plugin.sh", so, "testdata/nothing"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	r := command(t, "nbdkit", "-f", so)
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: no plugin: the main package calls neither nbdkit.Register from an init function nor nbdkit.PluginInitialize\n")
}

func TestPanicInDescription(t *testing.T) {
	cmd := exec.Command("nbdkit", "--version", probe)
	cmd.Env = append(os.Environ(), "PROBE_THREADS=panic")
	r := finish(t, cmd)
	expect(t, "status", r.status, 1)
	expect(t, "first line", strings.Split(r.stderr, "\n")[0], "nbdkit: error: panic in the description of the plugin: as the test asked")
	cmd = exec.Command("nbdkit", "--version", probe)
	cmd.Env = append(os.Environ(), "PROBE_THREADS=9")
	r = finish(t, cmd)
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: ThreadModel returned none of the ThreadModel constants\n")
}

func TestSIGCHLDIgnored(t *testing.T) {
	r := command(t, "nbdsh", "-c", fmt.Sprintf(`h.connect_command(["env", "--ignore-signal=CHLD", "nbdkit", "-s", %q, "1M"]); print(h.get_size()); h.shutdown()`, ramdisk))
	expect(t, "size", r.stdout+r.stderr, "1048576\n")
	r = command(t, "env", "--ignore-signal=CHLD", "nbdkit", "-f", ramdisk)
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: size=<SIZE> is required\n")
	r = command(t, "env", "--ignore-signal=CHLD", "nbdkit", "-f", probe, "fail=Preflight=signal")
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: the check before serving ended without a result\n")
}

// TestErrnoOverTheWire: what the client sees, and what is logged, for each way
// to return an error; and the server survives.
func TestErrnoOverTheWire(t *testing.T) {
	for _, test := range []struct{ how, errno, log string }{
		{"value:28", "ENOSPC", "a PluginError"},
		{"pointer:28", "ENOSPC", "a *PluginError"},
		{"wrapped:28", "ENOSPC", "request 1: a PluginError (errno 28)"},
		{"os:28", "ENOSPC", "chunk 7: write /x: no space left on device"},
		{"set:28", "ENOSPC", "SetError was called"},
		{"value:0", "EIO", "a PluginError"},
		{"wrapped:0", "EIO", "request 1: a PluginError"},
		{"plain", "EIO", "a plain error; of two lines"},
		{"os:12", "ENOMEM", "chunk 7: write /x: cannot allocate memory"},
		{"os:1", "EPERM", "chunk 7: write /x: operation not permitted"},
		{"os:30", "EPERM", "chunk 7: write /x: read-only file system"},
		{"os:27", "ENOSPC", "chunk 7: write /x: file too large"},
		{"os:122", "ENOSPC", "chunk 7: write /x: disk quota exceeded"},
		{"os:108", "ESHUTDOWN", "chunk 7: write /x: cannot send after transport endpoint shutdown"},
		{"os:110", "EINVAL", "chunk 7: write /x: connection timed out"},
		{"os:95", "EIO", "chunk 7: write /x: operation not supported"},
		{"panic", "EIO", "panic in %s: assignment to entry in nil map"},
		{"nil", "EIO", "panic in %s: runtime error: invalid memory address or nil pointer dereference"},
	} {
		for callback, request := range map[string]string{
			"PRead":  "h.pread(512, 0)",
			"PWrite": "h.pwrite(b'x' * 512, 0)",
			"Flush":  "h.flush()",
			"Trim":   "h.trim(512, 0)",
			"Zero":   "h.zero(512, 0)",
			"Cache":  "h.cache(512, 0)",
		} {
			// All ways with one callback, and three ways with all.
			if callback != "PWrite" && test.how != "os:28" && test.how != "plain" && test.how != "panic" {
				continue
			}
			t.Run(callback+" "+test.how, func(t *testing.T) {
				s := start(t, probe, "can=Write,Flush,Trim,Zero,CacheNative", "fail="+callback+"="+test.how)
				code := fmt.Sprintf("for i in range(2):\n  try:\n    %s\n    print('no error')\n  except nbd.Error as e:\n    print(e.errno)", request)
				expect(t, "errno", s.nbdsh(code), test.errno+"\n"+test.errno)
				want := test.log
				if strings.Contains(want, "%s") {
					want = fmt.Sprintf(want, callback)
				}
				log := s.read()
				expect(t, "times logged", strings.Count(log, "error: "+want+"\n"), 2)
				if strings.HasPrefix(want, "panic") {
					expectIn(t, "stack", log, "testdata/probe/main.go")
				} else {
					expect(t, "lines logged", strings.Count(log, "\n"), 2)
				}
			})
		}
	}
}

// TestNegotiationFails: an error or panic in a callback of the negotiation
// costs the client its connection, and nobody else anything.
func TestNegotiationFails(t *testing.T) {
	for _, callback := range []string{
		"PreConnect", "Open", "GetSize", "CanWrite", "CanFlush", "CanRotational", "CanTrim", "CanZero", "CanFastZero",
		"CanFUA", "CanCache", "CanExtents", "CanMultiConn", "BlockSize",
	} {
		for _, how := range []string{"os:5", "panic"} {
			s := start(t, probe, "can=Write,Flush,Trim,Zero", "fail="+callback+"="+how)
			for i := 0; i < 2; i++ {
				if r := command(t, "nbdsh", "-u", s.uri(), "-c", "pass"); r.status == 0 {
					t.Errorf("%s=%s: the client was let in\n%s", callback, how, s.read())
				}
			}
			want := "chunk 7: write /x: input/output error"
			if how == "panic" {
				want = "panic in " + strings.Replace(callback, "CanRotational", "IsRotational", 1) + ": assignment to entry in nil map"
			}
			expect(t, callback+" "+how+" logged", strings.Count(s.read(), want), 2)
			s.stop()
		}
	}
	for can, want := range map[string]string{
		"huge":        "GetSize returned 9223372036854775808 bytes, which is too large",
		"nothing":     "Open returned neither a connection nor an error",
		"FUANonsense": "CanFUA returned 7, which has no meaning",
	} {
		s := start(t, probe, "can=Write,"+can)
		if r := command(t, "nbdinfo", s.uri()); r.status == 0 {
			t.Errorf("%s: the client was let in", can)
		}
		expectIn(t, can, s.read(), want)
	}
}

func TestPanicsThatOnlyLog(t *testing.T) {
	for _, callback := range []string{"Close", "Cleanup", "Unload"} {
		s := start(t, probe, "fail="+callback+"=panic")
		s.nbdsh(`h.pread(512, 0); h.shutdown()`)
		s.nbdsh(`h.pread(512, 0)`)
		if callback == "Close" {
			await(t, s.log, "panic in Close: assignment to entry in nil map")
		}
		s.stop()
		if !strings.Contains(s.read(), "panic in "+callback+": assignment to entry in nil map") {
			t.Errorf("%s: the panic was not logged\n%s", callback, s.read())
		}
	}
}
