// SPDX-License-Identifier: MIT

// Package version owns the version of swiftnbd. The plugin and the command line
// tools take it from here.
package version

// Version is the release this binary was built from, such as "0.20.0". The
// Makefile, whose VERSION variable is the only place where the number is kept,
// sets it at link time with -X; a binary built by plain `go build` says "devel".
var Version = "devel"
