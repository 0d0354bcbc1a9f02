// SPDX-License-Identifier: MIT

package tests

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"swiftnbd/tests/harness"
)

// TestMetricsAtOnce has the command of --run ask for the counters first of all:
// the socket is there before it starts, may be used by owner and group only, and
// goes in the end; with -u, too, and where a socket was left over.
func TestMetricsAtOnce(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	for name, more := range map[string][]string{"": nil, "-u nobody": {"-u", "nobody", "-g", "nogroup"}} {
		dir := harness.TempDir(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "a metrics socket")
		for range 2 {
			args := append(append([]string{"-U", "-"}, more...), harness.Plugin(t))
			r := harness.Run(t, "nbdkit", append(append(args, params...), "metrics=unix:"+path, "--run",
				`stat -c 'mode=%a' '`+path+`' && curl -sS --fail --max-time 60 --unix-socket '`+path+`' http://localhost/metrics && nbdinfo --size "$uri"`)...)
			if r.Status != 0 || !strings.Contains(r.Stdout, "mode=660\n") || !strings.Contains(r.Stdout, "swiftnbd_retries_total") {
				t.Fatalf("%s: status %d\n%s%s", name, r.Status, r.Stdout, r.Stderr)
			}
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Lstat(path); os.IsNotExist(err) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the socket is left", name)
			}
		}
	}
}

// TestMetricsRefused has nbdkit fail for other reasons: no socket is left.
func TestMetricsRefused(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	path := filepath.Join(harness.TempDir(t), "socket")
	secrets := params[1]
	f := harness.Fail(t, harness.Options{Params: []string{"no-such-container", secrets, "metrics=unix:" + path}})
	f.Want(t, "no-such-container")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	f = harness.Fail(t, harness.Options{Params: append(params, "metrics=unix:"+path)})
	f.Want(t, "metrics=unix:"+path)
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("a file in the socket's place: %q, %v", b, err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeType != 0 {
		t.Errorf("a file in the socket's place: %v, %v", info, err)
	}
}

// TestMetricsSocketGoes has nbdkit end in ways in which it calls none of our
// callbacks, or may not remove the socket's file any more: the file goes all the
// same. One that has been made there since is left alone.
func TestMetricsSocketGoes(t *testing.T) {
	t.Parallel()
	_, _, params := volume(t, harness.Dev(t))
	dir := harness.TempDir(t) // owned by root, and nobody else may write in it
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "counters")
	params = append(params, "metrics=unix:"+path)
	gone := func(how string) {
		t.Helper()
		harness.Eventually(t, how+": the socket goes", func() bool {
			_, err := os.Lstat(path)
			return os.IsNotExist(err)
		})
	}
	there := func(how string) {
		t.Helper()
		if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSocket == 0 {
			t.Fatalf("%s: there is no socket: %v", how, err)
		}
	}

	// The port is another's, after the check and before the fork.
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	r := harness.Run(t, "nbdkit", append([]string{"-f", "-i", "127.0.0.1", "-p", port, harness.Plugin(t)}, params...)...)
	if r.Status == 0 || !strings.Contains(r.Stderr, "Address already in use") {
		t.Fatalf("status %d: %s", r.Status, r.Stderr)
	}
	gone("port in use")

	// nbdkit gives up the right to remove it.
	for range 2 {
		r = harness.Run(t, "nbdkit", append([]string{"-U", "-", "-u", "nobody", "-g", "nogroup", "--run", "stat -c %a '" + path + "'", harness.Plugin(t)}, params...)...)
		if r.Status != 0 || r.Stdout != "660\n" {
			t.Fatalf("-u nobody: status %d: %s%s", r.Status, r.Stdout, r.Stderr)
		}
		gone("-u nobody")
	}

	n := harness.Serve(t, harness.Options{Params: params})
	there("killed")
	n.Server.Signal(t, syscall.SIGKILL)
	gone("killed")

	// Another's socket in its place.
	n = harness.Serve(t, harness.Options{Mode: harness.Background, Params: params})
	there("replaced")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.Server.Signal(t, syscall.SIGKILL)
	time.Sleep(time.Second) // nothing tells when nothing has happened
	there("replaced")
}
