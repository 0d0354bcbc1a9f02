// SPDX-License-Identifier: MIT

/*
Package nbdkit is for writing plugins for nbdkit, the toolkit for NBD servers,
in Go. It has the names of nbdkit's own Go binding, so that plugins written for
that one compile unchanged, the callbacks which that one lacks, and a way to run
Go in an nbdkit that forks.

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

The module cannot be fetched by its name: copy it somewhere, and say where in
go.mod:

	require libguestfs.org/nbdkit v0.0.0
	replace libguestfs.org/nbdkit => ./nbdkit

nbdkit-plugin(3) explains the callbacks. Those that [PluginInterface] and
[ConnectionInterface] do not have are optional interfaces, such as
[VersionInterface] or [ExtentsInterface]: have the method, and it is called. As
with upstream's binding, PWrite is called only if CanWrite returns true, and so
on for Flush, Trim and Zero.

Errors are described at [PluginError]. A panic in a callback is logged with its
stack, the request fails with EIO, and nbdkit goes on; a panic in a goroutine of
the plugin's own ends nbdkit, so recover there. Do not use os/signal, since the
signals are nbdkit's, and log with [Debug] and [Error]; standard error may be
closed.

# When Go starts

The Go runtime does not survive fork, and nbdkit forks: to go into the
background, and for --run. The ordinary c-shared library starts Go when it is
opened, before that. This is the early start. It works with nbdkit -f and -s
and under socket activation, and hangs otherwise.

For the late start, a linker script moves Go's entry out of the list of
constructors, and the binding starts Go when nbdkit has forked for the last
time. To the plugin nothing changes but this:

  - What nbdkit asks before it forks is answered by short-lived child
    processes. One describes the plugin (name, version, help; about 10 ms). For
    --dump-plugin, one calls Load, Config for each parameter, and DumpPlugin.
  - In get_ready, a third calls Load, Config for each parameter, ConfigComplete,
    GetReady and, if there is one, Preflight (see [PreflightInterface]). An
    error ends nbdkit with exit status 1 and a line on standard error, before a
    socket is bound, and so does a crash. This process has nbdkit's privileges,
    directory and environment; its standard input and output are /dev/null
    (with nbdkit -s they are the client's), unless standard input is a terminal.
  - In after_fork, Go starts in the process that serves. It calls Load, Config
    for each parameter, ConfigComplete and GetReady again, since that process
    knows nothing of the other's memory, and then AfterFork (see
    [AfterForkInterface]). The directory is / now and privileges may be gone:
    use [AbsolutePath], [ReadPassword], and [PreflightState] for what the
    preflight has read. The plugin's calls of [Error] in this second round are
    debug messages.
  - Load, Config, ConfigComplete and GetReady should thus have no side effects;
    leave those to AfterFork.

With the early start everything happens in one process: GetReady is followed by
Preflight, and nbdkit's after_fork calls AfterFork. One source serves for both.

A main package that exports plugin_init itself and calls [PluginInitialize], as
upstream's examples do, always starts early.

# Building

For the late start:

	./build-plugin.sh OUTPUT.so PACKAGE_DIR

which is short for

	go build -buildmode=c-shared -o OUTPUT.so -ldflags "-extldflags '
	    -Wl,-T,DIR/goinit.ld -Wl,--version-script=DIR/plugin.map -Wl,-z,nodelete'" .

on one line, where DIR is this directory, and a look at the result:

	readelf -SW OUTPUT.so | grep ' go_init '

must show a section the size of one pointer. The linker has to be GNU ld, or
another that takes INSERT in a linker script; gold does not. With -z nodelete
nbdkit does not unmap the code under the feet of Go's threads when it ends.
plugin.map hides all names but plugin_init and debug flags.

For the early start, go build -buildmode=c-shared alone will do.

A debug flag that nbdkit -D myplugin.flag=1 sets is a variable of C, in the
preamble of a file without exports:

	// int myplugin_debug_flag = 0;
	import "C"

# Testing

A package that imports this one can be tested as any other: nbdkit's functions
are weak references, and where nbdkit is not, Debug does nothing, Error goes to
standard error, and [Extents], [ExportName] and the like return errors. The race
detector works in such tests; it does not inside a plugin.
*/
package nbdkit
