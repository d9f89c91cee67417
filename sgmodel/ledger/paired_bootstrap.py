"""Compare two rows of a ledger sample by sample: the difference of a figure and its paired bootstrap interval.

Both rows were scored on the same samples. Drawing the samples with replacement, the same ones for both, leaves out what
they have in common, such as hard samples; the intervals of two figures overlap long before that of their difference
reaches zero. Neighbours on the ground resemble each other, so that blocks of ground are drawn as a whole where a table
has them. Seeds are pooled: the figure of a draw is the mean over the runs of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import files, output_names
from sgdata.types import Array

SCENES = "scenes.jsonl"
DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of a figure between two rows.

    Attributes:
        difference: Figure of the first row minus that of the second.
        interval: 95 % percentile bootstrap interval over samples, or over blocks of ground.
        samples: Number of samples that both were scored on.
        blocks: Number of blocks of ground that were drawn in place of samples; None for samples on their own.
    """

    difference: float
    interval: tuple[float, float]
    samples: int
    blocks: int | None = None


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
    "top1": lambda counts: _share(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2))),
}
"""Figures from confusion matrices (N, K, K), rows targets: (N,)."""


def compare(
    ours: Sequence[Path], theirs: Sequence[Path], metric: str, blocks: Mapping[str, object] | None = None
) -> PairedDifference | None:
    """Compare finished runs of two rows by the confusion matrices of their samples.

    Args:
        ours: Folders of the runs of the first row, one per seed.
        theirs: Those of the second row.
        metric: Name of the figure.
        blocks: Block of ground of each sample by its key, which is drawn as a whole; None for samples on their own.

    Returns:
        The difference; None if the runs have no confusion matrices of the same samples, or `metric` is not one of them.
    """
    figure = FIGURES.get(metric)
    matrices = [[_matrices(folder, metric) for folder in folders] for folders in (ours, theirs)]
    keys = {tuple(sorted(each)) for runs in matrices for each in runs}
    if figure is None or len(keys) != 1 or not (names := keys.pop()):
        return None
    members = _members(names, blocks)
    counts = [np.array([_summed(each, members) for each in runs], np.int64) for runs in matrices]
    rng = np.random.Generator(np.random.Philox(key=0))
    size = len(members)
    drawn = [np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(DRAWS)]
    weights = np.concatenate([np.ones((1, size), np.int64), drawn])
    first, second = (_means(each, weights, figure) for each in counts)
    low, high = np.quantile((first - second)[1:], (0.025, 0.975))
    return PairedDifference(
        difference=float(first[0] - second[0]),
        interval=(float(low), float(high)),
        samples=len(names),
        blocks=None if blocks is None else size,
    )


def _matrices(folder: Path, metric: str) -> dict[str, Array]:
    """Return the confusion matrix of each sample of a run by key; none for a run that has not written them."""
    if metric == "top1" and (folder / output_names.SCORED).is_file():
        import pyarrow.parquet as pq

        table = pq.read_table(folder / output_names.SCORED, columns=["key", "right"])
        right = np.array(table["right"].to_pylist(), np.int64)
        # Right or wrong is all that the figure needs: [[right, wrong], [0, 0]].
        counts = np.stack([right, 1 - right, 0 * right, 0 * right], axis=1).reshape(-1, 2, 2)
        return dict(zip(table["key"].to_pylist(), counts, strict=True))
    if not (folder / SCENES).is_file():
        return {}
    lines = (files.parse_json(line) for line in (folder / SCENES).read_bytes().splitlines())
    return {line["key"]: np.array(line["confusion"], np.int64) for line in lines}


def _members(names: Sequence[str], blocks: Mapping[str, object] | None) -> list[list[str]]:
    """Return the samples of each block, in the order of their first sample; without blocks each sample alone."""
    if blocks is None:
        return [[name] for name in names]
    members: dict[object, list[str]] = {}
    for name in names:
        members.setdefault(blocks[name], []).append(name)
    return list(members.values())


def _summed(matrices: Mapping[str, Array], members: Sequence[Sequence[str]]) -> list[Array]:
    return [np.sum([matrices[name] for name in block], axis=0) for block in members]


def _means(counts: Array, weights: Array, figure: Callable[[Array], Array]) -> Array:
    """Return the mean over runs of a figure: counts (runs, S, K, K), weights of the samples (N, S) -> (N,)."""
    values = [figure(np.tensordot(weights, each, axes=1)) for each in counts]
    means: Array = np.mean(values, axis=0)
    return means
