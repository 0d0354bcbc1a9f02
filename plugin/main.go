// SPDX-License-Identifier: MIT

// Command plugin is nbdkit-swift-plugin.so. It turns nbdkit's callbacks into
// requests of a device. It reads the parameters and checks before nbdkit forks
// that they can work. It finds the export that a client asks for, and translates
// errors into errnos. The packages below it know what a disk in Swift is.
package main

/*
extern int swift_debug_cache, swift_debug_store, swift_debug_lock;
*/
import "C"

import (
	"fmt"
	"os"
	"runtime/debug"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/version"
	"swiftnbd/internal/volume"
)

func init() { nbdkit.Register("swift", new(plugin)) }

// main is never called: nbdkit loads the plugin as a library.
func main() {}

// plugin is the plugin's global half.
type plugin struct {
	nbdkit.Plugin
	params  params
	exports *exports // from AfterFork on
}

func (*plugin) Version() string        { return version.Version }
func (*plugin) LongName() string       { return "nbdkit swift plugin" }
func (*plugin) MagicConfigKey() string { return "container" }
func (*plugin) ThreadModel() uint32    { return nbdkit.ThreadModelParallel }

func (*plugin) Description() string {
	return "Serve a disk that is kept in OpenStack Object Storage (Swift)."
}

func (*plugin) ConfigHelp() string { return configHelp() }

func (*plugin) DumpPlugin() {
	fmt.Printf("swift_version=%s\n", version.Version)
	fmt.Printf("swift_volume_format=%d\n", volumeFormat)
	fmt.Printf("swift_volume_formats=%d %d\n", volume.Version1, volume.Version2)
	fmt.Printf("swift_auth=v1 v2 v3password v3applicationcredential v3token v3trust clouds.yaml\n")
}

// Config takes one parameter. It only records and checks its form: nothing is
// read before Preflight.
func (p *plugin) Config(key, value string) error { return p.params.set(key, value) }

// Preflight finds out what would fail later, while the user still sees errors
// and nbdkit has the privileges with which it was started.
func (p *plugin) Preflight() ([]byte, error) {
	// Before all that takes time: that it cannot be opened is soon found.
	counters, err := openMetrics(p.params.metrics)
	if err != nil {
		return nil, err
	}
	state, err := preflight(&p.params)
	if err == nil {
		err = counters.pass()
	}
	if err != nil {
		counters.remove()
	}
	return state, err
}

// AfterFork begins to serve, with the results of Preflight.
func (p *plugin) AfterFork() error {
	e, err := newExports(&p.params, nbdkit.PreflightState(), os.Getenv)
	if err != nil {
		return err
	}
	p.exports = e
	// All large memory is outside Go's heap. The rest is garbage of requests.
	// It is collected sooner than Go would collect it by default.
	debug.SetGCPercent(40)
	if p.params.container == "" {
		goLogged(e.watch)
	}
	serveMetrics(e.metrics, p.params.metrics)
	if err := onStop(func() { e.closeAll(false); tellClosed() }); err != nil {
		nbdkit.Errorf("signals cannot be caught: %v: at SIGTERM, what is dirty is written when the last client has left, and not before", err)
	}
	return nil
}

// Cleanup closes the disks whose clients have not closed them: it writes back
// their data and gives back their leases.
func (p *plugin) Cleanup() {
	if p.exports != nil {
		p.exports.closeAll(true)
		removeMetrics(p.params.metrics)
		summary(p.exports.metrics)
	}
}

func (p *plugin) ListExports(readonly, isTLS bool, list *nbdkit.Exports) error {
	for _, x := range p.exports.list() {
		if err := list.Add(x.name, x.description); err != nil {
			return err
		}
	}
	return nil
}

func (p *plugin) DefaultExport(readonly, isTLS bool) (string, error) {
	return p.exports.defaultName(), nil
}

func (p *plugin) Open(readonly bool) (nbdkit.ConnectionInterface, error) {
	name, err := nbdkit.ExportName()
	if err != nil {
		return nil, err
	}
	return p.exports.open(name, readonly)
}

func debugCache() bool { return C.swift_debug_cache != 0 }
func debugStore() bool { return C.swift_debug_store != 0 }
func debugLock() bool  { return C.swift_debug_lock != 0 }
