# make demo | test | test-slow | lint | format | bench | real | clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STORE ?= store

.PHONY: demo test test-slow lint format bench real clean install

install: $(INSTALLED)

# torch first and pinned, so that its CPU build is taken where one is on offer
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "posttrain needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# the embedded default, from nothing to its report
demo: install
	$(BIN)/posttrain run recipes/quickstart.yaml --store $(STORE)

# one thread: the models of tests are too small for more
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 1800

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# against TRL in an environment of its own; JSON on stdout
bench: install
	$(BIN)/python benchmarks/run.py

# the same road on real texts: make real DATA=folder
DATA ?= ../shared/data
real: install
	$(BIN)/posttrain run recipes/real-data.yaml --store $(STORE) --set data_dir=$(DATA)

clean:
	rm -rf $(VENV) .venv-trl $(STORE) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
