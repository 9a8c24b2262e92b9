# Cairn. `make` alone says what can be made.

export PATH := $(PATH):/usr/local/go/bin
SHELL := /bin/bash

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# A release needs no C library, and is the same wherever it is built.
# x86-64-v3 (Haswell, Zen and later) makes compression a tenth faster; on an
# older host build with GOAMD64=v1.
GOAMD64 ?= v3
GOBUILD := CGO_ENABLED=0 GOAMD64=$(GOAMD64) go build -trimpath -ldflags '$(LDFLAGS)'
# The agent goes into guests of any age.
GOBUILD_AGENT := CGO_ENABLED=0 GOAMD64=v1 go build -trimpath -ldflags '$(LDFLAGS)'
# Two packages at a time: several of them boot guests of 256 MiB.
GOTEST  := go test -p 2
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZ_SECONDS ?= 10

.DEFAULT_GOAL := help
.PHONY: help deps deps-demo build deb demo test test-s3 test-long campaign-kill campaign-power campaign-scale campaign-web campaign-serve campaign-sim campaign-places campaign-rgw fuzz-short lint bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the missing Debian packages of .ci/apt-packages (SKIP_DEPS=1: do not)
	@$(if $(SKIP_DEPS),true,.ci/deps)

deps-demo:
	@$(if $(SKIP_DEPS),true,.ci/deps demo)

build: ## bin/cairn, and bin/cairn-agent for the guest: static, reproducible
	@mkdir -p bin
	$(GOBUILD) -o bin/cairn ./cmd/cairn
	$(GOBUILD_AGENT) -o bin/cairn-agent ./cmd/cairn-agent

deb: build ## the packages for Debian, of the host and of the agent for guests, into bin
	.ci/deb-host
	.ci/deb-agent

demo: deps-demo build ## boot a guest, back it up, change it, back it up again, look into both points
	bin/cairn demo

# Several packages test the program that they build: what go test remembers of
# them may be another one's, so -count=1. A quiet run takes 28 minutes on two
# cores when all is compiled; the timeout is for what hangs.
# All that is compiled, for vet, for the tests and by them (with -trimpath), is
# compiled in one way: each other one is ten minutes of CPU on a bare machine.
test: deps ## vet and all tests; the first run downloads a kernel (27 MB) for the guests, and a newer QEMU (13 MB), and builds versitygw
	export CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) -trimpath"; \
	go vet ./... && $(GOTEST) -vet=off -ldflags='-s -w' -count=1 -timeout 60m ./integration ./...

# Ceph RGW is not among them: see campaign-rgw.
test-s3: ## the tests of object storage, also against MinIO, with the race detector; the first run builds both servers
	CAIRN_LONG=1 CGO_ENABLED=1 $(GOTEST) -race -count=1 -timeout 60m ./chunkstore/backend/s3 ./chunkstore/backend/engine ./integration/lab/objectstore ./cmd/internal/wire
	CGO_ENABLED=0 $(GOTEST) -count=1 -timeout 30m ./integration ./cmd/internal/cli -run 'Bucket|Verdict|Engine'

test-long: deps ## all tests with the race detector and the long variants (CAIRN_LONG=1)
	CAIRN_LONG=1 CGO_ENABLED=1 $(GOTEST) -race -count=1 -timeout 240m ./...

campaign-kill: deps ## kill cairn CAIRN_KILLS (10000) times at random instants, by CAIRN_KILL_SEED (else the clock); hours
	CAIRN_KILLS=$${CAIRN_KILLS:-10000} CGO_ENABLED=0 nice -n 19 $(GOTEST) -count=1 -timeout 48h ./integration/killing -run 'TestKills' -v

# CAIRN_SERVE_HOUR is what one of them takes; CAIRN_SERVE_SEED says when it is killed.
campaign-serve: deps ## cairn serve: 200 VMs, hourly, 24 hours by a fast clock, 20 kills (CAIRN_SERVE_VMS, _HOURS, _KILLS; half an hour, 6 GiB)
	CAIRN_SERVE_VMS=$${CAIRN_SERVE_VMS:-200} CAIRN_SERVE_HOURS=$${CAIRN_SERVE_HOURS:-24} CAIRN_SERVE_KILLS=$${CAIRN_SERVE_KILLS:-20} CAIRN_SERVE_HOUR=$${CAIRN_SERVE_HOUR:-75s} \
		CGO_ENABLED=0 go test -count=1 -v -timeout 6h ./integration/serving -run 'TestServing$$'

