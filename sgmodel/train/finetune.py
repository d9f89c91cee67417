"""Fine-tune and score: the steps that classification, segmentation and change detection share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sgdata import files, output_lock
from sgdata.errors import ExitCode, SettingError
from sgmodel import distributed
from sgmodel.checkpoints import cards
from sgmodel.data import augment, loader, normalise, windows
from sgmodel.models import factory, flops, heads
from sgmodel.train import (
    best_checkpoint,
    frozen_features,
    loop,
    other_split,
    run_folder,
    run_results,
    signals,
    training,
    training_distance,
)
from sgmodel.train.program import Mode

if TYPE_CHECKING:
    from sgmodel.train.run_paths import RunPaths

logger = logging.getLogger("sgdata")

R = TypeVar("R", bound="FinetuneRecipe")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """Settings that every fine-tuning run has.

    Attributes:
        model: Backbone and head.
        bands: Input bands of the model, in its order.
        val_split: Split that is scored during training, by which `checkpoint-best` is chosen; empty for none.
        test_split: Split that is scored after training; empty for `val_split`.
        evaluate_every: Epochs between two scorings; 0 scores only at the end.
        training: Duration, batch and optimizer.
        normalise: Normalisation of the images.
        augment: Random crops, flips and turns.
        mode: Trained weights: all of them ("finetune"), those of the head on a frozen backbone ("frozen"), or those of
            one linear layer on it ("linear-probe").
        accept: Contract fields in which the starting weights may differ from the data.
        features_gb: Largest memory, in 10^9 bytes, for features of a frozen backbone that are computed once per sample;
            larger ones, and those of samples that are augmented, are computed in each step.
    """

    model: factory.ModelRecipe
    bands: tuple[str, ...]
    val_split: str
    evaluate_every: int
    training: training.TrainingRecipe
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    test_split: str = ""
    mode: Mode = "finetune"
    accept: tuple[str, ...] = ()
    features_gb: float = 4.0

    def __post_init__(self) -> None:
        """Refuse repeated bands and missing splits. Raises SettingError."""
        repeated = sorted({name for name in self.bands if self.bands.count(name) > 1})
        if repeated:
            raise SettingError(f"bands has {' '.join(repeated)} more than once; name each band once")
        if not (self.val_split or self.test_split):
            raise SettingError("val_split and test_split are empty: expected a split to score; set test_split")
        if self.training.patience and not (self.val_split and self.evaluate_every):
            message = f"training.patience is {self.training.patience}: expected scores during training"
            raise SettingError(f"{message}; set val_split, and evaluate_every above 0")


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """Settings of a run that trains a model of every pixel, beside those of `FinetuneRecipe`.

    Attributes:
        smoothing: Label smoothing of the cross-entropy, 0 to 1.
        weighting: Class weights of the loss; "balanced" is total / (classes x labelled pixels of the class).
        class_weights: Class weights of the loss, one per class in the order of the label space, in place of computed
            ones.
        focal_gamma: Exponent of the focal loss (Lin et al., ICCV 2017); 0 is cross-entropy.
        dice_weight: Share of the Dice loss (Milletari et al., 3DV 2016) in the loss, 0 to 1; the mean over the classes
            that a sample shows.
        overlap: Share of a tile's side that neighbours have in common in scoring, as in prediction, 0 to 0.75.
    """

    smoothing: float = 0.0
    weighting: Literal["none", "balanced"] = "none"
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    dice_weight: float = 0.0
    overlap: float = 0.5

    def __post_init__(self) -> None:
        """Refuse class weights from two places. Raises SettingError."""
        check_class_weights(self.weighting, self.class_weights)


def image_side(setup: training.TrainingSetup[R]) -> int:
    """Return the side of the model's input images, see `windows.image_side`."""
    return windows.image_side(setup.recipe.model.px, setup.stored)


def fit_windows(setup: training.TrainingSetup[R], source: loader.Samples) -> loader.Samples:
    """Return the samples as they are trained on: without a crop, those larger than the images in windows."""
    return source if setup.recipe.augment.crop_area else windows.fit_to_windows(source, image_side(setup))


