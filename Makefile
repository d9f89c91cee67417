# Every target makes its own environment in .venv first; a second run finds it there.
PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= out/demo
WORKERS ?= 2
BIN     := $(VENV)/bin

.PHONY: demo test lint bench ledger
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

ledger: OUT = out/ledger
ledger: $(VENV)/.installed  ## rivals, seeds and intervals on the simulated city: make ledger OUT=DIR
	$(BIN)/sgdata simulate $(OUT)/archive --size 8 --workers $(WORKERS)
	test -f $(OUT)/build/SHA256SUMS || $(BIN)/sgdata build segmunich --out $(OUT)/build --workers $(WORKERS) \
		--aoi $(OUT)/archive/aoi.geojson --stac $(OUT)/archive/catalog.json --osm $(OUT)/archive/osm/city.osm \
		--set split.block_px=200 --set split.gap_px=32 --set patches.stride=32 \
		|| test $$? = 3  # pixels that no date saw clear are told, and no reason to stop
	$(BIN)/sgdata shard segmunich --source $(OUT)/build --out $(OUT)/shards --workers $(WORKERS)
	$(BIN)/python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --shards $(OUT)/shards --out $(OUT)
