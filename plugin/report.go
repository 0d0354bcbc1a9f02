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

// What is shown of the counters: to Prometheus, every second with
// -D swift.cache=1, and at the end with -v.

// serveMetrics serves the counters at address, if there is one. Preflight has
// seen that it can be opened. If it cannot any more, the disk is served without:
// under --run nbdkit would hang on an error here.
func serveMetrics(m *metrics.Metrics, address string) {
	if address == "" {
		return
	}
	l, err := metrics.Listen(address)
	if err != nil {
		nbdkit.Errorf("metrics=%s: %v", address, err)
		return
	}
	goLogged(func() {
		if err := m.Serve(l); err != nil {
			nbdkit.Errorf("metrics=%s: %v", address, err)
		}
	})
}

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
		c := d.Cache()
		s := c.Stats()
		dirty, chunks := c.Dirty()
		line := fmt.Sprintf("used=%d dirty=%d chunks=%d hits=%d misses=%d fetches=%d fills=%d ahead=%d uploads=%d deletes=%d failures=%d evicted=%d flushes=%d",
			c.Used(), dirty, chunks, s.Hits.Load(), s.Misses.Load(), s.Fetches.Load(), s.Fills.Load(), s.Ahead.Load(),
			s.Uploads.Load(), s.Deletes.Load(), s.Failures.Load(), s.Evicted.Load(), s.Flushes.Load())
		if line != last {
			nbdkit.Debugf("%s: cache: %s", name, line)
			last = line
		}
		time.Sleep(time.Second)
	}
}

// goLogged runs f in a goroutine whose panic is logged, and is not nbdkit's end.
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
