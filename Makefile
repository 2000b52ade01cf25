# The one task runner; continuous integration calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
# setuptools notes each editable installation on several lines
EDITABLE := PYTHONWARNINGS="ignore:Editable installation"

.PHONY: demo test test-all test-oldest check bench torture mutants docs clean

demo: $(STAMP)  ## train, evaluate and compare a small modulation on generated videos
	$(BIN)/modulate train recipes/gazeqwen_tiny.yaml

test: $(STAMP)  ## the quick suite
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

test-all: $(STAMP)  ## the quick suite and the long tail
	$(EDITABLE) $(BIN)/python -m pip install --quiet --editable ".[dev,quantised]"
	$(BIN)/python -m pytest -m "not gpu and not network"

test-oldest:  ## the hosts' contract on the oldest transformers that is supported, in an environment of its own
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(EDITABLE) $(OLDEST)/bin/python -m pip install --quiet --editable ".[dev,quantised]" "transformers==5.17.0"
	$(OLDEST)/bin/python -m pytest tests/contract --write-hosts

check: $(STAMP)  ## lint, types, generated docs
	$(BIN)/ruff check modulate plugins benchmarks tests
	$(BIN)/mypy
	$(BIN)/python -m modulate.cli.reference --check

torture: $(STAMP)  ## kill runs, damage files, and write docs/explanation/durability.md; at most 20 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py

mutants: $(STAMP)  ## put small faults into the core, see which the quick tests notice, and write docs/results/mutants.md; hours
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

bench: $(STAMP)  ## measure speed and memory, and write docs/benchmarks.md
	OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/python -m benchmarks.speed

docs: $(STAMP)  ## write the generated pages anew
	$(BIN)/python -m modulate.cli.reference

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "modulate needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(EDITABLE) $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info .mypy_cache .ruff_cache .hypothesis
