# SPDX-License-Identifier: MIT
# make help tells what there is.

VERSION = 0.20.0

prefix     = /usr/local
bindir     = $(prefix)/bin
mandir     = $(prefix)/share/man
man1dir    = $(mandir)/man1
docdir     = $(prefix)/share/doc/swiftnbd
# systemd and udev look in these below /usr and /usr/local.
unitdir    = $(prefix)/lib/systemd/system
udevdir    = $(prefix)/lib/udev/rules.d
bashcompdir = $(prefix)/share/bash-completion/completions
zshcompdir = $(prefix)/share/zsh/site-functions
fishcompdir = $(prefix)/share/fish/vendor_completions.d
# Where nbdkit looks when it is asked for "swift" by that short name.
plugindir  = $(shell pkg-config --variable=plugindir nbdkit)
DESTDIR    =

GO         = go
INSTALL    = install
POD2MAN    = pod2man
# Sources are never rewritten by a build: what go.mod lacks is an error. The
# version is ours, not git's, whose absence or refusal must not stop a build.
# A tarball of make dist has all modules in vendor/, and needs no network.
export GOFLAGS := -mod=$(if $(wildcard vendor/modules.txt),vendor,readonly) -buildvcs=false
# More flags of go build, for packages: -buildmode=pie for the programs.
GOPROGFLAGS =
LDFLAGS    = -X swiftnbd/internal/version.Version=$(VERSION)

