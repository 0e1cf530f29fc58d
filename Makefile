# Makefile: `make help` lists what there is.
.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{sub(/:.*/, "", $$1); printf "  %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## bin/doze (needs Go only)
	CGO_ENABLED=0 go build -trimpath -o bin/doze ./cmd/doze

.PHONY: examples
examples: ## bin/examples: the zips of the example functions (needs npm for graphql)
	go run ./deploy/examples/build

# The demo is built and then takes the shell's place, so that a Ctrl-C reaches it and nothing else.
.PHONY: demo
demo: build ## the whole story on this machine: cold, warm, 200 at once, asleep again, the bill
	go run ./deploy/examples/build -skip-missing
	@go build -trimpath -o bin/demo ./deploy/demo
	@exec bin/demo

.PHONY: bench
bench: build ## doze measured beside plain baselines, in at most ten minutes (JSON=FILE, QUICK=1, ROWS=regexp)
	CGO_ENABLED=0 go build -trimpath -tags lambda.norpc -ldflags '-s -w' -o bin/bench-go ./deploy/bench/go
	bin/doze bench $(if $(QUICK),--quick) $(if $(ROWS),--rows '$(ROWS)') $(if $(JSON),--out '$(JSON)')

# -race needs gcc. One package at a time: many start processes and measure what is left of them.
.PHONY: test
test: ## everything that must pass (needs gcc for -race, python3, node and npm for the examples)
	@command -v gcc >/dev/null || { echo "make test needs gcc for Go's race detector (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
	@test -z "$$(gofmt -l bus cmd control deploy proto testenv worker)" || { gofmt -l bus cmd control deploy proto testenv worker; echo "these files are not formatted: gofmt -w" >&2; exit 1; }
	go vet ./...
	go test -race -p 1 -timeout 30m ./...

# The sandbox's tests on a kernel of its own, with cgroups in every arrangement that this machine may not have (testenv/guest).
# On v2 all but the half of the parked ones that differs in nothing that a kernel sees, and what looks at every file, which an
# emulated processor takes for ever for, networks and ordinary users, where nothing depends on cgroups; where the version or the place of the worker
# differs, what depends on that. Nothing may skip. It takes some twenty minutes.
ALL_TESTS    := ^Test[^P]|TestPredecessor|TestParks|TestParkedBehaviour/waiting|TestParkedWalls/waiting
SLOW_WALLS   := ^(look.around|ordinary.programs)$$
SLOW_NAMES   := memory.of.all.kinds/names
SLOW_TESTS   := TestTenThousand|Egress|TestUnprivileged|TestUserLacks|TestWalls/$(SLOW_WALLS)|TestWalls/$(SLOW_NAMES)|TestParkedWalls/.*/$(SLOW_WALLS)|TestParkedWalls/.*/$(SLOW_NAMES)
CGROUP_TESTS := TestPredecessor|TestLimitsReachKernel|TestSweepFrozen|TestBehaviour/^(freeze|memory)$$|TestWalls/^(processes|memory|fork.bomb|cpu|nothing.left)$$
in-guest = bin/guest -cgroups $(1) -timeout 30m bash -o pipefail -c 'cd $(2) && $(CURDIR)/bin/tests/$(notdir $(2)).test -test.v -test.timeout 29m -test.run "$(3)" -test.skip "$(SLOW_TESTS)" | awk "{print} /--- SKIP/ {skipped = 1} END {exit skipped}"'
.PHONY: cgroup2-test
cgroup2-test: ## the sandbox's tests on cgroup v2 and v1, on Debian's kernel in qemu (needs qemu-system-x86, apt-get)
	CGO_ENABLED=0 go build -trimpath -o bin/guest ./testenv/guest
	CGO_ENABLED=0 go test -c -o bin/tests/ ./worker/sandbox/linux ./worker/instance
	$(call in-guest,v2,worker/sandbox/linux,$(ALL_TESTS))
	$(call in-guest,v2,worker/instance,TestInSandboxes/^(linux|parked)$$)
	$(call in-guest,delegated,worker/sandbox/linux,$(CGROUP_TESTS))
	$(call in-guest,container,worker/sandbox/linux,$(CGROUP_TESTS))
	$(call in-guest,v1,worker/sandbox/linux,$(CGROUP_TESTS))

.PHONY: container-test
container-test: build ## the sandbox's suite and a platform in a worker's container (needs a Docker daemon; BASE=IMAGE)
	BASE='$(BASE)' deploy/container-test

.PHONY: compose-test
compose-test: build ## six containers: a cluster that is used, and killed in part (needs a Docker daemon, docker-compose, aws; BASE=IMAGE)
	BASE='$(BASE)' deploy/compose-test

# One program takes the shell's place, so that a Ctrl-C reaches it and it can take back what it made.
.PHONY: chaos
chaos: build ## real kills and cuts on a real cluster, and whether it kept its promises (SEED=n, DURATION=3m, or SCENARIO=name; needs root)
	@CGO_ENABLED=0 go build -trimpath -o bin/chaos ./testenv/chaos
	@DOZE_BINARY=$(CURDIR)/bin/doze exec bin/chaos $(if $(SEED),-seed $(SEED)) $(if $(DURATION),-duration $(DURATION)) $(patsubst %,testenv/scenarios/%.txt,$(SCENARIO))

.PHONY: scenarios
scenarios: ## each of testenv/scenarios
	@$(MAKE) --no-print-directory chaos SCENARIO='$(sort $(patsubst testenv/scenarios/%.txt,%,$(wildcard testenv/scenarios/*.txt)))'

.PHONY: images
images: build ## the images doze-control and doze-worker (needs a Docker daemon; BASE=IMAGE, by default debian:bookworm-slim)
	docker build --network host -f deploy/Dockerfile $(if $(BASE),--build-arg BASE='$(BASE)') --target control -t doze-control .
	docker build --network host -f deploy/Dockerfile $(if $(BASE),--build-arg BASE='$(BASE)') --target worker -t doze-worker .

.PHONY: generate
generate: ## the Go code of proto/ and deploy/seccomp.json (committed; CI checks that they are current)
	cd proto/tools && go run . ..
	cd deploy/seccomp && go run . ../seccomp.json
