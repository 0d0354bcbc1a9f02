// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/lease"
	"swiftnbd/internal/store"
)

// TestErrno holds the errors that a request may end with against what a client
// is told of them.
func TestErrno(t *testing.T) {
	status := func(code int, err error) error {
		return &device.DrainError{Err: &store.StatusError{Op: "PUT c/o", Code: code, Err: err}}
	}
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{errors.New("anything"), syscall.EIO},
		{status(400, nil), syscall.EIO},
		{status(401, store.ErrUnauthorized), syscall.EIO},
		{status(403, store.ErrForbidden), syscall.EIO},
		{status(404, store.ErrContainerNotFound), syscall.EIO},
		{status(413, store.ErrNoSpace), syscall.ENOSPC},
		{status(413, nil), syscall.EIO}, // of a read
		{status(503, nil), syscall.EIO},
		{status(507, store.ErrNoSpace), syscall.ENOSPC},
		{store.ErrFenced, syscall.EIO},
		{store.ErrLapsed, syscall.EIO},
		{lease.ErrLost, syscall.EIO},
		{fmt.Errorf("login: %w", syscall.EPERM), syscall.EIO},
		{fmt.Errorf("dial: %w", syscall.EACCES), syscall.EIO},
		{context.DeadlineExceeded, syscall.EIO},
		{context.Canceled, syscall.EIO},
		{device.ErrOutOfRange, syscall.EIO},
		{device.ErrReadOnly, syscall.EROFS},
		{device.ErrSlow, syscall.ENOTSUP},
		{device.ErrClosed, syscall.ESHUTDOWN},
	} {
		var pe nbdkit.PluginError
		if err := toErrno(c.err); !errors.As(err, &pe) || pe.Errno != c.want {
			t.Errorf("%v: %v, want %v", c.err, err, c.want)
		}
	}
	if toErrno(nil) != nil {
		t.Error("nil is an error")
	}
}