def geometry(setup: training.TrainingSetup[R], batch: loader.Batch) -> augment.GeometricTransform:
    """Draw how the samples of a batch are cropped, flipped and turned."""
    recipe = setup.recipe
    return augment.draw(recipe.augment, batch.samples, batch.epoch, batch.valid_size, seed=recipe.training.seed)


def check_class_weights(weighting: str, weights: tuple[float, ...]) -> None:
    """Refuse class weights that are named twice or below 0. Raises SettingError."""
    if weights and (weighting != "none" or min(weights) < 0 or not max(weights) > 0):
        message = f"class_weights is {list(weights)}, weighting {weighting!r}"
        raise SettingError(f"{message}: expected weights of 0 or more, not all 0, and weighting = 'none'")


def class_weights(
    weighting: str, weights: tuple[float, ...], classes: int, counts: Callable[[], Tensor]
) -> Tensor | None:
    """Return the weights (K,) of classes in the loss; None for 1 each.

    Args:
        weighting: "balanced" for total / (classes x count of the class); any other for `weights`.
        weights: Weights in the order of the label space; empty for none.
        classes: Number of classes.
        counts: Counts each class in the training samples: (K,) int64.

    Raises:
        SettingError: `weights` does not have a weight for each class.
    """
    if weighting == "balanced":
        present = counts()
        return present.sum() / (classes * present.clamp(min=1)).float() * (present > 0)
    if weights and len(weights) != classes:
        raise SettingError(f"class_weights has {len(weights)} values, the data {classes} classes: give one for each")
    return torch.tensor(weights) if weights else None


def initialise_model(
    setup: training.TrainingSetup[R], make: Callable[[], nn.Module], weights: Path | None
) -> nn.Module:
    """Create a model, fill it from `weights`, and freeze it according to the mode of the recipe.

    Args:
        setup: Resolved recipe, whose seed draws the initial weights.
        make: Creates the model.
        weights: Checkpoint folder or weight file to start from.

    Raises:
        SettingError: The model cannot be created, or the weights do not fit the data.
        SourceError: The weights cannot be read.
    """
    torch.manual_seed(setup.recipe.training.seed)
    # On the CPU, so that the initial weights do not depend on the device.
    try:
        model = make()
    except ValueError as error:  # from torch's layers, such as widths that are not divisible by the number of heads
        raise SettingError(f"model {setup.recipe.model.backbone!r} cannot be made: {error}; fix [model]") from None
    if weights is not None:
        cards.fill(model, weights, setup.contract, setup.normalisation, accept=setup.recipe.accept)
    freeze(model, setup.recipe.mode)
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


def encode_once(
    setup: training.TrainingSetup[R],
    model: nn.Module,
    source: loader.Samples,
    images: frozen_features.Images,
    paths: RunPaths,
) -> loader.SampleSource:
    """Return training samples with the features of a frozen backbone in place of images that never change.

    Args:
        setup: Resolved recipe.
        model: Model to train.
        source: Training samples.
        images: Makes the images of a batch.
        paths: Machine settings.
    """
    recipe = setup.recipe
    if not isinstance(model, heads.TaskModel) or not model.backbone.frozen or not recipe.augment.still:
        return source
    # A shortcut from pixels needs the images, too.
    if getattr(model, "skip", None) is not None or not recipe.training.epochs or paths.dry_run:
        return source
    return frozen_features.encode(setup, model, source, images, limit_gb=recipe.features_gb)


