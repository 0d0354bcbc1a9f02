#!/bin/bash
# SPDX-License-Identifier: MIT
# systemd-image.sh FILE: makes FILE, a tar archive of a small Debian 12 with systemd
# and nbdkit. The test of the units boots it in qemu (tests/boot). If FILE is there
# already, the script does nothing. It takes some minutes, and needs root.
set -eu
[ $# = 1 ] || { echo "usage: $0 FILE" >&2; exit 2; }
[ ! -e "$1" ] || exit 0
mkdir -p "$(dirname "$1")"
trap 'rm -f "$1.new.tar"' EXIT
mmdebstrap --variant=essential --include=systemd-sysv,udev,nbdkit,e2fsprogs,mount,kmod,procps \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$1.new.tar"
mv "$1.new.tar" "$1"
