r"""Fine-tune and score a scene classifier, single-label or multi-label: SpectralGPT, or a baseline.

    python -m sgmodel.recipes.classify recipes/train/classify-demo-tiny.toml --shards DIR --out DIR \
        --weights RUN/checkpoint-last

Single-label tasks are trained with cross-entropy and scored by top-1 accuracy; multi-label tasks with the soft-margin
loss and mean average precision. Scores are those of the last epoch over the whole validation split. The best epoch,
which the paper reports, and the average over batches, which the released code calls mAP, are reported separately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError, SourceError
from sgdata.shards import shard_index
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.data import augment, loader
from sgmodel.data.subset import in_order
from sgmodel.inference import predictor, tiling
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import finetune, frozen_classifiers, frozen_features, loop, metrics, training, training_distance
from sgmodel.train.losses import focal_factor
from sgmodel.train.program import Mode, Program
from sgmodel.train.run_paths import RunPaths
from sgmodel.train.training_distance import Scores


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(finetune.FinetuneRecipe):
    """Settings of a classification run.

    Attributes:
        mix: Random erasing, mixup and CutMix.
        smoothing: Label smoothing of the cross-entropy, 0 to 1; single-label only.
        zoom: Share of the side of a resized scene that is scored; the released code has 0.875. Unset to resize whole
            scenes to the model's image; 1.0 to resize none: smaller scenes are padded, and a larger one gets the mean
            answer of its windows.
        head_std: Standard deviation with which the head is re-initialised after weights were loaded; 0 keeps it.
        labels_from: Where labels come from; "mask" gives a scene the classes that cover at least `min_share` of it.
        min_share: Share of a mask that a class must cover to be a label.
        mode: Trained weights: all of them ("finetune"), those of the head on a frozen backbone ("frozen"), or those of
            one linear layer on it ("linear-probe"). "knn" and "logistic" train no model: the most similar training
            samples vote, or scikit-learn fits a logistic regression to standardised features.
        neighbours: Number of training samples that vote with `mode` "knn".
        votes: Weights of the votes with `mode` "knn": "cosine" by the similarity of features, or "equal" for the
            nearest by Euclidean distance of standardised features.
        penalty: Strength of the L2 penalty with `mode` "logistic".
        shots: Training samples of each class that are used, those with the lowest SHA-256 of "<fraction_seed>:<key>";
            0 for all.
        weighting: Class weights of the loss; "balanced" is total / (classes x samples of the class).
        class_weights: Class weights of the loss, one per class in the order of the label space, in place of computed
            ones.
        focal_gamma: Exponent of the focal loss (Lin et al., ICCV 2017); 0 is the usual loss.
    """

    mix: augment.MixRecipe = field(default_factory=augment.MixRecipe)
    smoothing: float = 0.0
    zoom: float | None = None
    head_std: float = 0.0
    labels_from: Literal["labels", "mask"] = "labels"
    min_share: float = 0.05
    mode: Mode | Literal["knn", "logistic"] = "finetune"  # type: ignore[assignment]
    neighbours: int = 20
    votes: Literal["cosine", "equal"] = "cosine"
    penalty: float = 1.0
    shots: int = 0
    weighting: Literal["none", "balanced"] = "none"
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range, and class weights from two places. Raises SettingError."""
        super().__post_init__()
        finetune.check_class_weights(self.weighting, self.class_weights)


FROZEN = ("knn", "logistic")
Setup = training.TrainingSetup[ClassifyRecipe]


