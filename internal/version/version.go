// SPDX-License-Identifier: MIT

// Package version owns the version of swiftnbd. The plugin and the command line
// tools take it from here.
package version

// devel is the version of sources that are from git and not from a tarball.
const devel = "devel"

// Version is the release this binary was built from, such as "0.20.0". The
// Makefile, whose VERSION variable is the only place where the number is kept,
// sets it at link time with -X. A tarball has a release.go beside this file, which
// scripts/dist.sh makes, and in which the version is that of the tarball. So plain
// `go build` says "devel" of sources from git only.
var Version = devel
