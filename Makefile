# Every target sets up what it needs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Python 3.11 or 3.12, whichever is there; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& { echo $$name; break; }; done)
PORT ?= 3000
MODEL ?=
BENCH ?=
SUITE ?= all
QUICKSTART := support-intent:1.0.0
BIN := .venv/bin
ENV := .venv/.installed

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: serve
serve: $(ENV)  ## serve on 127.0.0.1 (PORT=3001 MODEL=name:version), the quickstart model by default
	@$(if $(MODEL),,$(BIN)/kaiten models $(QUICKSTART) >/dev/null 2>&1 || $(MAKE) -s quickstart)
	@exec $(BIN)/kaiten serve --port $(PORT) $(if $(MODEL),--model $(MODEL))

.PHONY: quickstart
quickstart: $(ENV)  ## make and register the quickstart model, support-intent:1.0.0
	@$(BIN)/python examples/quickstart/train.py

.PHONY: test
test: $(ENV)  ## run all tests, with branch coverage
	$(BIN)/pytest --cov --cov-report=term

.PHONY: bench
bench: $(ENV)  ## measure against peers and the hardware; 90 minutes, needs wrk; BENCH=--quick for a try
	@$(BIN)/python -m benchmarks $(BENCH)

.PHONY: acceptance
acceptance: $(ENV)  ## SUITE=overload, kill_worker, poison, soak (15 minutes) or all, against a real server
	@$(BIN)/python -m tests.acceptance $(SUITE)

.PHONY: check
check: $(ENV)  ## ruff, mypy strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(ENV)  ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: constraints
constraints: $(ENV)  ## write the installed versions to constraints.txt, after an upgrade
	@{ echo "# Versions that were tested together. Written by make constraints."; \
	$(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed -e 's/ @ .*//' -e 's/+cpu$$//'; } > constraints.txt

.PHONY: clean
clean:  ## remove the environment and the caches; models and state stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*

# torch first and pinned: left to the resolver, it brings whatever build is newest.
$(ENV): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Kaiten needs Python 3.11 or 3.12; set PYTHON=/path/to/it." >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON); the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
