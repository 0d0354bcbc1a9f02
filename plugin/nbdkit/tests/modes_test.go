// SPDX-License-Identifier: MIT

package tests

import (
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

// roundTrip writes through one connection and reads through two.
const roundTrip = `
import os
data = os.urandom(65536)
h.pwrite(data, 4096)
assert h.pread(65536, 4096) == data
assert h.pread(4096, 0) == bytearray(4096)
h2 = nbd.NBD(); h2.connect_uri(h.get_uri())
assert h2.pread(65536, 4096) == data
h2.shutdown()
h.flush()
print("ok")`

func TestForeground(t *testing.T) {
	expect(t, "round trip", start(t, ramdisk, "16M").nbdsh(roundTrip), "ok")
}

func TestBackground(t *testing.T) {
	s := startBackground(t, ramdisk, "16M")
	expect(t, "round trip", s.nbdsh(roundTrip), "ok")
	wd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", s.pid))
	expect(t, "directory", wd, "/")
	expect(t, "error", err, nil)
}

func TestRun(t *testing.T) {
	r := command(t, "nbdkit", "-U", "-", ramdisk, "16M", "--run", `nbdsh -u "$uri" -c '`+roundTrip+`'`)
	expect(t, "status", r.status, 0)
	expect(t, "output", r.stdout+r.stderr, "ok\n")
	r = command(t, "nbdkit", "-U", "-", ramdisk, "16M", "--run", `exit 42`)
	expect(t, "status of the command", r.status, 42)
}

func TestSingle(t *testing.T) {
	code := fmt.Sprintf("h.connect_command(['nbdkit', '-s', %q, '16M'])\n", ramdisk) + `
h.pwrite(b"x" * 4096, 4096)
print(h.pread(3, 4095))
h.shutdown()`
	r := command(t, "nbdsh", "-c", code)
	expect(t, "output", r.stdout+r.stderr, "bytearray(b'\\x00xx')\n")
}

// TestSingleKeepsSocket has a plugin that prints to standard output and reads
// standard input in the preflight: with -s both are the client's socket.
func TestSingleKeepsSocket(t *testing.T) {
	code := fmt.Sprintf("h.connect_command(['nbdkit', '-s', %q, 'can=Write,Flush'])\n", probe) + `
h.pwrite(b"x" * 4096, 4096)
print(h.pread(4096, 4096) == b"x" * 4096)
h.shutdown()`
	r := command(t, "nbdsh", "-c", code)
	expect(t, "output", r.stdout+r.stderr, "True\n")
}

func TestRandomPort(t *testing.T) {
	r := command(t, "nbdkit", "-i", "127.0.0.1", "-p", fmt.Sprint(freePort(t)), ramdisk, "16M", "--run", `nbdinfo --size "$uri"`)
	expect(t, "output", r.stdout+r.stderr, "16777216\n")
}

// freePort returns a TCP port on which nobody listens. It is below those that
// Linux gives to outgoing connections (net.ipv4.ip_local_port_range, 32768 and up
// by default), which may take any of theirs at any time.
func freePort(t *testing.T) int {
	t.Helper()
	for i := 0; i < 1000; i++ {
		port := 15000 + rand.Intn(5000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port from 15000 to 19999")
	return 0
}

func TestSocketActivation(t *testing.T) {
	sockets, err := os.MkdirTemp(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(sockets, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit "$@"`, "sh", ramdisk, "16M")
	cmd.ExtraFiles = []*os.File{f}
	log, err := os.Create(filepath.Join(sockets, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s := &server{t: t, pid: cmd.Process.Pid, socket: filepath.Join(sockets, "s"), log: log.Name()}
	expect(t, "round trip", s.nbdsh(roundTrip), "ok")
	s.stop()
}

func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change to another user")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("for root's eyes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startBackground(t, "-u", "nobody", "-g", "nogroup", probe, "secret="+secret, "password=+"+secret, "can=answer")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	expectIn(t, "user of the server", string(status), "Uid:\t"+nobody.Uid+"\t"+nobody.Uid)
	expect(t, "state", s.ask(0), "for root's eyes")
	expect(t, "password", s.ask(512), "for root's eyes")
}

func TestRelativePath(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := startBackground(t, probe, "path=a/../b", "can=answer")
	expect(t, "path", s.ask(1024), wd+"/a/../b<nil>")
}

func TestHelp(t *testing.T) {
	r := command(t, "nbdkit", "--help", probe)
	expect(t, "status", r.status, 0)
	expectIn(t, "help", r.stdout, "plugin: probe (probe of the binding)\n("+probe+")\nFirst line.\nSecond line.\n[size=]<SIZE>\ntrace=<FILE>\n")
	expect(t, "stderr", r.stderr, "")
}

func TestVersion(t *testing.T) {
	r := command(t, "nbdkit", "--version", probe)
	expect(t, "status", r.status, 0)
	expectIn(t, "version", r.stdout, "\nprobe 1.2.3\n")
	expect(t, "stderr", r.stderr, "")
}

func TestDumpPlugin(t *testing.T) {
	r := command(t, "nbdkit", "--dump-plugin", probe, "3M")
	expect(t, "status", r.status, 0)
	expect(t, "stderr", r.stderr, "")
	for _, line := range []string{
		"name=probe", "version=1.2.3", "magic_config_key=size", "max_thread_model=parallel",
		"errno_is_preserved=0", "has_list_exports=1", "has_extents=1", "probe_size=3145728",
	} {
		expectIn(t, "dump", "\n"+r.stdout, "\n"+line+"\n")
	}
	if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); lines[len(lines)-1] != "probe_size=3145728" {
		t.Errorf("the plugin's lines are not the last ones:\n%s", r.stdout)
	}
	r = command(t, "nbdkit", "--dump-plugin", ramdisk)
	if strings.Contains(r.stdout, "has_list_exports") || strings.Contains(r.stdout, "has_default_export") {
		t.Errorf("callbacks that are not there:\n%s", r.stdout)
	}
	r = command(t, "nbdkit", "--dump-plugin", probe, "3X")
	expect(t, "status", r.status, 1)
	expectIn(t, "stderr", r.stderr, "'3X' is not a size")
}

func TestThreadModel(t *testing.T) {
	cmd := exec.Command("nbdkit", "--dump-plugin", probe)
	cmd.Env = append(os.Environ(), "PROBE_THREADS=2")
	r := finish(t, cmd)
	expectIn(t, "dump", r.stdout, "\nmax_thread_model=serialize_requests\nthread_model=serialize_requests\n")
}

func TestFilters(t *testing.T) {
	s := startBackground(t, "--filter=log", "--filter=cow", "--filter=offset", ramdisk, "16M", "offset=1M", "range=8M", "logfile=/dev/null")
	expect(t, "round trip", s.nbdsh(roundTrip), "ok")
	expect(t, "size", s.nbdsh(`print(h.get_size())`), "8388608")
}

func TestDebugFlag(t *testing.T) {
	expect(t, "off", start(t, probe, "can=answer").ask(3072), "0")
	expect(t, "on", start(t, "-D", "probe.flag=7", probe, "can=answer").ask(3072), "7")
}

// TestVerbose has the preflight's messages in nbdkit's log, too.
func TestVerbose(t *testing.T) {
	s := start(t, "-v", probe)
	expectIn(t, "log", s.read(), "nbdkit: debug: checking in process ")
}

func TestSwap(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can lock memory")
	}
	expect(t, "round trip", start(t, "--swap", ramdisk, "16M").nbdsh(roundTrip), "ok")
}

// TestGoldIsRefused: gold does not follow the linker script, and such a plugin
// would hang in the background.
func TestGoldIsRefused(t *testing.T) {
	if _, err := exec.LookPath("ld.gold"); err != nil {
		t.Skip("there is no gold here")
	}
	so := filepath.Join(t.TempDir(), "gold.so")
	cmd := exec.Command("../build-plugin.sh", so, "../examples/ramdisk")
	cmd.Env = append(os.Environ(), "CGO_LDFLAGS=-fuse-ld=gold")
	if r := finish(t, cmd); r.status == 0 {
		t.Error("built")
	} else {
		t.Log(r.stderr)
	}
	if _, err := os.Stat(so); err == nil {
		t.Error("the plugin was left behind")
	}
}

// TestBuildInOddPlace: the linker's arguments are split at spaces.
func TestBuildInOddPlace(t *testing.T) {
	there, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(t.TempDir(), "it's odd")
	if err := os.Mkdir(odd, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"build-plugin.sh", "goinit.ld", "plugin.map"} {
		b, err := os.ReadFile(filepath.Join(there, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(odd, name), b, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	so := filepath.Join(odd, "a plugin.so")
	if r := command(t, filepath.Join(odd, "build-plugin.sh"), so, "../examples/ramdisk"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	expectIn(t, "version", command(t, "nbdkit", "--version", so).stdout, "\ngoramdisk 1.0\n")
}

// TestEarly is upstream's style of plugin in the ways it works.
func TestEarly(t *testing.T) {
	expect(t, "read", start(t, early).nbdsh(`print(h.get_size(), h.is_read_only(), h.pread(3, 5))`), "1048576 True bytearray(b'\\x00\\x00\\x00')")
	r := command(t, "nbdsh", "-c", fmt.Sprintf("h.connect_command(['nbdkit', '-s', %q]); print(h.pread(2, 0)); h.shutdown()", early))
	expect(t, "-s", r.stdout+r.stderr, "bytearray(b'\\x00\\x00')\n")
	r = command(t, "nbdkit", "-f", early, "size=1")
	expect(t, "status", r.status, 1)
	expect(t, "stderr", r.stderr, "nbdkit: error: unknown parameter 'size'\n")
	expectIn(t, "version", command(t, "nbdkit", "--version", early).stdout, "\ngoearly\n")
	expectIn(t, "dump", command(t, "nbdkit", "--dump-plugin", early).stdout, "\nname=goearly\n")
}

// TestEarlyProbe builds a plugin that registers itself without the linker
// script: Go starts at once, and the calls are nbdkit's own.
func TestEarlyProbe(t *testing.T) {
	so := filepath.Join(t.TempDir(), "probe.so")
	if out, err := exec.Command("go", "build", "-buildmode=c-shared", "-o", so, "./testdata/probe").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	s := start(t, so, "trace="+trace, "can=answer")
	expect(t, "state", s.ask(0), "a state")
	await(t, trace, " Close")
	s.stop()
	calls := traced(t, trace)
	if len(calls) != 1 {
		t.Fatalf("calls in %d processes, not in one: %q", len(calls), calls)
	}
	got := strings.Join(calls[0], ",")
	expectIn(t, "order", got, "Config trace,Config can,ConfigComplete,GetReady,Preflight in=false,AfterFork in=false,PreConnect")
	expectIn(t, "order", got, "Close,Cleanup,Unload")
	expectIn(t, "help", command(t, "nbdkit", "--help", so).stdout, "First line.")
	for _, plugin := range []string{so, probe} {
		cmd := exec.Command("nbdkit", "-f", plugin)
		cmd.Env = append(os.Environ(), "PROBE_LOAD=panic")
		r := finish(t, cmd)
		expect(t, "status after a panic in Load", r.status, 1)
		expectIn(t, "stderr", r.stderr, "nbdkit: error: panic in Load: as the test asked\n")
	}
	r := command(t, "nbdkit", "-f", so, "fail=Preflight=plain")
	expect(t, "stderr", r.stderr, "nbdkit: error: a plain error; of two lines\n")
	expect(t, "status", r.status, 1)
}

// TestEarlyWithLinkerScript: a plugin that exports plugin_init itself and was
// linked for the late start by mistake is none the worse.
func TestEarlyWithLinkerScript(t *testing.T) {
	so := filepath.Join(t.TempDir(), "early.so")
	if out, err := exec.Command("../build-plugin.sh", so, "../examples/early").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	expect(t, "size", start(t, so).nbdsh(`print(h.get_size())`), "1048576")
}

func TestOrderOfCallbacks(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	s := startBackground(t, probe, "trace="+trace, "can=Write", "size=4M")
	s.nbdsh(`h.pread(512, 0)`)
	await(t, trace, " Close")
	s.stop()
	calls := traced(t, trace)
	if len(calls) != 2 {
		t.Fatalf("calls in %d processes, not in the preflight and the server: %q", len(calls), calls)
	}
	expect(t, "preflight", strings.Join(calls[0], ","), "Config trace,Config can,Config size,ConfigComplete,GetReady,Preflight in=true")
	got := strings.Join(calls[1], ",")
	expectIn(t, "server", got, "Config trace,Config can,Config size,ConfigComplete,GetReady,AfterFork in=false,PreConnect")
	expectIn(t, "server", got, "PRead 512 0 0,Close,Cleanup,Unload")
}

// TestWarningOnce: what Config says twice, the user sees once.
func TestWarningOnce(t *testing.T) {
	s := start(t, probe, "warn=look out")
	expect(t, "log", s.read(), "nbdkit: error: a warning from Config: look out\n")
}
