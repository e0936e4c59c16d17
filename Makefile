# The commands of the README. Each does its own set-up; what one has built the others use.

CARGO ?= cargo
WASM_TARGET := wasm32-unknown-unknown
BENCHMARKS := ring peer-ring flood http start cold density neighbour containers orchestrate domains
export CARGO_TERM_PROGRESS_WHEN ?= auto

.PHONY: help demo test nightly check bench build functions setup clean

help: ## Say what there is.
	@echo "make demo    bring the platform up, send requests through a function, take it down again"
	@echo "make test    run all tests"
	@echo "make nightly run the simulations with ten thousand seeds each, and a minute of chaos"
	@echo "make check   check format and lints"
	@echo "make bench   measure the platform; updates the tables in README.md and docs/benchmarks.md"
	@echo "make build   build the programs into target/debug; make functions also the example functions"
	@echo "make clean   remove what was built"

setup:
	@./scripts/setup.sh $(WASM_TARGET)

build: setup
	$(CARGO) build --workspace --bins

# The example functions, each beside its function.json; what is up to date is left alone.
functions: build
	@for file in functions/*/function.json; do target/debug/edgeless_cli function build "$$file" >/dev/null || exit 1; done

demo: functions
	@./scripts/programs.sh curl
	@./scripts/demo.sh

# Some tests need a Redis server, Python, or the Docker engine of this machine. Without them they are skipped,
# and named on the last lines.
test: setup
	@./scripts/programs.sh curl redis-server python3 busybox:busybox-static iptables ip:iproute2
	@./scripts/test.sh

# What is too long for every change. A seed that fails is printed: make it a test.
nightly: setup
	$(CARGO) test --workspace --lib --release -- --ignored
	$(CARGO) build --workspace --bins --release
	target/release/edgeless_cli function build functions/relay/function.json
	target/release/edgeless_benchmark chaos --seconds 60

check: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cd functions && $(CARGO) fmt --all --check && $(CARGO) clippy --all-targets -- -D warnings
	cd functions && $(CARGO) clippy -p edgeless_function --all-targets --features container -- -D warnings

bench: setup
	$(CARGO) build --workspace --bins --release
	target/release/edgeless_cli function build functions/noop/function.json
	target/release/edgeless_benchmark footprint --update README.md
	@for command in $(BENCHMARKS) ; do \
		echo "target/release/edgeless_benchmark $$command --update docs/benchmarks.md"; \
		target/release/edgeless_benchmark $$command --update docs/benchmarks.md || exit 1; \
	done

clean:
	$(CARGO) clean
	cd functions && $(CARGO) clean
