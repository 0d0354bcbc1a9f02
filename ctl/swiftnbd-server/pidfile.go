// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// pidFile is the file with our process id. It is locked as long as we run. It
// holds the id from the moment when nbdkit serves, and is removed at the end.
type pidFile struct {
	path string
	file *os.File
}

// lockPidFile creates the file and locks it. If a dead server has left a file
// behind, lockPidFile takes it over. It is an error if the server of the file
// lives, or if the file is no pid file. A link is not followed: the default
// path is in a directory that everybody may write to.
func lockPidFile(path string) (*pidFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, fmt.Errorf("--pid-file: %w", err)
		}
		running := fmt.Errorf("%s found: is the server already running?", path)
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			return nil, running
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("--pid-file: %w", err)
		}
		if now, err := os.Lstat(path); err != nil || !os.SameFile(now, mine) {
			f.Close() // it was removed while we waited for it
			continue
		}
		var data []byte
		if !mine.Mode().IsRegular() { // to read a pipe would wait for ever
			err = errors.New("not a file")
		} else {
			data, err = io.ReadAll(io.LimitReader(f, 64))
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("--pid-file: %s: %w", path, err)
		}
		if text := strings.TrimSpace(string(data)); text != "" {
			pid, err := strconv.Atoi(text)
			if err != nil || pid < 1 {
				f.Close()
				return nil, fmt.Errorf("%s holds something else than a process id", path)
			}
			if serves(pid) { // 0.11's server does not lock its file
				f.Close()
				return nil, running
			}
		}
		return &pidFile{path, f}, nil
	}
}

// serves says whether a process is a swiftnbd-server, ours or 0.11's. After a
// power failure another program may have the number. If nothing can be found
// out about the process, serves says yes.
func serves(pid int) bool {
	if pid == os.Getpid() {
		return false
	}
	words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	return strings.Contains(string(words), program)
}

// write writes our process id into the file.
func (p *pidFile) write() error {
	err := p.file.Truncate(0)
	if err == nil {
		_, err = p.file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}

// remove removes the file, and then unlocks it.
func (p *pidFile) remove() {
	_ = os.Remove(p.path)
	p.file.Close()
}
