# `make help` lists the targets.

# The architecture to build for, as Debian names it: amd64 or arm64.
ARCH ?= $(shell dpkg --print-architecture)
# The plugin's settings for `make install`: SETTINGS="LOG_LEVEL=debug CLUSTER=blue".
SETTINGS ?=

native := $(shell dpkg --print-architecture)
plugin := build/plugin$(if $(filter-out $(native),$(ARCH)),-$(ARCH))
tools  := build/bin

# The registry of `make push`.
REGISTRY ?=

# How many times `make fuzz` runs each target. (With a duration, Go sometimes fails at the end.)
FUZZTIME ?= 2000000x

# The number of steps of `make random`, and its world: own, EC2 or, if empty, both. SEED replays a run.
STEPS ?= 20000
WORLD ?=

# The tests of `make test-engines`: what an engine does to a plugin. Those of the clouds and of the manual are the same for all engines.
ENGINES ?= Dockerd|Plugin|Container|Volume|LiveRestore|Power|Swarm|Install|Reinstall|Copy|Stack

# The duration of `make soak`.
SOAK ?= 30m

.DEFAULT_GOAL := help
.PHONY: help build plugin install release push demo demo-swarm shell quick test test-all test-cluster test-engines ci soak lint fmt random mutate fuzz bench pictures docs clean

help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the binary: build/blockvol
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o build/blockvol ./cmd/blockvol

plugin: ## build the managed plugin: build/plugin (ARCH=arm64: build/plugin-arm64)
	@scripts/plugin $(ARCH) $(plugin)

install: plugin ## install the plugin into the current engine as blockvol:latest (SETTINGS="NAME=VALUE ...")
	@scripts/install $(plugin) $(SETTINGS)

release: $(tools)/nfpm $(tools)/cyclonedx-gomod ## build what a release has, for amd64 and arm64: build/release (VERSION=1.0 MINISIGN_KEY=file)
	@scripts/setup release
	@scripts/release build/release

push: ## push the plugins in build/release and their installer to a registry, through the current engine (REGISTRY=registry.example.org/team)
	@scripts/push $(REGISTRY) build/release

demo: ## a tour on a private engine; leaves nothing behind
	@scripts/setup demo
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/sandbox ./test/sandbox
	@build/sandbox scripts/demo

demo-swarm: ## a database survives a power loss, in a Swarm of three emulated machines; takes 5 minutes the first time
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/demo-swarm ./test/cluster/cmd/demo
	@build/demo-swarm

shell: ## a shell with a private engine, to install the plugin into; removed at exit
	@scripts/setup demo
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/sandbox ./test/sandbox
	@build/sandbox $${SHELL:-sh}

quick: ## test the changed packages and those that depend on them (PKG=./driver names one)
	@scripts/quick $(PKG)

test: ## all tests, with reduced breadth: race detector, real disks and engines, a Swarm's failures, fuzzing (half an hour)
	@scripts/test

test-all: ## all tests in full breadth: all clouds and buses, all tests of a Swarm (two hours)
	@scripts/test all

ci: ## what CI runs: lint and test in parallel
	@scripts/test lint

test-cluster: ## test a Swarm of emulated machines: failures, moves, many volumes, databases (an hour)
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	go test -timeout 2h -v ./test/cluster -failover.table=$(CURDIR)/docs/failover.md

test-engines: plugin ## run the tests with engines on Docker 26 and 28, of Debian trixie and forky (ENGINES=regexp)
	@scripts/setup test
	@for suite in trixie forky; do \
		scripts/engine $$suite build/engine-$$suite && chroot build/engine-$$suite dockerd --version && \
		BLOCKVOL_ENGINE=$(CURDIR)/build/engine-$$suite go test -count=1 -short -parallel 4 -timeout 40m -run '$(ENGINES)' ./test/e2e ./test/engine || exit 1; \
	done

soak: ## random failures in a Swarm of emulated machines (SOAK=30m)
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	go test -run Soak -timeout 0 -v ./test/cluster -soak=$(SOAK)

lint: $(tools)/golangci-lint $(tools)/govulncheck ## run golangci-lint with gofumpt, and govulncheck
	$(tools)/golangci-lint run ./...
	@scripts/vulnerabilities $(tools)/govulncheck

fmt: $(tools)/golangci-lint ## format all Go code
	$(tools)/golangci-lint fmt ./...

random: ## random runs of the driver, with counts of what happened (STEPS=1000000); SEED=7 WORLD=own replays one
	@cd driver && go test -run 'TestRandom/$(WORLD)' -count 1 -timeout 0 $(if $(SEED),-v -random.seed=$(SEED),-random.steps=$(STEPS))

mutate: ## break the code in one place at a time: a test must fail (hours; PKG=guards: half an hour; PKG=./driver)
	@[ "$(PKG)" ] || scripts/mutate guards
	@scripts/mutate $(PKG)

fuzz: ## run each fuzz target for about a minute (FUZZTIME=2000000x)
	@scripts/fuzz $(FUZZTIME)

pictures: ## draw the pictures of docs/ from what a real engine, a simulated EC2 and a real Prometheus show
	@scripts/setup test
	go test -run TestPrometheusShows -count 1 ./test/e2e -e2e.pictures=$(CURDIR)/docs

docs: ## write the settings that the providers declare to config.json and docs/
	go test -run Declared -count 1 ./cmd/blockvol -settings.update

bench: ## measure the figures in docs/figures.md
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	@go test -run 'Fleet|Moves' -bench . -benchtime 3s -timeout 30m ./test/bench
	@go test -run - -bench InUse ./mount
	@go test -run - -bench Freeze -benchtime 50x -timeout 30m ./mount
	@go test -run - -bench Scrape ./plugin/metrics
	@go test -run Figures -count 1 -timeout 30m -v ./test/cluster

clean: ## remove build/, including the files from Debian packages
	rm -rf build

$(tools)/golangci-lint: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

$(tools)/govulncheck: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install golang.org/x/vuln/cmd/govulncheck@v1.9.0

$(tools)/nfpm: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

$(tools)/cyclonedx-gomod: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

$(tools):
	@mkdir -p $@
