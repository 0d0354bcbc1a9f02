#!/bin/bash
# SPDX-License-Identifier: MIT
# deps.sh: names or installs the Debian packages that a purpose needs. It looks
# for the programs and files themselves, not for packages.
#
#   scripts/deps.sh check PURPOSE...     name what is missing; exit 1 if something is
#   scripts/deps.sh install PURPOSE...   apt-get install what is missing (Debian, root)
#   scripts/deps.sh packages PURPOSE...  print the packages, one on each line
#
# Purposes:
#   build       make
#   quickstart  make quickstart (build, and nbdkit with its clients)
#   lint        make lint
#   bench       make bench
#   swift       scripts/saio.sh up
#   keystone    scripts/saio.sh up --keystone
#   rgw         scripts/rgw.sh up
#   deb         make deb
#   check-deb   make check-deb
#   recipes     make check-recipes (build, and the programs of docs/recipes)
#   check       make check (all of the above, and qemu for the kernel client)
set -eu
# nbd-client, mke2fs and e2fsck are in sbin, which a user's PATH may lack.
PATH=$PATH:/usr/sbin:/sbin

# needs PURPOSE: prints lines "PROBE PACKAGE", where PROBE is one of
# cmd:NAME (on the PATH), pc:MODULE (pkg-config knows it), file:PATH,
# py:MODULE (Debian's own Python can import it), go:VERSION (Go, that or newer;
# package "(none)", since Debian 12's own Go is older than we need).
needs() {
  case $1 in
    build) cat <<'EOF'
go:1.21 (none)
cmd:gcc gcc
file:/usr/include/stdlib.h libc6-dev
cmd:ld binutils
cmd:readelf binutils
cmd:pkg-config pkg-config
pc:nbdkit nbdkit-plugin-dev
cmd:pod2man perl
EOF
      ;;
    quickstart) needs build; cat <<'EOF'
cmd:nbdkit nbdkit
cmd:nbdcopy libnbd-bin
cmd:nbdinfo libnbd-bin
cmd:mke2fs e2fsprogs
cmd:e2fsck e2fsprogs
cmd:cmp diffutils
EOF
      ;;
    bench) needs quickstart; needs swift; cat <<'EOF'
cmd:fio fio
cmd:nbdfuse libnbd-bin
cmd:mkfs.ext4 e2fsprogs
file:/usr/lib/postgresql/15/bin/initdb postgresql-15
EOF
      ;;
    lint) needs build; cat <<'EOF'
cmd:shellcheck shellcheck
cmd:podchecker perl
EOF
      ;;
    swift) cat <<'EOF'
file:/usr/bin/python3 python3
py:swift.proxy.server python3-swift
cmd:memcached memcached
cmd:swift python3-swiftclient
cmd:curl curl
cmd:ps procps
cmd:setsid util-linux
EOF
      ;;
    keystone) needs swift; cat <<'EOF'
py:keystone python3-keystone
py:keystonemiddleware python3-keystonemiddleware
py:keystoneclient python3-keystoneclient
EOF
      ;;
    rgw) cat <<'EOF'
cmd:ceph-mon ceph-mon
cmd:ceph-osd ceph-osd
cmd:ceph-mgr ceph-mgr
cmd:ceph ceph-common
cmd:ceph-authtool ceph-common
cmd:monmaptool ceph-common
cmd:radosgw radosgw
cmd:radosgw-admin radosgw
cmd:curl curl
cmd:setsid util-linux
EOF
      ;;
    deb) cat <<'EOF'
cmd:dh debhelper
cmd:dpkg-buildpackage dpkg-dev
cmd:fakeroot fakeroot
EOF
      ;;
    check-deb) cat <<'EOF'
cmd:lintian lintian
cmd:mmdebstrap mmdebstrap
cmd:buildah buildah
cmd:rpmbuild rpm
cmd:rpmlint rpmlint
EOF
      ;;
    recipes) needs quickstart; cat <<'EOF'
cmd:nbdfuse libnbd-bin
cmd:fusermount3 fuse3
cmd:debugfs e2fsprogs
cmd:qemu-img qemu-utils
cmd:qemu-io qemu-utils
cmd:qemu-storage-daemon qemu-system-common
cmd:certtool gnutls-bin
cmd:psktool gnutls-bin
cmd:sfdisk fdisk
cmd:qemu-system-x86_64 qemu-system-x86
file:/bin/busybox busybox-static
cmd:dpkg-deb dpkg
cmd:depmod kmod
cmd:nbd-client nbd-client
cmd:fstrim util-linux
cmd:mkfs.ext4 e2fsprogs
cmd:mkfs.xfs xfsprogs
cmd:mkfs.btrfs btrfs-progs
cmd:lvcreate lvm2
cmd:cryptsetup cryptsetup-bin
cmd:lsblk util-linux
cmd:rsync rsync
cmd:restic restic
cmd:sqlite3 sqlite3
file:/usr/lib/postgresql/15/bin/initdb postgresql-15
cmd:mmdebstrap mmdebstrap
cmd:mkfs.vfat dosfstools
cmd:mcopy mtools
cmd:syslinux syslinux
file:/usr/lib/SYSLINUX/mbr.bin syslinux
cmd:guestfish guestfish
cmd:virt-cat guestfs-tools
cmd:supermin supermin
cmd:libvirtd libvirt-daemon
cmd:virsh libvirt-clients
cmd:virt-xml-validate libvirt-clients
cmd:xmllint libxml2-utils
EOF
      ;;
    check) needs quickstart; needs lint; needs keystone; needs rgw; cat <<'EOF'
