// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// suite is one run of the program: what it has started, and what it found.
type suite struct {
	options
	ctx    context.Context
	dir    string // for sockets and secrets; removed at the end
	serial int    // for names

	clouds  map[string]*swiftServer
	disks   map[diskKey]*disk
	peers   map[int64]*peerDisk // by object size
	results []result
	// busyRuns are the runs of the jobs that two lines report.
	busyRuns   map[busyKey][]busyRun
	besides    []besideRuns // of the lines about readers
	momentRuns []momentsRun // of those about snapshots
	largest    *largeDisk   // of those about differences
	tarball    string       // of the source tree, once made
	closers    []func() error
}

func newSuite(ctx context.Context, o options) (*suite, error) {
	plugin, err := filepath.Abs(filepath.Join(o.build, "nbdkit-swift-plugin.so"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(plugin); err != nil {
		return nil, fmt.Errorf("%w: run make first, in the project's directory", err)
	}
	// nbdkit's socket has to have a short name.
	dir, err := os.MkdirTemp("", "swiftnbd-b")
	if err != nil {
		return nil, err
	}
	s := &suite{options: o, ctx: ctx, dir: dir, clouds: make(map[string]*swiftServer), disks: make(map[diskKey]*disk), peers: make(map[int64]*peerDisk)}
	s.atEnd(func() error { return os.RemoveAll(dir) })
	return s, nil
}

// atEnd has f called when the suite is closed, in reverse order.
func (s *suite) atEnd(f func() error) { s.closers = append(s.closers, f) }

func (s *suite) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// path returns a new name in the suite's directory.
func (s *suite) path(name string) string {
	s.serial++
	return filepath.Join(s.dir, fmt.Sprintf("%d-%s", s.serial, name))
}

func (s *suite) logf(format string, args ...any) {
	if s.verbose {
		fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	}
}

// chosen says whether a line of this name is to be measured.
func (s *suite) chosen(name string) bool {
	if len(s.only) == 0 {
		return true
	}
	for _, p := range s.only {
		if name == p || strings.HasPrefix(name, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return false
}

// scaled multiplies an amount by --scale and rounds it to whole units.
func (s *suite) scaled(n, unit int64) int64 {
	return max(1, int64(float64(n)*s.scale)/unit) * unit
}

// sizeName writes 65536 as 64K.
func sizeName(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return fmt.Sprint(n)
}
