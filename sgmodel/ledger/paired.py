"""Compare two rows of a ledger sample by sample: the difference of a figure and its paired bootstrap interval.

Both rows were scored on the same samples. Drawing the samples with replacement, the same ones for both, leaves out what
they have in common, such as hard samples; the intervals of two figures overlap long before that of their difference
reaches zero. Seeds are pooled: the figure of a draw is the mean over the runs of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.types import Array
from sgmodel.ledger.experiments import Run

SCENES = "scenes.jsonl"
DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of a figure between two rows.

    Attributes:
        difference: Figure of the first row minus that of the second.
        interval: 95 % percentile bootstrap interval over samples.
        samples: Number of samples that both were scored on.
    """

    difference: float
    interval: tuple[float, float]
    samples: int


def _share(hit: Array, whole: Array) -> Array:
    shares: Array = np.where(whole > 0, hit / np.maximum(whole, 1), 0.0)
    return shares


def _f1(counts: Array) -> Array:
    return _share(2 * counts[:, 1, 1], 2 * counts[:, 1, 1] + counts[:, 0, 1] + counts[:, 1, 0])


def _miou(counts: Array) -> Array:
    hit = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(axis=1) + counts.sum(axis=2) - hit
    known = union > 0
    means: Array = (_share(hit, union) * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return means


FIGURES: dict[str, Callable[[Array], Array]] = {
    "f1": _f1,
    "precision": lambda counts: _share(counts[:, 1, 1], counts[:, :, 1].sum(axis=1)),
    "recall": lambda counts: _share(counts[:, 1, 1], counts[:, 1].sum(axis=1)),
    "iou_change": lambda counts: _share(counts[:, 1, 1], counts[:, 1].sum(axis=1) + counts[:, 0, 1]),
    "miou": _miou,
    "oa": lambda counts: _share(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2))),
}
"""Figures of maps from confusion matrices (N, K, K), rows targets: (N,)."""


def compare(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> PairedDifference | None:
    """Compare finished runs of two rows by the confusion matrices of their samples.

    Args:
        ours: Runs of the first row, one per seed.
        theirs: Runs of the second row.
        metric: Name of the figure.

    Returns:
        The difference; None if the runs have no confusion matrices of the same samples, or `metric` is none of them.
    """
    figure = FIGURES.get(metric)
    matrices = [[_matrices(run.folder / SCENES) for run in runs] for runs in (ours, theirs)]
    keys = {tuple(sorted(each)) for runs in matrices for each in runs}
    if figure is None or len(keys) != 1 or not (names := keys.pop()):
        return None
    counts = [np.array([[each[name] for name in names] for each in runs], np.int64) for runs in matrices]
    weights = np.ones((1, len(names)), np.int64)
    rng = np.random.Generator(np.random.Philox(key=0))
    drawn = [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(DRAWS)]
    first, second = (_means(each, np.concatenate([weights, drawn]), figure) for each in counts)
    low, high = np.quantile((first - second)[1:], (0.025, 0.975))
    return PairedDifference(
        difference=float(first[0] - second[0]), interval=(float(low), float(high)), samples=len(names)
    )


def _matrices(path: Path) -> dict[str, list[list[int]]]:
    """Return the confusion matrix of each sample of a run by key; none for a run that has not written them."""
    if not path.is_file():
        return {}
    lines = (files.parse_json(line) for line in path.read_bytes().splitlines())
    return {line["key"]: line["confusion"] for line in lines}


def _means(counts: Array, weights: Array, figure: Callable[[Array], Array]) -> Array:
    """Return the mean over runs of a figure: counts (runs, S, K, K), weights of the samples (N, S) -> (N,)."""
    values = [figure(np.tensordot(weights, each, axes=1)) for each in counts]
    means: Array = np.mean(values, axis=0)
    return means
