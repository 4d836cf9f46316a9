PYTHON ?= python3
LOCK ?= requirements.lock
BIN := .venv/bin
COMPILE := uv pip compile pyproject.toml --extra dev --no-emit-package mixmatch --no-annotate --python-version 3.11 --upgrade

.PHONY: help demo quick test check-style format lock

help:
	@echo 'make demo    train on 8x8 digits with one seed, supervised and by MixMatch, and print the table'
	@echo 'make quick   check style and types, run the fast tests: a minute on two cores'
	@echo 'make test    check style and types, run all tests: 10 minutes on two cores'
	@echo 'make format  fix the style of the code'
	@echo 'make lock    update the lock files (needs uv)'
	@echo 'All but the last install $(LOCK) into .venv first: 6 GB. make PYTHON=python3.12 chooses the interpreter.'

demo: .venv/installed
	$(BIN)/python -m reproduce demo-digits --seeds 1 --results runs/demo.jsonl

quick: check-style
	$(BIN)/python -m pytest -m 'not slow and not hostile and not gpu'

test: check-style
	$(BIN)/python -m pytest

check-style: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock:
	UV_CUSTOM_COMPILE_COMMAND='make lock' $(COMPILE) --universal --output-file requirements.lock
	UV_CUSTOM_COMPILE_COMMAND='make lock' $(COMPILE) --resolution lowest-direct --output-file requirements-oldest.lock

.venv/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
