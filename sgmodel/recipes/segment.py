"""Train a model that gives every pixel a class, and score it: SpectralGPT with its UperNet head, or a rival.

    python -m sgmodel.recipes.segment recipes/train/segment-demo-tiny.toml --shards DIR --out DIR \\
        --weights RUN/checkpoint-last

Without `--weights` the encoder starts from nothing. Scores are those of the last epoch, from one confusion matrix
over all pixels of the validation split; no epoch is chosen by its score. A model that takes smaller images than
the samples is trained on crops and sees them tile by tile.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata import files
from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import (
    augment,
    batches,
    command,
    lattice,
    launch,
    loop,
    metrics,
    models,
    normalise,
    optim,
    pictures,
    ranks,
    runs,
    session,
    transfer,
)

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that changes the numbers of a segmentation run.

    `bands` are those the model sees, in their order. `evaluate_every` epochs the validation split is scored on the way
    (0: only at the end). `accept` names contract fields of the starting weights that may differ.
    """

    model: models.ModelRecipe
    bands: tuple[str, ...]
    val_split: str
    evaluate_every: int
    training: session.TrainingRecipe
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    accept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run has settled before its first step: the contract of the samples as stored, that of the bands the
    model sees, and `picks`, the indices of the latter among the former (None: all)."""

    recipe: Recipe
    stored: Contract
    contract: Contract
    picks: list[int] | None
    how: normalise.Normalisation
    where: launch.Launch

    @property
    def ignore(self) -> int:
        """The label value that is no class."""
        declared = self.contract.label_space.ignore
        return 255 if declared is None else declared


def build(recipe: Recipe, *, bands: int, classes: int) -> nn.Module:
    """The recipe's model with fresh weights drawn from its seed. Raises SettingError."""
    torch.manual_seed(recipe.training.seed)
    return models.segmenter(recipe.model, bands=bands, classes=classes)


def main(recipe: Recipe, places: command.Places) -> int:
    """Train to the recipe's last step, or until stopped, then score; 0 or `session.STOPPED`. Raises SgdataError."""
    where = launch.start(places.device, precision=recipe.training.precision, threads=places.threads)
    source = session.samples(places.shards, recipe.training, ("image", "mask"))
    held_out = batches.Samples(places.shards, recipe.val_split, ("image", "mask"))
    contract = transfer.narrowed(source.contract, recipe.bands)
    check(recipe, contract)
    how = normalise.resolve(recipe.normalise, contract)
    model = build(recipe, bands=len(contract.bands), classes=len(contract.label_space.ids))
    if places.weights is not None:
        transfer.fill(model, places.weights, contract, how, accept=recipe.accept)
    picks = transfer.indices(source.contract, recipe.bands)
    setting = Setting(recipe=recipe, stored=source.contract, contract=contract, picks=picks, how=how, where=where)
    forward = session.ready(model, recipe.training, where, places.parallel)
    task = session.Task(
        training=recipe.training,
        model=model,
        forward=forward,
        scaler=launch.scaler(where),
        optimizer=optim.adamw(model, recipe.training.optimizer),
        objective=partial(objective, setting, forward),
        source=source,
        where=where,
        card=transfer.card(model, contract, how, recipe),
    )
    if places.dry_run:
        print(session.outlook(task))
        return 0
    with files.only_writer(places.out) if ranks.lead() else nullcontext():
        return _train(setting, task, held_out, places)


def check(recipe: Recipe, contract: Contract) -> None:
    """Raises SettingError where the samples have no masks of classes 0, 1, ..., or cannot feed the model."""
    space = contract.label_space
    if space.task != "segmentation" or space.ids != tuple(range(len(space.ids))):
        told = f"task '{space.task}', ids {list(space.ids)}"
        raise SettingError(f"label space '{space.name}': {told}; expected task 'segmentation' and ids 0, 1, 2, ...")
    if recipe.model.px:
        transfer.check_size(recipe.model.px, contract, cropped=recipe.augment.crop_area is not None)


def _train(setting: Setting, task: session.Task, held_out: batches.Samples, places: command.Places) -> int:
    every = setting.recipe.evaluate_every
    first = session.begin(task, setting.recipe, places)
    with runs.Log(places.out, first) as log:
        for step in session.steps(task, first, places):
            done = step.index + 1
            log.step(step, every=setting.recipe.training.log_every, last=done == task.total)
            epoch = task.epoch(done)
            if every and epoch // every > task.epoch(step.index) // every and done < task.total:
                scores = metrics.scores(evaluate(setting, task.model, held_out))
                figures = {"miou": scores.miou, "oa": scores.oa}
                log.write(step.index, {"epoch": epoch, **figures})
                runs.keep_best(places.out, task.model, task.card, figures, by="miou")
    if not session.complete(task, places):
        return session.STOPPED
    counts = evaluate(setting, task.model, held_out)
    scores = metrics.scores(counts)
    runs.keep_best(places.out, task.model, task.card, {"miou": scores.miou, "oa": scores.oa}, by="miou")
    figures = results(counts, most_frequent(task.source, setting.ignore), setting.contract)
    _show(setting, task.model, held_out, places.out / "pictures" / f"step-{task.total:06d}.png")
    runs.conclude(places.out, "Segmentation", task.card, {"steps": task.total, **figures})
    return 0


