"""Test that features of a frozen backbone are computed once per sample, and train the same head."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import pytest
import torch
from synthetic_shards import write, write_pairs, write_scenes
from torch import nn

from sgdata import files, package_data
from sgmodel.data import augment, windows
from sgmodel.models import encoder
from sgmodel.recipes import programs
from sgmodel.train import run_paths

TRAIN = package_data.folder("recipes") / "train"
TINY = ("model.encoder.image_px=16", "model.encoder.width=32", "model.encoder.depth=1", "training.batch=4")
CUT = windows.WindowRecipe(px=16, stride=16, remainder="covered", once=False)


def recipe(name: str, **changes: Any) -> Any:
    """Return a recipe of five epochs of a frozen encoder on samples that look the same in every epoch."""
    program = programs.PROGRAMS[name]()  # type: ignore[index]
    own = {"classify": ["labels_from=labels"], "segment": ["model.head.skip=0"]}.get(name, [])
    read = files.read(program.recipe, TRAIN / f"{name}-demo-tiny.toml", [*TINY, *own, "training.epochs=5"])
    still: dict[str, Any] = {"mode": "frozen", "augment": augment.AugmentRecipe()}
    still |= {"mix": augment.MixRecipe()} if name == "classify" else {}
    still |= {"windows": CUT, "val_split": "", "test_split": "test"} if name == "detect_change" else {}
    return dataclasses.replace(read, **(still | changes))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frozen")
    return {
        "classify": write_scenes(folder / "scenes"),
        "segment": write(folder / "maps", px=24),  # in windows of 16 px
        "detect_change": write_pairs(folder / "pairs"),
    }


@contextmanager
def counted_images() -> Iterator[list[int]]:
    """Count the images that pass through an encoder in training, those with gradients and those without."""
    seen: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, encoder.PatchEmbed):
            seen.append(len(inputs[0]))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def train(name: str, recipe: Any, shards: Path, out: Path, **paths: Any) -> tuple[np.ndarray, int]:
    """Return the losses of a run, and the number of images that passed through the encoder."""
    where = run_paths.RunPaths(shards=shards, out=out, device="cpu", threads=1, **paths)
    with counted_images() as seen:
        assert programs.PROGRAMS[name]().main(recipe, where) in (0, 3)  # type: ignore[index]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line]), sum(seen)


@pytest.mark.parametrize("name", ["classify", "segment", "detect_change"])
@pytest.mark.parametrize("mode", ["frozen", "linear-probe"])
def test_features_are_computed_once_and_train_the_same_head(
    name: str, mode: str, shards: dict[str, Path], tmp_path: Path
) -> None:
    ours, once = train(name, recipe(name, mode=mode), shards[name], tmp_path / "once")
    theirs, often = train(name, recipe(name, mode=mode, features_gb=0.0), shards[name], tmp_path / "often")
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    results = json.loads((tmp_path / "once" / "results.json").read_text())
    count, dates = results.get("train_windows", results["train_samples"]), 2 if name == "detect_change" else 1
    # The images of scoring are the same in both; so is the first batch, by which the size of all features is known.
    assert often - once == dates * (4 * len(ours) + 4 - count)
    work = [json.loads((tmp_path / way / "summary.json").read_text())["flops_per_sample"] for way in ("once", "often")]
    assert work[0] < work[1]


def test_features_of_changing_samples_are_not_kept(shards: dict[str, Path], tmp_path: Path) -> None:
    flips, erased = augment.AugmentRecipe(horizontal_flip=0.5), augment.MixRecipe(erase=0.5)
    whole = recipe("classify", features_gb=0.0)
    _, expected = train("classify", whole, shards["classify"], tmp_path / "whole")
    for number, changes in enumerate(({"augment": flips}, {"mix": erased}, {"mode": "finetune"})):
        _, seen = train("classify", recipe("classify", **changes), shards["classify"], tmp_path / str(number))
        assert seen == expected - 4  # no batch is measured


def test_a_stopped_run_continues_with_the_same_features(shards: dict[str, Path], tmp_path: Path) -> None:
    one, folder = recipe("segment"), shards["segment"]
    train("segment", one, folder, tmp_path / "whole")
    train("segment", one, folder, tmp_path / "parts", stop_after=3)
    train("segment", one, folder, tmp_path / "parts")
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in ("whole", "parts")]
    assert sums[0] == sums[1]


def test_a_frozen_backbone_has_no_graph() -> None:
    for name in ("spectralgpt", "unet"):
        model = baselines.build("segmenter", baselines.BASELINES[name])
        images = torch.rand(1, 12, 32, 32)
        assert all(part.requires_grad for part in model.encode(images).parts)
        model.backbone.freeze()
        encoded = model.encode(images)
        assert not any(part.requires_grad for part in encoded.parts)
        assert torch.equal(model.eval()(encoded), model(images))
        model(images).sum().backward()
        assert model.head is not None and all(
            p.grad is None for p in model.backbone.parameters() if not p.requires_grad
        )
