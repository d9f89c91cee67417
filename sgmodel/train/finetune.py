"""Fine-tune and score: the steps that classification, segmentation and change detection share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sgdata import files
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.types import Contract, LabelSpace
from sgmodel import distributed
from sgmodel.checkpoints import cards
from sgmodel.data import augment, loader, normalise
from sgmodel.models import factory, heads
from sgmodel.train import loop, run_folder, training

if TYPE_CHECKING:
    from sgmodel.train.run_paths import RunPaths

Mode = Literal["finetune", "frozen", "linear-probe"]
"""Train all weights; train the head on a frozen backbone; or train one linear layer after a normalisation without
weights, on a frozen backbone."""

R = TypeVar("R", bound="FinetuneRecipe")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """Settings that every fine-tuning run has.

    Attributes:
        model: Backbone and head.
        bands: Bands that the model sees, in its order.
        val_split: Split that is scored.
        evaluate_every: Epochs between two scorings; 0 scores only at the end.
        training: Duration, batch and optimizer.
        normalise: Normalisation of the images.
        augment: Random crops, flips and turns.
        mode: Which weights are trained: all of them, the head on a frozen backbone, or one linear layer on it.
        accept: Contract fields in which the starting weights may differ from the data.
    """

    model: factory.ModelRecipe
    bands: tuple[str, ...]
    val_split: str
    evaluate_every: int
    training: training.TrainingRecipe
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    mode: Mode = "finetune"
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse repeated bands. Raises SettingError."""
        repeated = sorted({name for name in self.bands if self.bands.count(name) > 1})
        if repeated:
            raise SettingError(f"bands has {' '.join(repeated)} more than once; name each band once")


def px(setting: training.Setting[R], batch: loader.Batch) -> int:
    """Return the side of the model's input images; a model that takes any size gets whole samples."""
    return setting.recipe.model.px or int(batch.valid_size.max())


def check_sizes(px: int, stored: Contract) -> None:
    """Refuse samples of many sizes for a model of any size, whose scores would depend on the batches.

    Raises:
        SettingError: the recipe has no image size and neither have the samples.
    """
    if not px and stored.shape is None:
        message = f"model.image_px is 0 (any), the samples of '{stored.dataset}' are of many sizes"
        raise SettingError(f"{message}: pack them in one size, or set model.image_px (scenes only)")


def labels(setting: training.Setting[R], batch: loader.Batch) -> Tensor:
    """Return the masks (N, H, W) of a batch as class indices 0..K-1, or `setting.ignore`.

    Raises:
        SourceError: a value is not a class; the message names the samples.
    """
    indices = class_indices(setting.contract.label_space, batch.arrays["mask"])
    # Checked on the host: a device would fail later, with a message that names neither value nor sample.
    invalid = indices == UNKNOWN
    if invalid.any():
        keys = [batch.keys[row] for row in torch.nonzero(invalid.flatten(1).any(dim=1)).flatten().tolist()]
        space = setting.contract.label_space
        values = sorted(set(_signed(batch.arrays["mask"])[invalid].tolist()))[:8]
        expected = _ranges(space.ids)
        raise SourceError(
            f"masks of {', '.join(keys[:8])} hold {values}, expected classes {expected} or {space.ignore_index}; "
            "shard them again"
        )
    return indices


# Class index of a mask value that the label space does not list.
UNKNOWN = -1


def class_indices(space: LabelSpace, masks: Tensor) -> Tensor:
    """Return the position of each mask value among the ids of `space`, of any integer type: the same shape, int32.

    The value to ignore becomes `training.ignored_index`, every other value that is not an id becomes UNKNOWN.
    """
    values = _signed(masks)
    known = torch.tensor([*space.ids, space.ignore_index], dtype=torch.int32, device=values.device)
    position = [*range(len(space.ids)), training.ignored_index(space)]
    ordered, order = known.sort()
    at = torch.searchsorted(ordered, values).clamp(max=len(known) - 1)
    indices = torch.tensor(position, dtype=torch.int32, device=values.device)[order][at]
    return torch.where(ordered[at] == values, indices, UNKNOWN)


def _signed(masks: Tensor) -> Tensor:
    """Return masks as int32, since torch has few operations for uint16."""
    return masks.to(torch.int32)


def _ranges(ids: tuple[int, ...]) -> str:
    """Return ids in words: "0 to 9" where none is left out."""
    whole = ids == tuple(range(ids[0], ids[-1] + 1)) if ids else False
    return f"{ids[0]} to {ids[-1]}" if whole else ", ".join(map(str, ids))