def objective(setting: Setting, model: nn.Module, batch: batches.Batch) -> dict[str, Tensor]:
    """Cross-entropy over the labelled pixels of a batch."""
    recipe = setting.recipe.augment
    geometry = augment.draw(recipe, batch.samples, batch.epoch, batch.extent, seed=setting.recipe.training.seed)
    images, target = _inputs(setting, batch, geometry, _px(setting, batch))
    # A sum over a count that is at least 1: a batch without one labelled pixel is no fault.
    logits = model(images).float()
    total = functional.cross_entropy(logits, target, ignore_index=setting.ignore, reduction="sum")
    return {"loss": total / (target != setting.ignore).sum().clamp(min=1)}


def _px(setting: Setting, batch: batches.Batch) -> int:
    """Side of the images that the model sees; one that takes any sees whole samples."""
    return setting.recipe.model.px or int(batch.extent.max())


def _inputs(setting: Setting, batch: batches.Batch, geometry: augment.Geometry, size: int) -> tuple[Tensor, Tensor]:
    """Normalised images (N, C, S, S) and targets (N, S, S) int64 for S = `size`, both moved by `geometry`."""
    device = setting.where.device
    stored = lattice.image(batch.arrays, batch.extent, setting.stored, device)
    images = normalise.apply(setting.how, stored, batch.extent, setting.picks)
    target = augment.masks(batch.arrays["mask"].to(device), geometry, size)
    return augment.images(images, geometry, size), target.long()


# --- scoring -------------------------------------------------------------------------------


def evaluate(setting: Setting, model: nn.Module, source: batches.Samples) -> Tensor:
    """The confusion matrix (K, K) over every pixel of `source`."""
    classes = len(setting.contract.label_space.ids)
    total = torch.zeros(classes, classes, dtype=torch.int64)
    with loop.evaluating(model):
        for batch in batches.load(source, batches.in_order(len(source), setting.recipe.training.batch), threads=1):
            _, target, predicted = predict(setting, model, batch)
            total += metrics.confusion(predicted, target, classes=classes, ignore=setting.ignore)
    return total


def predict(setting: Setting, model: nn.Module, batch: batches.Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images (N, C, S, S), targets and predicted classes (N, S, S) of a batch as it lies in the shards."""
    size = int(batch.extent.max())
    images, target = _inputs(setting, batch, augment.centre(batch.extent, size), size)
    with setting.where.autocast():
        return images, target, untiled(model(tiled(images, _px(setting, batch))).argmax(dim=1), size)


def tiled(images: Tensor, px: int) -> Tensor:
    """(N, C, S, S) -> (N x (S/px)^2, C, px, px), tiles of an image row by row; `px` divides S."""
    n, c, s, _ = images.shape
    cut = images.reshape(n, c, s // px, px, s // px, px).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, c, px, px)


def untiled(maps: Tensor, size: int) -> Tensor:
    """The reverse for maps without bands: (N x (S/px)^2, px, px) -> (N, S, S) for S = `size`."""
    px = maps.shape[-1]
    side = size // px
    return maps.reshape(-1, side, side, px, px).permute(0, 1, 3, 2, 4).reshape(-1, size, size)


def most_frequent(source: batches.Samples, ignore: int) -> int:
    """The class with the most pixels in `source`."""
    counts = torch.zeros(256, dtype=torch.int64)
    for sample in range(len(source)):
        counts += torch.bincount(torch.from_numpy(source.read(sample, "mask")).flatten(), minlength=256)
    counts[ignore] = 0
    return int(counts.argmax())


def results(counts: Tensor, majority: int, contract: Contract) -> dict[str, Any]:
    """What `results.json` says: shares 0-1; `miou_majority` is that of always answering class `majority`."""
    names, scores = contract.label_space.names, metrics.scores(counts)
    return {
        "miou": scores.miou,
        "miou_without_class_0": scores.miou_without_first,
        "miou_majority": metrics.scores(metrics.constant(counts, majority)).miou,
        "majority_class": names[majority],
        "oa": scores.oa,
        "per_class_iou": dict(zip(names, scores.iou, strict=True)),
        "confusion": counts.tolist(),
    }


def _show(setting: Setting, model: nn.Module, source: batches.Samples, path: Path) -> None:
    """A picture of samples spread over `source`: true colour, labels, prediction."""
    bands, colours = pictures.true_colour(setting.contract), setting.contract.label_space.colours
    step = max(1, len(source) // SHOWN)
    plan = itertools.islice(batches.in_order(len(source), 1), 0, SHOWN * step, step)
    rows = []
    with loop.evaluating(model):
        for batch in batches.load(source, plan, threads=1):
            images, target, predicted = predict(setting, model, batch)
            rows.append(pictures.segmentation(images[0, bands], target[0], predicted[0], colours))
    if ranks.lead():
        pictures.write(path, rows)


if __name__ == "__main__":
    command.run("segment", Recipe, main)
