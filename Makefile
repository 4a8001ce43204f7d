# The verbs of this repository. `make help` lists them; continuous integration calls the same ones.

PYTHON ?= python3
SPEC ?= jobs/specs/drug200.yaml

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
INSTALLED := .venv/.installed

# Those that start a Ray have the machine to themselves: there is one Ray at a time. The others run in
# three processes, since some wait for seconds; the longest come first, so that none is left at the end.
SHARED_TESTS := tests/fault tests/integration tests/unit tests/docs tests/conformance
RAY_TESTS := tests/ray tests/cluster

.DEFAULT_GOAL := help
.PHONY: help install run test test-fault test-unit check format constraints bench schema clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## make .venv with everything in it; does nothing the second time

# torch comes first and alone, so that pip takes the CPU build where one is at hand.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(f"Python 3.11 to 3.13 is needed, {sys.executable} is {v.major}.{v.minor}; say make PYTHON=python3.12")'
	@echo 'Installing into .venv (the first time takes some minutes) ...'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

run: install  ## train drug200 end to end (another spec: make run SPEC=my.yaml)
	$(BIN)/batchtrain run $(SPEC)

test: install  ## all tests
	$(BIN)/python -m pytest $(SHARED_TESTS) -n 3 --dist worksteal
	$(BIN)/python -m pytest $(RAY_TESTS)

test-fault: install  ## kill, cut and race everything, hundreds of times (about an hour)
	$(BIN)/python -m pytest tests/fault tests/ray tests/cluster -m 'fault or long'

test-unit: install  ## the unit tests alone (some minutes)
	$(BIN)/python -m pytest tests/unit -n 3 --dist worksteal

check: install  ## ruff, mypy strict, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install  ## put the source into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All versions are looked up anew, save torch and ray: raise those by editing their lines first.
# Local suffixes (torch 2.13.0+cpu) and CUDA's own packages, which torch pins, are left out.
constraints:  ## refresh constraints.txt with the newest versions that fit together
	rm -rf build/constraints && mkdir -p build/constraints
	grep -E '^(torch|ray)==' constraints.txt > build/constraints/pins.txt
	$(PYTHON) -m venv build/constraints/venv
	build/constraints/venv/bin/python -m pip -qq install -c build/constraints/pins.txt torch
	build/constraints/venv/bin/python -m pip -qq install -c build/constraints/pins.txt '.[dev]'
	head -n 1 constraints.txt > build/constraints/new.txt
	build/constraints/venv/bin/python -m pip freeze --exclude batchtrain \
	  | grep -vE '^(nvidia-|cuda-|triton==)' | sed -E 's/^([^ ]+==[^+]+)\+.*/\1/' >> build/constraints/new.txt
	mv build/constraints/new.txt constraints.txt

bench: install  ## the budgets, each as the median of paired runs (minutes)
	$(BIN)/python -m benchmarks.training --loops-only
	$(BIN)/python -m benchmarks.cold_run
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.ray_runs
	$(BIN)/python -m benchmarks.search

schema: install  ## write the JSON schema that editors check specs with
	@mkdir -p build
	$(BIN)/batchtrain schema > build/spec.schema.json
	mv build/spec.schema.json docs/spec.schema.json

clean:  ## remove what the tools leave behind; .venv and the runs stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests jobs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
