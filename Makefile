# Set-up happens by itself: every target first brings .venv in step with the locked requirements.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-dev

PCAM ?= ../shared/data/pcam
STORE ?= runs/historay-store
DATASET ?= pcam
MODEL ?= pcam-small

.PHONY: setup demo lint test bench bench-quality bench-robustness bench-soak bench-predict lock chart kind kind-down

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
	$(BIN)/ruff check platform jobs tests bench helm
	$(BIN)/ruff format --check platform jobs tests bench helm
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }

# Two parts run at once: on two cores a second thread of each would only wait for the other's, four times as long.
test: export OMP_NUM_THREADS = 1
# The longest tests on Ray, which often wait, run beside all others. The last lines say of every part what failed and how it ended.
# First the one that needs Ray's job agent, whose fixed port 52365 only the first cluster on a machine gets.
LONGEST := tests/ray/test_submit_address.py tests/ray/test_search.py tests/ray/test_train.py tests/s3
SEVERAL_NODES := tests/ray/test_survival.py
PARTS := .pytest-longest.log .pytest-nodes.log .pytest-fast.log .pytest-ray.log
test: lint
	{ failed=0; $(BIN)/pytest $(LONGEST) --durations=12 > .pytest-longest.log 2>&1 || failed=1; \
	  $(BIN)/pytest $(SEVERAL_NODES) --durations=12 > .pytest-nodes.log 2>&1 || failed=1; exit $$failed; } & longest=$$!; failed=0; \
	$(BIN)/pytest -m "not ray and not s3" --durations=12 2>&1 | tee .pytest-fast.log || failed=1; \
	$(BIN)/pytest -m "ray or s3" $(addprefix --ignore=,$(LONGEST) $(SEVERAL_NODES)) --durations=12 2>&1 | tee .pytest-ray.log || failed=1; \
	wait $$longest || failed=1; cat .pytest-longest.log .pytest-nodes.log; \
	grep -hE '^(FAILED|ERROR|SKIPPED)' $(PARTS) || true; tail -qn 1 $(PARTS); exit $$failed

bench: setup
	$(BIN)/python bench/data.py
	$(BIN)/python bench/loader.py $(PCAM)
	$(BIN)/python bench/step.py
	$(BIN)/python bench/evaluation.py
	$(BIN)/python bench/search.py
	$(BIN)/python bench/serving.py

# About 6 minutes of one quiet core; PCAM is a folder with manifest.csv, train.tar and test.tar.
bench-robustness: setup
	$(BIN)/python bench/robustness.py $(PCAM)

# What each idea is worth, and each network in equal time: about 65 minutes of one quiet core.
bench-quality: setup
	$(BIN)/python bench/quality.py $(PCAM)

# The endpoint at twice its capacity: ten minutes of a quiet machine, and the start.
bench-soak: setup
	$(BIN)/python bench/soak.py

# Batch prediction against a plain loop, over a data set of a store with a model for it: some minutes of a quiet machine.
bench-predict: setup
	$(BIN)/python bench/predict.py $(STORE) $(DATASET) $(MODEL)

lock: setup
	$(BIN)/uv pip compile -q pyproject.toml --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -o requirements/runtime.txt
	$(BIN)/uv pip compile -q pyproject.toml --group dev --all-extras --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -c requirements/runtime.txt -o requirements/dev.txt
	printf 'uv\nuv-build\n' | $(BIN)/uv pip compile -q - --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate -c requirements/dev.txt -o requirements/uv.txt

# What in the chart is made from other files: the schema of its values, its README.
chart: setup
	$(BIN)/python helm/refresh_schema.py
	cd tests/cluster/helm-docs && go tool helm-docs --chart-search-root ../../../helm

# From nothing to a served prediction on a laptop with Docker, and back to nothing.
kind:
	k8s/kind/up.sh

kind-down:
	k8s/kind/down.sh
