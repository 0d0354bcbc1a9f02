// SPDX-License-Identifier: MIT

// Command early is a plugin in upstream's style: it exports plugin_init
// itself, so Go starts when nbdkit opens the plugin. That works with nbdkit -f
// and -s, and hangs where nbdkit forks: in the background and with --run.
//
//	go build -buildmode=c-shared -o nbdkit-goearly-plugin.so .
//	nbdkit -f ./nbdkit-goearly-plugin.so
package main

import (
	"C"
	"unsafe"

	"libguestfs.org/nbdkit"
)

//export plugin_init
func plugin_init() unsafe.Pointer {
	return nbdkit.PluginInitialize("goearly", &zeroes{})
}

// main is never called, but a main package has to have one.
func main() {}

type zeroes struct{ nbdkit.Plugin }

func (*zeroes) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
	return &connection{}, nil
}

// connection is a megabyte of zeroes, read-only.
type connection struct{ nbdkit.Connection }

func (*connection) GetSize() (uint64, error) { return 1 << 20, nil }

func (*connection) PRead(buf []byte, offset uint64, flags uint32) error {
	clear(buf)
	return nil
}
