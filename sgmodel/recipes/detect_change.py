r"""Fine-tune and score a detector of changed pixels between two dates: SpectralGPT, or a baseline.

    python -m sgmodel.recipes.detect_change recipes/train/detect_change-demo-tiny.toml --shards DIR --out DIR \
        --weights RUN/checkpoint-last

Samples are pairs of scenes of any size, cut into windows for training and scoring. Precision, recall and F1 are those
of the change class, from counts over all scored pixels, and of each scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel.data import augment, loader
from sgmodel.data import windows as win
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import finetune, loop, metrics, training
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths

CHANGE = 1


@dataclass(frozen=True, kw_only=True)
class ChangeRecipe(finetune.FinetuneRecipe):
    """Settings of a change-detection run.

    Attributes:
        windows: Windows for training.
        scored: Windows for scoring.
        weighting: Class weights; "share" is [2 q unchanged_factor, 2 (1 - q)] for a share q of changed pixels in the
            training scenes.
        unchanged_factor: Factor on the weight of unchanged pixels; 1 balances the classes, the released code has 10.
        drop_incomplete: Whether to leave windows that do not fill a batch out of the score, as the released code does.
    """

    windows: win.WindowRecipe
    scored: win.WindowRecipe
    weighting: Literal["none", "share"]
    unchanged_factor: float = 1.0
    drop_incomplete: bool = False


Setting = training.Setting[ChangeRecipe]


def build(recipe: ChangeRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights, which always has two classes. Raises SettingError."""
    return TaskSpec(kind="change", recipe=recipe.model, bands=len(recipe.bands)).build()


