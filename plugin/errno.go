// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"syscall"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/store"
)

// toErrno gives an error the errno that the client sees. It is the only place
// that knows errnos. A failed request ends with EIO. It ends with ENOSPC if
// there is no room, and with EROFS if the disk is read-only. ENOTSUP is the
// protocol's own answer to a fast zero. ESHUTDOWN means that this disk is not
// served any more. There are no others: a refusal by Swift could look like
// EPERM, but a file system takes EPERM for a read-only disk.
func toErrno(err error) error {
	if err == nil {
		return nil
	}
	errno := syscall.EIO
	switch {
	case errors.Is(err, device.ErrReadOnly):
		errno = syscall.EROFS
	case errors.Is(err, device.ErrClosed):
		errno = syscall.ESHUTDOWN
	case errors.Is(err, device.ErrSlow):
		errno = syscall.ENOTSUP
	case errors.Is(err, store.ErrNoSpace):
		errno = syscall.ENOSPC
	}
	return nbdkit.PluginError{Errmsg: err.Error(), Errno: errno}
}
