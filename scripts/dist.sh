#!/bin/bash
# SPDX-License-Identifier: MIT
# dist.sh VERSION: does the work of `make dist`. It packs the committed files and
# the modules that go.mod names, in vendor/, into dist/swiftnbd-VERSION.tar.gz.
# The same commit gives the same bytes.
set -eu
cd "$(dirname "$0")/.."
version=$1
name=swiftnbd-$version
mkdir -p dist
work=$(mktemp -d "${TMPDIR:-/tmp}/swiftnbd-dist.XXXXXX")
trap 'rm -rf "$work"' EXIT
git archive --prefix="$name/" HEAD | tar -x -C "$work"
(cd "$work/$name" && GOFLAGS=-mod=mod go mod vendor)
tar -C "$work" --sort=name --mtime="@$(git log -1 --format=%ct)" --owner=0 --group=0 --numeric-owner --mode=go+rX,go-w \
  -cf - "$name" | gzip -9n >"dist/$name.tar.gz.new"
mv "dist/$name.tar.gz.new" "dist/$name.tar.gz"
