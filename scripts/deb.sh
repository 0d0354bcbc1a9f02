#!/bin/bash
# SPDX-License-Identifier: MIT
# deb.sh: Debian packages of the tarball that make dist has made.
#
#   scripts/deb.sh build VERSION   does the work of make deb: dist/*.deb and the source package
#   scripts/deb.sh check VERSION   does the work of make check-deb, as root:
#     lintian    has nothing to say against the packages
#     chroot     a fresh Debian 12 installs them, sets up a disk in the embedded
#                Swift, serves it, and copies data to it and back
#     container  the image of scripts/container/Containerfile serves it, too,
#                as a user that is not root
#     rpm        rpmlint has nothing to say against the spec file, and an RPM
#                comes of it (built on Debian, with Debian's names of files)
set -eu
cd "$(dirname "$0")/.."
command=${1-} version=${2-}
[ -n "$version" ] || { sed -n '5,15p' "$0" >&2; exit 2; }
dist=$PWD/dist
tarball=$dist/swiftnbd-$version.tar.gz

step() { printf '\n* %s\n' "$*"; }

build() {
  local work=build/deb debs
  rm -rf $work
  mkdir -p $work
  cp "$tarball" "$work/swiftnbd_$version.orig.tar.gz"
  tar -x -f "$tarball" -C $work
  cp -R "$work/swiftnbd-$version/scripts/debian" "$work/swiftnbd-$version/debian"
  (
    cd "$work/swiftnbd-$version"
    debian/copyright.sh
    # With a cache of its own the build knows nothing of what was built before.
    # The network is away, so that a download is an error; only root can take it.
    export GOCACHE=${SWIFTNBD_DEB_GOCACHE:-$PWD/../go-cache}
    unset GOFLAGS MAKEFLAGS MFLAGS MAKELEVEL
    away=()
    if [ "$(id -u)" = 0 ] && unshare -n true 2>/dev/null; then away=(unshare -n); fi
    # -d: Go need not be Debian's.
    "${away[@]}" dpkg-buildpackage -us -uc -d
  )
  rm -rf "$work/go-cache"
  mkdir -p dist
  rm -f dist/*.deb dist/*.dsc dist/*.changes dist/*.buildinfo dist/*.debian.tar.xz dist/*.orig.tar.gz
  debs=("$work"/*.deb)
  [ -e "${debs[0]}" ] || { echo 'deb.sh: there is no package' >&2; return 1; }
  mv "$work"/*.deb "$work"/*.dsc "$work"/*.changes "$work"/*.buildinfo "$work"/*.debian.tar.xz "$work"/*.orig.tar.gz dist/
  rm -rf $work
  ls -l dist
}

work='' swift_pid='' image=''
clean_up() {
  local status=$?
  trap - EXIT
  if [ -n "$swift_pid" ]; then
    kill "$swift_pid" 2>/dev/null || true
    wait "$swift_pid" 2>/dev/null || true
  fi
  if [ -n "$image" ]; then buildah_ rmi -f -a >/dev/null 2>&1 || true; fi
  if [ -n "$work" ]; then
    umount "$work/root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
  fi
  [ $status = 0 ] || echo "deb.sh: failed (status $status)" >&2
  exit $status
}

# buildah_ keeps its images in our directory, and uses no file system of the
# kernel for them.
buildah_() {
  buildah --root "$work/containers" --runroot "$work/containers.run" --storage-driver vfs "$@"
}

# use_it COMMAND...: what a user does with the packages. COMMAND runs a shell
# script where they are installed; there, /tmp/x is $work/x.
use_it() { # NAME COMMAND...
  local name=$1
  shift
  "$@" "set -eux
    swiftnbd-ctl --secrets /tmp/x/secrets.conf setup $name --size 16M
    nbdkit -U - swift $name secrets=/tmp/x/secrets.conf --run 'nbdcopy --flush /tmp/x/image \"\$uri\"'
    nbdkit -U - swift $name secrets=/tmp/x/secrets.conf --run 'nbdcopy \"\$uri\" /tmp/x/copy-$name'
    swiftnbd-ctl --secrets /tmp/x/secrets.conf list"
  cmp "$work/x/image" "$work/x/copy-$name"
}

check() {
  local url package pages
  step 'lintian'
  lintian --allow-root --fail-on error,warning "$dist/swiftnbd_$version"-*.changes

  work=$(mktemp -d "${TMPDIR:-/tmp}/swiftnbd-deb.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  mkdir -m 777 "$work/x"

  step 'The embedded Swift'
  build/swiftdev --listen 127.0.0.1:0 >"$work/swiftdev" 2>&1 &
  swift_pid=$!
  url=''
  while [ -z "$url" ]; do # it prints its address, or ends
    kill -0 "$swift_pid"
    sleep 0.1
    url=$(grep -m 1 '^http://' "$work/swiftdev") || true
  done
  for package in chroot container; do
    printf '[%s]\nauthurl = %s\nusername = test:tester\npassword = testing\n' $package "$url"
  done >"$work/x/secrets.conf"
  chmod 644 "$work/x/secrets.conf" # of a Swift for tests; the container's user must read it
  head -c 16777216 /dev/urandom >"$work/x/image"

  step 'A fresh Debian 12 that installs the packages'
  # libnbd-bin is the client.
  mmdebstrap --quiet --variant=minbase --include=libnbd-bin bookworm "$work/root" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
  mkdir "$work/root/debs"
  cp "$dist"/*.deb "$work/root/debs/"
  rm -f "$work"/root/debs/*-dbgsym_*
  mount -t proc proc "$work/root/proc"
  cp /etc/resolv.conf "$work/root/etc/"
  chroot "$work/root" sh -ec 'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends /debs/*.deb'
  pages=$(chroot "$work/root" dpkg -L nbdkit-plugin-swift swiftnbd)
  for package in /usr/bin/swiftnbd-ctl /usr/bin/swiftnbd-server /usr/share/man/man1/nbdkit-swift-plugin.1.gz \
    /usr/share/man/man1/swiftnbd-ctl.1.gz /usr/share/bash-completion/completions/swiftnbd-ctl \
    /usr/share/doc/nbdkit-plugin-swift/examples/secrets.conf.example; do
    grep -qx "$package" <<<"$pages" || { echo "deb.sh: the packages lack $package" >&2; return 1; }
  done
  mkdir "$work/root/tmp/x"
  mount --bind "$work/x" "$work/root/tmp/x"
  use_it chroot chroot "$work/root" sh -c || { umount "$work/root/tmp/x"; return 1; }
  umount "$work/root/tmp/x"
  chroot "$work/root" sh -ec 'apt-get purge -y -q nbdkit-plugin-swift swiftnbd; ! command -v swiftnbd-ctl'
  umount "$work/root/proc"

  step 'The container'
  # There may be no way to a registry: the base image is the Debian of above.
  rm -rf "$work/root/debs"
  image=yes
  tar -C "$work/root" -c . | gzip -1 >"$work/base.tar.gz"
  rm -rf --one-file-system "$work/root"
  local base
  base=$(buildah_ from scratch)
  buildah_ add -q "$base" "$work/base.tar.gz" /
  buildah_ commit -q "$base" localhost/debian:12
  buildah_ rm "$base" >/dev/null
  buildah_ build -q --isolation chroot --network host --pull-never --build-arg BASE=localhost/debian:12 \
    -t localhost/swiftnbd -f "$PWD/scripts/container/Containerfile" dist
  base=$(buildah_ from --pull-never localhost/swiftnbd)
  [ "$(buildah_ run --isolation chroot "$base" -- id -u)" != 0 ] || { echo 'deb.sh: the container runs as root' >&2; return 1; }
  use_it container buildah_ run --isolation chroot --network host -v "$work/x:/tmp/x" "$base" -- sh -c

  step 'The RPM'
  rpmlint --strict --config scripts/rpm/rpmlint.toml scripts/rpm/swiftnbd.spec
  mkdir -p "$work/rpm/SOURCES"
  cp "$tarball" "$work/rpm/SOURCES/"
  rpmbuild --define "_topdir $work/rpm" --define "_tmppath $work" --nodeps --quiet -bb scripts/rpm/swiftnbd.spec
  rpmlint --strict --config scripts/rpm/rpmlint.toml "$work"/rpm/RPMS/*/*.rpm
  printf '\nAll of it worked.\n'
}

case $command in
  build) build ;;
  check)
    [ "$(id -u)" = 0 ] || { echo 'deb.sh: only root can make a chroot' >&2; exit 1; }
    scripts/deps.sh install build quickstart deb check-deb
    make -s all dist deb
    check
    ;;
  *) sed -n '5,15p' "$0" >&2; exit 2 ;;
esac
