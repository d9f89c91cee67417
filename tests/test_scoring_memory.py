"""Test that scoring holds no more memory than a step of training, in every program and however a batch is divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_shards import pair, pair_contract, write, write_scenes
from test_classify import recipe as classification
from test_contrast import recipe as contrasting
from test_detect_change import recipe as change
from test_pretrain import recipe as pretraining
from test_segment import TINY, run_paths_for
from test_segment import recipe as segmentation

from sgdata.shards import write_shards
from sgmodel.data import loader, windows
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import dense_prediction, loop, training

CROPS = ("model.encoder.image_px=16", "augment.crop_area=[0.25, 0.25]", "augment.crop_aspect=[1.0, 1.0]")
PAIR = ("image_before", "image_after", "mask")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A program with its recipe, its model, and the functions that train and score it."""

    recipe: Any
    build: Callable[[Any], Any]
    objective: Callable[..., Any]
    score: Callable[..., Any]
    members: tuple[str, ...] = ("image",)


def case(program: str, size: tuple[str, ...]) -> Case:
    match program:
        case "pretrain":
            made = pretraining(*size)
            return Case(recipe=made, build=pretrain.build, objective=pretrain.objective, score=pretrain.evaluate)
        case "contrast":
            made = contrasting("simclr", *size)
            build: Any = lambda recipe: contrast.build(recipe, 4)  # noqa: E731
            return Case(recipe=made, build=build, objective=contrast.objective, score=contrast.evaluate)
        case "classify":
            build = lambda recipe: classify.build(recipe, 4)  # noqa: E731
            task: Any = lambda setting, model, batch: classify.objective(setting, torch.eye(4), model, batch)  # noqa: E731
            return Case(recipe=classification(*size), build=build, objective=task, score=classify.score)
        case "detect_change":
            build = lambda recipe: detect_change.build(recipe, 2)  # noqa: E731
            task = lambda setting, model, batch: detect_change.objective(setting, None, model, batch)  # noqa: E731
            made = change("val_split=val", "test_split=", *size)
            return Case(recipe=made, build=build, objective=task, score=detect_change.evaluate, members=PAIR)
    build = lambda recipe: segment.build(recipe, 4)  # noqa: E731
    made = segmentation("tiny", *TINY, *(CROPS if program == "tiles" else ()), *size)
    return Case(
        recipe=made,
        build=build,
        objective=segment.objective,
        score=dense_prediction.evaluate,
        members=("image", "mask"),
    )


def peak(run: Callable[[], object]) -> int:
    """Return the most bytes of tensors that `run` held at a time, above those of before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    return int(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("program", ["segment", "tiles", "detect_change", "classify", "pretrain", "contrast"])
def test_scoring_holds_no_more_than_a_step(tmp_path: Path, program: str, accumulate: int) -> None:
    """Score more samples than a batch has, larger than the images of the model where that is possible."""
    made = case(program, ("training.batch=4", f"training.accumulate={accumulate}"))
    if program == "detect_change":
        pairs = [pair(f"city-{n}", "train" if n < 2 else "val", 64, 64, seed=n) for n in range(7)]
        write_shards.write(pairs, tmp_path, contract=pair_contract())
    else:
        (write_scenes if program == "classify" else write)(tmp_path, train=4, val=9)
    source, held_out = (loader.Samples(tmp_path, split, made.members) for split in ("train", "val"))
    setting: Any = training.resolve(made.recipe, source.contract, run_paths_for(tmp_path, tmp_path))
    model = made.build(setting.recipe)
    updates = loop.UpdateSettings(
        forward=model,
        optimizer=torch.optim.AdamW(model.parameters(), fused=True),
        schedule=lambda step: 0.0,
        micro_batches=setting.recipe.training.division.micro_batches,
    )
    trained = windows.WindowedSamples(source, setting.recipe.windows) if program == "detect_change" else source
    (batch,) = loader.load(trained, loader.in_order(4, 4), threads=1)

    def step() -> None:
        list(loop.steps(lambda part: made.objective(setting, model, part), [batch], updates, setting.launch))

    step()  # creates the moments of the optimizer, which stay
    # Of so small a model the figures beside the loss, which only scoring computes, are not negligible.
    assert peak(lambda: made.score(setting, model, held_out)) <= 1.1 * peak(step)
