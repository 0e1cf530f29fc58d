# Makefile: `make help` lists what there is.
.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{sub(/:.*/, "", $$1); printf "  %-16s %s\n", $$1, $$2}'

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
	go test -race -p 1 ./...

.PHONY: container-test
container-test: build ## the sandbox's suite and a platform in a worker's container (needs a Docker daemon; BASE=IMAGE)
	BASE='$(BASE)' deploy/container-test

.PHONY: images
images: build ## the images doze-control and doze-worker (needs a Docker daemon; BASE=IMAGE, by default debian:bookworm-slim)
	docker build --network host -f deploy/Dockerfile $(if $(BASE),--build-arg BASE='$(BASE)') --target control -t doze-control .
	docker build --network host -f deploy/Dockerfile $(if $(BASE),--build-arg BASE='$(BASE)') --target worker -t doze-worker .

.PHONY: generate
generate: ## the Go code of proto/ and deploy/seccomp.json (committed; CI checks that they are current)
	cd proto/tools && go run . ..
	cd deploy/seccomp && go run . ../seccomp.json
