"""Measure how near scored samples are to the training samples, and score them by that distance.

A model may remember ground that it was trained on, so that the score of samples beside training samples says little
about other ground. Where samples have no place, the likeness of their pixels takes the place of metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sgdata import files, output_names
from sgdata.results import scores_by_distance
from sgdata.shards import shard_index
from sgdata.splits import ground_distance
from sgdata.types import Array, Contract
from sgmodel import distributed
from sgmodel.train import metrics

if TYPE_CHECKING:
    from sgmodel.data import loader

CELLS = 8
CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class ScoredSamples:
    """Columns of N scored samples, and their score as a function of weights.

    Attributes:
        columns: Columns of `scored.parquet` by name, N values each.
        figure: Takes rows and returns the program's main figure of these samples as a function of their weights.
    """

    columns: dict[str, list[Any]]
    figure: Callable[[NDArray[np.int64]], metrics.Figure]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a model on samples.

    Attributes:
        figures: Figures by name, for `results.json`.
        samples: Facts to store of each sample; None to store nothing.
    """

    figures: dict[str, Any]
    samples: ScoredSamples | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingDistance:
    """Nearness of N scored samples to the training samples.

    Attributes:
        metres: (N,) metres between the footprints of a sample and of the nearest training sample; None where samples
            have no place.
        likeness: (N,) else the greatest correlation with the 8 x 8 means of a training sample.
        nearest: Key of that training sample.
    """

    metres: Array | None
    likeness: Array | None
    nearest: tuple[str, ...]

    @property
    def bands(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Name and rows of each band, the nearest first; bands without samples are absent."""
        if self.metres is not None:
            number = np.searchsorted([low for low, _ in scores_by_distance.METRES], self.metres, side="right") - 1
            names = [name for _, name in scores_by_distance.METRES]
        else:
            assert self.likeness is not None
            number = np.argmax(self.likeness[:, None] >= [low for low, _ in scores_by_distance.LIKENESS], axis=1)
            names = [name for _, name in scores_by_distance.LIKENESS]
        rows = [(name, np.flatnonzero(number == at)) for at, name in enumerate(names)]
        return [(name, members) for name, members in rows if len(members)]


def measure(source: loader.Samples, held_out: loader.Samples) -> TrainingDistance:
    """Measure how near each sample of `held_out` is to the samples of `source`.

    Args:
        source: Training samples.
        held_out: Scored samples.

    Raises:
        SourceError: An index or a sample is damaged.
    """
    ours, theirs = _ground(held_out), _ground(source)
    if ours is not None and theirs is not None:
        metres, index = ground_distance.nearest(ours, theirs)
        return TrainingDistance(metres=metres, likeness=None, nearest=tuple(source.keys[row] for row in index))
    bank = _describe_cells(source)
    best = [(chunk @ bank.T).max(dim=1) for chunk in torch.split(_describe_cells(held_out), CHUNK)]
    keys = tuple(source.keys[row] for chunk in best for row in chunk.indices.tolist())
    likeness = torch.cat([chunk.values for chunk in best]).double().numpy()
    return TrainingDistance(metres=None, likeness=likeness, nearest=keys)


def _ground(samples: loader.Samples) -> ground_distance.SampleGround | None:
    """Return the ground of samples by the index of their shards; None if one of them has no place."""
    table = shard_index.read_index(samples.folder)
    position = {key: at for at, key in enumerate(table["key"].to_pylist())}
    rows = table.take([position[key] for key in samples.keys])
    crs = rows["crs"].to_pylist()
    boxes = np.array([rows[side].to_pylist() for side in ("west", "south", "east", "north")], float).T
    if None in crs or not np.isfinite(boxes).all():
        return None
    shapes = samples.valid_size(np.arange(len(samples)))
    return ground_distance.from_boxes(
        boxes, shapes, samples.contract.pixel_m, np.array([code == "EPSG:4326" for code in crs])
    )


def _describe_cells(samples: loader.Samples) -> Tensor:
    """Return the 8 x 8 means (N, D) of every band, centred and of length 1, so that products are correlations."""
    result = []
    for number in range(len(samples)):
        arrays = samples[number]
        images = [_fill_nodata(array, samples.contract) for name, array in arrays.items() if name.startswith("image")]
        flat = functional.adaptive_avg_pool2d(torch.cat(images), CELLS).flatten()
        result.append(functional.normalize(flat - flat.mean(), dim=0))
    return torch.stack(result)


def _fill_nodata(image: Tensor, contract: Contract) -> Tensor:
    filled = image.float().nan_to_num(contract.fill)
    return filled if contract.nodata is None else torch.where(filled == contract.nodata, contract.fill, filled)


def write_scored(
    out: Path, scores: Scores, source: loader.Samples, held_out: loader.Samples, *, by: str
) -> dict[str, Any]:
    """Write `scored.parquet` and return the figures with those by distance; the figures alone without `samples`.

    Only rank 0 measures and writes.

    Args:
        out: Folder of the run.
        scores: Scores of the program.
        source: Training samples.
        held_out: Scored samples.
        by: Name of the main figure.

    Raises:
        OutputError: The file cannot be written.
    """
    figures, scored = scores.figures, scores.samples
    if scored is None or not distributed.is_main_process():
        return figures
    near = measure(source, held_out)
    _write(out / output_names.SCORED, held_out.keys, near, scored.columns)
    return {**figures, scores_by_distance.KEY: [_band(name, rows, scored, by) for name, rows in near.bands]}


def _band(name: str, rows: NDArray[np.int64], scored: ScoredSamples, by: str) -> dict[str, Any]:
    figure = scored.figure(rows)
    limits = metrics.interval(figure, len(rows)) if len(rows) > 1 else None
    return {"band": name, "samples": len(rows), by: figure(None), f"{by}_interval": limits}


def _write(path: Path, keys: Sequence[str], near: TrainingDistance, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "key": list(keys),
            "nearest": list(near.nearest),
            "distance_m": pa.array(near.metres if near.metres is not None else [None] * len(keys), pa.float64()),
            "likeness": pa.array(near.likeness if near.likeness is not None else [None] * len(keys), pa.float64()),
            **columns,
        }
    )
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