def start(setting: training.Setting[R], make: Callable[[], nn.Module], weights: Path | None) -> nn.Module:
    """Create a model, fill it from `weights`, and freeze it according to the mode of the recipe.

    Args:
        setting: Resolved recipe, whose seed draws the initial weights.
        make: Creates the model.
        weights: Checkpoint folder or weight file to start from.

    Raises:
        SettingError: the model cannot be created, or the weights do not fit the data.
        SourceError: the weights cannot be read.
    """
    torch.manual_seed(setting.recipe.training.seed)
    # On the CPU, so that the initial weights do not depend on the device.
    try:
        model = make()
    except ValueError as error:  # from torch's layers, such as widths that are not divisible by the number of heads
        raise SettingError(f"model {setting.recipe.model.backbone!r} cannot be made: {error}; fix [model]") from None
    if weights is not None:
        cards.fill(model, weights, setting.contract, setting.how, accept=setting.recipe.accept)
    freeze(model, setting.recipe.mode)
    return model


def freeze(model: nn.Module, mode: Mode) -> None:
    """Freeze the parameters that `mode` does not train. Raises SettingError."""
    if mode == "finetune":
        return
    if not isinstance(model, heads.TaskModel):
        raise SettingError(f"mode is {mode!r}: expected 'finetune', since {type(model).__name__} has no task's head")
    model.backbone.freeze()
    # Called after the weights are loaded, which may include those of the head that is replaced here.
    if mode == "linear-probe":
        heads.probe(model)


def task(
    setting: training.Setting[R],
    model: nn.Module,
    source: loader.Samples,
    objective: Callable[[nn.Module, loader.Batch], dict[str, Tensor]],
    paths: RunPaths,
) -> training.Task:
    """Prepare the training of `model`; `objective` gets the model as wrapped for training."""
    settings = setting.recipe.training
    if setting.recipe.mode == "linear-probe" and distributed.world() > 1 and settings.accumulate > 1:
        message = (
            f"training.accumulate is {settings.accumulate}, mode 'linear-probe' on {distributed.world()} processes"
        )
        raise SettingError(f"{message}: features are normalised over the whole batch; set training.accumulate = 1")
    if distributed.world() > 1:
        distributed.share_statistics(model, setting.where.device)
    card = cards.of_run(model, setting.contract, setting.how, setting.recipe)
    return training.task(setting, model, source, objective, paths, card=card)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a program scores.

    Attributes:
        title: Title of the model card.
        by: Name of the figure that selects `checkpoint-best`; greater is better.
        held_out: Samples that are scored.
        figures: Computes the figures; its argument says whether to include those that take long.
    """

    title: str
    by: str
    held_out: loader.Samples
    figures: Callable[[bool], dict[str, Any]]


def train(setting: training.Setting[R], task: training.Task, scoring: Scoring, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score.

    Returns:
        The exit code: 0, or `training.STOPPED`.

    Raises:
        SgdataError: the run in the folder is another, or a file cannot be read or written.
    """
    if paths.dry_run:
        print(training.outlook(task))
        return ExitCode.DONE
    if task.total == 0:  # no epochs: score the starting weights
        figures = _numbers(scoring.figures(False))
        if distributed.lead():
            print(json.dumps(figures))
        return ExitCode.DONE
    with files.only_writer(paths.out, run_folder.METRICS) if distributed.lead() else nullcontext():
        return _train(setting.recipe, task, scoring, paths)


def _train(recipe: FinetuneRecipe, task: training.Task, scoring: Scoring, paths: RunPaths) -> int:
    every, first = recipe.evaluate_every, training.begin(task, recipe, paths)
    with run_folder.Log(paths.out, first) as log:

        def score(done: int) -> None:
            epoch = task.epoch(done)
            # The last step is scored below, with the figures that take long.
            if every and epoch // every > task.epoch(done - 1) // every and done < task.total:
                figures = _numbers(scoring.figures(False))
                log.write(done - 1, {"epoch": epoch, **figures})
                run_folder.keep_best(paths.out, task.model, task.card, figures, by=scoring.by)

        def report(step: loop.Step) -> None:
            log.step(step, every=recipe.training.log_every, last=step.index + 1 == task.total)
            score(step.index + 1)

        if log.lacks_score:  # the run ended while its last step was scored
            score(first)
        training.run(task, first, paths, report)
    if not training.complete(task, paths):
        return training.STOPPED
    figures = scoring.figures(True)
    # Also without scoring on the way, so that `checkpoint-best` always exists.
    run_folder.keep_best(paths.out, task.model, task.card, _numbers(figures), by=scoring.by)
    results = {"steps": task.total, **subject(recipe, task, scoring.held_out), **figures}
    if every and distributed.lead():
        # The epoch that the paper reports; selected on the scored samples, so that it is biased.
        results["best_epoch"] = files.read_plain(paths.out / run_folder.BEST / "figures.json")
    run_folder.conclude(paths.out, scoring.title, task.card, results)
    return ExitCode.DONE


def subject(recipe: FinetuneRecipe, task: training.Task, held_out: loader.Samples) -> dict[str, Any]:
    """Return the data and mode that the figures refer to, without which they cannot be compared."""
    return {
        "dataset": held_out.contract.dataset,
        "split": held_out.split,
        "samples": len(held_out),
        "train_split": recipe.training.split,
        "train_samples": len(task.source),
        "mode": recipe.mode,
    }


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}
