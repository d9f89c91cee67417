"""Run the whole demo twice: equal bytes with one and two workers in two folders, and plausible figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgdata import verification
from sgdata.demo import run_demo

SMALL = run_demo.DemoSettings(
    size_km=3,
    dates=5,
    build=("split.block_px=150", "split.gap_px=0", "patches.size=64", "patches.stride=32", "split.val_share=0.25"),
    # samples of 64 px need no crop to fit the small models
    pretrain=("training.epochs=1", "training.batch=8", "augment.crop_area=[1.0, 1.0]"),
    few=("training.fraction=0.3",),
    segment=("training.epochs=1", "training.batch=8", "augment.crop_area=[1.0, 1.0]", "evaluate_every=0"),
    linear=("training.epochs=1",),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for workers in (1, 2):
        out = tmp_path_factory.mktemp(f"demo{workers}") / "out"
        page = run_demo.run(out, story=SMALL, workers=workers)
        assert page.is_file()
        made.append(out)
    return made


def test_one_worker_or_two_give_the_same_sums(twice: list[Path]) -> None:
    first, second = ((out / "SHA256SUMS").read_text() for out in twice)
    assert first == second
    assert verification.verify(twice[0]) == []


def test_the_summary_has_every_key_and_sane_figures(twice: list[Path]) -> None:
    summary = json.loads((twice[0] / "summary.json").read_text())
    assert set(summary) == {
        "composite", "labels", "offset", "patches", "shards", "pretrain", "segment", "seconds", "page",
    }  # fmt: skip
    composite = summary["composite"]
    assert composite["rmse"] < composite["rmse_same_rule_unmasked"]
    assert composite["rmse_median"] < composite["rmse_best_cloudy_scene"]
    assert composite["residual_cloud"] < 0.02
    assert summary["labels"]["agreement"] > 0.9
    assert summary["offset"]["right"] == summary["offset"]["total"] > 0
    assert summary["patches"] > 0
    assert summary["shards"] >= 2
    assert summary["pretrain"]["steps"] > 0
    segment = summary["segment"]
    assert all(0 <= segment[f"miou{name}"] <= 1 for name in ("", "_scratch", "_linear", "_majority"))
    few, every = segment["labels"]["segment"], segment["labels"]["scratch"]
    assert segment["labels"] == {"segment": few, "scratch": every, "linear": every}
    assert few["patches"] == int(0.3 * every["patches"] + 0.5)
    assert 0 < few["km2"] < every["km2"] < 9
    assert json.loads((twice[0] / "archive/simulation.json").read_text())["ground"] == "context"
    assert (twice[0] / summary["page"]).is_file()


def test_the_release_of_the_demo_verifies(twice: list[Path]) -> None:
    first, second = (out / "release/demo-city-1.0" for out in twice)
    assert verification.verify(first) == []
    assert (first / "SHA256SUMS").read_bytes() == (second / "SHA256SUMS").read_bytes()
    assert json.loads((twice[0] / "audit/audit.json").read_text())["kind"] == "build"


def test_the_page_shows_every_step(twice: list[Path]) -> None:
    text = (twice[0] / "page" / "index.html").read_text()
    titles = ("Figures", "Map", "Class shares", "Samples", "Pretraining: Loss", "Fine-tuning: Confusion matrix")
    assert "pretrained minus linear model with all labels" in text
    assert all(f"<h2>{title}" in text for title in titles)
    assert "True land cover" in text
    for name in ("pretrain.png", "segment.png", "bokeh.min.js", "values/o-land_cover.js"):
        assert (twice[0] / "page" / name).stat().st_size > 1000
