# SPDX-License-Identifier: MIT
# make help tells what there is.

VERSION = 0.20.0

prefix     = /usr/local
bindir     = $(prefix)/bin
mandir     = $(prefix)/share/man
man1dir    = $(mandir)/man1
# Where nbdkit looks when it is asked for "swift" by that short name.
plugindir  = $(shell pkg-config --variable=plugindir nbdkit)
DESTDIR    =

GO         = go
INSTALL    = install
POD2MAN    = pod2man
# Sources are never rewritten by a build: what go.mod lacks is an error. The
# version is ours, not git's, whose absence or refusal must not stop a build.
export GOFLAGS := -mod=readonly -buildvcs=false
LDFLAGS    = -X swiftnbd/internal/version.Version=$(VERSION)

PLUGIN     = build/nbdkit-swift-plugin.so
PROGRAMS   = build/swiftnbd-ctl build/swiftdev
MANPAGES   = $(patsubst %.pod,build/%.1,$(notdir $(wildcard plugin/*.pod ctl/*.pod)))

.DELETE_ON_ERROR:
# Go decides itself what is up to date, so these are built each time.
.PHONY: all check check-crash check-race lint fmt fuzz bench bench-quick quickstart man install uninstall dist clean help \
        needs $(PLUGIN) $(PROGRAMS)

all: $(PLUGIN) $(PROGRAMS) man ## build the plugin, swiftnbd-ctl, swiftdev and the man pages in build/

needs:
	@scripts/deps.sh check build

$(PLUGIN): needs
	@mkdir -p build
	GO_LDFLAGS='$(LDFLAGS)' plugin/nbdkit/build-plugin.sh $@ ./plugin

build/swiftnbd-ctl: needs
	@mkdir -p build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./ctl

build/swiftdev: needs
	@mkdir -p build
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./scripts/swiftdev

man: $(MANPAGES) ## the man pages only

build/%.1: plugin/%.pod Makefile | needs
	@mkdir -p build
	$(POD2MAN) -u -s 1 -c swiftnbd -r 'swiftnbd $(VERSION)' $< $@

build/%.1: ctl/%.pod Makefile | needs
	@mkdir -p build
	$(POD2MAN) -u -s 1 -c swiftnbd -r 'swiftnbd $(VERSION)' $< $@

check: ## lint and every test: unit (race), both Swifts, all nbdkit modes, Keystone, a kernel client
	scripts/check.sh

# How long check-crash is: operations of each model test, kills of nbdkit in
# each test that does, starts of two nbdkits at once, overwrites and deletes on
# a Swift with replicas that are behind, simulations of half an hour of several
# who want one volume, and the seed (0: of the clock; it is printed).
OPS        = 300000
KILLS      = 100
STARTS     = 200
WRITES     = 1000
RIVALRIES  = 3000
SEED       = 0

check-crash: all ## hours of it, by OPS, KILLS, STARTS, WRITES, RIVALRIES, SEED: model tests with faults and crashes, kill -9 under load and under ext4, rivals, replicas
	$(GO) test -count 1 -timeout 0 -v -run 'TestModel|TestOutage|TestResident' ./internal/cache -args -ops=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v -run 'TestModel|TestCut' ./internal/device -args -ops=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v -run TestSimulation ./internal/lease -args -ops=$(RIVALRIES) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v ./tests/crash -args -kills=$(KILLS) -starts=$(STARTS) -steps=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v ./tests/replicas -args -writes=$(WRITES) -seed=$(SEED)

check-race: needs ## the unit tests under the race detector
	scripts/check.sh race

lint: needs ## gofmt, go vet, shellcheck, podchecker; changes nothing
	scripts/check.sh lint

fmt: ## gofmt the sources in place
	gofmt -w $$(git ls-files '*.go')

fuzz: ## each fuzz target for FUZZTIME (10s)
	scripts/check.sh fuzz

bench: all ## speed against what the same Swift can do, one table and build/bench.json (BENCH_FULL=1, BENCHFLAGS)
	@scripts/deps.sh check bench
	$(GO) build -o build/bench ./scripts/bench
	build/bench $(BENCHFLAGS)

bench-quick: all ## bench with less data and one measurement a line
	@scripts/deps.sh check bench
	$(GO) build -o build/bench ./scripts/bench
	build/bench --pairs 1 --scale 0.5 $(BENCHFLAGS)

quickstart: ## try it: get what is missing, build, a disk in a Swift of its own, there and back
	@scripts/quickstart.sh

install: all ## install under $(DESTDIR)$(prefix), and the plugin in nbdkit's plugindir
	$(INSTALL) -d '$(DESTDIR)$(plugindir)' '$(DESTDIR)$(bindir)' '$(DESTDIR)$(man1dir)'
	$(INSTALL) -m 755 $(PLUGIN) '$(DESTDIR)$(plugindir)/'
	$(INSTALL) -m 755 build/swiftnbd-ctl '$(DESTDIR)$(bindir)/'
	$(if $(MANPAGES),$(INSTALL) -m 644 $(MANPAGES) '$(DESTDIR)$(man1dir)/')

uninstall: ## remove what install put
	rm -f '$(DESTDIR)$(plugindir)/$(notdir $(PLUGIN))' '$(DESTDIR)$(bindir)/swiftnbd-ctl'
	$(if $(MANPAGES),rm -f $(foreach page,$(MANPAGES),'$(DESTDIR)$(man1dir)/$(notdir $(page))'))

dist: ## a source tarball of what is committed, in dist/
	@mkdir -p dist
	git archive --format=tar.gz --prefix=swiftnbd-$(VERSION)/ -o dist/swiftnbd-$(VERSION).tar.gz HEAD

clean: ## remove build/ and dist/
	rm -rf build dist

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 12
	@echo 'variables: DESTDIR prefix bindir mandir plugindir; make install prefix=/usr plugindir=DIR'
