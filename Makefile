# Everything below works from a clean clone with Python 3.11 and pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Not beside the others: accelerate imports DeepSpeed with every model that it saves, and one test needs it.
APART := deepspeed einops hjson msgpack ninja py-cpuinfo

.DEFAULT_GOAL := help
.PHONY: help demo test quick check bench coverage wheel clean

help: ## Show what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/base ## Train a delta on real sentences, push it, pull it, load it verified.
	$(BIN)/python examples/sentiment.py

test: $(VENV)/dev ## Run all tests.
	$(BIN)/python -m pytest --numprocesses auto

quick: $(VENV)/dev ## Run the tests that are not marked slow.
	$(BIN)/python -m pytest --numprocesses auto -m "not slow"

check: $(VENV)/dev ## Lint, formatting, types and tests.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto

bench: $(VENV)/bench ## Measure beside peers; ratios from one run. PARTS="hf serve": others, in a short form.
	$(BIN)/python benchmarks/run.py $(addprefix --part ,$(PARTS))

coverage: $(VENV)/bench ## Try every delta type on every architecture; writes docs/coverage.md.
	$(BIN)/python benchmarks/coverage.py --jobs 2

wheel: $(VENV)/dev ## Build dist/deltahub-*.whl.
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## Remove everything that was built or fetched.
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp is newer than what it was installed from. torch comes first: pip takes the pinned build, whatever else asks for it.
$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(PIP) --editable '.[dev]'
	DS_BUILD_OPS=0 $(PIP) --no-deps --upgrade --target $(VENV)/apart $(APART)
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(PIP) --editable '.[bench,dev]'
	@touch $@
