"""Train and score models that classify every pixel, of one date or of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdata import files
from sgdata.shards import shard_index
from sgdata.types import Array
from sgmodel import distributed
from sgmodel.data import class_labels, loader, windows
from sgmodel.inference import predictor, tiling
from sgmodel.train import loop, metrics, run_folder, training, training_distance

# --- class counts ------------------------------------------------------------------------


def class_counts(source: loader.Samples) -> Tensor:
    """Count the labelled pixels of each class in `source`: (K,) int64."""
    space = source.contract.label_space
    counts = torch.zeros(len(space.ids), dtype=torch.int64)
    for sample in range(len(source)):
        indices = class_labels.class_indices(space, torch.from_numpy(source.read(sample, "mask")))
        # Unlabelled pixels may be the most frequent.
        labelled = (indices >= 0) & (indices < len(space.ids))
        counts += torch.bincount(indices[labelled], minlength=len(space.ids))
    return counts


# --- scoring -------------------------------------------------------------------------------


def evaluate(
    setup: training.TrainingSetup[Any],
    model: nn.Module,
    source: loader.Samples,
    relabel: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute the confusion matrices (N, K, K) of the maps that prediction writes of the samples of `source`.

    Every pixel counts once; those without data have no class in a map and are left out. All ranks work together.

    Args:
        setup: Resolved recipe.
        model: The model.
        source: Samples to score.
        relabel: Gives some pixels of a target (H, W) the value K, to be counted apart in matrices (N, K + 1, K + 1).
    """
    classes = setup.classes if relabel is None else setup.classes + 1
    counts = torch.zeros(len(source), classes, classes, dtype=torch.int64)
    with loop.evaluating(model):
        counter = CountingPredictor(setup, model)
        sizes = source.valid_size(np.arange(len(source)))
        # Samples of many tiles one by one, or scoring would take more memory than training.
        index_batches = list(
            loader.in_order(len(source), counter.batch if (sizes == counter.kind.ground_px).all() else 1)
        )
        mine = distributed.assign_to_rank(range(len(index_batches)))
        batches = training.scored_batches(setup, source, (index_batches[number] for number, _ in mine))
        for turn, ((number, counting), batch) in enumerate(zip(mine, batches, strict=True)):
            predictions = predict(setup, counter, batch)
            if distributed.is_sharded(model):
                world = distributed.world_size()
                rank_samples = (
                    index_batches[n % len(index_batches)].samples for n in range(turn * world, (turn + 1) * world)
                )
                counter.fill_up(max(counter.needed(sizes[samples]) for samples in rank_samples))
            counter.made = 0
            if counting:
                for sample, (_, target, predicted) in zip(index_batches[number].samples, predictions, strict=True):
                    truth = target if relabel is None else relabel(target)
                    counts[sample] = metrics.confusion(predicted, truth, classes=classes, ignore=setup.ignore)
    return distributed.total(counts, setup.launch.device)


