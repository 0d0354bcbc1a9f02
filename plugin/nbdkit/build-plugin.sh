#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds an nbdkit plugin in Go for the late start, and looks at what came out.
# usage: build-plugin.sh OUTPUT.so PACKAGE_DIR [GO_BUILD_FLAG...]
# GO_LDFLAGS in the environment holds further flags for go build's -ldflags,
# such as '-X main.version=1.0': a -ldflags of your own would replace ours.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: $0 OUTPUT.so PACKAGE_DIR [GO_BUILD_FLAG...]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case $1 in
    /*) out=$1 ;;
    *) out=$PWD/$1 ;;
esac
package=$2
shift 2

# -extldflags is split at spaces, whatever the quotes.
case $here in
    *[[:space:]\'\"]*)
        tmp=$(mktemp -d)
        trap 'rm -rf "$tmp"' EXIT
        ln -s "$here" "$tmp/nbdkit"
        here=$tmp/nbdkit
        ;;
esac

cd -- "$package"
go build -buildmode=c-shared -o "$out" \
    -ldflags "${GO_LDFLAGS-} -extldflags '-Wl,-T,$here/goinit.ld -Wl,--version-script=$here/plugin.map -Wl,-z,nodelete'" \
    "$@" .
rm -f "${out%.so}.h"            # of no use to nbdkit

# A linker that did not follow goinit.ld (gold does not) leaves the section out
# or empty; Go would then start too early, and nbdkit hang in the background.
fail () {
    echo "$0: $out: $1" >&2
    rm -f "$out"
    exit 1
}
size=$(readelf -SW "$out" | sed -n 's/^ *\[ *[0-9]*\] go_init  *[A-Z_]*  *[0-9a-f]*  *[0-9a-f]*  *\([0-9a-f]*\) .*/\1/p')
case $size in
    000008 | 000004) ;;
    '') fail "no go_init section: link with GNU ld or lld" ;;
    *) fail "go_init holds $size bytes (hex) and not one pointer" ;;
esac
readelf -dW "$out" | grep -q NODELETE || fail "not linked with -z nodelete"
readelf --dyn-syms -W "$out" | grep -q ' plugin_init$' || fail "plugin_init is not exported"
