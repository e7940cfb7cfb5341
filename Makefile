# demo and test each do all their own set-up in .venv; every target is safe to run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-cluster lint format bench clean

demo: $(READY)
	$(BIN)/evoray demo

test: $(READY)
	$(BIN)/python -m pytest -m "not cluster"

test-cluster: $(READY)
	$(BIN)/python -m pytest -m cluster

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Another model, one row, CPU time on a shared machine: make bench MODEL=folder DATA=text.txt ROW=depth CLOCK=cpu
MODEL ?= embedded
DATA ?= embedded
ROW ?= all
CLOCK ?= wall
bench: $(READY)
	$(BIN)/python -m benchmarks.bench --model $(MODEL) --data $(DATA) --row $(ROW) --clock $(CLOCK)

# The stamp is written last, so a set-up that was cut short is done again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "evoray needs Python 3.11 to 3.13, and $(PYTHON) is another: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