file:/usr/bin/nbdsh python3-libnbd
cmd:nbdfuse libnbd-bin
cmd:fio fio
cmd:qemu-img qemu-utils
cmd:qemu-io qemu-utils
cmd:qemu-system-x86_64 qemu-system-x86
cmd:nbd-client nbd-client
file:/bin/busybox busybox-static
cmd:dpkg-deb dpkg
cmd:openssl openssl
py:openstack.config python3-openstacksdk
file:/usr/share/bash-completion/bash_completion bash-completion
cmd:prometheus prometheus
cmd:promtool prometheus
cmd:systemd-analyze systemd
EOF
      ;;
    *) echo "deps.sh: unknown purpose '$1'" >&2; exit 2 ;;
  esac
}

present() { # PROBE
  local have
  case $1 in
    # Go from 1.21 on fetches the toolchain that go.mod asks for by itself.
    go:*) have=$(go env GOVERSION 2>/dev/null) || return 1
      [ "$(printf '%s\n' 1.21 "${have#go}" | sort -V | head -n 1)" = 1.21 ] ;;
    cmd:*) command -v "${1#cmd:}" >/dev/null 2>&1 ;;
    pc:*) pkg-config --exists "${1#pc:}" 2>/dev/null ;;
    file:*) [ -e "${1#file:}" ] ;;
    py:*) PYTHONNOUSERSITE=1 /usr/bin/python3 -c \
      "import importlib.util as u, sys; sys.exit(not u.find_spec('${1#py:}'))" 2>/dev/null ;;
  esac
}

what() { # PROBE -> words for a person
  case $1 in
    go:*) echo "Go ${1#go:} or newer (Debian 12's own is too old: take the Go project's, or golang-go from backports)" ;;
    cmd:*) echo "the command '${1#cmd:}'" ;;
    pc:*) echo "the headers of ${1#pc:}" ;;
    file:*) echo "the file ${1#file:}" ;;
    py:*) echo "the Python module ${1#py:}" ;;
  esac
}

# missing PURPOSE...: the lines of needs that the machine does not meet.
missing() {
  local probe package purpose
  for purpose in "$@"; do needs "$purpose"; done | sort -u |
    while read -r probe package; do
      present "$probe" || echo "$probe $package"
    done
}

packages_of() { # LINES of needs -> their packages, each once
  cut -d' ' -f2 <<<"$1" | grep -v '^(none)$' | sort -u
}

check() {
  local lines probe package packages
  lines=$(missing "$@")
  [ -n "$lines" ] || return 0
  while read -r probe package; do
    case $package in
      '(none)') echo "missing: $(what "$probe")" >&2 ;;
      *) echo "missing: $(what "$probe"): Debian package $package" >&2 ;;
    esac
  done <<<"$lines"
  # The usual reason why Go is there and not found: sudo has a PATH of its own.
  if [ -n "${SUDO_USER:-}" ] && grep -q '^go:' <<<"$lines"; then
    # shellcheck disable=SC2016 # to be typed as it stands
    echo 'where Go is in your own PATH, pass that on: sudo env "PATH=$PATH" make ...' >&2
  fi
  mapfile -t packages < <(packages_of "$lines")
  [ ${#packages[@]} = 0 ] || echo "to install: apt-get install ${packages[*]}" >&2
  return 1
}

install() {
  local lines packages policy
  lines=$(missing "$@")
  [ -n "$lines" ] || return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    check "$@" || true
    echo "deps.sh: this is no Debian (there is no apt-get): install the above by hand" >&2
    return 1
  fi
  if [ "$(id -u)" != 0 ]; then
    check "$@" || true
    echo "deps.sh: only root can install packages: as root, type 'apt-get update', then the line above; then try again" >&2
    return 1
  fi
  # What no package brings comes first: nothing is installed in vain.
  if grep -q ' (none)$' <<<"$lines"; then check "$@"; return; fi
  mapfile -t packages < <(packages_of "$lines")
  echo "deps.sh: installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # memcached's package would start a service; ours is started by saio.sh only.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    # shellcheck disable=SC2064 # the value of now is meant
    trap "rm -f '$policy'" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  if ! get "${packages[@]}"; then
    echo "deps.sh: once more with new package lists: a new machine has none yet, or old ones"
    # An update that lacks one source of several is a failure too, but the
    # packages may be there all the same.
    apt-get update -q -o DPkg::Lock::Timeout=300 </dev/null || echo "deps.sh: apt-get update failed" >&2
    if ! get "${packages[@]}"; then
      echo "deps.sh: apt-get could not install what is missing; its own words are above" >&2
      return 1
    fi
  fi
  check "$@"
}

# get PACKAGE...: apt-get install them. It asks nothing: there may be nobody to
# answer. A machine that has just started may be busy with updates of its own,
# so it waits for dpkg's lock.
get() {
  apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" </dev/null
}

[ $# -ge 2 ] || { sed -n '3,18p' "$0" >&2; exit 2; }
command=$1
shift
case $command in
  check) check "$@" ;;
  install) install "$@" ;;
  packages) packages_of "$(for p in "$@"; do needs "$p"; done)" ;;
  *) sed -n '3,18p' "$0" >&2; exit 2 ;;
esac
