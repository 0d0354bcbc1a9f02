// SPDX-License-Identifier: MIT

package main

/*
#include "stop.h"
*/
import "C"

import (
	"fmt"
	"os"
)

// onStop calls stop, once, when nbdkit is told to end by a signal; see stop.c.
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
func fail() { C.swiftnbd_fail() }
