# Every target makes its own environment in .venv first; a second run finds it there.
PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= out/demo
WORKERS ?= 2
LIMIT   ?= 480
EUROSAT ?=
COORDINATES ?=
LISTS   ?=
QUICK   ?=
PARITY  ?=
BIN     := $(VENV)/bin

.PHONY: demo test coverage test-kernels slow lint docs bench gpu-check ledger city epoch fuzz
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[model,clouds,dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[peers]'
	touch $@

$(VENV)/.ledger: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[ledger]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[docs]'
	touch $@

demo: $(VENV)/.installed  ## the whole story on a simulated city: make demo OUT=DIR WORKERS=N
	$(BIN)/sgdata demo --out $(OUT) --workers $(WORKERS)

test: $(VENV)/.installed  ## the tests that take no longer than ten minutes on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow and not long"

coverage: $(VENV)/.installed  ## the same, with the lines that they do not run; it takes a fifth longer
	$(BIN)/python -m pytest -n 2 -m "not slow and not long" --cov --cov-report=term:skip-covered

# Three libraries choose kernels by the processor, each by a variable of its own.
test-kernels: $(VENV)/.installed  ## the tests of the models on the kernels of an old processor, without AVX
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
		$(BIN)/python -m pytest -n 2 -m "not slow and not long" tests/test_parity.py tests/test_encoder.py tests/test_mae.py \
		tests/test_heads.py tests/test_upernet.py tests/test_baseline_models.py

slow: $(VENV)/.installed  ## the tests that take longer, and those that take longer than the gate has
	$(BIN)/python -m pytest -n 2 -m "slow or long"

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check sgdata sgmodel tests docs
	$(BIN)/ruff format --check sgdata sgmodel tests docs
	$(BIN)/mypy

# Without --quiet, which hides warnings from --strict too, so that broken links would pass.
docs: $(VENV)/.docs  ## the documentation, into out/site; broken links and references fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f .mkdocs.yml

fuzz: N = 100000
fuzz: SEED = 1
fuzz: $(VENV)/.installed  ## mutated inputs to every reader of files: make fuzz N=100000 SEED=1
	$(BIN)/python tests/fuzz/run.py --inputs $(N) --seed $(SEED) --workers $(WORKERS)

bench: $(VENV)/.peers  ## speed against peers, measured here, as a table
	$(BIN)/python tests/bench/table.py

# With the Python given, without an environment of its own: it needs torch, numpy and safetensors, for FP8 torchao too.
gpu-check: OUT = out/gpu-check
gpu-check:  ## check and time training and prediction on this GPU: make gpu-check OUT=DIR LIMIT=480 PARITY=DIR PYTHON=python3
	PYTHONPATH=.:tests/bench $(PYTHON) -m gpu_check --out $(OUT) --limit $(LIMIT) $(if $(PARITY),--parity $(PARITY)) \
		|| test $$? = 3

ledger: OUT = out/ledger
ledger: $(VENV)/.installed  ## baselines, seeds and intervals on the simulated city: make ledger OUT=DIR
	test -f $(OUT)/shards/SHA256SUMS -a -f $(OUT)/pairs/SHA256SUMS || $(MAKE) --no-print-directory city OUT=$(OUT)
	$(BIN)/python -m sgmodel.recipes.reproduce recipes/ledger/city.toml --workers $(WORKERS) \
		--shards $(OUT)/shards --shards $(OUT)/pairs --out $(OUT)

# QUICK=1: one draw, few labels. LISTS: the folder of SpectralGPT's lists, without which the rows on them are not run.
ledger-real: OUT = out/ledger-real
ledger-real: DRAWS = $(if $(QUICK),0,0 1 2 3 4)
ledger-real: $(VENV)/.ledger  ## real images: make ledger-real EUROSAT=ZIP COORDINATES=FILE OUT=DIR [QUICK=1] [LISTS=DIR]
	@test -n "$(EUROSAT)" -a -n "$(COORDINATES)" || { echo "ledger-real: give EUROSAT=ZIP COORDINATES=FILE" >&2; exit 2; }
	for draw in $(DRAWS); do $(MAKE) --no-print-directory eurosat OUT=$(OUT) TO=ground-$$draw SPLIT=ground-$$draw || exit; done
	$(if $(LISTS),$(if $(QUICK),,$(MAKE) --no-print-directory eurosat OUT=$(OUT) TO=published SPLIT=spectralgpt))
	$(BIN)/python -m sgmodel.recipes.reproduce recipes/ledger/eurosat-rgb$(if $(QUICK),-quick).toml --workers $(WORKERS) --out $(OUT) \
		$(foreach draw,$(DRAWS),--shards ground-$(draw)=$(OUT)/shards/ground-$(draw)) \
		$(if $(LISTS),$(if $(QUICK),,--shards published=$(OUT)/shards/published))

eurosat:
	test -f $(OUT)/shards/$(TO)/SHA256SUMS || $(BIN)/sgdata shard eurosat --edition rgb --source $(EUROSAT) \
		--coordinates $(COORDINATES) --split $(SPLIT) $(if $(filter published,$(TO)),--splits $(LISTS)) --out $(OUT)/shards/$(TO)

# Exit 3: pixels that no date saw clear, findings of an audit. Both are reported, and no reason to stop.
city: $(VENV)/.installed
	$(BIN)/sgdata simulate $(OUT)/archive --size 8 --ground plain --workers $(WORKERS)
	$(MAKE) --no-print-directory epoch OUT=$(OUT) TO=build DATES=2017-04-01/2020-04-01
	$(MAKE) --no-print-directory epoch OUT=$(OUT) TO=build-2 DATES=2022-05-01/2022-09-30
	printf 'before = "build"\nafter = "build-2"\nchange = "archive/truth/change.tif"\n' > $(OUT)/pair.toml
	$(BIN)/sgdata shard segmunich --source $(OUT)/build --out $(OUT)/shards --workers $(WORKERS)
	$(BIN)/sgdata shard pairs --source $(OUT)/pair.toml --out $(OUT)/pairs --workers $(WORKERS)
	$(BIN)/sgdata audit $(OUT)/shards --build $(OUT)/build --out $(OUT)/shards-audit --workers $(WORKERS) || test $$? = 3
	$(BIN)/sgdata audit $(OUT)/pairs --out $(OUT)/pairs-audit --workers $(WORKERS) || test $$? = 3

epoch:
	test -f $(OUT)/$(TO)/SHA256SUMS || $(BIN)/sgdata build segmunich --out $(OUT)/$(TO) --workers $(WORKERS) \
		--aoi $(OUT)/archive/aoi.geojson --stac $(OUT)/archive/catalog.json --osm $(OUT)/archive/osm/city.osm \
		--dates $(DATES) --set split.block_px=200 --set split.gap_px=32 --set patches.stride=32 || test $$? = 3
