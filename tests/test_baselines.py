"""Train each baseline with the programs and predict from its checkpoint by its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from baselines import BASELINES, build
from model_commands import sgmodel
from synthetic_shards import write, write_pairs, write_scenes
from test_predict import built, pixels
from torch import nn

from sgdata import files, package_data
from sgdata.shards import contracts
from sgmodel import distributed
from sgmodel.recipes import classify, detect_change, segment
from sgmodel.train import run_paths

TRAIN = package_data.folder("recipes") / "train"
QUICK = ("training.batch=4", "training.epochs=1", "training.optimizer.warmup_epochs=0", "evaluate_every=0")
MAINS: dict[str, Any] = {"classify": classify, "segment": segment, "detect_change": detect_change}
SETTINGS = {
    "classify": ("labels_from=labels",),
    "segment": ("augment.crop_area=[1.0, 1.0]",),
    "detect_change": ("val_split=test", "windows.px=32", "windows.stride=32"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("baselines")
    return {
        "classify": write_scenes(root / "scenes", train=4, val=2, px=32),
        "segment": write(root / "masks", train=4, val=2, px=32),
        "detect_change": write_pairs(root / "pairs"),
    }


def test_batch_norm_is_synchronised_on_gpus_and_warns_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    model = build("segmenter", BASELINES["resnet"], bands=12, classes=3)
    before = model.state_dict()
    distributed.share_statistics(model, torch.device("cpu"))
    assert "BatchNorm layers compute statistics over the samples of one" in caplog.text
    distributed.share_statistics(model, torch.device("cuda"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("task", MAINS)
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_is_trained_scored_and_predicts(name: str, task: str, data: dict[str, Path], tmp_path: Path) -> None:
    program, out = MAINS[task], tmp_path / "run"
    recipe = files.read(program.PROGRAM.recipe, TRAIN / f"{task}-demo-tiny.toml", (*QUICK, *SETTINGS[task]))
    recipe = dataclasses.replace(recipe, model=BASELINES[name])
    assert program.main(recipe, run_paths.RunPaths(shards=data[task], out=out, device="cpu", threads=1)) == 0
    same: dict[str, Any] = {"level": "L2A"}
    if task != "detect_change":
        same["label_space"] = contracts.read(data[task]).label_space
    scenes = [built(tmp_path / date, pixels(40, 70, seed=seed), **same) for seed, date in enumerate(("old", "new"))]
    after = ["--after", str(scenes[1])] if task == "detect_change" else []
    words = [
        "--input",
        str(scenes[0]),
        *after,
        "--weights",
        str(out / "checkpoint-best"),
        "--out",
        str(tmp_path / "map"),
    ]
    assert sgmodel("predict", *words, "--threads", 1, "-q") == 0
    with rasterio.open(tmp_path / "map" / "classes.tif") as made:
        classes = made.read(1)
    assert classes.shape == ((2, 3) if task == "classify" else (40, 70))
    assert set(np.unique(classes)) <= set(contracts.read(data[task]).label_space.ids)
