# Every target makes its own environment in .venv first; a second run finds it there.
PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= out/demo
WORKERS ?= 2
BIN     := $(VENV)/bin

.PHONY: demo test lint bench
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[model,dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[peers]'
	touch $@

demo: $(VENV)/.installed  ## the whole story on a simulated city: make demo OUT=DIR WORKERS=N
	$(BIN)/sgdata demo --out $(OUT) --workers $(WORKERS)

test: $(VENV)/.installed  ## the tests that take no longer than ten minutes on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term:skip-covered

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check sgdata sgmodel tests
	$(BIN)/ruff format --check sgdata sgmodel tests
	$(BIN)/mypy

bench: $(VENV)/.peers  ## speed against peers, measured here, as a table
	$(BIN)/python tests/bench/table.py
