// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A disk's data has to pass through one more socket than the limit's, with a
// process at its other end: the NBD client. Where Swift and client share few
// CPUs, as here, that alone keeps any NBD server below the limit. hop measures
// how far: the limit's objects are written to, or read from, a Unix socket
// with a process of ours at its end that does nothing else. It is in the
// notes, and no target is held against it.

// hopCommand is the program's argument that makes it the other end: "in"
// throws away what comes, "out" sends random bytes, on standard input.
const hopCommand = "hop"

func serveHop(args []string) int {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7 >> 3)
	}
	var err error
	for err == nil {
		if len(args) == 1 && args[0] == "out" {
			_, err = os.Stdin.Write(buf)
		} else {
			_, err = os.Stdin.Read(buf)
		}
	}
	return 0 // the socket was closed
}

type hop struct {
	cmd  *exec.Cmd
	mu   sync.Mutex // as NBD's messages, objects do not mix
	sock *os.File
}

func startHop(direction string) (*hop, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "hop")
	defer theirs.Close()
	h := &hop{cmd: exec.Command(self, hopCommand, direction), sock: os.NewFile(uintptr(fds[0]), "hop")}
	h.cmd.Stdin = theirs
	if err := h.cmd.Start(); err != nil {
		h.sock.Close()
		return nil, err
	}
	return h, nil
}

func (h *hop) stop() error {
	h.sock.Close()
	if err := h.cmd.Wait(); err != nil {
		return fmt.Errorf("hop: %w", err)
	}
	return nil
}

// readHop is readAll with every object passed on.
func (l *limit) readHop(v *disk) (float64, error) {
	h, err := startHop("in")
	if err != nil {
		return 0, err
	}
	took, err := l.each(v.objects, v.objectSize, func(_ int, i int64, buf []byte) error {
		if err := l.get(v.container, i, 0, v.objectSize, buf); err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		_, err := h.sock.Write(buf)
		return err
	})
	return done(v, took, err, h)
}

// writeHop is writeAll with every object taken from the socket.
func (l *limit) writeHop(v *disk) (float64, error) {
	h, err := startHop("out")
	if err != nil {
		return 0, err
	}
	took, err := l.each(v.objects, v.objectSize, func(_ int, i int64, buf []byte) error {
		h.mu.Lock()
		_, err := io.ReadFull(h.sock, buf)
		h.mu.Unlock()
		if err != nil {
			return err
		}
		return l.put(v.container, i, buf)
	})
	return done(v, took, err, h)
}

func done(v *disk, took time.Duration, err error, h *hop) (float64, error) {
	if e := h.stop(); err == nil {
		err = e
	}
	return mbps(v.size(), took), err
}
