# Everything starts with `make help`. Every variable can be overridden: make test VENV=/tmp/venv PYTHON=python3.12

SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
# Extra arguments for pip, for example --extra-index-url with the index of PyTorch's CPU builds.
PIP_FLAGS ?=
# Extra arguments for pytest: make test PYTEST_FLAGS="-k kl -n 0"
PYTEST_FLAGS ?=

SUITE ?= contextual
STEPS ?=
ADAPTER ?=
SEED ?=
PRESET ?=
WIDTH ?=
LOG_DIR ?=
# Further arguments for the training: make train ARGS="--beta 0.1 --task-input one_hot"
ARGS ?=

# The first interpreter that runs and has a version that the package accepts (a name on PATH may be an empty shim).
define find_python
$(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 && { echo $$p; break; }; done)
endef
ifeq ($(origin PYTHON),undefined)
PYTHON = $(find_python)
endif

STAMP := $(VENV)/.installed
SOURCES := sb3_varshare tests examples benchmarks docs/conf.py setup.py
# Folders that another checkout may not have are skipped instead of failing the linter.
PRESENT = $(wildcard $(SOURCES))

.DEFAULT_GOAL := help
.PHONY: help train test test-postgres test-dashboard check lint format docs bench clean

help:  ## print this list
	@echo "make <target> [VARIABLE=value ...]"; echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo; echo "train takes SUITE ($(SUITE)), STEPS, ADAPTER, SEED, PRESET, WIDTH, LOG_DIR, ARGS; all targets take VENV ($(VENV)) and PYTHON."

$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 and < 3.14 found on PATH; name one with PYTHON=/path/to/python." >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)  ## train one agent on SUITE and print a table per task
	$(PY) examples/train_suite.py --suite $(SUITE) $(if $(STEPS),--steps $(STEPS)) $(if $(ADAPTER),--adapter $(ADAPTER)) \
		$(if $(SEED),--seed $(SEED)) $(if $(PRESET),--preset $(PRESET)) $(if $(WIDTH),--width $(WIDTH)) \
		$(if $(LOG_DIR),--log-dir $(LOG_DIR)) $(ARGS)

test: $(STAMP)  ## run the tests
	$(PY) -m pytest $(PYTEST_FLAGS)

test-postgres: $(STAMP)  ## run the test of tuning with many workers on a PostgreSQL server of its own
	tests/tuning/with_postgres.sh $(PY) -m pytest -n 0 -k postgres tests/tuning/test_workers.py

test-dashboard: $(STAMP)  ## open a study in optuna-dashboard in a headless browser, and look at it
	tests/tuning/with_browser.sh $(PY) -m pytest -n 0 tests/tuning/test_dashboard.py

lint: $(STAMP)  ## formatting, ruff and mypy, without the tests
	$(PY) -m ruff format --check $(PRESENT)
	$(PY) -m ruff check $(PRESENT)
	$(PY) -m mypy

check: lint test  ## everything a change must pass: lint, then test

format: $(STAMP)  ## format the code and apply ruff's safe fixes
	$(PY) -m ruff format $(PRESENT)
	$(PY) -m ruff check --fix $(PRESENT)

docs: $(STAMP)  ## build the documentation into docs/_build/html; warnings are errors
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)  ## run the benchmarks
	$(PY) benchmarks/estimators.py

clean:  ## remove build outputs and caches (the environment and your runs stay)
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find sb3_varshare tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
