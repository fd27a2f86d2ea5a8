# What people run by hand; `.ci/run` is what a change must pass.

# Downloads and tools that the tests need lie outside the checkout, where a clean build keeps them.
export KSI_TEST_CACHE := $(or $(KSI_TEST_CACHE),$(or $(HOME),$(CURDIR))/.cache/ksi-test)
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:$(KSI_TEST_CACHE)/tools/bin

nextest_version := 0.9.143

.PHONY: test test-root test-needs bench docs fmt lint check clean-cache

test: test-needs ## everything the tests need, then all tests
	cargo nextest run --workspace --no-fail-fast
	cargo test --doc --workspace

test-root: ## what only root can try; refused for anybody else
	@[ "$$(id -u)" = 0 ] || { echo "make test-root: needs root; nothing was run" >&2; exit 1; }
	cargo nextest run --profile root --workspace --no-fail-fast

test-needs:
	tools/fetch-test-model
	cargo nextest --version >/dev/null 2>&1 || tools/install-cargo-tool cargo-nextest $(nextest_version)

bench: ## speed against references measured in the same run
	cargo bench -p ksi --bench socket

docs: ## docs/events.md and docs/configuration.md from the program
	cargo run -q -- discover --markdown > docs/events.md
	cargo run -q -- config show --markdown > docs/configuration.md

fmt:
	cargo fmt --all

lint:
	cargo clippy --workspace --all-targets -- -D warnings

check: ## what CI runs
	.ci/run

clean-cache: ## the test model and the tools; the next `make test` fetches them again
	rm -rf "$(KSI_TEST_CACHE)"
