# The two commands for a newcomer are `make demo` and `make test`; each does the whole set-up first.
# Needs make, a shell and Python 3.11 or newer. Everything goes into $(VENV), nothing elsewhere.

VENV ?= .venv
# The first interpreter that is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
  && { command -v $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
EXTRAS := $(VENV)/.extras
PYTEST ?= $(BIN)/python -m pytest
DEFAULT_TESTS := not slow and not gpu and not network and not weights and not parity

.PHONY: help setup extras demo test test-slow lint format types imports check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## create the virtual environment with the core and the development tools

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv and pip is needed; none was found (set PYTHON=/path/to/python)" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	@touch $(STAMP)

extras: $(EXTRAS)  ## install every extra too; the tests need them

$(EXTRAS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]" --group browser
	@touch $(EXTRAS)

demo: $(STAMP)  ## cut objects out of the example photographs into demo-output/
	$(BIN)/zim matte examples/rabbit.jpg --points 420,350 400,150 \
	  --background "#7aa6c2" --output demo-output --overwrite
	$(BIN)/zim matte examples/hyrax.jpg --box 50,40,530,455 \
	  --format rgba alpha composite overlay --output demo-output --overwrite
	$(BIN)/zim matte examples/coffee.jpg --box 75,15,482,390 --points 280,300 145,60,0 460,350,0 \
	  --background "#e8e0d0" --output demo-output --overwrite

test: $(EXTRAS)  ## default tests
	$(PYTEST) -m "$(DEFAULT_TESTS)" $(ARGS)

test-slow: $(EXTRAS)  ## tests marked slow
	$(PYTEST) -m "slow and not gpu and not network and not weights and not parity" $(ARGS)

lint: $(STAMP)  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(EXTRAS)  ## type check
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP)  ## import contracts between the packages
	$(BIN)/lint-imports --no-logo

check: lint types imports test  ## everything but the slow tests

clean:  ## remove caches and outputs, keep the environment
	rm -rf demo-output build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
