// SPDX-License-Identifier: MIT

package nbdkit

/*
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"math"
	"runtime/cgo"
	"syscall"
	"unsafe"
)

// connection is what a handle stands for. It does not change after the handle
// is made, so requests need no mutex. Handles are looked up in a lock-free map,
// which is safe while other connections come and go.
type connection struct {
	ConnectionInterface
	// Nil unless the connection has the method. Resolved once, since Extents
	// and Cache are requests.
	extents ExtentsInterface
	cache   CacheInterface
}

func lookup(h uintptr) *connection {
	return cgo.Handle(h).Value().(*connection)
}

// open returns a handle, which is never 0, and 0 or an error for C.
func open(readonly bool) (h uintptr, rc int32) {
	defer guard("Open", &rc)
	impl, err := pluginImpl.Open(readonly)
	if err != nil {
		return 0, failed(err)
	}
	if impl == nil {
		return 0, failed(fmt.Errorf("Open returned neither a connection nor an error"))
	}
	c := &connection{ConnectionInterface: impl}
	c.extents, _ = impl.(ExtentsInterface)
	c.cache, _ = impl.(CacheInterface)
	return uintptr(cgo.NewHandle(c)), 0
}

// closeHandle ends a connection. The handle is dropped even if Close panics.
func closeHandle(h uintptr) (rc int32) {
	defer guard("Close", &rc)
	c := lookup(h)
	cgo.Handle(h).Delete()
	c.Close()
	return 0
}

func getSize(h uintptr) (size int64) {
	var rc int32
	defer func() {
		if rc != 0 {
			size = -1
		}
	}()
	defer guard("GetSize", &rc)
	n, err := lookup(h).GetSize()
	if err == nil && n > math.MaxInt64 {
		err = PluginError{Errmsg: fmt.Sprintf("GetSize returned %d bytes, which is too large", n), Errno: syscall.EOVERFLOW}
	}
	if err != nil {
		rc = failed(err)
	}
	return int64(n)
}

// can asks the connection whether it can do something: 1, 0, or -1 after
// reporting an error.
func can(callback string, h uintptr, ask func(*connection) (bool, error)) int32 {
	return level(callback, h, 1, func(c *connection) (uint32, error) {
		yes, err := ask(c)
		if yes {
			return 1, err
		}
		return 0, err
	})
}

// level is can for an answer from 0 to most.
func level(callback string, h uintptr, most uint32, ask func(*connection) (uint32, error)) (answer int32) {
	var rc int32
	defer func() {
		if rc != 0 {
			answer = -1
		}
	}()
	defer guard(callback, &rc)
	n, err := ask(lookup(h))
	if err == nil && n > most {
		err = fmt.Errorf("%s returned %d, which has no meaning", callback, n)
	}
	if err != nil {
		rc = failed(err)
	}
	return int32(n)
}

// If a connection lacks an optional method, the next four functions answer what
// nbdkit assumes for a plugin without the callback. nbdkit looks only at the
// struct of the whole plugin, so it cannot decide for single connections.

func canFUA(c *connection) (uint32, error) {
	if o, ok := c.ConnectionInterface.(CanFUAInterface); ok {
		return o.CanFUA()
	}
	if flush, err := c.CanFlush(); !flush || err != nil {
		return FUANone, err
	}
	return FUAEmulate, nil
}

func canFastZero(c *connection) (bool, error) {
	if o, ok := c.ConnectionInterface.(CanFastZeroInterface); ok {
		return o.CanFastZero()
	}
	zero, err := c.CanZero()
	return !zero, err
}

func canExtents(c *connection) (bool, error) {
	if c.extents == nil {
		return false, nil
	}
	if o, ok := c.ConnectionInterface.(CanExtentsInterface); ok {
		return o.CanExtents()
	}
	return true, nil
}

func canCache(c *connection) (uint32, error) {
	if o, ok := c.ConnectionInterface.(CanCacheInterface); ok {
		return o.CanCache()
	}
	if c.cache != nil {
		return CacheNative, nil
	}
	return CacheNone, nil
}

// supported replaces ENOTSUP of PWrite and Flush. For nbdkit it has a meaning
// in Zero only. nbdkit uses these two instead of a Zero, and has assertions
// about it. And the client would get EINVAL.
func supported(rc int32) int32 {
	if rc == int32(syscall.ENOTSUP) || rc == int32(syscall.EOPNOTSUPP) {
		return int32(syscall.EIO)
	}
	return rc
}

func pread(h uintptr, buf []byte, offset uint64, flags uint32) (rc int32) {
	defer guard("PRead", &rc)
	if err := lookup(h).PRead(buf, offset, flags); err != nil {
		return failed(err)
	}
	return 0
}

func pwrite(h uintptr, buf []byte, offset uint64, flags uint32) (rc int32) {
	defer guard("PWrite", &rc)
	if err := lookup(h).PWrite(buf, offset, flags); err != nil {
		return supported(failed(err))
	}
	return 0
}

func flush(h uintptr, flags uint32) (rc int32) {
	defer guard("Flush", &rc)
	if err := lookup(h).Flush(flags); err != nil {
		return supported(failed(err))
	}
	return 0
}

func trim(h uintptr, count uint32, offset uint64, flags uint32) (rc int32) {
	defer guard("Trim", &rc)
	if err := lookup(h).Trim(count, offset, flags); err != nil {
		return failed(err)
	}
	return 0
}

// zero does not report ENOTSUP: it is an answer, and nbdkit acts on it.
func zero(h uintptr, count uint32, offset uint64, flags uint32) (rc int32) {
	defer guard("Zero", &rc)
	err := lookup(h).Zero(count, offset, flags)
	if err == nil {
		return 0
	}
	if rc := errnoOf(err); rc == int32(syscall.ENOTSUP) || rc == int32(syscall.EOPNOTSUPP) {
		return rc
	}
	return failed(err)
}

func extents(h uintptr, count uint32, offset uint64, flags uint32, to *Extents) (rc int32) {
	defer guard("Extents", &rc)
	c := lookup(h)
	if c.extents == nil {
		return failed(PluginError{Errmsg: "the connection has no Extents method", Errno: syscall.EINVAL})
	}
	if err := c.extents.Extents(count, offset, flags, to); err != nil {
		return failed(err)
	}
	return 0
}

// cacheRange does nothing for CacheNative without a Cache method, as nbdkit
// does.
func cacheRange(h uintptr, count uint32, offset uint64, flags uint32) (rc int32) {
	defer guard("Cache", &rc)
	c := lookup(h)
	if c.cache == nil {
		return 0
	}
	if err := c.cache.Cache(count, offset, flags); err != nil {
		return failed(err)
	}
	return 0
}

func blockSize(h uintptr) (minimum, preferred, maximum uint32, rc int32) {
	defer guard("BlockSize", &rc)
	o, ok := lookup(h).ConnectionInterface.(BlockSizeInterface)
	if !ok {
		return 0, 0, 0, 0
	}
	minimum, preferred, maximum, err := o.BlockSize()
	if err != nil {
		return 0, 0, 0, failed(err)
	}
	return minimum, preferred, maximum, 0
}

func exportDescription(h uintptr) (s string, rc int32) {
	defer guard("ExportDescription", &rc)
	o, ok := lookup(h).ConnectionInterface.(ExportDescriptionInterface)
	if !ok {
		return "", 0
	}
	s, err := o.ExportDescription()
	if err != nil {
		return "", failed(err)
	}
	return s, 0
}

func bytesAt(p unsafe.Pointer, n C.uint32_t) []byte {
	return unsafe.Slice((*byte)(p), int(n))
}
