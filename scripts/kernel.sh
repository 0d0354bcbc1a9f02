#!/bin/bash
# SPDX-License-Identifier: MIT
# kernel.sh DIR: puts Debian's kernel in DIR (vmlinuz, modules/*.ko). The tests of
# the kernel's own NBD client and of the recipes boot it in qemu. The script
# installs nothing: it downloads the package and unpacks it. If the kernel is
# there already, it does nothing.
set -eu
[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1
# The last module that was added here is not in the directory of an older checkout.
[ ! -e "$dir/complete" ] || [ ! -e "$dir/modules/t10-pi.ko" ] || exit 0

mkdir -p "$dir"
new=$(mktemp -d "$dir/new.XXXXXX")
trap 'rm -rf "$new"' EXIT

find_package() { # the kernel package that linux-image-amd64 stands for now
  apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1
}
fetch() { # PACKAGE, into $new; _apt, apt's own user, cannot write there: one warning
  (cd "$new" && apt-get download "$1")
}

package=$(find_package)
if [ -z "$package" ] || ! fetch "$package"; then
  # No package lists, or old ones that name a kernel which has gone.
  apt-get update -q
  package=$(find_package)
  [ -n "$package" ] || { echo "$0: apt knows no package linux-image-amd64" >&2; exit 1; }
  fetch "$package"
fi
deb=("$new"/linux-image-*.deb)
dpkg-deb --fsys-tarfile "${deb[0]}" | tar -x -C "$new" --wildcards \
  './boot/vmlinuz-*' \
  './lib/modules/*/kernel/drivers/block/*' './lib/modules/*/kernel/drivers/virtio/*' \
  './lib/modules/*/kernel/drivers/net/virtio_net.ko*' './lib/modules/*/kernel/drivers/net/net_failover.ko*' \
  './lib/modules/*/kernel/net/core/*' './lib/modules/*/kernel/crypto/*' './lib/modules/*/kernel/lib/*' \
  './lib/modules/*/kernel/fs/ext4/*' './lib/modules/*/kernel/fs/jbd2/*' './lib/modules/*/kernel/fs/mbcache.ko*' \
  './lib/modules/*/kernel/fs/xfs/*' './lib/modules/*/kernel/fs/btrfs/*' './lib/modules/*/kernel/fs/overlayfs/*' \
  './lib/modules/*/kernel/fs/9p/*' './lib/modules/*/kernel/net/9p/*' './lib/modules/*/kernel/fs/netfs/*' \
  './lib/modules/*/kernel/fs/fscache/*' './lib/modules/*/kernel/fs/fuse/*' './lib/modules/*/kernel/drivers/md/*' \
  './lib/modules/*/kernel/arch/x86/crypto/*' './lib/modules/*/kernel/drivers/dax/*' \
  './lib/modules/*/kernel/drivers/scsi/*' './lib/modules/*/kernel/drivers/char/virtio_console.ko*' \
  './lib/modules/*/kernel/block/*' './lib/modules/*/kernel/fs/fat/*' './lib/modules/*/kernel/fs/nls/*'
mkdir -p "$dir/modules"
find "$new/lib" -name '*.ko' -exec mv -t "$dir/modules" {} +
[ -e "$dir/modules/nbd.ko" ] || { echo "$0: ${deb[0]##*/} has no uncompressed nbd.ko" >&2; exit 1; }
mv "$new"/boot/vmlinuz-* "$dir/vmlinuz"
echo "$package" >"$dir/complete"
