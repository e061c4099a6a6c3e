# The Python that makes the virtual environment; everything else runs from there.
PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := requirements.txt requirements-dev.txt
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help run test test-all bench lint types imports lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec`: the runner takes the shell's place, so that a signal that make passes on reaches it.
run: .venv/.stamp ## Run the whole system on http://localhost:5000 (PORT); Ctrl-C ends it
	@exec $(BIN)/python -m chatapi.dev

test: .venv/.stamp ## Run the tests but the slow ones
	@$(BIN)/python -m pytest -m "not slow"

test-all: .venv/.stamp ## Run all tests, faults and waits of many seconds too
	@$(BIN)/python -m pytest

bench: .venv/.stamp ## Measure the system against yardsticks of the same run (docs/performance.md)
	@$(BIN)/python -m bench $(BENCH)

lint: .venv/.stamp ## Check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: .venv/.stamp ## Check the types
	@$(BIN)/mypy

imports: .venv/.stamp ## Check that imports go down only
	@$(BIN)/lint-imports

lock: .venv/.stamp ## Pin anew what the requirements*.in files name
	@$(COMPILE) requirements.in -o requirements.txt
	@$(COMPILE) requirements-genai.in -o requirements-genai.txt
	@$(COMPILE) requirements-dev.in -o requirements-dev.txt

clean: ## Remove caches and the virtual environment, but not the data in .data/
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

.venv/.stamp: $(REQUIREMENTS) $(BIN)/python
	@echo "Installing the requirements into .venv/ ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	@touch $@

# Make deletes this file when it is interrupted here, so that a half-made environment is made anew.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but 3.11 or newer is needed: name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install its venv package (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv
