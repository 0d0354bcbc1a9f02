// SPDX-License-Identifier: MIT

package nbdkit

/*
#cgo pkg-config: nbdkit
#cgo CFLAGS: -std=gnu11

#include "shim.h"
*/
import "C"

// Constants of nbdkit-plugin(3), by upstream's names.
const (
	// ThreadModelSerializeConnections allows one client at a time.
	ThreadModelSerializeConnections = uint32(C.NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS)
	// ThreadModelSerializeAllRequests allows one request at a time.
	ThreadModelSerializeAllRequests = uint32(C.NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS)
	// ThreadModelSerializeRequests allows one request at a time on each connection.
	ThreadModelSerializeRequests = uint32(C.NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
	// ThreadModelParallel allows any number of requests at a time. It is the default.
	ThreadModelParallel = uint32(C.NBDKIT_THREAD_MODEL_PARALLEL)

	// FlagMayTrim lets Zero punch a hole, as long as the range reads as zeroes.
	FlagMayTrim = uint32(C.NBDKIT_FLAG_MAY_TRIM)
	// FlagFUA asks for the data to be durable before the callback returns.
	FlagFUA = uint32(C.NBDKIT_FLAG_FUA)
	// FlagReqOne tells Extents that the first extent is enough.
	FlagReqOne = uint32(C.NBDKIT_FLAG_REQ_ONE)
	// FlagFastZero tells Zero to fail with ENOTSUP unless it is faster than writing.
	FlagFastZero = uint32(C.NBDKIT_FLAG_FAST_ZERO)

	// FUANone means that the client cannot ask for FUA.
	FUANone = uint32(C.NBDKIT_FUA_NONE)
	// FUAEmulate means that nbdkit calls Flush after a write with FUA.
	FUAEmulate = uint32(C.NBDKIT_FUA_EMULATE)
	// FUANative means that PWrite, Trim and Zero are given FlagFUA.
	FUANative = uint32(C.NBDKIT_FUA_NATIVE)

	// CacheNone means that the client cannot ask for caching.
	CacheNone = uint32(C.NBDKIT_CACHE_NONE)
	// CacheEmulate means that nbdkit calls PRead and drops the data.
	CacheEmulate = uint32(C.NBDKIT_CACHE_EMULATE)
	// CacheNative means that nbdkit calls Cache.
	CacheNative = uint32(C.NBDKIT_CACHE_NATIVE)

	// ExtentHole marks an extent that is not allocated.
	ExtentHole = uint32(C.NBDKIT_EXTENT_HOLE)
	// ExtentZero marks an extent that reads as zeroes.
	ExtentZero = uint32(C.NBDKIT_EXTENT_ZERO)

	// APIVersion is the version of nbdkit's plugin interface that the binding speaks.
	APIVersion = uint32(C.NBDKIT_API_VERSION)
)

// PluginInterface is what a plugin implements. Embed [Plugin] for defaults of
// all but Open. Callbacks that nbdkit knows beyond these are optional
// interfaces: see [VersionInterface] and those after it.
type PluginInterface interface {
	// Load is called once, before any other callback.
	Load()
	// Unload is called once, as the last callback.
	Unload()

	// DumpPlugin prints key=value lines to standard output, for nbdkit --dump-plugin.
	DumpPlugin()

	// Config is called for each parameter of the command line.
	Config(key string, value string) error
	// ConfigComplete is called when there are no more parameters.
	ConfigComplete() error
	// GetReady is called before nbdkit serves.
	GetReady() error

	// PreConnect is called for each client before the negotiation. An error
	// turns the client away.
	PreConnect(readonly bool) error
	// Open is called for each client after the negotiation. Required.
	Open(readonly bool) (ConnectionInterface, error)
}

// ConnectionInterface is one client's connection. Embed [Connection] for
// defaults of all but GetSize and PRead. With [ThreadModelParallel], the
// methods from PRead on are called from several goroutines at once.
//
// A buffer belongs to nbdkit and must not be kept after the method returns.
// nbdkit has checked that offset and count lie within the disk.
type ConnectionInterface interface {
	// GetSize is the size of the disk in bytes. Required.
	GetSize() (uint64, error)
	// IsRotational tells whether seeking costs.
	IsRotational() (bool, error)
	// CanMultiConn tells whether a flush on one connection covers all.
	CanMultiConn() (bool, error)

	// PRead fills buf from offset, all of it, or fails. Required.
	PRead(buf []byte, offset uint64, flags uint32) error

	// CanWrite tells whether PWrite may be called.
	CanWrite() (bool, error)
	// PWrite writes buf at offset, all of it, or fails. flags may hold FlagFUA.
	PWrite(buf []byte, offset uint64, flags uint32) error

	// CanFlush tells whether Flush may be called.
	CanFlush() (bool, error)
	// Flush makes durable all that was written before.
	Flush(flags uint32) error

	// CanTrim tells whether Trim may be called.
	CanTrim() (bool, error)
	// Trim says that the range is of no use any more. flags may hold FlagFUA.
	Trim(count uint32, offset uint64, flags uint32) error

	// CanZero tells whether Zero may be called. If not, nbdkit writes zeroes.
	CanZero() (bool, error)
	// Zero makes the range read as zeroes. flags may hold FlagMayTrim, FlagFUA
	// and FlagFastZero. On ENOTSUP nbdkit writes zeroes instead, or lets the
	// client know that it would not be fast.
	Zero(count uint32, offset uint64, flags uint32) error

	// Close is called when the client is gone. nbdkit may leave it out for
	// connections that are open when it is told to stop: release what matters
	// in Cleanup (see [CleanupInterface]).
	Close()
}

// Plugin has the defaults of [PluginInterface]; embed it.
type Plugin struct{}

// Connection has the defaults of [ConnectionInterface]; embed it.
type Connection struct{}

// Load does nothing.
func (p *Plugin) Load() {}

// Unload does nothing.
func (p *Plugin) Unload() {}

// DumpPlugin prints nothing.
func (p *Plugin) DumpPlugin() {}

// Config refuses every parameter by name.
func (p *Plugin) Config(key string, value string) error {
	return UnknownParameter(key)
}

// ConfigComplete accepts what there is.
func (p *Plugin) ConfigComplete() error { return nil }

// GetReady does nothing.
func (p *Plugin) GetReady() error { return nil }

// PreConnect lets every client in.
func (p *Plugin) PreConnect(readonly bool) error { return nil }

// Open panics: a plugin has to have one.
func (p *Plugin) Open(readonly bool) (ConnectionInterface, error) {
	panic("the plugin has no Open method")
}

// Close does nothing.
func (c *Connection) Close() {}

// GetSize panics: a connection has to have one.
func (c *Connection) GetSize() (uint64, error) {
	panic("the connection has no GetSize method")
}

// IsRotational says no.
func (c *Connection) IsRotational() (bool, error) { return false, nil }

// CanMultiConn says no.
func (c *Connection) CanMultiConn() (bool, error) { return false, nil }

// CanWrite says no: the disk is read-only.
func (c *Connection) CanWrite() (bool, error) { return false, nil }

// CanFlush says no.
func (c *Connection) CanFlush() (bool, error) { return false, nil }

// CanTrim says no.
func (c *Connection) CanTrim() (bool, error) { return false, nil }

// CanZero says no: nbdkit writes zeroes instead.
func (c *Connection) CanZero() (bool, error) { return false, nil }

// PRead panics: a connection has to have one.
func (c *Connection) PRead(buf []byte, offset uint64, flags uint32) error {
	panic("the connection has no PRead method")
}

// PWrite panics: with CanWrite there has to be one.
func (c *Connection) PWrite(buf []byte, offset uint64, flags uint32) error {
	panic("CanWrite is true, but the connection has no PWrite method")
}

// Flush panics: with CanFlush there has to be one.
func (c *Connection) Flush(flags uint32) error {
	panic("CanFlush is true, but the connection has no Flush method")
}

// Trim panics: with CanTrim there has to be one.
func (c *Connection) Trim(count uint32, offset uint64, flags uint32) error {
	panic("CanTrim is true, but the connection has no Trim method")
}

// Zero panics: with CanZero there has to be one.
func (c *Connection) Zero(count uint32, offset uint64, flags uint32) error {
	panic("CanZero is true, but the connection has no Zero method")
}