def build(recipe: ClassifyRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights. Raises SettingError."""
    return TaskSpec(kind="classifier", recipe=recipe.model, bands=len(recipe.bands), classes=classes).build()


def main(recipe: ClassifyRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score; return 0 or `signals.stop_code()`.

    Raises:
        SgdataError: Recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    source = training.open_samples(paths.joined, recipe.training, ("image",))
    scored = finetune.open_held_out(recipe, paths.joined, ("image",))
    # In the contract too, since a checkpoint must record the meaning of its outputs.
    for samples in {source, scored.val or scored.test, scored.test}:
        samples.contract = with_label_space(samples.contract, recipe)
    check(recipe, source.contract)
    setup = training.resolve(recipe, source.contract, paths)
    recipe = setup.recipe  # spectral groups that the data lack may have been dropped
    model = finetune.initialise_model(setup, partial(build, recipe, setup.classes), paths.weights)
    # A small head leaves the pretrained features unchanged in the first steps, as in the released code.
    if recipe.head_std and paths.weights is not None and isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=recipe.head_std)
    train_targets = targets(source, recipe)
    if recipe.shots:
        chosen = select_shots(source, train_targets, recipe)
        keys, contract = [source.keys[row] for row in chosen], source.contract
        source = loader.Samples(paths.joined, source.split, ("image",), keys=keys, verify=source.verify)
        source.contract, train_targets = contract, train_targets[chosen]
    true = cache(partial(targets, recipe=recipe))
    single = setup.contract.label_space.task == "single-label"

    def scores(held_out: loader.Samples, final: bool) -> Scores:
        predictions = score(setup, model, held_out)
        if recipe.mode in FROZEN:
            predictions = from_features(recipe, predictions, score(setup, model, source), train_targets, single=single)
        figures = compute_metrics(predictions, true(held_out), setup.contract, final=final)
        return Scores(
            figures=figures, samples=per_sample(predictions, true(held_out), setup.contract) if final else None
        )

    by = "top1" if single else "map_macro"
    scoring = finetune.ScoringSpec(
        title="Classification", by=by, scored=scored, compute_scores=scores, source=source, headlines=(by,)
    )
    if recipe.mode in FROZEN:
        model.head = nn.Identity()  # the features are compared
        return finetune.score(setup, model, source, scoring, paths)
    weights = finetune.class_weights(
        recipe.weighting, recipe.class_weights, setup.classes, lambda: train_targets.sum(dim=0)
    )
    terms = partial(objective, setup, train_targets, weights=weights)
    count = count_views(recipe, setup.stored.shape, finetune.image_side(setup))
    fitted: loader.SampleSource = source
    if count == 1 and not (recipe.mix.mixes or recipe.mix.erase):
        fitted = finetune.encode_once(setup, model, source, lambda batch: [x for x, _ in views(setup, batch)], paths)
    task = finetune.prepare_finetuning(setup, model, fitted, terms, paths, views=count)
    return finetune.train(setup, task, scoring, paths)


def check(recipe: ClassifyRecipe, contract: Contract) -> None:
    """Refuse samples without scene labels, or a recipe that does not fit them. Raises SettingError."""
    space, settings = contract.label_space, recipe.training
    if space.task not in {"single-label", "multi-label"}:
        message = f"label space '{space.name}' is of the task '{space.task}', expected single-label or multi-label"
        raise SettingError(f"{message}; set labels_from = 'mask' to derive labels from masks")
    if (
        recipe.zoom == 1.0 and contract.shape is None and distributed.world_size() > 1
    ):  # passes of all processes must agree
        message = f"zoom is 1.0, the scenes are of many sizes, on {distributed.world_size()} processes"
        raise SettingError(f"{message}: they have different numbers of windows; train in one process, or unset zoom")
    if recipe.smoothing and space.task == "multi-label":
        raise SettingError(f"smoothing is {recipe.smoothing}, '{space.name}' is multi-label: set smoothing = 0.0")
    if recipe.smoothing and recipe.focal_gamma:
        raise SettingError(
            f"focal_gamma is {recipe.focal_gamma}, smoothing {recipe.smoothing}: set one of the two to 0.0"
        )
    division, world = settings.division, distributed.world_size()
    if recipe.mix.mixes and division.per_process % (2 * division.micro_batches):
        processes = f" on each of {world} processes" if world > 1 else ""
        message = (
            f"batch {settings.batch} in {division.micro_batches} parts{processes}: mixup and CutMix pair neighbours"
        )
        whole = 2 * division.micro_batches * world
        raise SettingError(f"{message}; set training.batch = {-(-settings.batch // whole) * whole}")


def count_views(recipe: ClassifyRecipe, shape: tuple[int, ...] | None, px: int) -> int | None:
    """Return the number of images of `px` that a scene gives in a step; None where scenes have no one `shape`."""
    if recipe.zoom != 1.0 or recipe.augment.crop_area:
        return 1
    return math.prod(len(tiling.tile_starts(side, px, px)) for side in shape[-2:]) if shape else None


def objective(
    setup: Setup, targets: Tensor, model: nn.Module, batch: loader.Batch, *, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute the loss of a batch; `targets` (N, K) are those of all training samples, `weights` (K,) of classes."""
    recipe, device, px = setup.recipe, setup.launch.device, finetune.image_side(setup)
    y = targets[batch.samples].to(device, non_blocking=True)
    seed, how = recipe.training.seed, None
    if recipe.mix.mixes:
        how = augment.draw_mix(recipe.mix, batch.samples, batch.epoch, px, seed=seed)
    total, count = torch.zeros((), device=device), torch.zeros((), device=device)
    encoded = frozen_features.from_batch(batch, device, px)
    for x, weight in [(encoded[0], torch.ones(len(y), device=device))] if encoded else views(setup, batch):
        if isinstance(x, Tensor):
            # Crop, erase, mix, in this order: a box is erased from one scene, not from a mixture of two.
            x = augment.erase(x, recipe.mix, batch.samples, batch.epoch, seed=seed)
            x = augment.mix(x, how) if how else x
        total = total + weight[:, None] * model(x).float()
        count = count + weight[:, None]
    single = setup.contract.label_space.task == "single-label"
    y = augment.mix_targets(y, how) if how else y
    return {"loss": loss(recipe, total / count, y, weights, single=single)}


def views(setup: Setup, batch: loader.Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs made from the scenes of a batch, and the weight (N,) of each, see `predictor.views`."""
    geometry = finetune.geometry(setup, batch)
    geometry = replace(geometry, zoom=geometry.zoom or setup.recipe.zoom != 1.0)
    yield from predictor.views(training.normalised_pixels(setup, batch), geometry, finetune.image_side(setup))


def loss(recipe: ClassifyRecipe, logits: Tensor, y: Tensor, weights: Tensor | None, *, single: bool) -> Tensor:
    """Compute the mean loss of logits (N, K) for targets `y` (N, K) and weights (K,) of classes.

    Targets of a single-label task sum to 1, so that smoothing before and after mixing are equal.
    """
    weights = None if weights is None else weights.to(logits.device, non_blocking=True)
    if not recipe.focal_gamma:
        if single:
            return functional.cross_entropy(logits, y, weights, label_smoothing=recipe.smoothing)
        return functional.multilabel_soft_margin_loss(logits, y, weights)
    if single:
        log_p = functional.log_softmax(logits, dim=1)
        losses = -y * log_p * focal_factor(1 - log_p.exp(), recipe.focal_gamma)
    else:
        p = logits.sigmoid()
        uncertainty = y * (1 - p) + (1 - y) * p
        bce = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        losses = bce * focal_factor(uncertainty, recipe.focal_gamma) / y.shape[1]
    return (losses if weights is None else losses * weights).sum(dim=1).mean()


# --- labels --------------------------------------------------------------------------------


def with_label_space(contract: Contract, recipe: ClassifyRecipe) -> Contract:
    """Return the contract with the label space that the model is trained for."""
    if recipe.labels_from == "labels":
        return contract
    # Renamed, since labels derived from masks differ from labels that the dataset provides.
    name = f"{contract.label_space.name}, share >= {recipe.min_share:g}"
    return replace(contract, label_space=replace(contract.label_space, name=name, task="multi-label", ignore=None))


def targets(source: loader.Samples, recipe: ClassifyRecipe) -> Tensor:
    """Return targets (N, K) float32, 1 where a sample has a class.

    Raises:
        SourceError: A sample has unknown labels, or not exactly one in a single-label task.
    """
    space = source.contract.label_space
    hot = torch.zeros(len(source), len(space.ids))
    column = {label: number for number, label in enumerate(space.ids)}
    # Multi-label samples without any class are kept: they are negatives of all classes.
    for row, labels in enumerate(_labels(source, recipe)):
        unknown = sorted(set(labels) - set(column))
        if unknown or (space.task == "single-label" and len(labels) != 1):
            expected = "exactly one" if space.task == "single-label" else "any number"
            message = f"{source.folder}: sample '{source.keys[row]}' has labels {list(labels)}"
            raise SourceError(f"{message}, expected {expected} of '{space.name}'; shard the dataset again")
        hot[row, [column[label] for label in labels]] = 1.0
    return hot


def _labels(source: loader.Samples, recipe: ClassifyRecipe) -> Iterator[list[int]]:
    """Yield the labels of each sample."""
    if recipe.labels_from == "labels":
        index = shard_index.read_index(source.folder)
        labels = dict(zip(index["key"].to_pylist(), index["labels"].to_pylist(), strict=True))
        for key in source.keys:
            yield labels[key]
        return
    masks, keys = loader.Samples(source.folder, source.split, ("mask",)), set(source.keys)
    for row, key in enumerate(masks.keys):
        if key in keys:
            yield classes_in_mask(masks.read(row, "mask"), source.contract.label_space.ids, recipe.min_share)


def classes_in_mask(mask: np.ndarray[Any, Any], ids: Iterable[int], min_share: float) -> list[int]:
    """Return the classes that cover at least `min_share` of a mask (H, W), unlabelled pixels included in its area."""
    values, counts = np.unique(mask, return_counts=True)
    covered = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return [label for label in ids if covered.get(label, 0) >= min_share * mask.size]


def select_shots(source: loader.Samples, targets: Tensor, recipe: ClassifyRecipe) -> list[int]:
    """Return the samples that `shots` selects: of each class those first in the order of `subset`, `shots` of them.

    Raises:
        SettingError: A class has fewer samples.
    """
    order, selected = in_order(source.keys, seed=recipe.training.fraction_seed), set[int]()
    for column, name in enumerate(source.contract.label_space.names):
        of_class = [row for row in order if targets[row, column]][: recipe.shots]
        if len(of_class) < recipe.shots:
            message = f"shots is {recipe.shots}, class '{name}' has {len(of_class)} training samples"
            raise SettingError(f"{message}: set shots = {len(of_class)}, or 0 for all samples")
        selected |= set(of_class)
    return sorted(selected)


# --- scoring -------------------------------------------------------------------------------


def score(setup: Setup, model: nn.Module, source: loader.Samples) -> Tensor:
    """Compute the logits (N, K) of every sample of `source` on all ranks together, on the CPU."""
    mine = distributed.assign_to_rank(loader.in_order(len(source), setup.scored_at_once))
    batches = training.scored_batches(setup, source, (indices for indices, _ in mine))
    logits: Tensor | None = None
    with loop.evaluating(model), setup.launch.autocast():
        for (indices, counting), batch in zip(mine, batches, strict=True):
            x, px = training.normalised_pixels(setup, batch), finetune.image_side(setup)
            predictions = predictor.predict_scenes(model, x, batch.valid_size, px, zoom=setup.recipe.zoom).float().cpu()
            if logits is None:
                logits = torch.zeros(len(source), predictions.shape[1])
            if counting:
                logits[torch.from_numpy(indices.samples)] = predictions
    assert logits is not None  # every rank has a batch
    return distributed.total(logits, setup.launch.device)


def from_features(recipe: ClassifyRecipe, features: Tensor, bank: Tensor, targets: Tensor, *, single: bool) -> Tensor:
    """Return the scores (N, K) of features (N, D) by those of the training samples (M, D), whose targets are (M, K)."""
    if recipe.mode == "logistic":
        return frozen_classifiers.logistic(features, bank, targets, single=single, strength=recipe.penalty)
    votes = frozen_classifiers.equal_votes if recipe.votes == "equal" else frozen_classifiers.cosine_votes
    return votes(features, bank, targets, recipe.neighbours)


def per_sample(scores: Tensor, targets: Tensor, contract: Contract) -> training_distance.ScoredSamples:
    """Return what is stored of each sample, and the main figure of some of them, for `training_distance`.

    Args:
        scores: Logits (N, K).
        targets: Targets (N, K).
        contract: Contract of the samples.
    """
    ids, single = np.array(contract.label_space.ids), contract.label_space.task == "single-label"
    predicted = functional.one_hot(scores.argmax(dim=1), scores.shape[1]) if single else scores > 0
    columns: dict[str, list[Any]] = {
        name: [ids[np.flatnonzero(row)].tolist() for row in hot.numpy()]
        for name, hot in (("labels", targets), ("predicted", predicted))
    }
    right = (predicted == targets).all(dim=1)
    columns["right"] = right.tolist()

    def figure(rows: np.ndarray[Any, Any]) -> metrics.Figure:
        if single:
            return partial(metrics.top1, right[rows])
        return partial(metrics.mean_average_precision, metrics.macro(scores[rows], targets[rows]))

    return training_distance.ScoredSamples(columns=columns, figure=figure)


def compute_metrics(scores: Tensor, targets: Tensor, contract: Contract, *, final: bool) -> dict[str, Any]:
    """Compute the figures of logits (N, K) for `results.json`, shares 0-1.

    Args:
        scores: Logits (N, K).
        targets: Targets (N, K).
        contract: Contract of the samples.
        final: Whether to include confidence intervals and figures per class.
    """
    space = contract.label_space
    if space.task == "multi-label":
        return _multi_label(scores, targets, space.names, final=final)
    right = scores.argmax(dim=1) == targets.argmax(dim=1)
    results: dict[str, Any] = {"top1": metrics.top1(right)}
    if final:  # a thousand draws take longer than the scoring of a small split
        counts = metrics.confusion(scores.argmax(dim=1), targets.argmax(dim=1), classes=len(space.ids), ignore=-1)
        results["top1_interval"] = metrics.interval(lambda weights: metrics.top1(right, weights), len(right))
        results["per_class_recall"] = dict(zip(space.names, metrics.scores(counts).recall, strict=True))
        results["confusion"] = counts.tolist()
    return results


def _multi_label(scores: Tensor, targets: Tensor, names: tuple[str, ...], *, final: bool) -> dict[str, Any]:
    rankings = {"macro": metrics.macro(scores, targets), "micro": metrics.micro(scores, targets)}
    results: dict[str, Any] = {}
    for name, ranked in rankings.items():
        results[f"map_{name}"] = metrics.mean_average_precision(ranked)
        if final:
            figure = partial(metrics.mean_average_precision, ranked)
            results[f"map_{name}_interval"] = metrics.interval(figure, len(scores))
    results["map_micro_batch_averaged"] = metrics.micro_map_batch_averaged(scores, targets)
    if final:
        per_class = map(metrics.average_precision, rankings["macro"])
        results["per_class_ap"] = dict(zip(names, per_class, strict=True))
    return results


PROGRAM = Program(
    name="classify",
    recipe=ClassifyRecipe,
    main=main,
    model=build,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