def prepare_finetuning(
    setup: training.TrainingSetup[R],
    model: nn.Module,
    source: loader.SampleSource,
    objective: Callable[[nn.Module, loader.Batch], dict[str, Tensor]],
    paths: RunPaths,
    *,
    views: int | None = 1,
) -> training.TrainingTask:
    """Prepare the training of `model`; `objective` gets the model as wrapped for training.

    Args:
        setup: Resolved recipe.
        model: Model to train.
        source: Training samples.
        objective: Computes the terms of a batch.
        paths: Machine settings.
        views: Input images per sample in a step; None where samples differ in that.

    Raises:
        SettingError: The recipe does not fit the machine.
    """
    settings = setup.recipe.training
    if setup.recipe.mode == "linear-probe" and distributed.world_size() > 1 and settings.accumulate > 1:
        message = (
            f"training.accumulate is {settings.accumulate}, mode 'linear-probe' on {distributed.world_size()} processes"
        )
        raise SettingError(f"{message}: features are normalised over the whole batch; set training.accumulate = 1")
    if distributed.world_size() > 1:
        distributed.share_statistics(model, setup.launch.device)
    card = cards.make_card(model, setup.contract, setup.normalisation, setup.recipe)
    passes = flops.TRAINED if setup.recipe.mode == "finetune" else 1
    if isinstance(source, frozen_features.EncodedSamples):
        passes = 0
    work = views and views * flops.training_sample(
        card.model, image_side(setup), passes=passes, compared=settings.division.largest
    )
    return training.prepare_task(setup, model, source, objective, paths, card=card, flops=work)


@dataclass(frozen=True, kw_only=True)
class HeldOutSamples:
    """The samples that a run scores.

    Attributes:
        val: Samples that are scored during training; None for none.
        test: Samples that are scored after training, perhaps the same.
    """

    val: loader.Samples | None
    test: loader.Samples


def open_held_out(recipe: FinetuneRecipe, shards: Path, members: Sequence[str]) -> HeldOutSamples:
    """Open the splits that a recipe scores. Raises SettingError, SourceError."""
    verify = recipe.training.verify
    val = loader.Samples(shards, recipe.val_split, members, verify=verify) if recipe.val_split else None
    if val is not None and recipe.test_split in ("", recipe.val_split):
        return HeldOutSamples(val=val, test=val)
    return HeldOutSamples(val=val, test=loader.Samples(shards, recipe.test_split, members, verify=verify))


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """Scored samples, the function that scores them, and the figure that selects the best checkpoint.

    Attributes:
        title: Title of the model card.
        by: Name of the figure that selects `checkpoint-best`, and that is computed by distance.
        headlines: Names of the figures that the last line of the log shows beside the losses.
        scored: Samples that are scored.
        compute_scores: Computes the scores of samples; its second argument says whether to include figures that take
            long, and each sample.
        source: Training samples, whose distance to the scored ones is measured; None to measure none.
        sign: 1 where greater values of `by` are better, -1 where smaller ones are.
    """

    title: str
    by: str
    headlines: tuple[str, ...]
    scored: HeldOutSamples
    compute_scores: Callable[[loader.Samples, bool], training_distance.Scores]
    source: loader.Samples | None = None
    sign: Literal[1, -1] = 1

    def score_test(self, out: Path) -> dict[str, Any]:
        """Score the test samples, store them with their distance to training samples, and return all figures."""
        test = self.scored.test
        scores = self.compute_scores(test, True)
        if self.source is None:
            return scores.figures
        return training_distance.write_scored(out, scores, self.source, test, by=self.by)


