r"""Fine-tune and score a detector of changed pixels between two dates: SpectralGPT, or a baseline.

    python -m sgmodel.recipes.detect_change recipes/train/detect_change-demo-tiny.toml --shards DIR --out DIR \
        --weights RUN/checkpoint-last

Samples are pairs of scenes of any size, cut into windows for training. Precision, recall, F1 and IoU are those of the
change class in the maps that prediction writes, from counts over all pixels, and of each scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.data import augment, loader
from sgmodel.data import windows as win
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import (
    dense_prediction,
    finetune,
    frozen_features,
    loop,
    losses,
    metrics,
    pixel_baseline,
    pixel_change_detectors,
    training,
)
from sgmodel.train.program import Mode, Program
from sgmodel.train.run_paths import RunPaths
from sgmodel.train.training_distance import Scores

CHANGE, SMALL = 1, 2
SMALL_PX = 16
"""Changes of fewer connected pixels, diagonals included, are small: narrower than half a token of 8 pixels."""
MEMBERS = ("image_before", "image_after", "mask")


@dataclass(frozen=True, kw_only=True)
class ChangeRecipe(finetune.FinetuneRecipe, finetune.MapSettings):
    """Settings of a change-detection run.

    Attributes:
        windows: Windows for training.
        scored: Windows whose counts are summed in place of those of maps, as the released code does; unset for maps.
        weighting: Class weights; "share" is [2 q unchanged_factor, 2 (1 - q)] for a share q of changed pixels in the
            training scenes, "balanced" is total / (2 x labelled pixels of the class).
        unchanged_factor: Factor on the weight of unchanged pixels; 1 balances the classes, the released code has 10.
        mode: Trained weights: all of them ("finetune"), those of the head on a frozen backbone ("frozen"), or those of
            one linear layer on it ("linear-probe"). "logistic", "boosting" and "angle" use a detector of single pixels
            in place of the model: scikit-learn's on both dates, or the spectral angle between them.
        mean_px: Side in pixels of the windows whose means are the input of a detector of single pixels; 1 for none.
        threshold: Probability from which a detector of single pixels reports change: "half" is 0.5, "chosen" is the one
            with the best F1 on training samples.
        drop_incomplete: Whether to leave windows of `scored` that do not fill a batch out of the score, as the released
            code does.
    """

    windows: win.WindowRecipe
    scored: win.WindowRecipe | None = None
    weighting: Literal["none", "balanced", "share"] = "none"  # type: ignore[assignment]
    unchanged_factor: float = 1.0
    drop_incomplete: bool = False
    mode: Mode | pixel_change_detectors.PixelMethod = "finetune"  # type: ignore[assignment]
    mean_px: int = 1
    threshold: Literal["half", "chosen"] = "half"

    def __post_init__(self) -> None:
        """Refuse settings that do not go together. Raises SettingError."""
        finetune.FinetuneRecipe.__post_init__(self)
        finetune.MapSettings.__post_init__(self)


Setup = training.TrainingSetup[ChangeRecipe]


def build(recipe: ChangeRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights, which always has two classes. Raises SettingError."""
    return TaskSpec(kind="change", recipe=recipe.model, bands=len(recipe.bands)).build()


