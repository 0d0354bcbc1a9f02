// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"libguestfs.org/nbdkit"

	"swiftnbd/internal/device"
	"swiftnbd/internal/metrics"
)

// The ways to show the counters: to Prometheus, every second with -D
// swift.cache=1, and at the end with -v.

// summary logs the counters.
func summary(m *metrics.Metrics) {
	var b strings.Builder
	if err := m.Summary(&b); err != nil {
		nbdkit.Debugf("counters: %v", err)
	}
	for line := range strings.Lines(b.String()) {
		nbdkit.Debug(strings.TrimSuffix(line, "\n"))
	}
}

// report logs what the cache does, every second in which something changed,
// until the device is closed.
func report(name string, d *device.Device) {
	defer recovered()
	var last string
	for d.Open() {
		s := d.Stats()
		dirty, chunks := d.Dirty()
		line := fmt.Sprintf("used=%d dirty=%d chunks=%d hits=%d misses=%d fetches=%d fills=%d ahead=%d uploads=%d deletes=%d failures=%d evicted=%d flushes=%d",
			s.Used, dirty, chunks, s.Hits, s.Misses, s.Fetches, s.Fills, s.Ahead,
			s.Uploads, s.Deletes, s.Failures, s.Evicted, s.Flushes)
		if line != last {
			nbdkit.Debugf("%s: cache: %s", name, line)
			last = line
		}
		time.Sleep(time.Second)
	}
}

// goLogged runs f in a goroutine. A panic there is logged and does not end
// nbdkit.
func goLogged(f func()) {
	go func() {
		defer recovered()
		f()
	}()
}

// recovered is deferred at the top of every goroutine of the plugin.
func recovered() {
	if r := recover(); r != nil {
		nbdkit.Errorf("panic: %v\n%s", r, debug.Stack())
	}
}
