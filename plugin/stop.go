// SPDX-License-Identifier: MIT

package main

/*
#include "stop.h"
*/
import "C"

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// onStop calls stop once when a signal tells nbdkit to end; see stop.c.
func onStop(stop func()) error {
	fd, err := C.swiftnbd_watch_stop()
	if fd == -1 {
		return fmt.Errorf("watch for the signal to stop: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stop")
	goLogged(func() {
		var b [1]byte
		if _, err := f.Read(b[:]); err == nil {
			stop()
		}
	})
	return nil
}

// fail makes nbdkit's exit status 1: acknowledged data could not be written.
func fail() {
	failed.Store(true)
	failStatus()
}

var failed atomic.Bool

// failStatus sets the exit status; a test must not.
var failStatus = func() { C.swiftnbd_fail() }

// closedVariable names a descriptor. swiftnbd-server sets it. When a signal has
// closed all disks, the plugin writes the exit status there, in one byte.
// nbdkit would still wait for its clients to leave; swiftnbd-server does not.
const closedVariable = "SWIFTNBD_CLOSED_FD"

// tellClosed tells swiftnbd-server that all disks are closed, if it has started
// nbdkit.
func tellClosed() {
	fd, err := strconv.Atoi(os.Getenv(closedVariable))
	if err != nil || fd < 3 {
		return
	}
	status := byte(0)
	if failed.Load() {
		status = 1
	}
	_, _ = syscall.Write(fd, []byte{status})
}