PLUGIN     = build/nbdkit-swift-plugin.so
PROGRAMS   = build/swiftnbd-ctl build/swiftnbd-server build/swiftdev
UNITS      = swiftnbd@.socket swiftnbd@.service swiftnbd-attach@.service
RULES      = 60-swiftnbd.rules
INSTALLED  = swiftnbd-ctl swiftnbd-server
COMPLETIONS = $(foreach p,$(INSTALLED),build/completions/$(p).bash build/completions/$(p).zsh build/completions/$(p).fish)
MANPAGES   = $(patsubst %.pod,build/%.1,$(notdir $(wildcard plugin/*.pod ctl/*.pod)))

.DELETE_ON_ERROR:
# Go decides itself what is up to date, so these are built each time.
.PHONY: all check check-crash check-deb check-race check-recipes lint lint-all fmt fuzz bench bench-quick quickstart man completions install uninstall dist deb \
        clean help \
        needs $(PLUGIN) $(PROGRAMS)

all: $(PLUGIN) $(PROGRAMS) man completions ## build the plugin, swiftnbd-ctl, swiftnbd-server, swiftdev, man pages and completions in build/

needs:
	@scripts/deps.sh check build

$(PLUGIN): needs
	@mkdir -p build
	GO_LDFLAGS='$(LDFLAGS)' plugin/nbdkit/build-plugin.sh $@ ./plugin

build/swiftnbd-ctl: needs
	@mkdir -p build
	$(GO) build -trimpath $(GOPROGFLAGS) -ldflags '$(LDFLAGS)' -o $@ ./ctl

build/swiftnbd-server: needs
	@mkdir -p build
	$(GO) build -trimpath $(GOPROGFLAGS) -ldflags '$(LDFLAGS)' -o $@ ./ctl/swiftnbd-server

build/swiftdev: needs
	@mkdir -p build
	$(GO) build -trimpath $(GOPROGFLAGS) -ldflags '$(LDFLAGS)' -o $@ ./scripts/swiftdev

man: $(MANPAGES) ## the man pages only

build/%.1: plugin/%.pod Makefile | needs
	@mkdir -p build
	$(POD2MAN) -u -s 1 -c swiftnbd -r 'swiftnbd $(VERSION)' $< $@

build/%.1: ctl/%.pod Makefile | needs
	@mkdir -p build
	$(POD2MAN) -u -s 1 -c swiftnbd -r 'swiftnbd $(VERSION)' $< $@

completions: $(COMPLETIONS) ## the completions for bash, zsh and fish only

# The programs write them, from their own tables of commands and options.
build/completions/%.bash: build/%
	@mkdir -p $(@D)
	$< completion bash >$@

build/completions/%.zsh: build/%
	@mkdir -p $(@D)
	$< completion zsh >$@

build/completions/%.fish: build/%
	@mkdir -p $(@D)
	$< completion fish >$@

check: ## install what is missing, then run lint and all tests: unit, race, both Swifts, all nbdkit modes, Keystone, a kernel client
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

check-crash: all ## long tests, for hours (OPS, KILLS, STARTS, WRITES, RIVALRIES, SEED): model tests with faults and crashes, kill -9 under load and under ext4, rivals, replicas, systemd in a machine
	$(GO) test -count 1 -timeout 0 -v -run 'TestModel|TestOutage|TestResident' ./internal/cache -args -ops=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v -run 'TestModel|TestCut' ./internal/device -args -ops=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v -run 'TestModel|TestEveryRequest|TestFlattenEveryRequest|TestReplicasAway|TestRivals|TestConcurrent|TestLarge|TestTable|TestDiff|TestReaders' ./internal/logdisk -args -ops=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v -parallel 14 -run 'TestIncrementEveryRequest|TestVerbsEveryRequest' ./ctl -args -every
	$(GO) test -count 1 -timeout 0 -v ./tests/breaks -args -all
	scripts/check.sh race-all
	$(GO) test -count 1 -timeout 0 -v -run TestSimulation ./internal/lease -args -ops=$(RIVALRIES) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v ./tests/crash -args -kills=$(KILLS) -starts=$(STARTS) -steps=$(OPS) -seed=$(SEED)
	scripts/check.sh formats
	$(GO) test -count 1 -timeout 0 -v -run 'TestKillExt4|TestStarts|TestFile|TestBudget' ./tests/crash -args -format 2 -kills=$(KILLS) -starts=$(STARTS) -steps=$(OPS) -seed=$(SEED)
	$(GO) test -count 1 -timeout 0 -v ./tests/boot -args -full
	$(GO) test -count 1 -timeout 0 -v ./tests/replicas -args -writes=$(WRITES) -seed=$(SEED)

check-race: needs ## the unit tests that have several work at once, under the race detector
	scripts/check.sh race

lint: needs ## gofmt, go vet, shellcheck, podchecker, staticcheck, govulncheck; changes nothing
	scripts/check.sh lint

lint-all: needs ## lint, and golangci-lint with the layers' rules (.golangci.yml), whose first build takes minutes
	scripts/check.sh lint golangci

fmt: ## gofmt the sources in place
	gofmt -w $$(git ls-files '*.go')

fuzz: ## run each fuzz target for FUZZTIME (10s)
	scripts/check.sh fuzz

bench: all ## compare the speed with that of the same Swift alone; one table and build/bench.json (BENCH_FULL=1, BENCHFLAGS)
	@scripts/deps.sh check bench
	$(GO) build -o build/bench ./scripts/bench
	build/bench $(BENCHFLAGS)

bench-quick: all ## bench with less data and one measurement for each line
	@scripts/deps.sh check bench
	$(GO) build -o build/bench ./scripts/bench
	build/bench --pairs 1 --scale 0.5 $(BENCHFLAGS)

quickstart: ## try it: install what is missing, build, copy data to a disk in a Swift of its own and back
	@scripts/quickstart.sh

install: all ## install under $(DESTDIR)$(prefix), and the plugin in nbdkit's plugindir
	$(INSTALL) -d '$(DESTDIR)$(plugindir)' '$(DESTDIR)$(bindir)' '$(DESTDIR)$(man1dir)' '$(DESTDIR)$(docdir)' \
	  '$(DESTDIR)$(bashcompdir)' '$(DESTDIR)$(zshcompdir)' '$(DESTDIR)$(fishcompdir)'
	$(INSTALL) -m 755 $(PLUGIN) '$(DESTDIR)$(plugindir)/'
	$(INSTALL) -m 755 $(INSTALLED:%=build/%) '$(DESTDIR)$(bindir)/'
	$(INSTALL) -m 644 docs/secrets.conf.example '$(DESTDIR)$(docdir)/'
	$(INSTALL) -d '$(DESTDIR)$(unitdir)' '$(DESTDIR)$(udevdir)'
	for unit in $(UNITS); do \
	  sed 's|@bindir@|$(bindir)|' scripts/systemd/$$unit >'$(DESTDIR)$(unitdir)'/$$unit && \
	  chmod 644 '$(DESTDIR)$(unitdir)'/$$unit || exit; done
	$(INSTALL) -m 644 scripts/systemd/$(RULES) '$(DESTDIR)$(udevdir)/'
	$(if $(MANPAGES),$(INSTALL) -m 644 $(MANPAGES) '$(DESTDIR)$(man1dir)/')
	set -e; for p in $(INSTALLED); do \
	  $(INSTALL) -m 644 build/completions/$$p.bash '$(DESTDIR)$(bashcompdir)'/$$p; \
	  $(INSTALL) -m 644 build/completions/$$p.zsh '$(DESTDIR)$(zshcompdir)'/_$$p; \
	  $(INSTALL) -m 644 build/completions/$$p.fish '$(DESTDIR)$(fishcompdir)'/$$p.fish; \
	done

uninstall: ## remove what install has installed
	rm -f '$(DESTDIR)$(plugindir)/$(notdir $(PLUGIN))' '$(DESTDIR)$(docdir)/secrets.conf.example'
	rm -f $(foreach p,$(INSTALLED),'$(DESTDIR)$(bindir)/$(p)' '$(DESTDIR)$(bashcompdir)/$(p)' \
	  '$(DESTDIR)$(zshcompdir)/_$(p)' '$(DESTDIR)$(fishcompdir)/$(p).fish')
	rm -f $(foreach unit,$(UNITS),'$(DESTDIR)$(unitdir)/$(unit)') '$(DESTDIR)$(udevdir)/$(RULES)'
	-rmdir '$(DESTDIR)$(docdir)' 2>/dev/null
	$(if $(MANPAGES),rm -f $(foreach page,$(MANPAGES),'$(DESTDIR)$(man1dir)/$(notdir $(page))'))

dist: ## make a source tarball of the committed files in dist/, with all modules in vendor/: it builds without network
	scripts/dist.sh $(VERSION)

deb: dist ## build Debian packages in dist/, from the tarball, without network
	@scripts/deps.sh check build deb
	scripts/deb.sh build $(VERSION)

check-deb: ## lintian, rpmlint, a fresh Debian 12 that installs the packages and serves a disk with them, a container (root, network, minutes)
	scripts/deb.sh check $(VERSION)

check-recipes: all ## run the recipes of docs/recipes with the real programs, some in a virtual machine (root, minutes)
	scripts/deps.sh check recipes
	$(GO) test -count 1 -timeout 0 -v ./tests/recipes -args -full

clean: ## remove build/ and dist/
	rm -rf build dist

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' Makefile | expand -t 12
	@echo 'variables: DESTDIR prefix bindir mandir docdir unitdir udevdir bashcompdir zshcompdir fishcompdir plugindir; make install prefix=/usr plugindir=DIR'
