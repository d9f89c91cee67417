"""Test the ledgers of this repository: every recipe loads, every row names data and starts that exist."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sgdata import files, package_data
from sgmodel.ledger import experiments
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe
from sgmodel.recipes.programs import PROGRAMS

LEDGERS = sorted((package_data.folder("recipes") / "ledger").glob("*.toml"))
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_every_row_has_runs_whose_recipes_are_valid(path: Path, tmp_path: Path) -> None:
    recipe = files.read(LedgerRecipe, path)
    experiments.check(recipe)
    paths = LedgerPaths(data={}, out=tmp_path, programs=PROGRAMS)
    for table in recipe.tables:
        for row in table.rows:
            for run in experiments.plan_runs(recipe, table, row, paths):
                assert not recipe.data or all(each.data in recipe.data for each in run.chain), row.name


def test_rows_that_are_compared_on_real_images_learn_from_the_same_labels() -> None:
    for stem in ("eurosat-rgb", "eurosat-rgb-quick"):
        recipe = files.read(LedgerRecipe, package_data.folder("recipes") / "ledger" / f"{stem}.toml")
        for table in recipe.tables:
            own = [text for row in table.rows for text in row.set if "shots" in text or "fraction" in text]
            assert not own
            assert not table.compare or table.block_m == 50_000


@pytest.mark.parametrize(
    ("words", "draws", "lists"), [(["QUICK=1"], 1, False), ([], 5, False), (["LISTS=/lists"], 5, True)]
)
def test_make_packs_what_the_ledger_on_real_images_needs(words: list[str], draws: int, lists: bool) -> None:
    call = ["make", "-n", "ledger-real", "EUROSAT=/e.zip", "COORDINATES=/c.tsv", "OUT=/nowhere", *words]
    printed = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.count("sgdata shard eurosat") == draws + lists
    assert printed.count("--shards ground-") == draws
    assert ("--shards published=" in printed) == ("--splits /lists" in printed) == lists
    assert ("eurosat-rgb-quick.toml" in printed) == (draws == 1)
