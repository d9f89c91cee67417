"""The ledger: runs what is missing, resumes, never invents a number."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from synthetic_shards import write

from sgdata.errors import SettingError
from sgmodel.recipes import reproduce

LINEAR = ("bands=['B02', 'B03', 'B04']", "training.epochs=1", "training.batch=2", "augment.quarter_turns=false")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reproduce") / "shards", train=4, val=2)


def row(**others: object) -> reproduce.Row:
    chosen = {"name": "linear", "start": "random", "program": "segment", "recipe": "train/segment-demo-linear.toml"}
    return reproduce.Row(**{**chosen, "set": LINEAR, **others})  # type: ignore[arg-type]


def ledger(*rows: reproduce.Row) -> reproduce.Recipe:
    return reproduce.Recipe(title="t", metric="miou", seeds=(1, 2), rows=rows)


def test_a_row_without_its_weights_has_no_number(shards: Path, tmp_path: Path) -> None:
    absent = row(name="published", start="published", weights=str(tmp_path / "nowhere.pth"), published=0.51)
    out = reproduce.main(ledger(absent), shards, tmp_path / "out", only_plan=False)
    (found,) = json.loads(out.read_text())["rows"]
    assert found["state"] == "not run: weights absent"
    assert found["figures"] == []
    assert found["mean"] is found["interval"] is None
    assert "| 0.510 | not run: weights absent |" in (tmp_path / "out" / "ledger.md").read_text()


def test_missing_runs_are_made_once(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    reproduce.main(ledger(row()), shards, out, only_plan=True)
    assert not out.exists()
    reproduce.main(ledger(row()), shards, out, only_plan=False)
    first = (out / "ledger.json").read_bytes()
    (found,) = json.loads(first)["rows"]
    assert len(found["figures"]) == 2
    assert found["interval"][0] <= found["mean"] <= found["interval"][1]
    assert all((out / run / "results.json").exists() for run in found["runs"])
    capfd.readouterr()
    reproduce.main(ledger(row()), shards, out, only_plan=False)
    assert "0 of 2 runs missing" in capfd.readouterr().err
    assert (out / "ledger.json").read_bytes() == first
    assert (out / "page" / "index.html").is_file()


def test_starting_weights_come_from_the_run_before(tmp_path: Path) -> None:
    made = reproduce.runs(ledger(), row(pretrain="train/pretrain-demo-tiny.toml"), tmp_path, tmp_path / "out")
    assert [run.folder.name for run in made] == [
        "pretrain-demo-tiny",
        "segment-linear-random-seed1",
        "segment-linear-random-seed2",
    ]
    assert str(made[0].folder / "checkpoint-last") in made[1].command
    assert made[1].command[:3] == (sys.executable, "-m", "sgmodel.recipes.segment")


def test_the_interval_is_students(tmp_path: Path) -> None:
    low, high = reproduce.interval([0.2, 0.3, 0.4]) or (0, 0)
    assert low == pytest.approx(0.3 - 4.302653 * 0.1 / 3**0.5, abs=1e-5)
    assert high == pytest.approx(0.6 - low)
    assert reproduce.interval([0.2]) is None


def test_without_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(reproduce.catalog.folder("recipes")) / "ledger" / "city.toml"
    assert reproduce.program([str(recipe)]) == 2
    assert "--shards" in capsys.readouterr().err
    assert reproduce.program([]) == 0
    assert "city.toml" in capsys.readouterr().out
    with pytest.raises(SettingError):
        reproduce.files.read(reproduce.Recipe, recipe, ["seds=[1]"])