class CountingPredictor:
    """The predictor of a model, which counts its forward passes.

    With FSDP each forward pass needs all ranks, so that a rank whose samples take fewer of them adds some.
    """

    def __init__(self, setup: training.TrainingSetup[Any], model: nn.Module) -> None:
        px = windows.image_side(setup.recipe.model.px, setup.stored)
        self.kind = predictor.Predictor(
            model=model,
            contract=setup.contract,
            normalisation=setup.normalisation,
            launch=setup.launch,
            ground_px=px,
            px=px,
            zoom=1.0,
        )
        self.batch, self.overlap, self.made = setup.scored_at_once, setup.recipe.overlap, 0
        _ = self.kind.output_shape  # computed now, since it takes a forward pass

    def __call__(self, tiles: Array) -> Array:
        """Predict tiles, as `Predictor.predict`."""
        self.made += 1
        return self.kind.predict(tiles)

    def needed(self, sizes: Array) -> int:
        """Return the most passes that samples of these sizes (N, 2) take together."""
        if (sizes == self.kind.ground_px).all():
            return 1
        output_shape, px = self.kind.output_shape, self.kind.ground_px
        plans = [tiling.plan((h, w), px=px, output_shape=output_shape, overlap=self.overlap) for h, w in sizes.tolist()]
        return sum(len(plan.rows) * -(-len(plan.cols) // self.batch) for plan in plans)

    def fill_up(self, passes: int) -> None:
        """Pass nothing through the model until it has seen `passes` batches."""
        px = self.kind.ground_px
        blank = np.zeros((1, self.kind.dates * len(self.kind.contract.bands), px, px), np.float32)
        while self.made < passes:
            self(blank)


def predict(
    setup: training.TrainingSetup[Any], counter: CountingPredictor, batch: loader.Batch
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return pixels in stored units (dates x C, H, W), target and predicted class (H, W) of each sample."""
    names = [name for name in batch.arrays if name.startswith("image_")] if counter.kind.dates == 2 else ["image"]
    stored = torch.cat([training.stored_pixels(setup, batch, name) for name in names], dim=1).cpu()
    # At every date, as prediction writes it: a change of what was not seen at one date is unknown.
    valid = torch.stack([date.isfinite().any(dim=1) for date in stored.chunk(counter.kind.dates, dim=1)]).all(dim=0)
    all_labels = training.labels(setup, batch).where(valid, setup.ignore)
    sizes = batch.valid_size.tolist()
    pixels = [image[:, :h, :w].numpy() for image, (h, w) in zip(stored, sizes, strict=True)]
    masks = [mask[:h, :w].numpy() for mask, (h, w) in zip(valid, sizes, strict=True)]
    outputs = predictor.predict_samples(
        counter.kind, counter, pixels, masks, overlap=counter.overlap, batch=counter.batch
    )
    targets = [target[:h, :w].long() for target, (h, w) in zip(all_labels, sizes, strict=True)]
    classes = [torch.from_numpy(output).argmax(dim=0) for output in outputs]
    return list(zip(map(torch.from_numpy, pixels), targets, classes, strict=True))


# --- results -------------------------------------------------------------------------------


def score_confusion(
    counts: Tensor, majority: int, baseline: Tensor, figure: Callable[[Tensor], dict[str, float]]
) -> dict[str, Any]:
    """Compute figures of confusion matrices (N, K, K) for `results.json`, with trivial baselines and intervals.

    Args:
        counts: Confusion matrices of the model, one per sample; intervals are over samples, since pixels are not
            independent. Neighbouring samples are not independent either.
        majority: Class that is always predicted by the trivial baseline: the most frequent one in training.
        baseline: Confusion matrices of the linear baseline.
        figure: Computes figures by name from a confusion matrix (K, K).
    """
    total = metrics.weighted(counts)
    trivial, pixel = figure(metrics.constant(total, majority)), figure(metrics.weighted(baseline))
    results: dict[str, Any] = figure(total)
    for name in list(results):
        results[f"{name}_majority"], results[f"{name}_linear"] = trivial[name], pixel[name]

        def resampled(weights: metrics.Weights, name: str = name) -> float:
            return figure(metrics.weighted(counts, weights))[name]

        results[f"{name}_interval"] = metrics.interval(resampled, len(counts))
    return results | {"confusion": total.tolist()}


def per_place(
    source: loader.Samples, counts: Tensor, figure: Callable[[Tensor], dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return the figures of the samples of each place, by the index of their shards; none where it has no places.

    Args:
        source: The samples.
        counts: Confusion matrices (N, K, K), one per sample.
        figure: Computes figures by name from a confusion matrix (K, K).
    """
    table = shard_index.read_index(source.folder)
    if "place" not in table.column_names:
        return {}
    place_of = dict(zip(table["key"].to_pylist(), table["place"].to_pylist(), strict=True))
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(source.keys):
        rows_of.setdefault(place_of[key] or "", []).append(row)
    return {
        place: {"samples": len(indices), **figure(counts[indices].sum(dim=0))}
        for place, indices in sorted(rows_of.items())
    }


def per_sample(
    counts: Tensor, figure: Callable[[Tensor], dict[str, float]], name: str
) -> training_distance.ScoredSamples:
    """Return what is stored of each sample, and how a figure of some of them is computed, for `training_distance`.

    Args:
        counts: Confusion matrices (N, K, K), one per sample.
        figure: Computes figures by name from a confusion matrix (K, K).
        name: Name of the figure.
    """
    columns = {
        "pixels": counts.sum(dim=(1, 2)).tolist(),
        "right_pixels": counts.diagonal(dim1=1, dim2=2).sum(dim=1).tolist(),
    }

    def of_rows(rows: NDArray[np.int64]) -> metrics.Figure:
        return lambda weights: figure(metrics.weighted(counts[rows], weights))[name]

    return training_distance.ScoredSamples(columns=columns, figure=of_rows)


def write_scenes(out: Path, keys: Sequence[str], counts: Tensor) -> None:
    """Write the confusion matrix of each sample as a line of `scenes.jsonl`; only rank 0 writes. Raises OutputError."""
    lines = [{"key": key, "confusion": each.tolist()} for key, each in zip(keys, counts, strict=True)]
    if distributed.is_main_process():
        files.write(out / run_folder.SCENES, b"".join(map(files.canonical_json, lines)))