def main(recipe: ChangeRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score; return 0 or `signals.stop_code()`.

    Raises:
        SgdataError: Recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    pairs = training.open_samples(paths.joined, recipe.training, MEMBERS)
    scored = finetune.open_held_out(recipe, paths.joined, MEMBERS)
    check(recipe, pairs.contract)
    source = win.WindowedSamples(pairs, recipe.windows)
    setup = training.resolve(recipe, source.contract, paths)
    recipe = setup.recipe  # spectral groups that the data lack may have been dropped
    # From whole scenes, as in the released code: overlapping windows would give another share.
    counted = cache(partial(dense_prediction.class_counts, pairs))
    if recipe.weighting == "share":
        weights: Tensor | None = class_weights(changed(counted()), recipe.unchanged_factor)
    else:
        weights = finetune.class_weights(recipe.weighting, recipe.class_weights, setup.classes, counted)

    def scores(model: nn.Module, held_out: loader.Samples, final: bool) -> Scores:
        if not final:
            return Scores(figures=compute_metrics(metrics.weighted(evaluate(setup, model, held_out))))
        counts, small = evaluate_by_size(setup, model, held_out)
        dense_prediction.write_scenes(paths.out, held_out.keys, counts)
        linear = evaluate(setup, pixel_baseline.fit_linear(setup, pairs, MEMBERS[:2], weights), held_out)
        per_scene = {
            scene: {**compute_metrics(each), "confusion": each.tolist()}
            for scene, each in zip(held_out.keys, counts, strict=True)
        }
        figures = {
            **dense_prediction.score_confusion(counts, int(counted().argmax()), linear, compute_metrics),
            **small,
            "per_scene": per_scene,
        }
        return Scores(figures=figures, samples=dense_prediction.per_sample(counts, compute_metrics, "f1"))

    def scoring(model: nn.Module) -> finetune.ScoringSpec:
        return finetune.ScoringSpec(
            title="Change detection",
            by="f1",
            headlines=("f1", "iou_change", "oa"),
            scored=scored,
            compute_scores=partial(scores, model),
            source=pairs,
        )

    if recipe.mode in pixel_change_detectors.METHODS:
        detector: nn.Module = nn.Identity()
        if not paths.dry_run:
            detector = fit_detector(setup, pairs, recipe.mode)
        return finetune.score(setup, build(recipe, setup.classes), pairs, scoring(detector), paths)
    model = finetune.initialise_model(setup, partial(build, recipe, setup.classes), paths.weights)
    fitted = finetune.encode_once(setup, model, source, partial(images, setup), paths)
    task = finetune.prepare_finetuning(setup, model, fitted, partial(objective, setup, weights), paths)
    return finetune.train(setup, task, scoring(model), paths)


def check(recipe: ChangeRecipe, contract: Contract) -> None:
    """Refuse samples that are not pairs with a change map, or windows that do not fit the model.

    Raises:
        SettingError: Either is the case.
    """
    space, px = contract.label_space, recipe.model.px
    if space.task != "change" or len(space.ids) != 2:
        message = f"label space '{space.name}' is of the task '{space.task}', ids {list(space.ids)}"
        raise SettingError(f"{message}: expected task 'change' and two ids, unchanged and changed")
    for name, cut in (("windows", recipe.windows), ("scored", recipe.scored)):
        if px and cut and cut.px != px:
            raise SettingError(f"{name}.px is {cut.px}, the model takes images of {px}: set {name}.px = {px}")
    if recipe.drop_incomplete and not recipe.scored:
        raise SettingError(
            "drop_incomplete is true, [scored] is unset: maps have no windows; set drop_incomplete = false"
        )


def changed(counts: Tensor) -> float:
    """Return the share of changed pixels in counts of labelled pixels (2,)."""
    return float(counts[CHANGE] / counts.sum().clamp(min=1))


def class_weights(share: float, unchanged_factor: float) -> Tensor:
    """Return the class weights [no change, change] for a `share` of changed pixels. Raises SettingError."""
    if not 0 < share < 1:  # one class would have no weight, and the model would always predict the other
        message = f"weighting is 'share', {share:.0%} of the training scenes' labelled pixels are changed"
        raise SettingError(f"{message}: expected some of both; train on other scenes, or set weighting = 'none'")
    return torch.tensor([2 * share * unchanged_factor, 2 * (1 - share)])


def objective(setup: Setup, weights: Tensor | None, model: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """Compute the loss over the labelled pixels; both dates and the change map get the same geometry."""
    recipe, px, device = setup.recipe, setup.recipe.windows.px, setup.launch.device
    before, after = frozen_features.from_batch(batch, device, px) or images(setup, batch)
    target = training.labels(setup, batch).to(device, non_blocking=True)
    # Images are interpolated bicubically and masks by the nearest pixel; rotations and flips are exact in both.
    target = augment.transform_masks(target, finetune.geometry(setup, batch), px, setup.ignore).long()
    return losses.map_loss(recipe, model(before, after).float(), target, weights, setup.ignore)


def images(setup: Setup, batch: loader.Batch) -> list[Tensor]:
    """Return both images of a batch as they are trained on."""
    geometry, px = finetune.geometry(setup, batch), setup.recipe.windows.px
    return [augment.transform_images(image, geometry, px) for image in dates(setup, batch)]


def dates(setup: Setup, batch: loader.Batch) -> tuple[Tensor, Tensor]:
    """Return both images (N, C, H, W), normalised separately."""
    return training.normalised_pixels(setup, batch, "image_before"), training.normalised_pixels(
        setup, batch, "image_after"
    )


def fit_detector(setup: Setup, source: loader.Samples, method: pixel_change_detectors.PixelMethod) -> nn.Module:
    """Fit a classical detector to the pixels of the training samples. Raises SettingError."""
    recipe = setup.recipe
    batches = training.scored_batches(setup, source, loader.in_order(len(source), 1))
    pairs = ((int(batch.samples[0]), *dates(setup, batch), training.labels(setup, batch)[0]) for batch in batches)
    sampled = pixel_change_detectors.sample_pixels(pairs, len(source), mean_px=recipe.mean_px, ignore=setup.ignore)
    seed = recipe.training.seed
    return pixel_change_detectors.fit(
        sampled, method=method, mean_px=recipe.mean_px, threshold=recipe.threshold, seed=seed
    )


# --- scoring -------------------------------------------------------------------------------


def evaluate(setup: Setup, model: nn.Module, source: loader.Samples) -> Tensor:
    """Compute the confusion matrix of each of S scenes over its map, or over its windows: (S, 2, 2)."""
    if setup.recipe.scored is None:
        return dense_prediction.evaluate(setup, model, source)
    windows = win.WindowedSamples(source, setup.recipe.scored)
    count = len(windows)
    if setup.recipe.drop_incomplete:  # as in the released code, whose figures therefore depend on the batch
        count -= count % setup.recipe.training.batch
    matrices = torch.zeros(len(source), 2, 2, dtype=torch.int64)
    mine = distributed.assign_to_rank(loader.in_order(count, setup.scored_at_once))
    batches = training.scored_batches(setup, windows, (indices for indices, _ in mine))
    with loop.evaluating(model), setup.launch.autocast():
        for (_, counting), batch in zip(mine, batches, strict=True):
            # Windows of smaller scenes are padded, as in training.
            px, whole = setup.recipe.scored.px, augment.centre_crop(batch.valid_size, setup.recipe.scored.px)
            images = [augment.transform_images(image, whole, px) for image in dates(setup, batch)]
            truth = augment.transform_masks(training.labels(setup, batch), whole, px, setup.ignore)
            # The larger of two outputs: there is no split on which a threshold could be chosen.
            predicted = model(*images).argmax(dim=1).cpu()
            if counting:
                for row, scene in enumerate(windows.rows[batch.samples.numpy(), 0]):
                    target = truth[row].long()
                    matrices[scene] += metrics.confusion(predicted[row], target, classes=2, ignore=setup.ignore)
    return distributed.total(matrices, setup.launch.device)


def evaluate_by_size(setup: Setup, model: nn.Module, source: loader.Samples) -> tuple[Tensor, dict[str, float]]:
    """Compute the confusion matrix of each scene (S, 2, 2), and the recall of changes smaller than `SMALL_PX`."""
    if setup.recipe.scored is not None:  # windows cut what they see
        return evaluate(setup, model, source), {}
    parts = dense_prediction.evaluate(setup, model, source, relabel=part_small)
    counts = parts[:, :2, :2].clone()
    counts[:, CHANGE] += parts[:, SMALL, :2]
    detected, total = parts[:, SMALL, CHANGE].sum(), parts[:, SMALL].sum()
    return counts, {"recall_small": float(detected / total)} if total else {}


def part_small(target: Tensor) -> Tensor:
    """Return a change map (H, W) with `SMALL` in place of `CHANGE` in patches of fewer than `SMALL_PX` pixels."""
    from scipy import ndimage

    patches, _ = ndimage.label(target.numpy() == CHANGE, np.ones((3, 3)))
    sizes = np.bincount(patches.ravel())
    small = torch.from_numpy((sizes < SMALL_PX)[patches] & (patches > 0))
    return torch.where(small, SMALL, target)


def compute_metrics(counts: Tensor) -> dict[str, float]:
    """Compute the figures of the change class from a confusion matrix (2, 2), shares 0-1; 0 where undefined."""
    scores = metrics.scores(counts)
    values = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1, "iou_change": scores.iou}
    return {**{name: value[CHANGE] or 0.0 for name, value in values.items()}, "oa": scores.oa}


def count_windows(recipe: ChangeRecipe, shards: Path) -> int:
    """Count the windows that a recipe trains on. Raises SettingError, SourceError."""
    pairs = loader.Samples(shards, recipe.training.split, ("image_before", "mask"))
    return len(win.WindowedSamples(pairs, recipe.windows))


PROGRAM = Program(
    name="detect_change",
    recipe=ChangeRecipe,
    main=main,
    model=build,
    images=2,
    count=count_windows,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
