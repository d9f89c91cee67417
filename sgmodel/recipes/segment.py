r"""Fine-tune and score a semantic segmentation model: SpectralGPT with its UperNet head, or a baseline.

    python -m sgmodel.recipes.segment recipes/train/segment-demo-tiny.toml --shards DIR --out DIR \
        --weights RUN/checkpoint-last

Without `--weights` all weights are initialised randomly. Scores are those of the last epoch, from one confusion matrix
over all pixels of the validation split; no epoch is selected by its score. A model whose images are smaller than the
samples is trained on crops and scored tile by tile.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.data import augment, band_selection, loader
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import figures, finetune, loop, metrics, training
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(finetune.FinetuneRecipe):
    """Settings of a segmentation run.

    Attributes:
        smoothing: Label smoothing of the cross-entropy, 0 to 1.
    """

    smoothing: float = 0.0


Setting = training.Setting[SegmentRecipe]


def build(recipe: SegmentRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights. Raises SettingError."""
    return TaskSpec(kind="segmenter", recipe=recipe.model, bands=len(recipe.bands), classes=classes).build()


def main(recipe: SegmentRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score; return 0 or `training.STOPPED`.

    Raises:
        SgdataError: recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    source = training.samples(paths.shards, recipe.training, ("image", "mask"))
    held_out = loader.Samples(paths.shards, recipe.val_split, ("image", "mask"), verify=recipe.training.verify)
    check(recipe, source.contract)
    setting = training.resolve(recipe, source.contract, paths)
    recipe = setting.recipe  # spectral groups that the data lack may have been dropped
    model = finetune.start(setting, partial(build, recipe, setting.classes), paths.weights)
    task = finetune.task(setting, model, source, partial(objective, setting), paths)

    def scores(final: bool) -> dict[str, Any]:
        counts = evaluate(setting, model, held_out)
        if not final:
            return scored(counts)
        # Pictures first: they show at once whether the model predicts a single class.
        _show(setting, model, held_out, paths.out / "pictures" / f"step-{task.total:06d}.png")
        return results(counts, most_frequent(source), setting.contract)

    scoring = finetune.Scoring(title="Segmentation", by="miou", held_out=held_out, figures=scores)
    return finetune.train(setting, task, scoring, paths)


def check(recipe: SegmentRecipe, contract: Contract) -> None:
    """Refuse samples without masks of classes, or of a size that the model cannot take.

    Raises:
        SettingError: either is the case.
    """
    space = contract.label_space
    if space.task != "segmentation" or not space.ids:
        message = f"task '{space.task}', ids {list(space.ids)}"
        raise SettingError(f"label space '{space.name}': {message}; expected task 'segmentation' and ids of classes")
    finetune.check_sizes(recipe.model.px, contract)
    if recipe.model.px:
        band_selection.check_size(recipe.model.px, contract, cropped=recipe.augment.crop_area is not None)


def objective(setting: Setting, model: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """Compute the cross-entropy over the labelled pixels of a batch."""
    recipe = setting.recipe.augment
    geometry = augment.draw(recipe, batch.samples, batch.epoch, batch.valid_size, seed=setting.recipe.training.seed)
    images, target = _inputs(setting, batch, geometry, finetune.px(setting, batch))
    # A sum divided by at least 1, since a batch may have no labelled pixel.
    logits = model(images).float()
    total = functional.cross_entropy(
        logits, target, ignore_index=setting.ignore, reduction="sum", label_smoothing=setting.recipe.smoothing
    )
    labelled = (target != setting.ignore).sum()
    return {"loss": total / labelled.clamp(min=1), loop.WEIGHT: labelled / target[0].numel()}


def _inputs(setting: Setting, batch: loader.Batch, geometry: augment.Geometry, size: int) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, C, S, S) and targets (N, S, S) int64 for S = `size`, both moved by `geometry`."""
    target = finetune.labels(setting, batch).to(setting.where.device, non_blocking=True)
    images = augment.images(training.pixels(setting, batch), geometry, size)
    return images, augment.masks(target, geometry, size).long()


# --- scoring -------------------------------------------------------------------------------


def evaluate(setting: Setting, model: nn.Module, source: loader.Samples) -> Tensor:
    """Compute the confusion matrices (N, K, K) of the samples of `source`."""
    count = partial(metrics.confusion, classes=setting.classes, ignore=setting.ignore)
    # One matrix per sample: intervals resample samples, since pixels are not independent.
    matrices = []
    with loop.evaluating(model):
        for batch in loader.load(source, loader.in_order(len(source), setting.scored_at_once), threads=1):
            _, target, predicted = predict(setting, model, batch)
            matrices += [count(guess, truth) for guess, truth in zip(predicted, target, strict=True)]
    return torch.stack(matrices)


def predict(setting: Setting, model: nn.Module, batch: loader.Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised images (N, C, S, S), targets and predicted classes (N, S, S) of a batch, without augmentation.

    The model sees the images tile by tile.
    """
    size = int(batch.valid_size.max())
    images, target = _inputs(setting, batch, augment.centre(batch.valid_size, size), size)
    tiles = tiled(images, finetune.px(setting, batch))
    with setting.where.autocast():
        # A sample may have more tiles than a part of a training batch has samples.
        maps = [model(part).argmax(dim=1) for part in torch.split(tiles, setting.scored_at_once)]
    return images, target, untiled(torch.cat(maps), size)


def tiled(images: Tensor, px: int) -> Tensor:
    """Cut images (N, C, S, S) into tiles (N x (S/px)^2, C, px, px), row by row; `px` divides S."""
    # Without overlap, so that scores are those of single tiles; prediction blends overlapping tiles.
    n, c, s, _ = images.shape
    cut = images.reshape(n, c, s // px, px, s // px, px).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, c, px, px)


def untiled(maps: Tensor, size: int) -> Tensor:
    """Join tiles of maps (N x (S/px)^2, px, px) to (N, S, S) for S = `size`."""
    px = maps.shape[-1]
    side = size // px
    return maps.reshape(-1, side, side, px, px).permute(0, 1, 3, 2, 4).reshape(-1, size, size)


def most_frequent(source: loader.Samples) -> int:
    """Return the index of the class with the most pixels in `source`."""
    space = source.contract.label_space
    counts = torch.zeros(len(space.ids), dtype=torch.int64)
    for sample in range(len(source)):
        indices = finetune.class_indices(space, torch.from_numpy(source.read(sample, "mask")))
        # Unlabelled pixels may be the most frequent.
        kept = (indices >= 0) & (indices < len(space.ids))
        counts += torch.bincount(indices[kept], minlength=len(space.ids))
    return int(counts.argmax())


def scored(counts: Tensor) -> dict[str, Any]:
    """Compute the figures of confusion matrices (N, K, K) that are logged during training, shares 0-1."""
    scores = metrics.scores(metrics.weighted(counts))
    return {"miou": scores.miou, "miou_without_class_0": scores.miou_without_first, "oa": scores.oa}


def results(counts: Tensor, majority: int, contract: Contract) -> dict[str, Any]:
    """Compute the figures of confusion matrices (N, K, K) for `results.json`.

    `miou_majority` is that of always predicting class `majority`. Intervals are over samples, although neighbouring
    samples are not independent.
    """
    names, whole = contract.label_space.names, metrics.weighted(counts)

    def interval(name: str) -> tuple[float, float]:
        return metrics.interval(lambda weights: scored(metrics.weighted(counts, weights)[None])[name], len(counts))

    return {
        **scored(counts),
        "miou_interval": interval("miou"),
        "oa_interval": interval("oa"),
        "miou_majority": metrics.scores(metrics.constant(whole, majority)).miou,
        "majority_class": names[majority],
        "per_class_iou": dict(zip(names, metrics.scores(whole).iou, strict=True)),
        "confusion": whole.tolist(),
    }


def _show(setting: Setting, model: nn.Module, source: loader.Samples, path: Path) -> None:
    """Draw samples spread over `source`: true colour, labels, prediction."""
    bands, colours = figures.band_indices(setting.contract), tuple(setting.contract.label_space.palette.values())
    step = max(1, len(source) // SHOWN)
    plan = itertools.islice(loader.in_order(len(source), 1), 0, SHOWN * step, step)
    rows = []
    with loop.evaluating(model):
        for batch in loader.load(source, plan, threads=1):
            images, target, predicted = predict(setting, model, batch)
            rows.append(figures.segmentation(images[0, bands], target[0], predicted[0], colours))
    if distributed.lead():
        figures.write(path, rows)


PROGRAM = Program(
    name="segment",
    recipe=SegmentRecipe,
    main=main,
    model=build,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
