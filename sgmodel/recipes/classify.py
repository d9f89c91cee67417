"""Train a model that gives a scene one class, or several, and score it: SpectralGPT, or a baseline.

    python -m sgmodel.recipes.classify recipes/train/classify-demo-tiny.toml --shards DIR --out DIR \\
        --weights RUN/checkpoint-last

What the contract calls "single-label" is trained with cross-entropy and scored by top-1; "multi-label" with the
soft-margin loss and mean average precision. Scores are those of the last epoch over the whole validation split; the
best epoch, which the paper reports, and the average over batches, which the released code calls mAP, stand beside
them under names of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError, SourceError
from sgdata.shards import tar_format
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.data import augment, loader
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import finetune, loop, metrics, training
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(finetune.FinetuneRecipe):
    """Settings of a classification run.

    Attributes:
        mix: Random erasing, mixup and CutMix.
        smoothing: Label smoothing of the cross-entropy, 0 to 1; single-label only.
        zoom: Share of a scene's side that is scored; the released code has 0.875.
        head_std: Standard deviation with which the head is drawn anew after weights were loaded; 0 keeps it.
        labels_from: Where labels come from; "mask" gives a scene the classes that cover at least `min_share` of it.
        min_share: Share of a mask that a class must cover to be a label.
    """

    mix: augment.MixRecipe = field(default_factory=augment.MixRecipe)
    smoothing: float = 0.0
    zoom: float = 1.0
    head_std: float = 0.0
    labels_from: Literal["labels", "mask"] = "labels"
    min_share: float = 0.05


Setting = training.Setting[ClassifyRecipe]


def build(recipe: ClassifyRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights. Raises SettingError."""
    return TaskSpec(kind="classifier", recipe=recipe.model, bands=len(recipe.bands), classes=classes).build()


def main(recipe: ClassifyRecipe, paths: RunPaths) -> int:
    """Train to the recipe's last step, or until stopped, then score; 0 or `training.STOPPED`. Raises SgdataError."""
    settings = recipe.training
    source = training.samples(paths.shards, settings, ("image",))
    held_out = loader.Samples(paths.shards, recipe.val_split, ("image",))
    # The contract too: a checkpoint must say what its outputs mean.
    for samples in (source, held_out):
        samples.contract = labelled(samples.contract, recipe)
    check(recipe, source.contract)
    setting = training.resolve(recipe, source.contract, paths)
    recipe = setting.recipe  # without the spectral groups that the data lack, if it says so
    model = finetune.start(setting, partial(build, recipe, setting.classes), paths.weights)
    # A small head leaves the first steps to the pretrained features (spec section 4).
    if recipe.head_std and paths.weights is not None and isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=recipe.head_std)
    learned, asked = (targets(samples, recipe) for samples in (source, held_out))
    task = finetune.task(setting, model, source, partial(objective, setting, learned), paths)
    single = setting.contract.label_space.task == "single-label"
    scoring = finetune.Scoring(
        title="Classification",
        by="top1" if single else "map_macro",
        held_out=held_out,
        figures=lambda final: figures(score(setting, model, held_out), asked, setting.contract, final=final),
    )
    return finetune.train(setting, task, scoring, paths)


