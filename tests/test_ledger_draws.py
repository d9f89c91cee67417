"""Test ledgers over several draws of a split: named data, scores by distance, and tables beside each other."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from model_commands import sgmodel
from scipy import stats
from synthetic_shards import write_scenes

from sgdata import files
from sgdata.errors import SettingError
from sgdata.pages import ledger as shown
from sgmodel.ledger import costs, experiments, report, reproduce
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe, LedgerRow, LedgerTable
from sgmodel.recipes.programs import PROGRAMS

# Stands for every program: a score from the name of the data.
STUB = """
import json, pathlib, sys
words = sys.argv[2:]
out = pathlib.Path(words[words.index("--out") + 1])
data = words[words.index("--shards") + 1]
top1 = 0.9 if data.endswith("published") else 0.7 + 0.02 * int(data[-1])
bands = [{"band": "under 100 m", "samples": 30, "top1": top1, "top1_interval": [top1 - 0.1, top1 + 0.1]}]
if not data.endswith("0"):
    bands.append({"band": "2 to 5 km", "samples": 10, "top1": top1 - 0.2, "top1_interval": None})
out.mkdir(parents=True, exist_ok=True)
results = {"top1": top1, "top1_interval": [top1 - 0.05, top1 + 0.05], "steps": 0, "by_distance": bands}
(out / "results.json").write_text(json.dumps(results))
(out / "SHA256SUMS").write_text("")
"""
NAMES = ("published", "ground-0", "ground-1", "ground-2")
OUTLINES = {name: experiments.DatasetSize(train=4, classes=4) for name in NAMES}
COMMON: dict[str, Any] = {
    "program": "classify", "recipe": "train/classify-demo-baseline.toml", "metrics": ("top1",),
    "set": ("labels_from=labels", "bands=['B02', 'B03', 'B04']", "model={ backbone = 'statistics' }"),
}  # fmt: skip


def ledger(**changes: Any) -> LedgerRecipe:
    row = LedgerRow(name="knn", start="random", data=("ground-0", "ground-1", "ground-2"))
    tables = (
        LedgerTable(name="lists", data="published", rows=(LedgerRow(name="knn", start="random"),), **COMMON),
        LedgerTable(name="blocks", data="ground-0", rows=(row,), **{"beside": "lists", **COMMON, **changes}),
    )
    return LedgerRecipe(title="t", seeds=(1,), flops_per_s=1e9, start_s=0.0, tables=tables, data=OUTLINES)


@pytest.fixture
def paths(tmp_path: Path) -> LedgerPaths:
    (tmp_path / "stub.py").write_text(STUB)
    # Different samples, so that each draw has runs of its own.
    data = {name: write_scenes(tmp_path / name, train=4 + at, val=4) for at, name in enumerate(NAMES)}
    launcher = (sys.executable, str(tmp_path / "stub.py"))
    return LedgerPaths(data=data, out=tmp_path / "out", programs=PROGRAMS, launcher=launcher)


def test_a_row_over_draws_has_a_run_and_a_value_for_each(paths: LedgerPaths) -> None:
    assert reproduce.main(ledger(), paths) == 0
    document = json.loads((paths.out / "ledger.json").read_text())
    lists, blocks = (table["rows"][0] for table in document["tables"])
    figure = blocks["figures"]["top1"]
    assert figure["values"] == pytest.approx([0.70, 0.72, 0.74])
    half = stats.t.ppf(0.975, 2) * 0.02 / 3**0.5
    assert figure["interval"] == pytest.approx([0.72 - half, 0.72 + half])
    assert len(blocks["runs"]) == 3
    assert lists["figures"]["top1"]["interval"] == pytest.approx([0.85, 0.95])
    # Bands in their order; of each the runs that have samples in it.
    near, far = blocks["by_distance"]
    assert (near["band"], near["samples"], near["mean"]) == ("under 100 m", 30, pytest.approx(0.72))
    assert (far["band"], far["samples"], far["mean"]) == ("2 to 5 km", 10, pytest.approx(0.53))
    assert [band["interval"] for band in lists["by_distance"]] == [pytest.approx([0.8, 1.0]), None]

    text = (paths.out / "ledger.md").read_text()
    assert "## blocks: beside lists" in text
    assert "| knn | 0.900" in text and "-0.180 |" in text
    assert "## blocks: by distance to the nearest training sample" in text
    assert "n 30" in text
    page = (paths.out / "page" / "index.html").read_text()
    for title in ("blocks: beside lists", "blocks: by distance to the nearest training sample"):
        # Across the page: half of it would cut the last columns off.
        assert re.search(f'class="wide"><h2>{title}', page)


def test_a_row_needs_every_draw(paths: LedgerPaths) -> None:
    some = LedgerPaths(**{**vars(paths), "data": {name: paths.data[name] for name in NAMES[:3]}})
    assert reproduce.main(ledger(), some) == 0
    document = json.loads((paths.out / "ledger.json").read_text())
    assert document["tables"][1]["rows"][0]["state"] == "not run: data absent"
    assert "blocks: by distance" not in (paths.out / "ledger.md").read_text()
    lines = list(reproduce.plan(ledger(), some))
    assert any("not to be run: data absent" in line for line in lines)
    with pytest.raises(SettingError, match="beside = 'nowhere' is no table of this ledger"):
        experiments.check(ledger(beside="nowhere"))


def test_ledgers_without_distances_are_still_shown() -> None:
    assert report.by_distance([{"top1": 0.5}]) == []
    table: dict[str, Any] = {"name": "t", "rows": [{"name": "a"}], "metrics": ["top1"]}
    assert shown._by_distance(table) == []
    assert shown._beside(table, None) == []


def test_shards_are_given_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = (write_scenes(tmp_path / name, train=4 + len(name), val=4) for name in ("a", "bb"))
    recipe = tmp_path / "it.toml"
    recipe.write_bytes(files.toml(ledger()))
    words = ["reproduce", recipe, "--plan", "--shards", f"ground-0={folder}"]
    assert sgmodel(*words, "--shards", f"published={other}") == 0
    assert "1 of 2 rows can be run with what is here" in capsys.readouterr().out
    assert sgmodel(*words, "--shards", f"ground-0={other}") == 2
    assert "--shards gives 'ground-0' twice" in capsys.readouterr().err
    # By default the name is that of the dataset, which both share.
    assert sgmodel("reproduce", recipe, "--plan", "--shards", folder, "--shards", other) == 2
    assert "--shards gives 'toy' twice" in capsys.readouterr().err


def test_a_setting_may_follow_the_seed(paths: LedgerPaths) -> None:
    it = ledger(seeds=(3, 5))
    row = LedgerRow(name="knn", start="random", set=("training.fraction_seed={seed}",))
    runs = experiments.plan_runs(it, it.tables[1], row, paths)
    assert [tomllib.loads(run.recipe.decode())["training"]["fraction_seed"] for run in runs] == [3, 5]


def test_the_plan_counts_the_labels_that_shots_select(paths: LedgerPaths) -> None:
    sets = ("labels_from=labels", "bands=['B02', 'B03', 'B04']", "training.batch=2", "training.epochs=10")
    changes: dict[str, Any] = {**COMMON, "set": (*sets, "model={ backbone = 'statistics' }")}
    steps = []
    for shots in (0, 1, 5):
        row = LedgerRow(name="few", start="random", set=(f"shots={shots}",))
        which = LedgerTable(name="few", data="ground-2", rows=(row,), **changes)
        it = LedgerRecipe(title="t", seeds=(1,), flops_per_s=1e9, start_s=0.0, tables=(which,))
        steps.append(costs.work(experiments.plan_runs(it, which, row, paths)[0], it, paths).steps)
    # Seven training samples of four classes, of which one each makes four.
    assert steps == [35, 20, 35]
