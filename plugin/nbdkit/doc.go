// SPDX-License-Identifier: MIT

/*
Package nbdkit is for writing plugins in Go for nbdkit, the toolkit for NBD
servers. It has the names of nbdkit's own Go binding, and plugins that were
written for that binding compile unchanged. It also has the callbacks that the
other binding lacks, and it can run Go in an nbdkit that forks.

# Writing a plugin

A plugin is a main package. It defines a type that embeds [Plugin] and has at
least an Open method, a type that embeds [Connection] and has at least GetSize
and PRead, and registers itself:

	package main

	import "libguestfs.org/nbdkit"

	func init() { nbdkit.Register("myplugin", &myPlugin{}) }

	func main() {}

	type myPlugin struct{ nbdkit.Plugin }

	func (*myPlugin) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
		return &connection{}, nil
	}

	type connection struct{ nbdkit.Connection }

	func (*connection) GetSize() (uint64, error) { return 1 << 20, nil }

	func (*connection) PRead(buf []byte, offset uint64, flags uint32) error {
		clear(buf)
		return nil
	}

The module cannot be fetched by its name. Copy it somewhere, and name that place
in go.mod:

	require libguestfs.org/nbdkit v0.0.0
	replace libguestfs.org/nbdkit => ./nbdkit

nbdkit-plugin(3) explains the callbacks. Those that [PluginInterface] and
[ConnectionInterface] do not have are optional interfaces, such as
[VersionInterface] or [ExtentsInterface]. A plugin that has the method is called.
As with nbdkit's own binding, PWrite is called only if CanWrite returns true.
The same holds for Flush, Trim and Zero.

[PluginError] describes errors. When a callback panics, the binding logs the
stack, the request fails with EIO, and nbdkit goes on. A panic in a goroutine of
the plugin ends nbdkit, so recover there. Do not use os/signal: the signals are
nbdkit's. Log with [Debug] and [Error]: standard error may be closed.

# When Go starts

The Go runtime does not survive fork. nbdkit forks to go into the background,
and for --run. The ordinary c-shared library starts Go when it is opened, which
is before the fork. This is the early start. It works with nbdkit -f and -s and
under socket activation, and hangs otherwise.

For the late start, a linker script moves Go's entry out of the list of
constructors. The binding starts Go after nbdkit's last fork. For the plugin
only this changes:

  - Short-lived child processes answer what nbdkit asks before it forks. One
    describes the plugin (name, version, help; about 10 ms). For --dump-plugin,
    one calls Load, Config for each parameter, and DumpPlugin.
  - In get_ready, a third one calls Load, Config for each parameter,
    ConfigComplete, GetReady and, if the plugin has it, Preflight (see
    [PreflightInterface]). After an error or a crash nbdkit ends with exit
    status 1 and a line on standard error, before a socket is bound. This
    process has nbdkit's privileges, directory and environment. Its standard
    input and output are /dev/null (with nbdkit -s they are the client's),
    unless standard input is a terminal.
  - In after_fork, Go starts in the process that serves. That process knows
    nothing of the other's memory, so it calls Load, Config for each parameter,
    ConfigComplete and GetReady again, and then AfterFork (see
    [AfterForkInterface]). The directory is / now, and privileges may be gone.
    Use [AbsolutePath] and [ReadPassword], [PreflightState] for what the
    preflight has read, and [PassFile] and [PassedFiles] for files that it has
    opened. In this second round calls of [Error] are debug messages.
  - Load, Config, ConfigComplete and GetReady should have no side effects.
    Leave those to AfterFork.

With the early start everything happens in one process: GetReady is followed by
Preflight, and nbdkit's after_fork calls AfterFork. One source serves for both.

A main package that exports plugin_init itself and calls [PluginInitialize], as
the examples of nbdkit's own binding do, always starts early.

# Building

For the late start:

	./build-plugin.sh OUTPUT.so PACKAGE_DIR

which is short for

	go build -buildmode=c-shared -o OUTPUT.so -ldflags "-extldflags '
	    -Wl,-T,DIR/goinit.ld -Wl,--version-script=DIR/plugin.map -Wl,-z,nodelete'" .

on one line, where DIR is this directory. To check the result:

	readelf -SW OUTPUT.so | grep ' go_init '

must show a section of the size of one pointer. The linker has to be GNU ld, or
another one that accepts INSERT in a linker script. gold does not. With -z
nodelete, nbdkit does not unmap the code that Go's threads run when it ends.
plugin.map hides all names except plugin_init and debug flags.

For the early start, go build -buildmode=c-shared is enough.

A debug flag that nbdkit -D myplugin.flag=1 sets is a C variable, in the preamble
of a file without exports:

	// int myplugin_debug_flag = 0;
	import "C"

# Testing

A package that imports this one can be tested like any other. nbdkit's functions
are weak references. Outside nbdkit, Debug does nothing, Error writes to standard
error, and [Extents], [ExportName] and similar functions return errors. The race
detector works in such tests. It does not work inside a plugin.
*/
package nbdkit
