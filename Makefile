# Every target does its own set-up. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Where this is set, every process compiles all that it imports anew when it starts: 4 s instead of 1.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := .venv/bin/python
UV_VERSION := 0.13.9
ARGS ?=

.PHONY: help run test chaos fires proofs soak kafka lint fmt proto migrate bench env env-run

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

run: env-run ## the whole suite on this machine; ARGS=--processes for one process each
	@$(PYTHON) -m deploy.local run $(ARGS)

test: env ## everything this machine can check; ARGS go to pytest
	@$(PYTHON) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

chaos: env ## ten minutes of faults at random; ARGS="--seed N --minutes M" for others
	@$(PYTHON) -m tests.chaos $(ARGS)

fires: env ## schedules fire once while schedulers, workers and broker are killed; ARGS go to it
	@$(PYTHON) -m tests.fires $(ARGS)

proofs: env ## the three long proofs of schedules, one after another, and a summary
	@$(PYTHON) -m tests.fires.proofs $(ARGS)

soak: env ## many starts, turns and streams, and what is held after them; ARGS="starts turns loss" for some
	@$(PYTHON) -m tests.soak $(ARGS)

kafka: env ## relay and consumers on a real Apache Kafka, fetched from its artifacts; needs java and mvn
	@$(PYTHON) -m tests.apache_kafka $(ARGS)

lint: env ## what CI checks before the tests
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports
	@.venv/bin/buf lint && .venv/bin/buf format --diff --exit-code --path protos/aiagent && $(PYTHON) -m protos.generate --check

fmt: env ## format Python and protos
	@.venv/bin/ruff check --fix -q . ; .venv/bin/ruff format . && .venv/bin/buf format -w --path protos/aiagent

proto: env ## generate protos/gen from protos/aiagent
	@$(PYTHON) -m protos.generate

migrate: env-run ## bring the database schemas of the local suite up to date (a start does it too)
	@$(PYTHON) -m deploy.local migrate

bench: env ## the benchmarks
	@for name in main_job relay unary fanout fires runs report_rendering; do $(PYTHON) benchmarks/$$name.py; done

env: .venv/.development ## the environment to develop in
env-run: .venv/.runtime ## the environment to run in, the smaller one

.venv/bin/uv:
	@echo "  creating .venv"
	@command -v python3.12 >/dev/null || { echo "error: python3.12 is needed (see .python-version)" >&2; exit 1; }
	@python3.12 -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "error: python3.12 does not run" >&2; exit 1; }
	@test -x .venv/bin/python || python3.12 -m venv .venv
	@$(PYTHON) -m pip install -q --disable-pip-version-check "uv==$(UV_VERSION)"

# The development environment holds the runtime's packages in the same versions: it serves both.
.venv/.runtime: .venv/bin/uv requirements.lock pyproject.toml
	@if [ -e .venv/.development ]; then $(MAKE) -s .venv/.development; else \
	  echo "  installing packages"; \
	  .venv/bin/uv pip sync -q --python $(PYTHON) --require-hashes requirements.lock && \
	  .venv/bin/uv pip install -q --python $(PYTHON) --no-deps -e .; fi
	@touch $@

.venv/.development: .venv/bin/uv requirements-dev.lock pyproject.toml
	@echo "  installing packages for development"
	@.venv/bin/uv pip sync -q --python $(PYTHON) --require-hashes requirements-dev.lock
	@.venv/bin/uv pip install -q --python $(PYTHON) --no-deps -e .
	@touch $@