def train(setup: training.TrainingSetup[R], task: training.TrainingTask, scoring: ScoringSpec, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score.

    Returns:
        The exit code: 0, or `signals.stop_code()`.

    Raises:
        SgdataError: The run in the folder is another, or a file cannot be read or written.
    """
    if paths.dry_run:
        print(training.describe_run(task))
        return ExitCode.DONE
    if task.total == 0:  # no epochs: score the starting weights
        scores = _float_figures(scoring.compute_scores(scoring.scored.test, False).figures)
        if distributed.is_main_process():
            logger.info("split '%s':", scoring.scored.test.split)
            print(json.dumps(scores))
        return ExitCode.DONE
    with output_lock.only_writer(paths.out, run_folder.METRICS) if distributed.is_main_process() else nullcontext():
        return _train(setup.recipe, task, scoring, paths)


def score(
    setup: training.TrainingSetup[R], model: nn.Module, source: loader.Samples, scoring: ScoringSpec, paths: RunPaths
) -> int:
    """Score a model without training it, as a run of its own; return the exit code.

    Raises:
        SgdataError: The run in the folder is another, or a file cannot be read or written.
    """
    model.to(setup.launch.device)
    if paths.dry_run:
        print(f"{len(scoring.scored.test)} samples are scored with {len(source)} training samples, none is trained on")
        return ExitCode.DONE
    with output_lock.only_writer(paths.out, run_folder.METRICS) if distributed.is_main_process() else nullcontext():
        run_folder.prepare(paths.out, setup.recipe, source.contract, fresh=paths.fresh)
        evaluation = describe_evaluation(setup.recipe, source, scoring.scored.test)
        other_split_results = _read_other_split(paths, evaluation, scoring.by)
        results = {"steps": 0, **evaluation, **scoring.score_test(paths.out), **other_split_results}
        card = cards.make_card(model, setup.contract, setup.normalisation, setup.recipe)
        run_results.write_results(paths.out, scoring.title, card, results, scoring.headlines)
    return ExitCode.DONE


def _train(recipe: FinetuneRecipe, task: training.TrainingTask, scoring: ScoringSpec, paths: RunPaths) -> int:
    evaluation = describe_evaluation(recipe, task.source, scoring.scored.test)
    # Before training, so that another folder is refused at once.
    other_split_results = _read_other_split(paths, evaluation, scoring.by)
    every, first, scored = recipe.evaluate_every, training.begin(task, recipe, paths), scoring.scored
    best = best_checkpoint.BestCheckpoint(
        paths.out,
        first,
        by=scoring.by if scored.val else "",
        sign=scoring.sign,
        patience=recipe.training.patience,
    )
    with run_folder.TrainingLog(paths.out, first) as log:

        def score(steps_done: int) -> None:
            epoch, last = task.epoch(steps_done), steps_done == task.total
            due = last or (every and epoch // every > task.epoch(steps_done - 1) // every)
            # The last step is scored below, with the figures that take long, unless on other samples.
            if scored.val is not None and due and not (last and scored.val is scored.test):
                log.flush()
                scores = _float_figures(scoring.compute_scores(scored.val, False).figures)
                log.write(steps_done - 1, {"epoch": epoch, **scores})
                best.keep(task.model, task.card, scores)

        def report(step: loop.Step) -> None:
            log.step(step, every=recipe.training.log_every, last=step.index + 1 == task.total, speed=task.meter.read)
            score(step.index + 1)

        if log.lacks_score:  # the run ended while its last step was scored
            score(first)
        training.run(task, first, paths, report, log.flush, ended=best.stalled)
    if not training.complete(task, paths, ended=best.stalled):
        return signals.stop_code()
    scores = scoring.score_test(paths.out)
    if scored.val in (None, scored.test):  # so that `checkpoint-best` always exists
        best.keep(task.model, task.card, _float_figures(scores))
    steps = run_folder.read_progress(paths.out).steps
    results = {"steps": steps, **evaluation, **scores, **other_split_results}
    if every and scored.val is not None and distributed.is_main_process():
        # The epoch that the paper reports; selected on the samples of `val_split`, so that their score is biased.
        best_epoch = files.read_plain(paths.out / run_folder.BEST / "figures.json")
        results |= {"val_split": scored.val.split, "best_epoch": best_epoch}
    run_results.write_results(paths.out, scoring.title, task.card, results, scoring.headlines, task.meter)
    return ExitCode.DONE


def describe_evaluation(
    recipe: FinetuneRecipe, source: loader.SampleSource, held_out: loader.Samples
) -> dict[str, Any]:
    """Return the data and mode that the figures refer to, without which they cannot be compared."""
    return {
        "dataset": held_out.contract.dataset,
        "split": held_out.split,
        **held_out.size(),
        "train_split": recipe.training.split,
        **{f"train_{name}": count for name, count in source.size().items()},
        "mode": recipe.mode,
    }


def _read_other_split(paths: RunPaths, evaluation: dict[str, Any], by: str) -> dict[str, Any]:
    return {} if paths.beside is None else other_split.read(paths.beside, evaluation, by)


def _float_figures(scores: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float)}
