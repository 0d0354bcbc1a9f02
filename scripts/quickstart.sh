#!/bin/bash
# SPDX-License-Identifier: MIT
# quickstart.sh: does the work of `make quickstart`. It installs what is missing,
# builds, and starts the embedded Swift. It copies a real file system onto a disk
# there and back, and compares the two. It always cleans up, even if it fails or
# is interrupted. It writes only to build/ and to a temporary directory.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin # mke2fs and e2fsck
# Ignore variables that the user has set for another Swift.
for v in $(env | sed -n 's/^\(\(OS\|ST\)_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done

step() { printf '\n* %s\n' "$*"; }
run() { # COMMAND...: shows it, as one would type it, and runs it
  local word line='  $'
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=,-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "$line"
  "$@"
}

work='' swift_pid=''
clean_up() {
  local status=$?
  trap - EXIT
  if [ -n "$swift_pid" ]; then
    kill "$swift_pid" 2>/dev/null || true
    wait "$swift_pid" 2>/dev/null || true
  fi
  [ -z "$work" ] || rm -rf "$work"
  [ $status = 0 ] || echo "quickstart: failed (status $status)" >&2
  exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step 'What is needed'
scripts/deps.sh install quickstart
nbdkit --version

step 'Building'
run make -s all

work=$(mktemp -d "${TMPDIR:-/tmp}/swiftnbd-quickstart.XXXXXX")
plugin=build/nbdkit-swift-plugin.so ctl=build/swiftnbd-ctl
secrets=$work/secrets.conf

step 'Starting swiftdev, an OpenStack Swift in one process, in memory'
build/swiftdev --listen 127.0.0.1:0 >"$work/swiftdev" 2>&1 &
swift_pid=$!
authurl=''
for _ in $(seq 100); do
  authurl=$(grep -m 1 '^http://' "$work/swiftdev") && break
  kill -0 "$swift_pid" 2>/dev/null || break
  sleep 0.1
done
[ -n "$authurl" ] || { cat "$work/swiftdev" >&2; echo 'quickstart: swiftdev did not start' >&2; exit 1; }
echo "  $authurl"

step 'Setting a container up as a disk'
(umask 077 && cat >"$secrets" <<EOF
[mydisk]
authurl = $authurl
username = test:tester
password = testing
EOF
)
sed 's/^/  | /' "$secrets"
run "$ctl" --secrets "$secrets" setup mydisk --size 64M

step 'Making an ext4 file system with content in an image'
mkdir "$work/content"
cp -R scripts internal Makefile go.mod "$work/content/"
head -c 8388608 /dev/urandom >"$work/content/random"
export IMAGE=$work/image COPY=$work/copy
run mke2fs -q -t ext4 -d "$work/content" "$IMAGE" 64M

step 'Copying it onto the disk: nbdkit serves, nbdcopy is its client'
# shellcheck disable=SC2016 # for the shell that nbdkit starts, with $uri set
run nbdkit -U - "$plugin" mydisk "secrets=$secrets" --run 'nbdcopy --flush "$IMAGE" "$uri" && nbdinfo "$uri"'

step 'Copying it back, through another nbdkit'
# shellcheck disable=SC2016 # as above
run nbdkit -U - "$plugin" mydisk "secrets=$secrets" --run 'nbdcopy "$uri" "$COPY"'

step 'Comparing'
run cmp "$IMAGE" "$COPY"
run e2fsck -f -n "$COPY"

step 'What is in Swift'
run "$ctl" --secrets "$secrets" list

cat <<EOF

All of it worked; swiftdev and what it held go now. Next, with a Swift of yours:
  sudo make install                  the plugin into nbdkit's directory, swiftnbd-ctl
  sudo mkdir -m 700 /etc/swiftnbd    then write /etc/swiftnbd/secrets.conf as above
  swiftnbd-ctl setup mydisk --size 10G
  nbdkit -i 127.0.0.1 swift mydisk   and then, as root, nbd-client 127.0.0.1 /dev/nbd0
  make check                         all the tests
EOF
