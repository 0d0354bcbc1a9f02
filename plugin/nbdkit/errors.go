// SPDX-License-Identifier: MIT

package nbdkit

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"syscall"
)

// PluginError is an error with an errno for the client. A plugin may return
// it, a pointer to it, any error that wraps one, or any error that wraps a
// [syscall.Errno] (as those of package os do). A client sees errors without
// an errno as EIO.
//
// nbdkit tells the client EPERM (for EROFS too), EIO, ENOMEM, ENOSPC (for EFBIG
// and EDQUOT too) and ESHUTDOWN, ENOTSUP of a fast zero, and EINVAL for all else.
type PluginError struct {
	Errmsg string        // what nbdkit logs
	Errno  syscall.Errno // what the client sees; 0 if there is none
}

// String returns the message and, where there is one, the errno.
func (e PluginError) String() string {
	switch {
	case e.Errno == 0:
		return e.Errmsg
	case e.Errmsg == "":
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s (errno %d)", e.Errmsg, int(e.Errno))
}

// Error returns what String does.
func (e PluginError) Error() string { return e.String() }

// Unwrap returns the errno, so that errors.Is(err, syscall.ENOSPC) works, or
// nil if there is none.
func (e PluginError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// UnknownParameter is the error of a Config method for a key it does not know.
func UnknownParameter(key string) error {
	return PluginError{Errmsg: fmt.Sprintf("unknown parameter '%s'", key), Errno: syscall.EINVAL}
}

// reported is an error that nbdkit has printed already.
type reported struct {
	what  string
	errno syscall.Errno
}

func (e *reported) Error() string { return e.what + ": " + e.errno.Error() }
func (e *reported) Unwrap() error { return e.errno }

// What a callback tells C beside 0 and an errno.
const failedWithoutErrno = -1

// errnoOf returns the errno that err carries, or failedWithoutErrno. With the
// latter, the errno that the plugin gave to SetError counts.
func errnoOf(err error) int32 {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno > 0 {
		return int32(errno)
	}
	return failedWithoutErrno
}

// messageOf returns what to print for err in one line, or "" if nbdkit has
// printed it.
func messageOf(err error) string {
	var r *reported
	if errors.As(err, &r) {
		return ""
	}
	var msg string
	switch e := err.(type) {
	case PluginError:
		msg = e.Errmsg
	case *PluginError:
		msg = e.Errmsg
	}
	if msg == "" {
		msg = err.Error()
	}
	if msg == "" {
		msg = fmt.Sprintf("%T", err)
	}
	return msg
}

// failed reports err and returns what to tell C.
func failed(err error) int32 {
	if msg := messageOf(err); msg != "" {
		report(msg)
	}
	return errnoOf(err)
}

// oneLine folds line breaks, since nbdkit and syslog want a message to be one
// line, and drops what C would take for the end of the string.
func oneLine(s string) string {
	if !strings.ContainsAny(s, "\n\r\x00") {
		return s
	}
	s = strings.ReplaceAll(s, "\x00", "\\0")
	var b strings.Builder
	for _, line := range strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		b.WriteString(line)
	}
	return b.String()
}

// guard is deferred by every callback. It turns a panic into EIO, and logs it
// with its stack, line by line.
func guard(callback string, rc *int32) {
	if e := recover(); e != nil {
		logPanic(callback, e)
		*rc = int32(syscall.EIO)
	}
}

func logPanic(callback string, e any) {
	report(fmt.Sprintf("panic in %s: %v", callback, e))
	for _, line := range strings.Split(string(debug.Stack()), "\n") {
		if line != "" {
			report(strings.ReplaceAll(line, "\t", "    "))
		}
	}
}
