// SPDX-License-Identifier: MIT

package nbdkit

/*
#include "shim.h"
*/
import "C"

import "unsafe"

// The callbacks of a connection as C calls them: no more than conversions.

//export nbdkitgoPreConnect
func nbdkitgoPreConnect(readonly C.int) C.int {
	return C.int(step("PreConnect", func() error { return pluginImpl.PreConnect(readonly != 0) }))
}

//export nbdkitgoListExports
func nbdkitgoListExports(readonly, isTLS C.int, to *C.struct_nbdkit_exports) C.int {
	return C.int(step("ListExports", func() error {
		list := &Exports{c: unsafe.Pointer(to)}
		defer func() { list.c = nil }()
		return pluginImpl.(ListExportsInterface).ListExports(readonly != 0, isTLS != 0, list)
	}))
}

//export nbdkitgoDefaultExport
func nbdkitgoDefaultExport(readonly, isTLS C.int) *C.char {
	var name string
	rc := step("DefaultExport", func() (err error) {
		name, err = pluginImpl.(DefaultExportInterface).DefaultExport(readonly != 0, isTLS != 0)
		return err
	})
	if rc != 0 {
		return nil
	}
	return intern(name)
}

//export nbdkitgoOpen
func nbdkitgoOpen(readonly C.int, handle *C.uintptr_t) C.int {
	h, rc := open(readonly != 0)
	*handle = C.uintptr_t(h)
	return C.int(rc)
}

//export nbdkitgoClose
func nbdkitgoClose(h C.uintptr_t) { closeHandle(uintptr(h)) }

//export nbdkitgoExportDescription
func nbdkitgoExportDescription(h C.uintptr_t) *C.char {
	s, rc := exportDescription(uintptr(h))
	if rc != 0 || s == "" {
		return nil
	}
	return intern(s)
}

//export nbdkitgoGetSize
func nbdkitgoGetSize(h C.uintptr_t) C.int64_t { return C.int64_t(getSize(uintptr(h))) }

//export nbdkitgoBlockSize
func nbdkitgoBlockSize(h C.uintptr_t, minimum, preferred, maximum *C.uint32_t) C.int {
	lo, at, hi, rc := blockSize(uintptr(h))
	*minimum, *preferred, *maximum = C.uint32_t(lo), C.uint32_t(at), C.uint32_t(hi)
	return C.int(rc)
}

//export nbdkitgoCanWrite
func nbdkitgoCanWrite(h C.uintptr_t) C.int {
	return C.int(can("CanWrite", uintptr(h), func(c *connection) (bool, error) { return c.CanWrite() }))
}

//export nbdkitgoCanFlush
func nbdkitgoCanFlush(h C.uintptr_t) C.int {
	return C.int(can("CanFlush", uintptr(h), func(c *connection) (bool, error) { return c.CanFlush() }))
}

//export nbdkitgoIsRotational
func nbdkitgoIsRotational(h C.uintptr_t) C.int {
	return C.int(can("IsRotational", uintptr(h), func(c *connection) (bool, error) { return c.IsRotational() }))
}

//export nbdkitgoCanTrim
func nbdkitgoCanTrim(h C.uintptr_t) C.int {
	return C.int(can("CanTrim", uintptr(h), func(c *connection) (bool, error) { return c.CanTrim() }))
}

//export nbdkitgoCanZero
func nbdkitgoCanZero(h C.uintptr_t) C.int {
	return C.int(can("CanZero", uintptr(h), func(c *connection) (bool, error) { return c.CanZero() }))
}

//export nbdkitgoCanMultiConn
func nbdkitgoCanMultiConn(h C.uintptr_t) C.int {
	return C.int(can("CanMultiConn", uintptr(h), func(c *connection) (bool, error) { return c.CanMultiConn() }))
}

//export nbdkitgoCanFastZero
func nbdkitgoCanFastZero(h C.uintptr_t) C.int {
	return C.int(can("CanFastZero", uintptr(h), canFastZero))
}

//export nbdkitgoCanExtents
func nbdkitgoCanExtents(h C.uintptr_t) C.int {
	return C.int(can("CanExtents", uintptr(h), canExtents))
}

//export nbdkitgoCanFUA
func nbdkitgoCanFUA(h C.uintptr_t) C.int {
	return C.int(level("CanFUA", uintptr(h), FUANative, canFUA))
}

//export nbdkitgoCanCache
func nbdkitgoCanCache(h C.uintptr_t) C.int {
	return C.int(level("CanCache", uintptr(h), CacheNative, canCache))
}

//export nbdkitgoPRead
func nbdkitgoPRead(h C.uintptr_t, buf unsafe.Pointer, count C.uint32_t, offset C.uint64_t, flags C.uint32_t) C.int {
	return C.int(pread(uintptr(h), bytesAt(buf, count), uint64(offset), uint32(flags)))
}

//export nbdkitgoPWrite
func nbdkitgoPWrite(h C.uintptr_t, buf unsafe.Pointer, count C.uint32_t, offset C.uint64_t, flags C.uint32_t) C.int {
	return C.int(pwrite(uintptr(h), bytesAt(buf, count), uint64(offset), uint32(flags)))
}

//export nbdkitgoFlush
func nbdkitgoFlush(h C.uintptr_t, flags C.uint32_t) C.int {
	return C.int(flush(uintptr(h), uint32(flags)))
}

//export nbdkitgoTrim
func nbdkitgoTrim(h C.uintptr_t, count C.uint32_t, offset C.uint64_t, flags C.uint32_t) C.int {
	return C.int(trim(uintptr(h), uint32(count), uint64(offset), uint32(flags)))
}

//export nbdkitgoZero
func nbdkitgoZero(h C.uintptr_t, count C.uint32_t, offset C.uint64_t, flags C.uint32_t) C.int {
	return C.int(zero(uintptr(h), uint32(count), uint64(offset), uint32(flags)))
}

//export nbdkitgoExtents
func nbdkitgoExtents(h C.uintptr_t, count C.uint32_t, offset C.uint64_t, flags C.uint32_t, to *C.struct_nbdkit_extents) C.int {
	list := &Extents{c: unsafe.Pointer(to)}
	rc := extents(uintptr(h), uint32(count), uint64(offset), uint32(flags), list)
	list.c = nil
	return C.int(rc)
}

//export nbdkitgoCache
func nbdkitgoCache(h C.uintptr_t, count C.uint32_t, offset C.uint64_t, flags C.uint32_t) C.int {
	return C.int(cacheRange(uintptr(h), uint32(count), uint64(offset), uint32(flags)))
}