def check(recipe: ClassifyRecipe, contract: Contract) -> None:
    """Raises SettingError where the samples have no labels of their own, or the recipe does not fit them."""
    space, settings = contract.label_space, recipe.training
    finetune.check_sizes(recipe.model.px, contract)
    if space.task not in {"single-label", "multi-label"}:
        message = f"label space '{space.name}' is of the task '{space.task}', expected single-label or multi-label"
        raise SettingError(f"{message}; masks give labels with labels_from = 'mask'")
    if recipe.smoothing and space.task == "multi-label":
        raise SettingError(f"smoothing is {recipe.smoothing}, '{space.name}' is multi-label: only 0.0 is known there")
    world, parts = distributed.world(), -(-settings.accumulate // distributed.world())
    if recipe.mix.mixes and (settings.batch % world or settings.batch // world % (2 * parts)):
        message = f"batch {settings.batch} in {parts} parts" + (f" on each of {world} processes" if world > 1 else "")
        raise SettingError(f"{message}: mixup and CutMix pair neighbours; choose parts of an even number of samples")


def objective(setting: Setting, targets: Tensor, model: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """The loss of a batch; `targets` (N, K) are those of all training samples."""
    recipe, seed, px = setting.recipe, setting.recipe.training.seed, finetune.px(setting, batch)
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.valid_size, seed=seed)
    # Crop, erase, mix, in this order: a box is erased from one scene, not from two that share a picture.
    x = augment.images(training.pixels(setting, batch), geometry, px)
    x = augment.erase(x, recipe.mix, batch.samples, batch.epoch, seed=seed)
    y = targets[batch.samples].to(x.device, non_blocking=True)
    if recipe.mix.mixes:
        how = augment.mixing(recipe.mix, batch.samples, batch.epoch, px, seed=seed)
        x, y = augment.mix(x, how), augment.mix_targets(y, how)
    # Of soft targets, which sum to 1: smoothing before or after mixing is the same.
    logits = model(x).float()
    if setting.contract.label_space.task == "single-label":
        return {"loss": functional.cross_entropy(logits, y, label_smoothing=recipe.smoothing)}
    return {"loss": functional.multilabel_soft_margin_loss(logits, y)}


# --- labels --------------------------------------------------------------------------------


def labelled(contract: Contract, recipe: ClassifyRecipe) -> Contract:
    """The contract with the label space that the model is trained for."""
    if recipe.labels_from == "labels":
        return contract
    # Another name: labels made from masks are not those that the dataset's makers gave.
    name = f"{contract.label_space.name}, share >= {recipe.min_share:g}"
    return replace(contract, label_space=replace(contract.label_space, name=name, task="multi-label", ignore=None))


def targets(source: loader.Samples, recipe: ClassifyRecipe) -> Tensor:
    """(N, K) float32, 1 where a sample has a class. Raises SourceError on one that has not what its task asks for."""
    space = source.contract.label_space
    hot = torch.zeros(len(source), len(space.ids))
    place = {label: number for number, label in enumerate(space.ids)}
    # Samples without any class are kept where several are allowed: they are negatives of all.
    for row, labels in enumerate(_labels(source, recipe)):
        unknown = sorted(set(labels) - set(place))
        if unknown or (space.task == "single-label" and len(labels) != 1):
            expected = "exactly one" if space.task == "single-label" else "any number"
            message = f"{source.folder}: sample '{source.keys[row]}' has labels {list(labels)}"
            raise SourceError(f"{message}, expected {expected} of '{space.name}'; shard the dataset again")
        hot[row, [place[label] for label in labels]] = 1.0
    return hot


def _labels(source: loader.Samples, recipe: ClassifyRecipe) -> Iterable[list[int]]:
    if recipe.labels_from == "labels":
        index = tar_format.read_index(source.folder)
        known = dict(zip(index["key"].to_pylist(), index["labels"].to_pylist(), strict=True))
        return (known[key] for key in source.keys)
    masks, chosen = loader.Samples(source.folder, source.split, ("mask",)), set(source.keys)
    rows = (row for row, key in enumerate(masks.keys) if key in chosen)
    return (covering(masks.read(row, "mask"), source.contract.label_space.ids, recipe.min_share) for row in rows)


def covering(mask: np.ndarray[Any, Any], ids: Iterable[int], min_share: float) -> list[int]:
    """The classes that cover at least `min_share` of a mask (H, W), unlabelled pixels counted in the whole."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return [label for label in ids if counts[label] >= min_share * mask.size]


# --- scoring -------------------------------------------------------------------------------


def score(setting: Setting, model: nn.Module, source: loader.Samples) -> Tensor:
    """(N, K) logits of every sample of `source`, on the CPU."""
    found = []
    plan = loader.in_order(len(source), setting.recipe.training.batch // setting.recipe.training.accumulate)
    with loop.evaluating(model), setting.where.autocast():
        for batch in loader.load(source, plan, threads=1):
            x = augment.zoomed(
                training.pixels(setting, batch),
                batch.valid_size,
                finetune.px(setting, batch),
                share=setting.recipe.zoom,
            )
            found.append(model(x).float().cpu())
    return torch.cat(found)


def figures(scores: Tensor, targets: Tensor, contract: Contract, *, final: bool) -> dict[str, Any]:
    """What `results.json` says of logits (N, K), shares 0-1; intervals and figures per class only where `final`."""
    space = contract.label_space
    if space.task == "multi-label":
        return _of_many(scores, targets, space.names, final=final)
    right = scores.argmax(dim=1) == targets.argmax(dim=1)
    found: dict[str, Any] = {"top1": metrics.top1(right)}
    if final:  # a thousand draws take longer than the scoring of a small split
        counts = metrics.confusion(scores.argmax(dim=1), targets.argmax(dim=1), classes=len(space.ids), ignore=-1)
        found["top1_interval"] = metrics.interval(lambda weights: metrics.top1(right, weights), len(right))
        found["per_class_recall"] = dict(zip(space.names, metrics.scores(counts).recall, strict=True))
        found["confusion"] = counts.tolist()
    return found


def _of_many(scores: Tensor, targets: Tensor, names: tuple[str, ...], *, final: bool) -> dict[str, Any]:
    ways = {"macro": metrics.macro(scores, targets), "micro": metrics.micro(scores, targets)}
    found: dict[str, Any] = {f"map_{name}": metrics.mean_average_precision(ranked) for name, ranked in ways.items()}
    found["map_micro_batch_averaged"] = metrics.micro_map_batch_averaged(scores, targets)
    if final:
        for name, ranked in ways.items():
            figure = partial(metrics.mean_average_precision, ranked)
            found[f"map_{name}_interval"] = metrics.interval(figure, len(scores))
        per_class = map(metrics.average_precision, ways["macro"])
        found["per_class_ap"] = dict(zip(names, per_class, strict=True))
    return found


PROGRAM = Program(
    name="classify",
    recipe=ClassifyRecipe,
    main=main,
    model=build,
)

if __name__ == "__main__":
    from sgmodel import commands  # the command line's libraries are not needed to use the functions above

    commands.run_training(PROGRAM)
