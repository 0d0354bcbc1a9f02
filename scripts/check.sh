#!/bin/bash
# SPDX-License-Identifier: MIT
# check.sh [STEP...]: does the work of `make check`.
#
# Without steps, it first installs the missing Debian packages. As another user
# than root it says what to type, and fails. Then it does all steps in this
# order. If a step fails, it goes on with the next one, and the summary at the
# end names the failed ones. With steps it installs nothing, and names what is
# missing.
#
# For the steps that need a real Swift, it starts one with Keystone (saio.sh) in
# a private directory, and stops it at the end. If SWIFTNBD_TEST_AUTH is set, it
# uses that Swift instead. The same is true of Ceph's gateway (rgw.sh) and
# SWIFTNBD_TEST_RGW_AUTH.
#
#   lint         gofmt, go vet, shellcheck, podchecker, staticcheck, govulncheck
#   build        make all, from sources as they are
#   unit         unit tests; the tests of the stores run on the embedded and on the
#                real Swift
#   race         those unit tests under the race detector that have several do
#                something at once, and do not take long with it
#   binding      tests of the nbdkit binding, which is a module of its own
#   quickstart   make quickstart
#   blackbox     tests/: all nbdkit modes, bad input, Keystone, a kernel client
# These steps run only if you name them:
#   golangci     golangci-lint, with the rules of .golangci.yml
#   race-all     all unit tests under the race detector, on both Swifts
#   fuzz         each fuzz target for FUZZTIME (10s)
set -eu
cd "$(dirname "$0")/.."
if [ -e vendor/modules.txt ]; then mod='vendor'; else mod='readonly'; fi
export GOFLAGS="-mod=$mod -buildvcs=false" # as in the Makefile

# The packages that have unit tests of their own, and the black-box ones.
unit_packages() { go list ./... | grep -v '/tests\(/\|$\)'; }
# What is the project's own: git's list, or in an unpacked tarball all files.
sources() {
  git ls-files 2>/dev/null || find . -name .git -prune -o -path ./build -prune -o -path ./dist -prune -o -path ./vendor -prune -o -type f -print
}
shell_scripts() {
  sources | while read -r f; do
    if [ -f "$f" ] && head -n 1 "$f" | grep -q '^#!.*sh'; then echo "$f"; fi
  done
}

