# Makefile: `make help` lists what there is.
.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## bin/doze (needs Go only)
	CGO_ENABLED=0 go build -trimpath -o bin/doze ./cmd/doze

.PHONY: generate
generate: ## the Go code of proto/ (committed; CI checks that it is current)
	cd proto/tools && go run . ..
