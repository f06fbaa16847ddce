# Set-up happens by itself: every target first brings .venv in step with the locked requirements.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-dev

.PHONY: setup demo lint test bench lock

setup: $(READY)

$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --require-hashes --no-deps -r requirements/uv.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	jobs/demo.sh

lint: setup
	$(BIN)/ruff check platform jobs tests bench
	$(BIN)/ruff format --check platform jobs tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }

# pytest -ra lists at its end what was skipped, with the reason.
test: lint
	$(BIN)/pytest

bench: setup
	$(BIN)/python bench/data.py

lock: setup
	$(BIN)/uv pip compile -q pyproject.toml --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -o requirements/runtime.txt
	$(BIN)/uv pip compile -q pyproject.toml --group dev --all-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -c requirements/runtime.txt -o requirements/dev.txt
	echo uv | $(BIN)/uv pip compile -q - --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -c requirements/dev.txt -o requirements/uv.txt
