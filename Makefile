PYTHON ?= python3
BIN := .venv/bin

.PHONY: help quick test demo format

help:
	@echo 'make quick   lint, types and fast tests: less than a minute on two cores'
	@echo 'make test    lint, types and all tests: 6 minutes on two cores'
	@echo 'make demo    train on the digits with one seed, and print the table'
	@echo 'make format  fix the style of the code'

demo: .venv/installed
	$(BIN)/python -m reproduce demo-digits --seeds 1 --results runs/demo.jsonl

quick: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow and not hostile and not gpu'

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@
