// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"net/http"
	"syscall"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/store"
)

// toErrno gives an error the errno that the client sees. It is the only place
// that knows errnos. nbdkit passes on few of them (nbdkit-plugin(3)); whatever
// is not named here is an I/O error, which a client may try again.
func toErrno(err error) error {
	if err == nil {
		return nil
	}
	errno := syscall.EIO
	var status *store.StatusError
	switch {
	case errors.Is(err, device.ErrReadOnly):
		errno = syscall.EROFS
	case errors.Is(err, device.ErrOutOfRange):
		errno = syscall.EINVAL
	case errors.Is(err, device.ErrClosed):
		errno = syscall.ESHUTDOWN
	case errors.Is(err, device.ErrSlow):
		errno = syscall.ENOTSUP
	case errors.Is(err, store.ErrForbidden):
		errno = syscall.EPERM
	case errors.As(err, &status) && (status.Code == http.StatusRequestEntityTooLarge || status.Code == http.StatusInsufficientStorage):
		errno = syscall.ENOSPC // a quota, or full disks
	}
	return nbdkit.PluginError{Errmsg: err.Error(), Errno: errno}
}
