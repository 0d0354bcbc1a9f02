#!/bin/bash
# SPDX-License-Identifier: MIT
# rgw.sh: runs a Ceph of one node with its Swift gateway (RGW) on loopback, as
# plain processes with one private directory. Objects are in memory. It needs no
# systemd, no /etc/ceph and no /var/lib/ceph. It needs root only to install the
# packages.
#
#   rgw.sh install        install the packages (root)
#   rgw.sh up             make a new, empty cluster and start it, unless it runs
#   rgw.sh down           stop; the objects are lost, the logs stay
#   rgw.sh wipe           stop and remove the directory
#   rgw.sh status         print one line for each process; exit 1 if one is down
#   rgw.sh env            print ST_* and SWIFTNBD_TEST_RGW_* to eval
#   rgw.sh admin ARG...   run radosgw-admin on this cluster
#
# Settings (environment):
#   RGW_DIR     state directory           ($TMPDIR/swiftnbd-rgw-$UID)
#   RGW_PORT    the gateway's port; +1 and +2 are the monitor's (the last port of
#               the directory, or else three free ports in a row from 37480 on)
#   RGW_LOG     debug level of the gateway (0); 20 shows each step of a request
#
# The user is test:tester with the key testing, as on saio.sh.
set -eu
SELF=$(cd "$(dirname "$0")" && pwd)
DIR=${RGW_DIR:-${TMPDIR:-/tmp}/swiftnbd-rgw-$(id -u)}
PROCESSES=(radosgw ceph-osd ceph-mgr ceph-mon) # in the order in which they stop
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY CEPH_ARGS CEPH_CONF CEPH_KEYRING || true