def main(recipe: ChangeRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score; return 0 or `training.STOPPED`.

    Raises:
        SgdataError: recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    members = ("image_before", "image_after", "mask")
    pairs = training.samples(paths.shards, recipe.training, members)
    check(recipe, pairs.contract)
    source = win.Windows(pairs, recipe.windows)
    others = loader.Samples(paths.shards, recipe.val_split, members, verify=recipe.training.verify)
    held_out = win.Windows(others, recipe.scored)
    setting = training.resolve(recipe, source.contract, paths)
    recipe = setting.recipe  # spectral groups that the data lack may have been dropped
    model = finetune.start(setting, partial(build, recipe, setting.classes), paths.weights)
    # From whole scenes, as in the released code: overlapping windows would give another share.
    weights = None if recipe.weighting == "none" else class_weights(changed(source), recipe.unchanged_factor)
    task = finetune.task(setting, model, source, partial(objective, setting, weights), paths)
    scoring = finetune.Scoring(
        title="Change detection",
        by="f1",
        held_out=held_out,
        figures=lambda final: figures(evaluate(setting, model, held_out), held_out.samples.keys, final=final),
    )
    return finetune.train(setting, task, scoring, paths)


def check(recipe: ChangeRecipe, contract: Contract) -> None:
    """Refuse samples that are not pairs with a change map, or windows that do not fit the model.

    Raises:
        SettingError: either is the case, or the head has a layer that change detection lacks.
    """
    space, px = contract.label_space, recipe.model.px
    if space.task != "change" or len(space.ids) != 2:
        message = f"label space '{space.name}' is of the task '{space.task}', ids {list(space.ids)}"
        raise SettingError(f"{message}: expected task 'change' and two ids, unchanged and changed")
    if recipe.model.head is not None and recipe.model.head.skip:
        raise SettingError(f"model.head.skip is {recipe.model.head.skip}: change detection has no such layer; set 0")
    for name, cut in (("windows", recipe.windows), ("scored", recipe.scored)):
        if px and cut.px != px:
            raise SettingError(f"{name}.px is {cut.px}, the model takes images of {px}: make them equal")


def changed(source: win.Windows) -> float:
    """Return the share of changed pixels among the labelled pixels of whole scenes."""
    counts = torch.zeros(2)
    for number in range(len(source.samples)):
        mask = torch.from_numpy(source.whole(number, "mask"))
        indices = finetune.class_indices(source.contract.label_space, mask)
        counts += torch.bincount(indices[indices >= 0], minlength=2)[:2]
    return float(counts[CHANGE] / counts.sum().clamp(min=1))


def class_weights(share: float, unchanged_factor: float) -> Tensor:
    """Return the class weights [no change, change] for a `share` of changed pixels. Raises SettingError."""
    if not 0 < share < 1:  # one class would have no weight, and the model would always predict the other
        message = f"weighting is 'share', {share:.0%} of the training scenes' labelled pixels are changed"
        raise SettingError(f"{message}: expected some of both; train on other scenes, or set weighting = 'none'")
    return torch.tensor([2 * share * unchanged_factor, 2 * (1 - share)])


def objective(setting: Setting, weights: Tensor | None, model: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """Compute the negative log-likelihood of the labelled pixels; both dates and the map get the same geometry."""
    recipe, px = setting.recipe, finetune.px(setting, batch)
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.valid_size, seed=recipe.training.seed)
    before, after = (augment.images(image, geometry, px) for image in dates(setting, batch))
    target = augment.masks(finetune.labels(setting, batch).to(before.device, non_blocking=True), geometry, px).long()
    # Images are interpolated bicubically and masks by the nearest pixel; rotations and flips are exact in both.
    each = torch.ones(2, device=before.device) if weights is None else weights.to(before.device, non_blocking=True)
    log_p = model(before, after).float()
    total = functional.nll_loss(log_p, target, weight=each, ignore_index=setting.ignore, reduction="sum")
    # Divided by the class weights of the global batch, as `nll_loss` with "mean" does for one batch.
    weight = each[target[target != setting.ignore]].sum()
    return {"loss": total / weight.clamp(min=1e-6), loop.WEIGHT: weight / px**2}


def dates(setting: Setting, batch: loader.Batch) -> tuple[Tensor, Tensor]:
    """Return both images (N, C, H, W), normalised separately."""
    return training.pixels(setting, batch, "image_before"), training.pixels(setting, batch, "image_after")


# --- scoring -------------------------------------------------------------------------------


def evaluate(setting: Setting, model: nn.Module, source: win.Windows) -> Tensor:
    """Compute the confusion matrix of each of S scenes over its windows: (S, 2, 2)."""
    size, count = setting.recipe.training.batch, len(source)
    if setting.recipe.drop_incomplete:  # as in the released code, whose figures therefore depend on the batch
        count -= count % size
    matrices = torch.zeros(len(source.samples), 2, 2, dtype=torch.int64)
    with loop.evaluating(model), setting.where.autocast():
        for batch in loader.load(source, loader.in_order(count, setting.scored_at_once), threads=1):
            # The larger of two outputs: there is no split on which a threshold could be chosen.
            predicted, truth = model(*dates(setting, batch)).argmax(dim=1).cpu(), finetune.labels(setting, batch)
            for row, sample in enumerate(batch.samples.tolist()):
                target = truth[row].long()
                scene = int(source.rows[sample, 0])
                matrices[scene] += metrics.confusion(predicted[row], target, classes=2, ignore=setting.ignore)
    return matrices


def of_change(counts: Tensor) -> dict[str, float]:
    """Compute precision, recall and F1 of the change class from a confusion matrix (2, 2); 0 where undefined."""
    scores = metrics.scores(counts)
    values = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    return {name: value[CHANGE] or 0.0 for name, value in values.items()}


def figures(counts: Tensor, scenes: list[str], *, final: bool) -> dict[str, Any]:
    """Compute the figures of the matrices (S, 2, 2) of `scenes` for `results.json`; intervals are over scenes."""
    whole = metrics.weighted(counts)
    results: dict[str, Any] = {**of_change(whole), "oa": metrics.scores(whole).oa}

    def interval(name: str) -> tuple[float, float]:
        return metrics.interval(lambda weights: of_change(metrics.weighted(counts, weights))[name], len(counts))

    if final:
        results |= {f"{name}_interval": interval(name) for name in ("f1", "precision", "recall")}
        results["per_scene"] = {scene: of_change(each) for scene, each in zip(scenes, counts, strict=True)}
        results["confusion"] = whole.tolist()
    return results


PROGRAM = Program(
    name="detect_change",
    recipe=ChangeRecipe,
    main=main,
    model=build,
    images=2,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