# CAIRN_CUT_SEED chooses other cuts; a failed one says how it is replayed.
campaign-power: deps ## power cuts: 3,000 on real file systems, 1,000,000 on a disk in memory (about 15 minutes; root)
	CAIRN_CUT_COUNT=3000 CGO_ENABLED=0 nice -n 19 go test -count=1 -v -timeout 120m ./integration/powercut -run PowerCuts
	CAIRN_CUT_MEMORY=1000000 CGO_ENABLED=0 nice -n 19 go test -count=1 -v -timeout 120m ./chunkstore/backend/local -run PowerCuts

# CAIRN_SCALE_DIR keeps the maps and the index between runs.
campaign-scale: ## memory with 100 TiB in 10,000 points, gc against reading all data; CAIRN_SCALE="machines points leaves" for less
	CAIRN_SCALE="$${CAIRN_SCALE:-full}" CGO_ENABLED=0 go test -count=1 -v -timeout 240m ./cmd/internal/scale -run Campaign

# CAIRN_WEB_DIR keeps the points between runs.
campaign-web: deps ## how fast every page is with 10,000 real points (half an hour to make them)
	CAIRN_WEB_POINTS=$${CAIRN_WEB_POINTS:-10000} CGO_ENABLED=0 go test -count=1 -v -timeout 120m ./cmd/internal/web -run RealPoints

campaign-sim: ## play CAIRN_SIM_COUNT (50,000) schedules of many hosts, gc and repair, from seed CAIRN_SIM_SEED (1,000,000) on
	CAIRN_SIM_COUNT=$${CAIRN_SIM_COUNT:-50000} CAIRN_SIM_SEED=$${CAIRN_SIM_SEED:-1000000} CGO_ENABLED=0 go test ./chunkstore/gc -run 'TestSimulation$$' -count=1 -v -timeout 0

campaign-places: ## play CAIRN_PLACES_COUNT (10,000) schedules of places with parity, from seed CAIRN_PLACES_SEED (100,000) on
	CAIRN_PLACES_COUNT=$${CAIRN_PLACES_COUNT:-10000} CAIRN_PLACES_SEED=$${CAIRN_PLACES_SEED:-100000} CGO_ENABLED=0 nice -n 19 go test ./chunkstore/backend/spread -run 'TestPlacesSimulation$$' -count=1 -v -timeout 0

# No other target installs Ceph, and nothing of it runs when this has ended.
campaign-rgw: deps ## the tests of object storage against Ceph RGW (16.2), whose 41 packages it installs
	@$(if $(SKIP_DEPS),true,.ci/deps rgw)
	CAIRN_RGW=1 CGO_ENABLED=0 $(GOTEST) -count=1 -v -timeout 60m ./chunkstore/backend/s3 ./integration/lab/objectstore
	CAIRN_RGW=1 CGO_ENABLED=0 $(GOTEST) -count=1 -v -timeout 60m ./integration ./cmd/internal/cli -run 'Bucket|Verdict|Engine|Undelete|RGW'

fuzz-short: ## every fuzz test for FUZZ_SECONDS (10)
	.ci/fuzz $(FUZZ_SECONDS)

lint: ## gofmt, and golangci-lint if it is installed, else vet and staticcheck
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "gofmt is due: $$files" >&2; exit 1; fi
	@if command -v golangci-lint >/dev/null; then set -x; golangci-lint run; \
	else set -x; go vet ./... && go run $(STATICCHECK) ./...; fi

bench: deps build ## measure against a real guest: integration/bench (BENCH_ARGS)
	go run ./integration/bench $(BENCH_ARGS)

clean: ## remove bin; the lab's cache stays in /var/cache/cairn-lab
	rm -rf bin bench-out
