// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"swiftnbd/internal/devswift"
	"swiftnbd/internal/nbd/kernel"
)

// The verbs that TestTrouble* does not have, as far as they need no kernel device:
// bench, which has a container of its own; attach and detach; top.

// TestTroubleBench has a guest, a cloud that is away, a container of that name that is
// somebody's, and signals at each of the first requests.
func TestTroubleBench(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	b.writeSecrets("[DEFAULT]\nauthurl = " + b.auth + "\nstorage-url = " + b.server() + "/v1/AUTH_test\nusername = other:guest\npassword = pass\n[disk]\n")
	allow(t, b.bench, "disk", "other:guest")
	was := b.items("disk")
	bench := deed{args: "bench disk --bytes 300K --time 1"}
	// said is failed without the line that says what it will cost.
	said := func(r result, words ...string) {
		t.Helper()
		if strings.HasPrefix(r.err, "This writes up to ") {
			_, r.err, _ = strings.Cut(r.err, "\n")
		}
		b.failed(bench, r, words...)
		if r.out != "" {
			t.Errorf("printed %q", r.out)
		}
	}
	said(b.run(b.words(bench)...), scratch+": ", "another account's", "permission denied")
	b.noScratch()

	b.as("test:tester", "testing")
	b.swift.SetFault(devswift.Rules(devswift.Rule{Action: devswift.Action{Drop: true}}))
	said(b.run(b.words(bench)...), "disk: ", "the connection was closed before an answer came")
	b.swift.SetFault(nil)
	b.noScratch()

	b.scratchIs("")
	said(b.run(b.words(bench)...), scratch+" holds objects, and no bench of ours has made it: it is left alone")
	if names := b.names(scratch, ""); !slices.Equal(names, []string{"65536/1/0"}) {
		t.Errorf("the other container has %q", names)
	}
	if err := b.store(scratch).Delete(t.Context(), "65536/1/0"); err != nil {
		t.Fatal(err)
	}
	if err := b.store(scratch).DeleteContainer(t.Context()); err != nil {
		t.Fatal(err)
	}

	// If the request that makes the container is interrupted, nobody knows whose it
	// is: it stays, empty.
	const created = 8
	for at := int64(1); at <= 14; at++ {
		r, _ := b.interruptAt(at, b.words(bench)...)
		said(r, ": interrupted")
		if _, err := b.store(scratch).Metadata(t.Context()); at != created {
			b.noScratch()
		} else if err != nil {
			t.Errorf("the request at which it is interrupted makes %s no more: %v", scratch, err)
		}
		if r := b.run(b.words(bench)...); r.code != 0 {
			t.Errorf("after an interrupt at request %d: %+v", at, r)
		}
		b.noScratch()
	}
	if !maps.Equal(b.items("disk"), was) {
		t.Error("the disk has other metadata")
	}
	b.sound()
}

// listener answers each connection in its own way.
func listener(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer(c)
			}()
		}
	}()
	return l.Addr().String()
}

// closedPort is an address at which nobody listens until the test ends: a socket
// has the port, and refuses who connects.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
}

