// SPDX-License-Identifier: MIT

package nbdkit

// The interfaces of this file are optional. If a plugin or connection has the
// method, it gets the callback. Otherwise nbdkit behaves as for a plugin in C
// without this callback.

// VersionInterface gives the plugin's version, for nbdkit --version.
//
// This method and those of the next five interfaces are called before Load.
// With the late start they are called in a process of its own. Their results
// must be constant.
type VersionInterface interface{ Version() string }

// LongNameInterface gives a free-text name, for nbdkit --help.
type LongNameInterface interface{ LongName() string }

// DescriptionInterface gives a description of one or more lines, for nbdkit --help.
type DescriptionInterface interface{ Description() string }

// ConfigHelpInterface gives a summary of the parameters, for nbdkit --help.
type ConfigHelpInterface interface{ ConfigHelp() string }

// MagicConfigKeyInterface names the parameter that a bare argument stands for.
type MagicConfigKeyInterface interface{ MagicConfigKey() string }

// ThreadModelInterface gives one of the ThreadModel constants, instead of
// [ThreadModelParallel].
type ThreadModelInterface interface{ ThreadModel() uint32 }

// PreflightInterface checks what would fail later, before nbdkit goes into the
// background or binds a socket. Such a failure is then an error of the command
// line.
//
// Preflight is called after GetReady. Under the late start it runs in a
// process of its own, which ends when Preflight has returned: goroutines,
// connections and memory end with it. All that remains is state, which
// [PreflightState] returns to the process that serves. With nbdkit -u,
// Preflight has the privileges nbdkit was started with, and the process that
// serves has not.
type PreflightInterface interface {
	Preflight() (state []byte, err error)
}

// AfterForkInterface is called last before nbdkit serves, in the process that
// serves. Start goroutines here.
//
// An error ends nbdkit when the user may not see it any more. With --run it
// leaves the command waiting for a server: the socket is bound, and nbdkit's
// other process holds it open. Let Preflight find out what can go wrong.
type AfterForkInterface interface{ AfterFork() error }

// CleanupInterface is called when nbdkit stops serving, in the process that
// served, before Unload. Connections may be open still, and are not closed any
// more.
type CleanupInterface interface{ Cleanup() }

// ListExportsInterface lists the exports. Without it, the list has only the
// default export.
type ListExportsInterface interface {
	ListExports(readonly, isTLS bool, exports *Exports) error
}

// DefaultExportInterface gives the name of the export that the empty name
// stands for, in at most 4096 bytes. An error turns the client away.
type DefaultExportInterface interface {
	DefaultExport(readonly, isTLS bool) (string, error)
}

// ExportDescriptionInterface describes the connection's export to the client,
// in at most 4096 bytes of UTF-8. The empty string means no description.
type ExportDescriptionInterface interface {
	ExportDescription() (string, error)
}

// BlockSizeInterface gives block sizes in bytes: minimum, a power of two up to
// 64 KiB; preferred, a power of two from 512 bytes to 32 MiB; maximum,
// 0xffffffff or a multiple of minimum. All zero means no information. nbdkit
// does not enforce them.
type BlockSizeInterface interface {
	BlockSize() (minimum, preferred, maximum uint32, err error)
}

// CanFUAInterface returns one of the FUA constants. Without it, FUA is
// emulated by Flush if CanFlush is true.
type CanFUAInterface interface{ CanFUA() (uint32, error) }

// CanFastZeroInterface tells whether Zero respects [FlagFastZero]. Without it,
// the answer is yes only if CanZero is false.
type CanFastZeroInterface interface{ CanFastZero() (bool, error) }

// ExtentsInterface tells which parts of the disk are holes or zeroes. Add
// extents in ascending order and without gaps, at least one that covers
// offset; going beyond the range, or ending before it does, is allowed.
type ExtentsInterface interface {
	Extents(count uint32, offset uint64, flags uint32, extents *Extents) error
}

// CanExtentsInterface tells whether Extents may be called. Without it, the
// answer is yes if there is an Extents method.
type CanExtentsInterface interface{ CanExtents() (bool, error) }

// CacheInterface hints that the range will be wanted soon.
type CacheInterface interface {
	Cache(count uint32, offset uint64, flags uint32) error
}

// CanCacheInterface returns one of the Cache constants. Without it, the answer
// is CacheNative if there is a Cache method, and CacheNone if there is none.
type CanCacheInterface interface{ CanCache() (uint32, error) }
