# Everything that is done in this repository, by one word each. `make` says which words there are.
#
# Needs a Python of 3.11 or later with its headers, a C compiler and make. `make build PYTHON=python3.12` takes another
# interpreter; from then on .venv remembers it.

VENV := .venv
BIN := $(VENV)/bin

# The interpreter to build with: the one asked for, else the one that .venv was made with, else python3.
ASKED := $(PYTHON)
INTERPRETER := $(or $(ASKED),$(wildcard $(BIN)/python),python3)
VERSION_OF = $(shell $(1) -c 'import sys; print(sys.version)' 2>/dev/null)
STALE := $(if $(ASKED),$(if $(filter-out $(call VERSION_OF,$(BIN)/python),$(or $(call VERSION_OF,$(ASKED)),none)),stale))

# What the native modules are made of. Their modules in place are up to date when this stamp is.
NATIVE_SOURCES := $(wildcard ext/broker_native/*.pyx ext/broker_native/*.pxd ext/broker_native/*.h)
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
NODE := build/node/node_modules

# The caller's environment must not put other code before ours.
unexport PYTHONPATH PYTHONHOME

.PHONY: help build demo test quick run bench bench-compare instructions results loadtest lint format check proofs debug sanitize checked fuzz coverage annotate client clean stale
.DEFAULT_GOAL := help

help: ## say what there is
	@echo "make WORD, where WORD is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

build: $(BUILT) ## make .venv and the native modules; then .venv/bin/broker is there

demo: build ## a real corpus through a broker that is killed in the middle: FILE=lines.txt ARGS=...
	$(BIN)/broker demo $(if $(FILE),--file "$(FILE)") $(ARGS)

test: build ## the whole suite: ARGS="-k journal"
	$(BIN)/python -m pytest $(ARGS)

quick: build ## the suite without the slow tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

run: build ## a server on 127.0.0.1:4770: ARGS="--data DIR"
	$(BIN)/broker serve $(ARGS)

bench: build ## measure: ARGS="pubsub --durability synced"
	$(BIN)/broker bench $(if $(ARGS),$(ARGS),pubsub)

bench-compare: build ## both revisions' benchmarks in turn, fails past 10 %: BASE=main ARGS="-k rows --json FILE"
	@test -n "$(BASE)" || { echo 'broker: with which revision? make bench-compare BASE=main' >&2; exit 2; }
	$(BIN)/python -m benchmarks.compare --base "$(BASE)" $(ARGS)

instructions: build ## count the kernels' instructions (Linux, valgrind), within 3 %: ARGS='--record --reason "..."'
	$(BIN)/python -m benchmarks.instructions $(ARGS)

loadtest: build ## Locust users against a server of its own, 60 s, and a verdict: ARGS="--scenario chat --report r.html"
	$(BIN)/python -m loadtest $(ARGS)

# What a browser runs is compiled from TypeScript and kept beside it, so that nobody needs Node to build or to install.
$(NODE)/.package-lock.json: tests/browser/package.json tests/browser/package-lock.json
	mkdir -p build/node
	cp $^ build/node
	npm ci --prefix build/node --no-audit --no-fund
	touch $@

client: $(NODE)/.package-lock.json ## compile the browser client (npm); its tests need this as well
	$(NODE)/.bin/tsc -p broker/web/client

# A peer that is not installed is named with the command that installs it.
results: build ## compare with other brokers, and write benchmarks/RESULTS.md: ARGS="--seconds 2"
	@mkdir -p build
	$(BIN)/broker bench compare --with redis,nats,mosquitto,embedded --promised --case \
		--markdown benchmarks/RESULTS.md --json build/results.json --html build/results.html $(ARGS)

# The linters say nothing when all is well, so each says its name first.
lint: build ## all that judges the code without running it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ext tests/fuzz
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache

format: build ## put the Python code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: ## what CI does
	.ci/run

proofs: build ## the whole suite, with each proof as large as tests/README.md quotes it: ARGS="tests/powerloss"
	BROKER_PROOFS=1 $(BIN)/python -m pytest --timeout 14400 $(ARGS)

debug: build ## the native modules with bounds checks, asserts and warnings as errors, under their tests
	BROKER_DEBUG=1 $(BIN)/python setup.py -q build --build-lib build/debug/lib
	PYTHONPATH=build/debug/lib $(BIN)/python -m pytest -o pythonpath="build/debug/lib ." tests/native tests/fuzz $(ARGS)

# Python itself is not built with the sanitizers, so their run-time library comes first, and leaks of Python are Python's.
SANITIZER = $(shell $(or $(CC),cc) -print-file-name=libasan.so)
sanitize: build ## the same under AddressSanitizer and UndefinedBehaviorSanitizer (Linux, gcc)
	BROKER_SANITIZE=1 $(BIN)/python setup.py -q build --build-lib build/sanitize/lib
	LD_PRELOAD=$(SANITIZER) ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/lib \
		$(BIN)/python -m pytest -p no:cacheprovider -o pythonpath="build/sanitize/lib ." tests/native tests/fuzz $(ARGS)

# Without the sanitizers' library it is the build with bounds checks that is fuzzed: then a stray read goes unseen.
CHECKED = $(if $(wildcard $(SANITIZER)),sanitize,debug)
checked: build ## the native modules with every check that this machine has, for `sanitize` or `debug`, and `fuzz`
	BROKER_$(if $(filter sanitize,$(CHECKED)),SANITIZE,DEBUG)=1 $(BIN)/python setup.py -q build --build-lib build/$(CHECKED)/lib

fuzz: checked ## inputs nobody would send, ten million of them: ARGS="--seconds 60 --target intake", ARGS="--replay FIND"
	$(BIN)/python -m tests.fuzz.run --lib build/$(CHECKED)/lib $(ARGS)

coverage: build ## which branches of ext and core their tests take; fails under 95 % or unexplained (Linux, gcc)
	$(BIN)/python -m tests.coverage.measure $(ARGS)

annotate: build ## Cython's account of what each line costs, as HTML in build/annotate
	$(BIN)/python setup.py annotate
	@ls build/annotate/ext/broker_native/*.html

clean: ## remove all that was made
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f ext/broker_native/*.so
	find broker ext tests benchmarks loadtest -name __pycache__ -type d -prune -exec rm -rf {} +
	-git worktree prune

$(INSTALLED): requirements.txt pyproject.toml setup.py $(STALE)
	@$(INTERPRETER) -c '' 2>/dev/null || { echo 'broker: no working $(INTERPRETER); `apt install python3` on Debian and Ubuntu' >&2; exit 1; }
	@$(INTERPRETER) setup.py preflight
	$(if $(STALE),rm -rf $(VENV))
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(or $(ASKED),python3) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	BROKER_ONLY=none $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BUILT): $(INSTALLED) $(NATIVE_SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace $(if $(filter $(INSTALLED),$?),--force)
	@touch $@