step_lint() {
  local unformatted rc=0 f
  unformatted=$(sources | grep '\.go$' | xargs -r -d '\n' gofmt -l)
  if [ -n "$unformatted" ]; then
    printf 'not as gofmt writes it:\n%s\n' "$unformatted" >&2
    rc=1
  fi
  go vet ./... || rc=1
  (cd plugin/nbdkit && go vet ./...) || rc=1
  shell_scripts | xargs -r -d '\n' shellcheck || rc=1
  for f in plugin/*.pod ctl/*.pod; do
    [ ! -e "$f" ] || podchecker -warnings -warnings "$f" || rc=1
  done
  check_go || rc=1
  return $rc
}
# check_go runs staticcheck, and govulncheck where its database can be reached.
# scripts/lint/go.mod says which versions of them; Go gets and builds them, which
# takes about a minute the first time.
check_go() {
  local out rc=0
  (cd scripts/lint && go build -o ../../build/lint/ honnef.co/go/tools/cmd/staticcheck golang.org/x/vuln/cmd/govulncheck) || return 1
  build/lint/staticcheck ./... || rc=1
  (cd plugin/nbdkit && ../../build/lint/staticcheck ./...) || rc=1
  if ! out=$(build/lint/govulncheck ./... 2>&1); then
    if [[ $out == *'fetching vulnerabilities'* ]]; then
      echo 'govulncheck: not done: the database of vulnerabilities cannot be reached' >&2
    else
      printf '%s\n' "$out" >&2
      rc=1
    fi
  fi
  return $rc
}
# scripts/lint/golangci is a module apart: nobody who does not run this step gets
# its two hundred dependencies.
step_golangci() {
  (cd scripts/lint/golangci && go build -o ../../../build/lint/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint) || return 1
  build/lint/golangci-lint run ./...
}
step_build() { make all; }
step_unit() {
  real_swift || return 1
  real_rgw || return 1
  # Many tests wait more than they work.
  # shellcheck disable=SC2046 # one word a package
  go test -parallel 8 -timeout 20m $(unit_packages)
}
step_binding() { (cd plugin/nbdkit && go test -timeout 10m ./...); }
# What the race detector sees at every push. Under it a test takes several times as
# long, and all of them take an hour, so these are left to race-all: those that do
# one thing many times, with mostly one goroutine at work (they cut at every request,
# or do thousands of operations), those that need a real Swift, and of ctl what has
# no work beside its work. The models with many clients at once are in it.
RACE_NOT='^Test(Model[A-R]\w*|Cut|CloneCut|\w*EveryRequest\w*|ReplicasAway|CollectPaged|Reserve|FaultMatrix|FaultsThatLast|Rivals|Resident|Large\w*|Damage|Diff|Victims'
RACE_NOT+='|OnSwift\w*|\w*Real\w*|\w*RGW|\w*Keystone|\w*AppCred|LoginRateLimited|TokensThatLive\w*|FencedLate)$'
RACE_CTL='^Test(Attach|Bench|Delete(Log|Interrupted|Fails)|Download|Increment$|List|ProgressBar|Signals|Snapshot(Served|Interrupted)|Top|Upload(Bar|Full|Pipe|Resume|$)|VerifyChunks|WarningAboveTheBar)'
step_race() {
  local rc=0
  # shellcheck disable=SC2046 # one word a package
  go test -race -timeout 15m -skip "$RACE_NOT" $(unit_packages | grep -v '/ctl$\|/blockmap$\|/layout$') || rc=1
  go test -race -timeout 15m -run "$RACE_CTL" ./ctl || rc=1
  (cd plugin/nbdkit && go test -race -timeout 10m .) || rc=1
  return $rc
}
step_race-all() {
  real_swift || return 1
  real_rgw || return 1
  # shellcheck disable=SC2046
  go test -race -timeout 4h $(unit_packages)
}
step_quickstart() { make -s quickstart; }
step_blackbox() {
  real_swift || return 1
  real_rgw || return 1
  scripts/kernel.sh build/kernel || return 1
  # The tests wait more than they work, but several packages at once, each with a
  # Swift of its own, are too much for two cores.
  go test -count 1 -p 1 -parallel 4 -timeout 25m ./tests/... || return 1
  # What a client sees of version 2 of the format is the same. These are the
  # quick ones.
  go test -count 1 -parallel 4 -timeout 10m -run "$BOTH_FORMATS_QUICK" ./tests -args -format 2
}
step_formats() {
  real_swift || return 1
  scripts/kernel.sh build/kernel || return 1
  go test -count 1 -parallel 4 -timeout 40m -run "$BOTH_FORMATS" ./tests -args -format 2
}
BOTH_FORMATS_QUICK='TestMode(RoundTrip|Signal$|Killed)|TestFeatures(Edges|FUA|MultiConn)|TestOutageShort|TestLeaseKilled|TestRefusedIsEIO'
# These tests prove version 2 of the format, too; the others are about chunks, or
# about what both versions share. make check-crash has all of them, and those of
# tests/crash.
BOTH_FORMATS='TestMode|TestFeatures(Edges|FUA|ReadOnly$|MultiConn|ConcurrentWrites|Holes|Extents|FastZero|Advertised|Qemu)|TestRealModes'
BOTH_FORMATS+='|TestFence|TestUnlockAtWork|TestLockForEver|TestLease(Killed|ReadOnly|Alone|Shared)|TestOutage|TestStop|TestFlushTime'
BOTH_FORMATS+='|TestRefusedIsEIO|TestTokenDies403|TestForeignObject|TestKeystoneGuest|TestClients|TestRemoved|TestMetrics|TestServer|TestKernel'
BOTH_FORMATS+='|TestExports(SettingsChange|SmallCache|Overridden|List|Use|WrongName|Change|OneIsBroken|NamedContainer)'
step_fuzz() {
  local package target rc=0
  for package in $(unit_packages); do
    for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
      echo "$package $target"
      go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" "$package" || rc=1
    done
  done
  return $rc
}

# real_swift starts the real Swift, once, and points the tests at it.
real_swift() {
  [ -z "${SWIFTNBD_TEST_AUTH:-}" ] || return 0
  SAIO_DIR=$(mktemp -d "${TMPDIR:-/tmp}/swiftnbd-check.XXXXXX") || return 1
  export SAIO_DIR SAIO_FSYNC=0
  scripts/saio.sh up --keystone || return 1
  local vars
  vars=$(scripts/saio.sh env) || return 1
  eval "$vars"
  export SWIFTNBD_TEST_REQUIRE=1 # a test that finds no Swift then fails
}
# real_rgw starts Ceph's gateway, once, and points the tests at it.
real_rgw() {
  [ -z "${SWIFTNBD_TEST_RGW_AUTH:-}" ] || return 0
  RGW_DIR=$(mktemp -d "${TMPDIR:-/tmp}/swiftnbd-check-rgw.XXXXXX") || return 1
  export RGW_DIR
  scripts/rgw.sh up || return 1
  local vars
  vars=$(scripts/rgw.sh env | grep SWIFTNBD) || return 1
  eval "$vars"
}
finish() {
  if [ -n "${RGW_DIR:-}" ]; then scripts/rgw.sh wipe || true; fi
  if [ -n "${SAIO_DIR:-}" ]; then scripts/saio.sh wipe || true; fi
}

steps=("$@")
purpose=check set_up=check
case "${1-}" in
  '') steps=(lint build unit race binding quickstart blackbox) set_up=install ;;
  lint) purpose=lint ;;
  fuzz) purpose=build ;;
esac
for s in "${steps[@]}"; do
  declare -F "step_$s" >/dev/null || { echo "check.sh: no step '$s'" >&2; exit 2; }
done
scripts/deps.sh "$set_up" "$purpose"
# What the person who runs this has set must not reach into the tests.
unset SAIO_DIR SAIO_PORT RGW_DIR RGW_PORT || true
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed=() failed=()
for s in "${steps[@]}"; do
  echo "== $s"
  began=$SECONDS
  rc=0 # set -e is off inside: a step says itself how it went
  "step_$s" || rc=$?
  if [ $rc = 0 ]; then passed+=("$s"); else failed+=("$s"); fi
  echo "== $s: $([ $rc = 0 ] && echo passed || echo FAILED) after $((SECONDS - began)) s"
done
echo "== in $SECONDS s; passed: ${passed[*]:-none}; failed: ${failed[*]:-none}"
echo "steps: ${#passed[@]} passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
