# The one task runner; continuous integration calls the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := .venv-newest
OLDEST := .venv-oldest
# What is installed for demo and test; with another build of torch than CUDA 13's: make LOCK="-c requirements/lock.txt" …
LOCK ?= -c requirements/lock.txt -c requirements/lock-cuda.txt
ENVIRONMENTS := requirements/environments.py
QUICK := -m "not slow and not gpu and not network"
# a process for each core; a file's tests share fixtures, so they stay together
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
CODE := modulate plugins benchmarks tests requirements docs/examples docs/assets docs/site_hooks.py
# setuptools notes each editable installation on several lines
EDITABLE := PYTHONWARNINGS="ignore:Editable installation"

.PHONY: demo test test-all test-newest test-oldest newest oldest hosts lock check bench torture mutants docs clean

demo: $(STAMP)  ## train, evaluate and compare a small modulation on generated videos
	$(BIN)/modulate train recipes/gazeqwen_tiny.yaml

test: $(STAMP)  ## the quick suite
	$(BIN)/python -m pytest $(PARALLEL) $(QUICK)

test-all: $(STAMP)  ## the quick suite and the long tail
	$(EDITABLE) $(BIN)/python -m pip install --quiet --build-constraint requirements/lock.txt $(LOCK) --editable ".[dev,quantized]"
	$(BIN)/python -m pytest -m "not gpu and not network"

test-newest: newest  ## the quick suite on the newest releases, whatever the lock says, in an environment of its own
	$(NEWEST)/bin/python -m pytest $(PARALLEL) $(QUICK)

test-oldest: oldest  ## the quick suite on the oldest releases that pyproject.toml allows, in an environment of its own
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(QUICK)

newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(EDITABLE) $(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev,quantized]"

oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python $(ENVIRONMENTS) floors > $(OLDEST)/floors.txt
	$(EDITABLE) $(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/floors.txt --editable ".[dev,quantized]"

hosts: $(STAMP) oldest newest  ## the hosts' contract, slow rows too, in all three environments, and its page
	$(EDITABLE) $(BIN)/python -m pip install --quiet --build-constraint requirements/lock.txt $(LOCK) --editable ".[dev,quantized]"
	for bin in $(OLDEST)/bin $(NEWEST)/bin $(BIN); do $$bin/python -m pytest tests/contract --write-hosts || exit 1; done
	$(BIN)/python -m modulate.cli.reference

lock:  ## write the newest releases that fit together into requirements/
	$(PYTHON) $(ENVIRONMENTS) lock

check: $(STAMP)  ## lint, format, types, generated pages
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/mypy
	$(BIN)/python -m modulate.cli.reference --check

torture: $(STAMP)  ## kill runs, damage files, and write docs/explanation/durability.md; at most 20 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.durability

mutants: $(STAMP)  ## put small faults into the core, see which the quick tests notice, and write docs/results/mutants.md; hours
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

bench: $(STAMP)  ## measure speed and memory, and write docs/benchmarks.md
	OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/python -m benchmarks.speed

docs: $(STAMP)  ## write the generated pages anew, then build the site: site/index.html
	$(BIN)/python -m modulate.cli.reference
	test -x $(BIN)/mkdocs || $(EDITABLE) $(BIN)/python -m pip install --quiet --build-constraint requirements/lock.txt $(LOCK) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(STAMP): pyproject.toml requirements/lock.txt requirements/lock-cuda.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "modulate needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c requirements/lock.txt pip
	$(EDITABLE) $(BIN)/python -m pip install --quiet --build-constraint requirements/lock.txt $(LOCK) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(OLDEST) build site *.egg-info .mypy_cache .ruff_cache .hypothesis
