# `make help` explains every target.

# The architecture to build for, in Debian's words: amd64 or arm64.
ARCH ?= $(shell dpkg --print-architecture)
# Settings for the plugin at `make install`: SETTINGS="LOG_LEVEL=debug CLUSTER=blue".
SETTINGS ?=

native := $(shell dpkg --print-architecture)
plugin := build/plugin$(if $(filter-out $(native),$(ARCH)),-$(ARCH))
tools  := build/bin

# How often `make fuzz` runs each target. (With a duration Go fails now and then when the time is up.)
FUZZTIME ?= 2000000x

# How many steps `make random` takes, and in which world: own, EC2 or, empty, both. With a SEED it replays one run.
STEPS ?= 20000
WORLD ?=

# How long `make soak` goes on.
SOAK ?= 30m

.DEFAULT_GOAL := help
.PHONY: help build plugin install demo demo-swarm shell quick test test-all test-cluster ci soak lint fmt random mutate fuzz bench docs clean

help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the binary alone: build/blockvol
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o build/blockvol ./cmd/blockvol

plugin: ## the managed plugin: build/plugin (ARCH=arm64: build/plugin-arm64)
	@scripts/plugin $(ARCH) $(plugin)

install: plugin ## put the plugin into the engine at hand as blockvol:latest (SETTINGS="NAME=VALUE ...")
	@scripts/install $(plugin) $(SETTINGS)

demo: ## show it at work on a private engine; leaves nothing behind
	@scripts/setup demo
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/sandbox ./test/sandbox
	@build/sandbox scripts/demo

demo-swarm: ## show a database outlive its machine, in a Swarm of three emulated ones; takes 5 minutes the first time
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/demo-swarm ./test/cluster/cmd/demo
	@build/demo-swarm

shell: ## a shell with a private engine and the plugin in it, to play with; gone at exit
	@scripts/setup demo
	@$(MAKE) --no-print-directory plugin
	@go build -buildvcs=false -o build/sandbox ./test/sandbox
	@build/sandbox $${SHELL:-sh}

quick: ## tests of one package and of what depends on it (PKG=./driver; without PKG: of what has changed)
	@scripts/quick $(PKG)

test: ## unit tests under the race detector, real disks, real engines, a Swarm's failures; brief fuzzing; arm64 (half an hour)
	@scripts/test

test-all: ## the same in full breadth: all clouds and buses, all tests of a Swarm (two hours)
	@scripts/test all

ci: ## what CI runs: lint, with the tests beside it
	@scripts/test lint

test-cluster: ## all tests of a Swarm of emulated machines: failures, moves, many volumes, databases (an hour)
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	go test -timeout 2h -v ./test/cluster -failover.table=$(CURDIR)/docs/failover.md

soak: ## half an hour of random failures in that Swarm (SOAK=30m)
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	go test -run Soak -timeout 0 -v ./test/cluster -soak=$(SOAK)

lint: $(tools)/golangci-lint $(tools)/govulncheck ## golangci-lint with gofumpt, govulncheck
	$(tools)/golangci-lint run ./...
	@scripts/vulnerabilities $(tools)/govulncheck

fmt: $(tools)/golangci-lint ## format all Go code
	$(tools)/golangci-lint fmt ./...

random: ## randomised runs of the driver, with what came to pass in them (STEPS=1000000); SEED=7 WORLD=own replays one
	@cd driver && go test -run 'TestRandom/$(WORLD)' -count 1 -timeout 0 $(if $(SEED),-v -random.seed=$(SEED),-random.steps=$(STEPS))

mutate: ## make the code wrong in small places: does a test notice? (hours; PKG=guards, half an hour; PKG=./driver)
	@[ "$(PKG)" ] || scripts/mutate guards
	@scripts/mutate $(PKG)

fuzz: ## run each fuzz target for a minute or so (FUZZTIME=2000000x)
	@scripts/fuzz $(FUZZTIME)

docs: ## write the settings that the code declares into config.json and docs/
	go test -run Declared -count 1 ./cmd/blockvol -settings.update

bench: ## the figures of docs/figures.md, as a table
	@scripts/setup cluster
	@$(MAKE) --no-print-directory plugin
	@go test -run Fleet -bench . -benchtime 3s -timeout 30m ./test/bench
	@go test -run - -bench InUse ./mount
	@go test -run Figures -count 1 -timeout 30m -v ./test/cluster

clean: ## remove all that was built, Debian's packages included
	rm -rf build

$(tools)/golangci-lint: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

$(tools)/govulncheck: | $(tools)
	GOBIN=$(CURDIR)/$(tools) go install golang.org/x/vuln/cmd/govulncheck@v1.9.0

$(tools):
	@mkdir -p $@
