// SPDX-License-Identifier: MIT

package harness

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Random returns n bytes that depend on seed.
func Random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{0: byte(seed), 1: byte(seed >> 8), 2: byte(seed >> 16), 31: 1})
	rng.Read(b)
	return b
}

// RoundTrip copies data onto the disk with nbdcopy and back. It fails the test
// if the result differs. The disk may be larger than data. options are
// nbdcopy's.
func RoundTrip(t testing.TB, uri string, data []byte, options ...string) {
	t.Helper()
	Upload(t, uri, data, options...)
	got := Download(t, uri, options...)
	if len(got) < len(data) || !bytes.Equal(got[:len(data)], data) {
		t.Errorf("what nbdcopy read back from %s is not what it wrote", uri)
	}
}

// Upload copies data onto the disk with nbdcopy, and flushes.
func Upload(t testing.TB, uri string, data []byte, options ...string) {
	t.Helper()
	path := filepath.Join(TempDir(t), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	Must(t, "nbdcopy", append(options[:len(options):len(options)], "--flush", path, uri)...)
}

// Download copies the whole disk with nbdcopy.
func Download(t testing.TB, uri string, options ...string) []byte {
	t.Helper()
	path := filepath.Join(TempDir(t), "image")
	Must(t, "nbdcopy", append(options[:len(options):len(options)], uri, path)...)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Load writes random blocks all over the first clients x mib MiB of the disk.
// It uses several connections at once, each with many requests in flight. fio
// then reads every block back and checks it.
func Load(t testing.TB, uri string, clients, mib int) {
	t.Helper()
	Must(t, "fio", load(uri, clients, mib)...)
}

// StartLoad does what Load does, again and again beside the test, until the
// file stop exists or something is wrong.
func StartLoad(t testing.TB, uri string, clients, mib int, stop string) *Process {
	t.Helper()
	argv := append([]string{"-c", `until [ -e "$0" ]; do "$@" || exit; done`, stop, Tool(t, "fio")}, load(uri, clients, mib)...)
	return Start(t, exec.Command("/bin/sh", argv...))
}

// load returns fio's arguments for Load.
func load(uri string, clients, mib int) []string {
	return []string{"--name=load", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite",
		"--bsrange=512-128k", "--bs_unaligned=1", "--iodepth=8", fmt.Sprintf("--numjobs=%d", clients),
		fmt.Sprintf("--size=%dm", mib), fmt.Sprintf("--offset_increment=%dm", mib),
		"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"}
}

// Nbdsh runs a Python script with a libnbd handle h that is connected to the
// disk, and returns its output. If the script fails, the test fails.
func Nbdsh(t testing.TB, uri, script string) string {
	t.Helper()
	r := TryNbdsh(t, uri, script)
	if r.Status != 0 {
		t.Fatalf("nbdsh -u %s: exit status %d\n%s\n%s%s", uri, r.Status, script, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TryNbdsh is Nbdsh for a script that may fail.
func TryNbdsh(t testing.TB, uri, script string) Result {
	t.Helper()
	return RunCmd(t, nbdsh(t, uri, script))
}

// StartNbdsh is Nbdsh for a client that works beside the test.
func StartNbdsh(t testing.TB, uri, script string) *Process {
	t.Helper()
	return Start(t, nbdsh(t, uri, script))
}

func nbdsh(t testing.TB, uri, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(Tool(t, "nbdsh"), "-c", connect, "-c", script)
	cmd.Env = append(os.Environ(), "NBD_TEST_URI="+uri)
	// A pyenv's Python has no libnbd; Debian's has.
	for i, kv := range cmd.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			cmd.Env[i] = "PATH=/usr/bin:" + path
		}
	}
	return cmd
}

// connect asks for base:allocation, so that scripts may ask for extents.
const connect = `
import os
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(os.environ["NBD_TEST_URI"])
`
