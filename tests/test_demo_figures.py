"""Test how the demo words its figures: rows, comparisons that are reached or missed, and the ground with labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin

from sgdata.demo import run_demo, score
from sgdata.errors import SourceError
from sgmodel.data import subset


def figures(**miou: float) -> dict[str, Any]:
    labels = {"patches": 21, "km2": 21.3}
    names = ("segment", "scratch", "linear")
    return {"segment": {**miou, "labels": dict.fromkeys(names, labels)}}


def test_comparisons_say_what_is_reached_and_what_is_missed() -> None:
    made = figures(miou=0.35, miou_linear=0.2, miou_scratch=0.4)
    assert run_demo.comparisons(made) == [
        ("pretrained minus linear model with all labels", "+0.1500", "reached: at least +0.10 expected"),
        ("pretrained minus random weights with all labels", "-0.0500", "MISSED: at least +0.00 expected"),
    ]
    made = figures(miou=0.35, miou_linear=0.26, miou_scratch=0.3)
    assert [row[2].split(":")[0] for row in run_demo.comparisons(made)] == ["MISSED", "reached"]


def test_the_pretrained_model_alone_has_few_labels() -> None:
    commands = run_demo.commands(run_demo.DemoSettings(), Path("out"), 2)
    with_few = [name for name, words in commands.items() if "training.fraction=0.2" in words]
    assert with_few == ["segment"]
    assert [name for name, words in commands.items() if "--weights" in words] == ["segment"]
    words = commands["simulate"]
    assert words[words.index("--ground") + 1] == "context"


def test_two_workers_train_two_models_at_once() -> None:
    names = list(run_demo.commands(run_demo.DemoSettings(), Path("out"), 2))
    assert run_demo.turns(names, 1) == [(name,) for name in names]
    together = run_demo.turns(names, 2)
    assert together[-2:] == [("pretrain", "linear"), ("segment", "scratch")]
    assert [name for turn in together for name in turn] == names
    commands = run_demo.commands(run_demo.DemoSettings(), Path("out"), 2)
    loud = [name for turn in together for name in turn if len(turn) == 2 and "--quiet" not in commands[name]]
    assert loud == ["pretrain", "segment"]


def test_a_stage_that_fails_ends_the_one_beside_it(tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    sleeps = ["python", "-c", f"import time; time.sleep(30); open({str(mark)!r}, 'w')"]
    began = time.monotonic()
    with pytest.raises(SourceError, match="stage 'scratch' ended with exit code 2"):
        run_demo.perform({"segment": sleeps, "scratch": ["python", "-c", "raise SystemExit(2)"]})
    assert time.monotonic() - began < 25
    assert not mark.exists()
    run_demo.perform({"audit": ["python", "-c", "raise SystemExit(3)"]})  # findings


@pytest.mark.parametrize(("share", "seed"), [(1.0, 0), (0.4, 0), (0.4, 3), (0.01, 0)])
def test_labelled_ground_counts_overlaps_once(tmp_path: Path, share: float, seed: int) -> None:
    rows = [
        {"key": f"p{n}", "row": 0, "col": 4 * n, "height": 8, "width": 8, "split": "val" if n == 9 else "train"}
        for n in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "patches.parquet")
    form = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(
        tmp_path / "labels.tif", "w", height=16, width=64, transform=from_origin(0, 0, 10, 10), **form
    ) as raster:
        raster.write(np.zeros((1, 16, 64), np.uint8))
    keys = [row["key"] for row in rows[:9]]
    chosen = subset.subset(keys, share, seed=seed)  # what training.fraction takes
    columns = {4 * n + k for n in chosen for k in range(8)}
    assert score.labelled(tmp_path, share=share, seed=seed) == {
        "patches": len(chosen), "km2": pytest.approx(8 * len(columns) * 100 / 1e6),
    }  # fmt: skip
