// SPDX-License-Identifier: MIT

package tests

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"libguestfs.org/nbdkit"
)

// storm has twelve clients that connect, read and write a region of their own,
// and disconnect, again and again.
const storm = `
import threading, os
uri = %q
failed = []
def client(n):
  try:
    for i in range(40):
      c = nbd.NBD(); c.connect_uri(uri)
      data = os.urandom(4096)
      for j in range(4):
        c.pwrite(data, n * 65536 + j * 4096)
      for j in range(4):
        assert c.pread(4096, n * 65536 + j * 4096) == data
      if i %% 3: c.shutdown()
      del c
  except Exception as e:
    failed.append(e)
threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
for t in threads: t.start()
for t in threads: t.join()
print(failed)`

func TestStorm(t *testing.T) {
	s := startBackground(t, ramdisk, "4M")
	r := command(t, "nbdsh", "-c", fmt.Sprintf(storm, s.uri()))
	expect(t, "failures", r.stdout+r.stderr, "[]\n")
	expect(t, "alive", s.nbdsh(`print(h.get_size())`), "4194304")
}

// TestSIGTERM stops nbdkit in the background 25 times while a client is at
// work, and expects exit status 0 each time.
func TestSIGTERM(t *testing.T) {
	times := 25
	if testing.Short() {
		times = 3
	}
	for i := 0; i < times; i++ {
		trace := filepath.Join(t.TempDir(), "trace")
		s := startBackground(t, probe, "can=Write,Flush", "trace="+trace)
		client := exec.Command("nbdsh", "-u", s.uri(), "-c", `
print("up", flush=True)
try:
  while True: h.pread(512, 0)
except nbd.Error: pass`)
		out, err := client.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Start(); err != nil {
			t.Fatal(err)
		}
		if !bufio.NewScanner(out).Scan() {
			t.Fatal("the client did not start")
		}
		s.stop()
		client.Process.Kill()
		client.Wait()
		calls := traced(t, trace)
		server := calls[len(calls)-1]
		expect(t, "last calls", strings.Join(server[len(server)-2:], ","), "Cleanup,Unload")
		if t.Failed() {
			t.Fatalf("time %d of %d", i+1, times)
		}
	}
}

// TestSIGTERMEarly is the same for the early start, which nbdkit's signal
// handlers come after.
func TestSIGTERMEarly(t *testing.T) {
	for i := 0; i < 10; i++ {
		s := start(t, early)
		s.nbdsh(`for i in range(100): h.pread(4096, 0)`)
		s.stop()
	}
}

// rss returns the server's resident memory in MiB.
func (s *server) rss() int {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return kib / 1024
}

// TestNoLeak logs 400,000 lines of 1000 bytes: each one lost would make 400 MB.
func TestNoLeak(t *testing.T) {
	s := start(t, "--log=null", probe, "can=answer")
	s.ask(0)
	before := s.rss()
	expect(t, "answer", s.ask(2048), "logged")
	if after := s.rss(); after > before+64 {
		t.Errorf("memory went from %d to %d MiB", before, after)
	}
}

// TestConnectionsAreDropped connects a thousand times: the memory of a connection
// goes with it.
func TestConnectionsAreDropped(t *testing.T) {
	s := start(t, probe, "can=Write")
	connect := `
for i in range(1000):
  c = nbd.NBD(); c.connect_uri(h.get_uri()); c.pread(512, 0); c.shutdown()`
	s.nbdsh(connect)
	before := s.rss()
	s.nbdsh(connect)
	if after := s.rss(); after > before+32 {
		t.Errorf("memory went from %d to %d MiB", before, after)
	}
}

// TestParseAsNbdkit holds ParseSize and ParseBool against nbdkit's own.
func TestParseAsNbdkit(t *testing.T) {
	so := filepath.Join(t.TempDir(), "plain.so")
	if r := command(t, "cc", "-shared", "-fPIC", "-o", so, "testdata/plain.c"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	sizes := []string{
		"0", "1", "65536", "10b", "10B", "1s", "2S", "1k", "1K", "3m", "1M", "1g", "10G", "1t", "1T", "1p", "1P", "1e", "7E", "8E",
		"9223372036854775807", "9223372036854775808", "9007199254740992K", "18446744073709551616", "-1", "-0", "+5", " 7", "7 ", "",
		"K", "1KiB", "1KB", "1.5M", "0x10", "010", "1_000", "M1", "1 K", "1kk", "--1", "+", "1ſ", "1,000",
	}
	bools := []string{
		"1", "0", "true", "TRUE", "True", "t", "T", "yes", "YES", "y", "on", "On", "oN", "false", "f", "no", "n", "off", "OFF",
		"", "2", "-1", "00", "01", "maybe", "tru", " true", "enable", "nope",
	}
	args := []string{"--dump-plugin", so}
	for _, s := range sizes {
		args = append(args, "s="+s)
	}
	for _, s := range bools {
		args = append(args, "b="+s)
	}
	r := command(t, "nbdkit", args...)
	expect(t, "status", r.status, 0)
	var got []string
	for _, line := range strings.Split(r.stdout, "\n") {
		if v, ok := strings.CutPrefix(line, "parsed="); ok {
			got = append(got, v)
		}
	}
	if len(got) != len(sizes)+len(bools) {
		t.Fatalf("%d answers to %d questions", len(got), len(sizes)+len(bools))
	}
	for i, s := range sizes {
		n, err := nbdkit.ParseSize(s)
		if err != nil {
			n = -1
		}
		expect(t, fmt.Sprintf("ParseSize(%q), %v", s, err), fmt.Sprint(n), got[i])
	}
	for i, s := range bools {
		b, err := nbdkit.ParseBool(s)
		n := 0
		if b {
			n = 1
		}
		if err != nil {
			n = -1
		}
		expect(t, fmt.Sprintf("ParseBool(%q), %v", s, err), fmt.Sprint(n), got[len(sizes)+i])
	}
}

// TestPasswordFromTerminal: password=- asks on the terminal, once.
func TestPasswordFromTerminal(t *testing.T) {
	code := `
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
  os.execvp("nbdkit", ["nbdkit", "-U", "-", sys.argv[1], "password=-", "can=answer", "--run",
    "nbdsh -u $uri -c 'print(h.pread(512, 512).decode().rstrip(chr(0)))'"])
out, sent = b"", False
while True:
  try: b = os.read(fd, 4096)
  except OSError: break
  if not b: break
  out += b
  if not sent and b"password:" in out: os.write(fd, b"sesame\n"); sent = True
print(out.decode().replace("\r", ""))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`
	r := command(t, "python3", "-c", code, probe)
	expect(t, "stderr", r.stderr, "")
	expectIn(t, "answer", r.stdout, "\nsesame\n")
	expect(t, "asked", strings.Count(r.stdout, "password:"), 1)
	if !strings.HasSuffix(r.stdout, "\n0\n") {
		t.Errorf("status: %q", r.stdout)
	}
}
