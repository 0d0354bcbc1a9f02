#!/bin/bash
# SPDX-License-Identifier: MIT
# check.sh [STEP...]: what `make check` does. Without steps, all of them in
# this order; each goes on to the next where it failed, and the summary at the
# end says which. A real Swift with Keystone, started from saio.sh in a private
# directory for as long as this script runs, serves the steps that need one,
# unless SWIFTNBD_TEST_AUTH names one that runs already.
#
#   lint         gofmt, go vet, shellcheck, podchecker
#   build        make all, from sources as they are
#   race         unit tests, under the race detector; those of the stores on the
#                embedded and on the real Swift
#   binding      the nbdkit binding, a module of its own, on nbdkit
#   quickstart   make quickstart
#   blackbox     tests/: all nbdkit modes, bad input, Keystone, a kernel client
# Not part of the whole:
#   unit         what race runs, without the race detector
#   fuzz         each fuzz target for FUZZTIME (10s)
set -eu
cd "$(dirname "$0")/.."
export GOFLAGS='-mod=readonly -buildvcs=false' # as in the Makefile

# The packages that have unit tests of their own, and the black-box ones.
unit_packages() { go list ./... | grep -v '/tests\(/\|$\)'; }
# What is the project's own: git's list, or in an unpacked tarball all files.
sources() {
  git ls-files 2>/dev/null || find . -name .git -prune -o -path ./build -prune -o -path ./dist -prune -o -type f -print
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
  return $rc
}
step_build() { make all; }
step_unit() {
  real_swift || return 1
  # shellcheck disable=SC2046 # one word a package
  go test -timeout 10m $(unit_packages)
}
step_binding() { (cd plugin/nbdkit && go test -timeout 10m ./...); }
step_race() {
  real_swift || return 1
  # shellcheck disable=SC2046 # one word a package
  go test -race -timeout 15m $(unit_packages) && (cd plugin/nbdkit && go test -race -timeout 10m .)
}
step_quickstart() { make -s quickstart; }
step_blackbox() {
  real_swift || return 1
  scripts/kernel.sh build/kernel || return 1
  go test -count 1 -parallel 4 -timeout 25m ./tests/... # they wait more than they work
}
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
finish() {
  if [ -n "${SAIO_DIR:-}" ]; then scripts/saio.sh wipe || true; fi
}

steps=("$@")
purpose=check
case "${1-}" in
  '') steps=(lint build race binding quickstart blackbox) ;;
  lint) purpose=lint ;;
  fuzz) purpose=build ;;
esac
for s in "${steps[@]}"; do
  declare -F "step_$s" >/dev/null || { echo "check.sh: no step '$s'" >&2; exit 2; }
done
scripts/deps.sh check "$purpose"
# What the person who runs this has set must not reach into the tests.
unset SAIO_DIR SAIO_PORT || true
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