free() { # port -> 0 if nothing listens there
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
choose_port() { # prints the first of three free ports in a row
  local base
  for base in $(seq 37480 4 38476); do
    if free "$base" && free $((base+1)) && free $((base+2)); then
      echo "$base"
      return
    fi
  done
  echo "rgw: no three free ports in a row from 37480 to 38479; set RGW_PORT" >&2
  return 1
}
# Holds this user's lock on the choice of ports, which saio.sh takes too. Without
# it two that start at once find the same ports free. Who chooses passes over a row
# of which any port is taken, so the lock is held until the monitor listens.
# What is started meanwhile must not inherit the descriptor.
lock_ports() {
  exec 8>>"/tmp/swiftnbd-ports-$(id -u).lock"
  flock -n 8 || { echo "rgw: waiting for another start" >&2; flock 8; }
}
unlock_ports() { exec 8>&-; }
ports() {
  P=${RGW_PORT:-}
  if [ -z "$P" ] && [ -e "$DIR/port" ]; then P=$(cat "$DIR/port"); fi
  if [ -z "$P" ]; then P=$(choose_port); fi
}

alive() { # name -> 0 if the pid file names a live process of ours
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$DIR/"
}
all_alive() {
  local n
  for n in "${PROCESSES[@]}"; do alive "$n" || return 1; done
}
start() { # name argument...: the command line mentions $DIR/, by which alive knows it
  local name=$1; shift
  setsid "$name" -c "$DIR/ceph.conf" -f "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 8>&- &
  echo $! >"$DIR/run/$name.pid"
}
down() { # a zombie counts as gone (its cmdline is empty)
  local n i
  for n in "${PROCESSES[@]}"; do
    # Nothing is worth keeping, and a monitor without its OSD takes long to leave.
    if alive "$n"; then kill -KILL "$(cat "$DIR/run/$n.pid")" 2>/dev/null || true; fi
  done
  for n in "${PROCESSES[@]}"; do
    for i in $(seq 100); do alive "$n" || break; sleep 0.05; done
    rm -f "$DIR/run/$n.pid"
  done
  rm -rf "$DIR"/{mon,mgr,osd,rgw,keyring,monmap,ceph.conf}
}
fail() { # name: says that it did not come up, with its last words
  echo "rgw: $1 did not come up; see $DIR/log/" >&2
  tail -qn 5 "$DIR/log/$1.log" "$DIR/log/$1.out" >&2 || true
  return 1
}

config() { # the monitor's keyring has every key from the start: radosgw does not come up without cephx
  local n
  mkdir -p "$DIR"/{mon,mgr,osd,rgw,run,log}
  rm -rf "$DIR"/log/*
  echo "$P" >"$DIR/port"
  FSID=$(cat /proc/sys/kernel/random/uuid)
  cat >"$DIR/ceph.conf" <<X
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$((P+1)),v1:127.0.0.1:$((P+2))]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
keyring = $DIR/keyring
run dir = $DIR/run
pid file =
admin socket = $DIR/run/\$name.\$pid.asok
log file =
log to stderr = true
mon cluster log file =
crash dir = $DIR/log
# One copy on one device, and no balancing.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
# A change of the maps need not wait for the next; the gateway's start makes many.
paxos propose interval = 0.05
paxos min wait = 0.01
mon osd min up ratio = 0
osd objectstore = memstore
memstore device bytes = 4294967296
osd data = $DIR/osd
mon data = $DIR/mon
mgr data = $DIR/mgr
rgw data = $DIR/rgw
rgw frontends = beast endpoint=127.0.0.1:$P
rgw swift account in url = true
rgw dynamic resharding = false
rgw enable usage log = false
debug rgw = ${RGW_LOG:-0}
X
  ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
  for n in client.admin osd.0 mgr.x client.rgw.a; do
    ceph-authtool "$DIR/keyring" --gen-key -n "$n" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
  done
  monmaptool --create --fsid "$FSID" --addv a "[v2:127.0.0.1:$((P+1)),v1:127.0.0.1:$((P+2))]" "$DIR/monmap" >/dev/null
}
admin() { radosgw-admin -c "$DIR/ceph.conf" "$@"; }
cluster() { timeout 60 ceph -c "$DIR/ceph.conf" "$@" >>"$DIR/log/setup.log" 2>&1; }

up() {
  local i osd
  down
  for i in "$P" $((P+1)) $((P+2)); do
    free "$i" || { echo "rgw: port $i is taken; see RGW_PORT, or wipe $DIR" >&2; return 1; }
  done
  config
  ceph-mon -c "$DIR/ceph.conf" --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring" >>"$DIR/log/setup.log" 2>&1
  start ceph-mon -i a
  start ceph-mgr -i x
  osd=$(cat /proc/sys/kernel/random/uuid)
  cluster osd new "$osd" || { fail ceph-mon; return 1; } # waits for the monitor
  unlock_ports
  ceph-osd -c "$DIR/ceph.conf" -i 0 --mkfs --osd-uuid "$osd" >>"$DIR/log/setup.log" 2>&1
  start ceph-osd -i 0
  start radosgw -n client.rgw.a # it waits for the OSD itself
  for i in $(seq 1200); do
    if curl -s --noproxy '*' -o /dev/null "http://127.0.0.1:$P/"; then break; fi
    all_alive || break
    sleep 0.1
  done
  for i in "${PROCESSES[@]}"; do alive "$i" || { fail "$i"; return 1; }; done
  {
    admin user create --uid test --display-name test
    admin subuser create --uid test --subuser test:tester --access full --key-type swift --secret testing
  } >>"$DIR/log/setup.log" 2>&1 || { fail radosgw; return 1; }
  if ! curl -sf --noproxy '*' -o /dev/null "http://127.0.0.1:$P/auth/v1.0" -H 'X-Auth-User: test:tester' -H 'X-Auth-Key: testing'; then
    echo "rgw: the gateway does not let test:tester in; see $DIR/log/" >&2
    return 1
  fi
}
envout() {
  local auth=http://127.0.0.1:$P/auth/v1.0
  cat <<X
export ST_AUTH=$auth ST_USER=test:tester ST_KEY=testing
export SWIFTNBD_TEST_RGW_AUTH=$auth SWIFTNBD_TEST_RGW_USER=test:tester SWIFTNBD_TEST_RGW_KEY=testing
X
}

cmd=${1:-status}; shift || true
case $cmd in
  admin) ;;
  *) [ $# = 0 ] || { echo "rgw: unknown $1" >&2; exit 2; };;
esac
case $cmd in
  install) "$SELF/deps.sh" install rgw;;
  up) lock_ports
    ! all_alive || exit 0
    ports
    UP=0
    trap '[ $UP = 1 ] || down' EXIT
    up
    UP=1;;
  down) down;;
  wipe) down; rm -rf "$DIR";;
  env) ports; envout;;
  admin) admin "$@";;
  status) rc=0
    for n in "${PROCESSES[@]}"; do
      if alive "$n"; then echo "$n up pid $(cat "$DIR/run/$n.pid")"; else echo "$n down"; rc=1; fi
    done; exit $rc;;
  *) sed -n '3,24p' "$0" >&2; exit 2;;
esac
