"""Compute metrics of every task from confusion matrices and scores.

Each metric takes a weight per sample (None: 1 each), so that `interval` can resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Weights = NDArray[np.int64]
Figure = Callable[[Weights | None], float]
"""A figure of samples, each with a weight (None: 1 each)."""
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class ConfusionScores:
    """Scores of a confusion matrix, shares 0-1; None for a class in neither the targets nor the predictions.

    Attributes:
        oa: Overall accuracy.
        iou: Intersection over union by class.
        recall: Recall by class.
        precision: Precision by class.
    """

    oa: float
    iou: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur; the released code gives NaN if one does not occur."""
        return mean(self.iou)

    @property
    def f1(self) -> tuple[float | None, ...]:
        """Of each class, 2 hits / (2 hits + misses + false alarms), which is 2 IoU / (1 + IoU)."""
        return tuple(None if value is None else 2 * value / (1 + value) for value in self.iou)

    @property
    def miou_without_first(self) -> float:
        """Mean IoU leaving out class 0, the released data's background."""
        return mean(self.iou[1:])


def confusion(pred: Tensor, target: Tensor, *, classes: int, ignore: int = 255) -> Tensor:
    """Count pixels by target and prediction.

    Args:
        pred: Predicted classes, integers of any shape.
        target: Classes 0..K-1 or `ignore`, in the same shape.
        classes: Number of classes K.
        ignore: Target value of pixels that are left out.

    Returns:
        (K, K) int64 counts on the CPU; rows are targets, columns predictions.
    """
    kept = target != ignore
    # One bincount over pairs, numbered row by row.
    cells = target[kept].long() * classes + pred[kept].long()
    return torch.bincount(cells.cpu(), minlength=classes * classes).reshape(classes, classes)


def scores(counts: Tensor) -> ConfusionScores:
    """Compute overall accuracy, and IoU, recall and precision per class, from a confusion matrix (K, K)."""
    hit = counts.diagonal()
    row, column = counts.sum(dim=1), counts.sum(dim=0)
    return ConfusionScores(
        oa=float(hit.sum()) / max(int(counts.sum()), 1),
        iou=_ratios(hit, row + column - hit),
        recall=_ratios(hit, row),
        precision=_ratios(hit, column),
    )


def constant(counts: Tensor, label: int) -> Tensor:
    """Return the confusion matrix of a model that always predicts `label`, given that of any model."""
    result = torch.zeros_like(counts)
    result[:, label] = counts.sum(dim=1)
    return result


def mean(values: tuple[float | None, ...]) -> float:
    """Return the mean of the values that are not None; 0 if there are none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else 0.0


def _ratios(numerators: Tensor, denominators: Tensor) -> tuple[float | None, ...]:
    pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
    return tuple(a / b if b else None for a, b in pairs)


# --- figures of scores ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Samples from the highest score to the lowest.

    Attributes:
        samples: Number of the sample at each rank.
        hits: Whether the sample at each rank has the class.
        ends: Last rank of each run of equal scores.
    """

    samples: NDArray[np.int64]
    hits: NDArray[np.bool_]
    ends: NDArray[np.int64]


def rank(scores_N: Tensor, targets_N: Tensor, samples: NDArray[np.int64] | None = None) -> Ranking:
    """Rank the scores of one class, or of several classes together.

    Args:
        scores_N: Scores.
        targets_N: 1 where the sample has the class.
        samples: Sample of each score, needed for several classes; None for 0..N-1.
    """
    values = scores_N.double().numpy()
    order = np.argsort(-values, kind="stable")
    # Equal scores have no order: precision is evaluated where the score changes, as in scikit-learn.
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    ranked = order if samples is None else samples[order]
    return Ranking(samples=ranked, hits=targets_N.numpy().astype(bool)[order], ends=ends)


def average_precision(ranked: Ranking, weights: Weights | None = None) -> float | None:
    """Compute the average precision: the sum of precision x gain in recall over thresholds, without interpolation.

    Returns:
        The average precision, None without a positive.
    """
    sample_weights = np.ones(len(ranked.hits), np.int64) if weights is None else weights[ranked.samples]
    # Both counts at the end of each run of ties, the only positions of a threshold.
    positives = np.cumsum(sample_weights * ranked.hits)[ranked.ends]
    if not positives[-1]:
        return None
    precision = positives / np.maximum(np.cumsum(sample_weights)[ranked.ends], 1)
    return float(np.sum(np.diff(positives, prepend=0) * precision) / positives[-1])


def macro(scores_NK: Tensor, targets_NK: Tensor) -> list[Ranking]:
    """Return a ranking per class; the mean of their average precisions is the macro mAP."""
    return [rank(scores_NK[:, k], targets_NK[:, k]) for k in range(scores_NK.shape[1])]


def micro(scores_NK: Tensor, targets_NK: Tensor) -> list[Ranking]:
    """Return one ranking of all (sample, class) pairs; its average precision is the micro mAP."""
    samples = np.arange(len(scores_NK)).repeat(scores_NK.shape[1])
    return [rank(scores_NK.flatten(), targets_NK.flatten(), samples)]


def mean_average_precision(rankings: list[Ranking], weights: Weights | None = None) -> float:
    """Compute the mean average precision; classes without a positive are left out of the mean."""
    return mean(tuple(average_precision(ranked, weights) for ranked in rankings))


def micro_map_batch_averaged(scores_NK: Tensor, targets_NK: Tensor, batch: int = 16) -> float:
    """Compute what the released code calls mAP: the micro average precision of every 16 samples, averaged."""
    total = 0.0
    for start in range(0, len(scores_NK), batch):
        scores, targets = scores_NK[start : start + batch], targets_NK[start : start + batch]
        total += len(scores) * mean_average_precision(micro(scores, targets))
    return total / len(scores_NK)


def top1(right_N: Tensor, weights: Weights | None = None) -> float:
    """Return the share of samples whose highest score is that of their class."""
    return float(np.average(right_N.numpy(), weights=weights))


# --- intervals -----------------------------------------------------------------------------


def weighted(counts_NKK: Tensor, weights: Weights | None = None) -> Tensor:
    """Sum the confusion matrices of samples, each times its weight."""
    if weights is None:
        return counts_NKK.sum(dim=0)
    return (torch.from_numpy(weights)[:, None, None] * counts_NKK).sum(dim=0)


def interval(figure: Callable[[Weights], float], samples: int, *, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of a figure.

    Args:
        figure: Computes the figure from a weight per sample.
        samples: Number of samples, which are drawn with replacement 1000 times.
        seed: Seed of the draws.

    Returns:
        Lower and upper limit. They show the variation over test samples, not over training seeds.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    # Counts of draws rather than copies of samples, so that scores need to be sorted only once.
    drawn = (np.bincount(rng.integers(0, samples, samples), minlength=samples) for _ in range(ROUNDS))
    low, high = np.quantile([figure(weights) for weights in drawn], (0.025, 0.975))
    return float(low), float(high)
