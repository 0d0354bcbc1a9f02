// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// readyFD is the descriptor on which the process in the background says that
// nbdkit serves.
const readyFD = 3

// ends are the signals that end the server.
var ends = []os.Signal{syscall.SIGTERM, os.Interrupt, syscall.SIGHUP, syscall.SIGQUIT}

// notify returns a channel that gets the signals that end the server. Signals
// that our caller has set to be ignored, as nohup does, stay ignored.
func notify() chan os.Signal {
	c := make(chan os.Signal, 8)
	for _, s := range ends {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	return c
}

// launch starts this program once more, in the background, and waits until it
// serves. It returns the exit status. Errors until then go to standard error.
func launch() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return exitFailed, err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return exitFailed, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{tell} // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	signals := notify()
	if err := cmd.Start(); err != nil {
		return exitFailed, err
	}
	tell.Close()
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if n, _ := ready.Read(make([]byte, 1)); n == 1 {
		return 0, nil
	}
	return status(cmd.Wait())
}

// background is the process that launch has started.
func background(o *options) (int, error) {
	tell := os.NewFile(readyFD, "ready")
	syscall.CloseOnExec(readyFD)
	_ = os.Unsetenv(stageVariable)
	if err := os.Chdir("/"); err != nil {
		return exitFailed, err
	}
	return supervise(o, nil, func() {
		// The terminal belongs to others from now on.
		if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			_ = syscall.Dup3(int(null.Fd()), 2, 0)
			null.Close()
		}
		_, _ = tell.Write([]byte{1})
		tell.Close()
	})
}

// status turns the end of a process into our exit status. This is the process's
// own status, or, if a signal ended it, 128 and the signal's number as in a
// shell. Anything else is an error.
func status(err error) (int, error) {
	var end *exec.ExitError
	if err == nil {
		return 0, nil
	}
	if !errors.As(err, &end) {
		return exitFailed, err
	}
	if w, ok := end.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal()), nil
	}
	return end.ExitCode(), nil
}
