# The same commands for people and CI. Needs Python >= 3.11 with venv, make, and package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-pythons lint check bench prove prove-short schemas docs
.DEFAULT_GOAL := help

help:
	@echo "make demo   watch hits go through a real Kafka to five connections"
	@echo "make test   the whole suite"
	@echo "make test-pythons  unit tests and demo on each newer Python of this machine"
	@echo "make check  lint, types, layers, tests"
	@echo "make prove  kill -9, rebalances, broker loss: nothing lost, nothing doubled"
	@echo "make bench  CPU per hit, beside others on the same work"

$(STAMP): requirements.lock pyproject.toml bin/uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "Python >= 3.11 is needed; name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; name it with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing uv and the locked packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bin/uv.lock
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/hitrouter setup
	@touch $(STAMP)

# What only the tests need: npm packages and a browser, into the cache folder.
$(VENV)/.packages: $(STAMP) tests/node/package-lock.json
	@$(BIN)/python -m tests.npm
	@touch $@

setup: $(STAMP) $(VENV)/.packages

demo: $(STAMP)
	@$(BIN)/hitrouter demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest -n 4 $(ARGS)

test-pythons: setup
	@$(BIN)/python -m tests.pythons

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

prove: setup
	$(BIN)/python -m tests.faults.prove $(ARGS)

prove-short: setup
	$(BIN)/python -m tests.faults.prove --short $(ARGS)

bench: setup
	$(BIN)/python -m bench $(ARGS)

schemas: setup
	$(BIN)/python -m pipeline.config.file_schema > schemas/config.schema.json

docs: setup
	$(BIN)/python -m tests.reference_pages
