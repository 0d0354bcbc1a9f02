// SPDX-License-Identifier: MIT

package nbdkit

/*
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// inNbdkit is false in an ordinary program, such as a test.
var inNbdkit = bool(C.nbdkitgo_in_nbdkit())

// stderr is where errors go outside nbdkit.
var stderr io.Writer = os.Stderr

// withNUL returns s as a C string in memory that the garbage collector owns. It
// may be given to C code that does not keep the pointer, and nothing leaks.
func withNUL(s string) *C.char {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return (*C.char)(unsafe.Pointer(&b[0]))
}

// intern returns a copy that lasts as long as the connection, or nil.
func intern(s string) *C.char { return C.nbdkitgo_strdup_intern(withNUL(s)) }

// report prints an error to nbdkit's log, or, outside nbdkit, to standard error.
func report(s string) {
	if !inNbdkit {
		fmt.Fprintln(stderr, "nbdkit: error:", oneLine(s))
		return
	}
	C.nbdkitgo_error(withNUL(oneLine(s)))
}

// Debug logs a line if nbdkit runs with -v.
func Debug(s string) {
	if inNbdkit {
		C.nbdkitgo_debug(withNUL(oneLine(s)))
	}
}

// Debugf is [Debug] for a format of package fmt.
func Debugf(format string, args ...any) { Debug(fmt.Sprintf(format, args...)) }

// Error logs a line: on standard error before nbdkit goes into the background,
// in syslog after (nbdkit --log). A callback that returns an error need not
// call it.
//
// With the late start, the preflight process has logged the messages of Load,
// Config, ConfigComplete and GetReady. The process that serves calls these
// methods again. Their messages are debug messages then.
func Error(s string) {
	if replaying.Load() {
		Debug(s)
		return
	}
	report(s)
}

// Errorf is [Error] for a format of package fmt.
func Errorf(format string, args ...any) { Error(fmt.Sprintf(format, args...)) }

// SetError sets the errno that the client sees if the callback that runs fails
// without one. Call it from the callback's own goroutine. Returning an error
// that wraps a [syscall.Errno] is the better way.
func SetError(err syscall.Errno) {
	if inNbdkit {
		C.nbdkitgo_set_error(C.int(err))
	}
}

// AbsolutePath makes path absolute by the directory that nbdkit was started
// in, at any time: nbdkit changes to / when it goes into the background. Nothing
// is cleaned and no symbolic link resolved.
func AbsolutePath(path string) (string, error) {
	if path == "" {
		return "", PluginError{Errmsg: "an empty path cannot be made absolute", Errno: syscall.EINVAL}
	}
	if strings.HasPrefix(path, "/") {
		return path, nil
	}
	cwd := C.nbdkitgo_cwd()
	if cwd == nil {
		return "", PluginError{Errmsg: fmt.Sprintf("%s: the directory that nbdkit was started in is not known", path), Errno: syscall.ENOENT}
	}
	return C.GoString(cwd) + "/" + path, nil
}

// ExportName returns the name that the client asked for. Call it from a
// connection's callback (Open included), in the callback's own goroutine.
func ExportName() (string, error) {
	s := C.nbdkitgo_export_name()
	if s == nil {
		return "", &reported{what: "export name", errno: syscall.EINVAL}
	}
	return C.GoString(s), nil
}

// IsTLS tells whether the client has authenticated itself by TLS. Call it as
// [ExportName].
func IsTLS() (bool, error) {
	switch C.nbdkitgo_is_tls() {
	case 0:
		return false, nil
	case 1:
		return true, nil
	}
	return false, &reported{what: "TLS state", errno: syscall.EINVAL}
}

// PeerName returns the client's address: a [net.TCPAddr], or a [net.UnixAddr],
// which has no name as a rule. Call it as [ExportName], or from PreConnect.
func PeerName() (net.Addr, error) {
	var buf [128]byte // struct sockaddr_storage
	n := C.uint32_t(len(buf))
	if C.nbdkitgo_peer_name(unsafe.Pointer(&buf[0]), &n) == -1 {
		return nil, &reported{what: "peer name", errno: syscall.ENOTCONN}
	}
	return peerAddr(buf[:min(int(n), len(buf))])
}

// peerAddr takes a struct sockaddr apart.
func peerAddr(b []byte) (net.Addr, error) {
	if len(b) < 2 {
		return nil, PluginError{Errmsg: "the client has no address", Errno: syscall.ENOTCONN}
	}
	family := *(*uint16)(unsafe.Pointer(&b[0]))
	port := func() uint16 { return uint16(b[2])<<8 | uint16(b[3]) }
	switch {
	case family == syscall.AF_UNIX:
		name := string(b[2:])
		if strings.HasPrefix(name, "\x00") {
			name = "@" + strings.TrimLeft(name, "\x00")
		} else if i := strings.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if name == "@" {
			name = ""
		}
		return &net.UnixAddr{Name: name, Net: "unix"}, nil
	case family == syscall.AF_INET && len(b) >= 8:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port())), nil
	case family == syscall.AF_INET6 && len(b) >= 24:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), port())), nil
	}
	return nil, PluginError{Errmsg: fmt.Sprintf("the client has an address of family %d", family), Errno: syscall.EAFNOSUPPORT}
}

// PeerPID, PeerUID and PeerGID return the process, user and group of a client
// on a Unix socket. Call them as [PeerName].
func PeerPID() (int64, error) { return peerID('p') }

// PeerUID: see [PeerPID].
func PeerUID() (int64, error) { return peerID('u') }

// PeerGID: see [PeerPID].
func PeerGID() (int64, error) { return peerID('g') }

func peerID(which rune) (int64, error) {
	id := int64(C.nbdkitgo_peer_id(C.int(which)))
	if id == -1 {
		return 0, &reported{what: "peer credentials", errno: syscall.ENOTCONN}
	}
	return id, nil
}

// Shutdown asks nbdkit to stop, and returns at once. Callbacks may follow.
func Shutdown() { C.nbdkitgo_shutdown() }

// StdioSafe tells whether a Config method may read standard input. With nbdkit
// -s it belongs to the client.
//
// With the late start, standard input is /dev/null unless it is a terminal.
// Read from it with [ReadPassword] only.
func StdioSafe() bool { return C.nbdkitgo_stdio_safe() == 1 }

// Extents takes what an Extents method finds. Adding fails after the
// method has returned.
type Extents struct{ c unsafe.Pointer }

// Add adds an extent of length bytes from offset. kind is 0 for data, or made
// of [ExtentHole] and [ExtentZero].
func (e *Extents) Add(offset, length uint64, kind uint32) error {
	if r := C.nbdkitgo_add_extent(e.c, C.uint64_t(offset), C.uint64_t(length), C.uint32_t(kind)); r != 0 {
		return &reported{what: "adding an extent", errno: syscall.Errno(r)}
	}
	return nil
}

// Exports takes what a ListExports method finds. Adding fails after the
// method has returned.
type Exports struct{ c unsafe.Pointer }

// Add adds an export. Names are unique, UTF-8, of up to 4096 bytes. The
// description may be empty.
func (e *Exports) Add(name, description string) error {
	if strings.ContainsRune(name+description, 0) {
		return PluginError{Errmsg: "an export's name or description holds a NUL", Errno: syscall.EINVAL}
	}
	var d *C.char
	if description != "" {
		d = withNUL(description)
	}
	if r := C.nbdkitgo_add_export(e.c, withNUL(name), d); r != 0 {
		return &reported{what: "adding an export", errno: syscall.Errno(r)}
	}
	return nil
}

// UseDefault adds the default export, as nbdkit does without ListExports.
func (e *Exports) UseDefault() error {
	if r := C.nbdkitgo_use_default_export(e.c); r != 0 {
		return &reported{what: "adding the default export", errno: syscall.Errno(r)}
	}
	return nil
}
