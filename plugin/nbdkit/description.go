// SPDX-License-Identifier: MIT

package nbdkit

/*
#include "shim.h"
*/
import "C"

import (
	"encoding/binary"
	"strings"
	"syscall"
	"unsafe"
)

// What has been registered. Written before nbdkit calls anything, and only
// read afterwards.
var (
	pluginName string
	pluginImpl PluginInterface
)

// Register names the plugin and gives its implementation. Call it from an init
// function of the main package:
//
//	func init() { nbdkit.Register("myplugin", &MyPlugin{}) }
//
// The name must consist of ASCII letters, digits and dashes. Registering a
// second plugin panics.
func Register(name string, impl PluginInterface) {
	if pluginImpl != nil {
		panic("nbdkit: Register(" + name + "): the plugin " + pluginName + " is registered already")
	}
	if impl == nil {
		panic("nbdkit: Register(" + name + "): no implementation")
	}
	pluginName, pluginImpl = name, impl
}

// PluginInitialize is Register for a main package that exports plugin_init
// itself, as upstream's examples do; return what it returns to nbdkit.
//
// Such a plugin works only where Go runs as soon as nbdkit opens the plugin,
// which excludes going into the background and --run; use [Register] instead.
func PluginInitialize(name string, impl PluginInterface) unsafe.Pointer {
	Register(name, impl)
	return makePlugin()
}

// makePlugin returns the struct nbdkit_plugin of an early start, or nil.
func makePlugin() unsafe.Pointer {
	d, err := describe()
	if err != nil {
		report(messageOf(err))
		return nil
	}
	return unsafe.Pointer(C.nbdkitgo_make_plugin(unsafe.Pointer(&d[0]), C.size_t(len(d)), false))
}

// record appends a record as C's nbdkitgo_make_plugin and takeCarried read it.
func record(b []byte, tag byte, data string) []byte {
	b = append(b, tag)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func number(n uint32) string {
	return string(binary.NativeEndian.AppendUint32(nil, n))
}

// describe returns the plugin's static fields as records.
func describe() (b []byte, err error) {
	var rc int32
	defer func() {
		if rc != 0 {
			err = &reported{what: "describing the plugin", errno: syscall.EIO}
		}
	}()
	defer guard("the description of the plugin", &rc)

	if pluginImpl == nil {
		return nil, PluginError{Errmsg: "no plugin: the main package calls neither nbdkit.Register from an init function nor nbdkit.PluginInitialize"}
	}
	b = record(b, 'n', pluginName)
	text := func(tag byte, s string) {
		if s != "" {
			b = record(b, tag, strings.ReplaceAll(s, "\x00", ""))
		}
	}
	if p, ok := pluginImpl.(LongNameInterface); ok {
		text('l', p.LongName())
	}
	if p, ok := pluginImpl.(VersionInterface); ok {
		text('v', p.Version())
	}
	if p, ok := pluginImpl.(DescriptionInterface); ok {
		text('d', p.Description())
	}
	if p, ok := pluginImpl.(ConfigHelpInterface); ok {
		text('h', p.ConfigHelp())
	}
	if p, ok := pluginImpl.(MagicConfigKeyInterface); ok {
		text('m', p.MagicConfigKey())
	}
	model := ThreadModelParallel
	if p, ok := pluginImpl.(ThreadModelInterface); ok {
		model = p.ThreadModel()
		if model > ThreadModelParallel {
			return nil, PluginError{Errmsg: "ThreadModel returned none of the ThreadModel constants"}
		}
	}
	b = record(b, 't', number(model))
	var has uint32
	if _, ok := pluginImpl.(ListExportsInterface); ok {
		has |= C.NBDKITGO_HAS_LIST_EXPORTS
	}
	if _, ok := pluginImpl.(DefaultExportInterface); ok {
		has |= C.NBDKITGO_HAS_DEFAULT_EXPORT
	}
	return record(b, 'c', number(has)), nil
}