// sockets are the directories in which attach has the sockets of its servers.
func sockets(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/run/swiftnbd-attach-*")
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// TestTroubleAttach has no server, or one that is no NBD server.
func TestTroubleAttach(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	web := listener(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n") })
	shut := listener(t, func(net.Conn) {})
	uri := func(address string) []string { return []string{"disk", "--uri", "nbd://" + address} }
	for _, c := range []struct {
		code  int
		words string
		args  []string
	}{
		{2, "CONTAINER is missing", nil},
		{2, `"more" is one argument too many (expected CONTAINER [DEVICE])`, []string{"disk", "/dev/nbd0", "more"}},
		{2, `"/dev/sda" is no device of the kernel's NBD client`, []string{"disk", "/dev/sda"}},
		{2, "--nbd-connections must be from 1 to 64", []string{"disk", "--nbd-connections", "65"}},
		{2, "--timeout must be from 0 to 86400", []string{"disk", "--timeout", "-1"}},
		{2, "--wait must be from 1 to 86400", []string{"disk", "--persist", "--wait", "0"}},
		{2, "--block-size must be 512, 1024, 2048 or 4096", []string{"disk", "--block-size", "1000"}},
		{2, "--timeout 0 needs --nbd-connections 1", []string{"disk", "--timeout", "0"}},
		{2, "--uri: ", []string{"disk", "--uri", "http://127.0.0.1"}},
		{2, "parameters of the plugin have no effect with --uri", append(uri(shut), "--", "cache=1M")},
		{1, "disk: dial tcp ", uri(closedPort(t))},
		{1, "connection refused", uri(closedPort(t))},
		{1, "no such file", []string{"disk", "--uri", "nbd+unix:///?socket=" + filepath.Join(t.TempDir(), "none")}},
		{1, "no NBD server", uri(web)},
		{1, "EOF", uri(shut)},
		{1, "connection refused", append(uri(closedPort(t)), "--persist")},
		{1, "no NBD server", append(uri(web), "--persist")},
		{1, "EOF", append(uri(shut), "--persist")},
	} {
		b.fails(c.code, []string{c.words}, append([]string{"attach"}, c.args...)...)
	}
	for _, more := range [][]string{nil, {"--persist"}} {
		b.stopped("attach", append(uri(b.mute()), more...)...)
	}
}

// mute is a server that says nothing.
func (b *bench) mute() string {
	return listener(b.T, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
}

// stopped interrupts a verb that waits for something, and wants it to end at once.
func (b *bench) stopped(verb string, args ...string) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	begun := time.Now()
	r := b.runContext(ctx, append([]string{verb}, args...)...)
	if took := time.Since(begun); took > 10*time.Second {
		b.Errorf("%s %q goes on for %v", verb, args, took)
	}
	if r.code != 1 || r.out != "" || r.err != program+": disk: interrupted\n" {
		b.Errorf("%s %q: %+v", verb, args, r)
	}
}

// TestTroubleAttachServer has no nbdkit, one that refuses, and one that hangs.
func TestTroubleAttachServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a directory in /run")
	}
	b := newBench(t, devswift.Options{}, "disk")
	was := sockets(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	b.fails(1, []string{"nbdkit does not start: ", "not found"}, "attach", "disk")
	b.fails(1, []string{"nbdkit does not start: ", "not found"}, "attach", "disk", "--persist")
	script := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "nbdkit"), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script("exit 1")
	b.fails(1, []string{"nbdkit does not start: exit status 1"}, "attach", "disk")
	script("exec /bin/sleep 60")
	b.stopped("attach", "disk")
	if now := sockets(t); !slices.Equal(now, was) {
		t.Errorf("directories stay in /run: %q, before %q", now, was)
	}
}

// TestTroubleDetach has nothing to detach.
func TestTroubleDetach(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{}, "disk")
	b.fails(2, []string{"CONTAINER or DEVICE is missing"}, "detach")
	b.fails(2, []string{`"/dev/sda" is no device of the kernel's NBD client`}, "detach", "/dev/sda")
	b.fails(1, []string{"/dev/nbd4000 is not connected"}, "detach", "/dev/nbd4000")
	b.fails(1, []string{"/dev/nbd4000 is not connected"}, "detach", "/dev/nbd4000", "--force")
	words := "no-such-disk is not attached"
	if _, err := kernel.List(); err != nil {
		words = err.Error()
	}
	b.fails(1, []string{words}, "detach", "no-such-disk")
	if n := b.swift.Count("", 0); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// TestTroubleTop has counters that do not come.
