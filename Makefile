# Everything a person does here is one of these targets; each does its own set-up.
# `make` alone lists them.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Targets share .venv and print to one terminal: in order, whatever -j says.
.NOTPARALLEL:

export PIP_DISABLE_PIP_VERSION_CHECK := 1

PY := .venv/bin/python
PIP := $(PY) -m pip --quiet
# Passed to what a target runs: make run ARGS='--engine scripted', make test ARGS='-k resume'.
ARGS ?=
# Side by side, but not so many that they wait for the machine.
PROCESSES ?= $(shell python3 -c 'import os; print(min(4, max(2, os.cpu_count() or 2)))')
SIDE_BY_SIDE := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

# Folders that come with later work are checked as soon as they are there.
CODE := $(wildcard service gateway/backchannel_gateway tests bench scripts)

.PHONY: help run test lint format proto web proto-baseline bench nightly lock dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.runtime ## start the service in the foreground (ARGS='--help' shows its options)
	@.venv/bin/backchannel serve $(ARGS)

test: .venv/.dev ## run all tests, installing what they need where that is possible (ARGS='-k name')
	@$(PY) scripts/tools.py
	@$(PY) -m pytest $(SIDE_BY_SIDE) $(ARGS)

lint: .venv/.dev ## check style, types, arrows between packages, the contract and the stubs
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy $(CODE)
	.venv/bin/lint-imports --no-logo
	$(PY) scripts/proto.py check
	$(PY) scripts/check_yaml.py
	$(PY) scripts/check_tree.py

format: .venv/.dev ## mend style where a tool can
	.venv/bin/ruff check --fix $(CODE)
	.venv/bin/ruff format $(CODE)

proto: .venv/.dev ## regenerate the stubs, Python and TypeScript, from proto/
	$(PY) scripts/proto.py stubs
	$(PY) scripts/web.py stubs

web: .venv/.dev ## rebuild the page in gateway/backchannel_gateway/static from gateway/web
	@$(PY) scripts/tools.py node web
	$(PY) scripts/web.py build

proto-baseline: .venv/.dev ## accept the contract as it is now; wants a CHANGELOG line
	$(PY) scripts/proto.py baseline

bench: .venv/.dev ## measure costs and latencies, about 8 minutes, into docs/performance.md (ARGS='load')
	@$(PY) scripts/tools.py go protoc-gen-go protoc-gen-go-grpc load-driver
	@$(PY) -m bench --markdown docs/performance.md $(ARGS)

nightly: .venv/.dev ## run the tests with full counts and write docs/nightly.md
	@$(PY) scripts/tools.py
	@$(PY) scripts/nightly.py $(SIDE_BY_SIDE) $(ARGS)

dist: .venv/.dev ## build the wheel into dist/
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

# No address of a package index may reach a lock, whatever the machine is set to.
UV_COMPILE := env -u PIP_FIND_LINKS -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' $(ARGS)

lock: .venv/.dev ## pin all dependencies anew (ARGS='--upgrade' takes newer versions)
	$(UV_COMPILE) --group build --extra edge --extra openai --extra telemetry pyproject.toml --output-file requirements.lock
	$(UV_COMPILE) --group build --group dev --extra edge --extra openai --extra smg --extra telemetry --constraint requirements.lock \
		pyproject.toml --output-file requirements-dev.lock
	$(UV_COMPILE) --group pyproject.toml:go --output-file requirements-go.lock
	$(UV_COMPILE) --group pyproject.toml:node --output-file requirements-node.lock

clean: ## remove everything that make made
	rm -rf .venv .tools gateway/web/node_modules dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# --- the environment -----------------------------------------------------------------------
# One environment, two stamps: the service alone, and with the developers' tools. The second
# lock holds the first one's versions, so they never pull against each other.

.venv/bin/python:
	@sh scripts/bootstrap.sh

.venv/.runtime: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing the service into .venv (once; a minute or two)."
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime | .venv/bin/python
	@echo "Installing the developers' tools into .venv (once; a minute or two)."
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@