func TestTroubleTop(t *testing.T) {
	t.Parallel()
	b := newBench(t, devswift.Options{})
	answer := func(text string) string {
		return listener(t, func(c net.Conn) {
			buf := make([]byte, 4096)
			_, _ = c.Read(buf)
			_, _ = io.WriteString(c, text)
		})
	}
	good := topBefore
	for words, address := range map[string]string{
		"connection refused":          closedPort(t),
		"EOF":                         answer(""),
		"503 Service Unavailable":     answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
		"unexpected EOF":              answer("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + good),
		"text format parsing error":   answer("HTTP/1.1 200 OK\r\n\r\n\x1b]0;}{\n"),
		"malformed HTTP":              answer("NBDMAGICIHAVEOPT"),
		"no nbdkit with swiftnbd's p": answer("HTTP/1.1 200 OK\r\n\r\n" + strings.ReplaceAll(good, "swiftnbd_retries_total", "x")),
	} {
		for _, more := range [][]string{{"--once"}, {"--json"}, nil} {
			if line := b.fails(1, []string{address + ": no counters: ", words}, append([]string{"top", address}, more...)...); strings.Contains(line, "\x1b") {
				t.Errorf("%q", line)
			}
		}
	}
	// An interrupt is how it is ended, and no error.
	mute := b.mute()
	for _, more := range [][]string{nil, {"--json"}} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		if r := b.runContext(ctx, append([]string{"top", mute}, more...)...); r.code != 0 || r.out != "" || r.err != "" {
			t.Errorf("%+v", r)
		}
	}
	if !strings.Contains(b.fails(1, nil, "top", mute, "--once"), "no counters: ") {
		t.Error("no word of the counters")
	}
}

// TestTroubleRotated changes the password in the middle of each verb: first in the
// file, then in the cloud.
func TestTroubleRotated(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	rotated := 0
	for i, d := range deeds {
		next := "key-" + itoa(i)
		var n atomic.Int64
		b.swift.SetFault(func(r *devswift.Request) *devswift.Action {
			if r.Account == "AUTH_test" && n.Add(1) == 5 && r.Header.Get("X-Auth-Token") != "" {
				b.as("test:tester", next)
				b.swift.SetKey("test", "tester", next)
				b.swift.RevokeTokens()
			}
			return nil
		})
		r := b.run(b.words(d)...)
		b.swift.SetFault(nil)
		warned := strings.Contains(r.err, "warning: the login was refused, and the one that section [DEFAULT] of "+b.secrets+" has now counts: ")
		if warned {
			rotated++
		}
		if r.code != 0 || strings.Count(r.err, "the login was refused") > 1 {
			t.Errorf("%s: %+v", d.args, r)
		}
	}
	if rotated < len(deeds)/2 {
		t.Errorf("only %d verbs of %d have met the change", rotated, len(deeds))
	}
	b.ok("unlock", "disk")
	for _, c := range []string{"disk", "old", "new1", "new2", "new3", "new4"} {
		if r := b.run("verify", c); r.code != 0 {
			t.Errorf("verify %s: %+v", c, r)
		}
	}
}

// TestTroubleLater has a cloud that refuses everything from some request on, to verbs
// that only read and take no lock: whichever it is, the verb fails.
func TestTroubleLater(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	refused := 0
	for _, d := range deeds {
		for at, done := int64(1), false; d.reads && d.about == "disk" && !done; at++ {
			var n atomic.Int64
			b.swift.SetFault(func(*devswift.Request) *devswift.Action {
				if n.Add(1) >= at {
					return &devswift.Action{Status: 400}
				}
				return nil
			})
			r := b.run(b.words(d)...)
			b.swift.SetFault(nil)
			if n.Load() >= at {
				b.failed(d, r, "400 Bad Request")
				refused++
			} else if done = true; r.code != 0 || at > 200 {
				t.Errorf("%s: %+v", d.args, r)
			}
			for _, file := range []string{"1", "2", "3"} {
				files, _ := filepath.Glob(filepath.Join(b.dir, file+"*"))
				for _, f := range files {
					os.Remove(f)
				}
			}
		}
	}
	if refused < 40 {
		t.Errorf("only %d verbs were refused something", refused)
	}
	b.sound()
}

// TestTroubleUnlock interrupts unlock: it takes no time, and does what it was asked for.
func TestTroubleUnlock(t *testing.T) {
	t.Parallel()
	b := newTroubled(t)
	for at := int64(1); at <= 5; at++ {
		b.ok("lock", "disk")
		r, n := b.interruptAt(at, "unlock", "disk")
		if r.code != 0 || r.err != "" || n < at {
			t.Errorf("at request %d of %d: %+v", at, n, r)
		}
		checkUnlocked(b.bench, "disk")
	}
	b.sound()
}
