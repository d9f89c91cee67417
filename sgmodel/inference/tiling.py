"""Predict scenes larger than the images of a model: overlapping tiles, row by row, blended into one map.

A cell of the map has `unit` pixels on a side: 1 if each pixel gets an answer, the side of a token for embeddings, the
side of a tile if the whole tile gets one. Memory is that of one row of tiles, whatever the height of the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sgdata.types import Array

Read = Callable[[int, int], tuple[Array, Array]]
"""Function from the first row and the number of rows to pixels (C, rows, W) and the mask of valid pixels (rows, W)."""

Row = tuple[int, Array, Array]
"""First row, answers (K, rows, W) float32, and the mask of cells with any valid pixel (rows, W)."""

Predict = Callable[[Array], Array]
"""A function from tiles (N, C, px, px) to answers (N, K, px / unit, px / unit) float32."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Tiles over a scene.

    Attributes:
        shape: Height and width of the scene in pixels.
        px: Side of a tile in pixels.
        side: Side of a tile in cells.
        channels: Number of values per cell.
        overlap: Least overlap of neighbours in cells.
        cells: Height and width of the map in cells.
        rows: First row of each row of tiles, in cells.
        cols: First column of each column of tiles, in cells.
    """

    shape: tuple[int, int]
    px: int
    side: int
    channels: int
    overlap: int
    cells: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def unit(self) -> int:
        """Return the side of a cell in pixels."""
        return self.px // self.side


def plan(shape: tuple[int, int], *, px: int, output_shape: tuple[int, int], overlap: float) -> TilePlan:
    """Plan tiles that cover a scene.

    Args:
        shape: Height and width of the scene in pixels.
        px: Side of a tile in pixels.
        output_shape: Number of values and side in cells of the output for one tile.
        overlap: Share of the side of a tile that neighbours have in common.
    """
    channels, side = output_shape
    height, width = (-(-size * side // px) for size in shape)
    shared = int(side * overlap)  # 0 if a tile is one cell
    rows, cols = (tile_starts(size, side, side - shared) for size in (height, width))
    return TilePlan(
        shape=shape, px=px, side=side, channels=channels, overlap=shared, cells=(height, width), rows=rows, cols=cols
    )


def tile_starts(size: int, side: int, stride: int) -> tuple[int, ...]:
    """Return the first cell of each tile along an axis; the last tile ends at the end of the axis."""
    last = max(size - side, 0)
    return (*range(0, last, stride), last)


def blend_weights(first: tuple[int, ...], side: int, overlap: int) -> Array:
    """Return the weights (tiles, side) float32 of each tile in its cells, whose sum over all tiles is 1.

    They follow a raised cosine where neighbours overlap.
    """
    # With an overlap of more than half the two ramps meet in the middle, without a flat part between them.
    ramp = min(overlap, side // 2)
    window = np.ones(side)
    window[:ramp] = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(ramp, 1)) ** 2
    window = np.minimum(window, window[::-1])
    total = np.zeros(first[-1] + side)
    for start in first:
        total[start : start + side] += window
    # The division by the sum also handles edges and the last tile, which overlaps more than the others.
    return np.stack([window / total[start : start + side] for start in first]).astype(np.float32)


def blend(plan: TilePlan, read: Read, predict: Predict, *, batch: int) -> Iterator[Row]:
    """Yield the map from top to bottom, each cell once.

    The answers are a view that is overwritten for the next rows. Tiles without a valid pixel are not predicted.

    Args:
        plan: Tiles of the scene.
        read: Reads rows of pixels.
        predict: Predicts tiles.
        batch: Tiles per call of `predict`.
    """
    side, unit, (height, width) = plan.side, plan.unit, plan.cells
    across = plan.cols[-1] + side
    weights_down, weights_across = (blend_weights(first, side, plan.overlap) for first in (plan.rows, plan.cols))
    total = np.zeros((plan.channels, side, across), np.float32)
    for i, row in enumerate(plan.rows):
        strip, valid = _strip(plan, read, row * unit, across * unit)
        cells_valid: Array = valid.reshape(side, unit, across, unit).max(axis=(1, 3))
        with_data = [j for j, col in enumerate(plan.cols) if cells_valid[:, col : col + side].any()]
        for start in range(0, len(with_data), batch):
            few = with_data[start : start + batch]
            tiles = np.stack([strip[:, :, plan.cols[j] * unit : plan.cols[j] * unit + plan.px] for j in few])
            for j, output in zip(few, predict(tiles), strict=True):
                # Added from left to right, so that the order of the sum does not depend on the batch.
                weight = weights_down[i][:, None] * weights_across[j]
                total[:, :, plan.cols[j] : plan.cols[j] + side] += output * weight
        finished_rows = (plan.rows[i + 1] if i + 1 < len(plan.rows) else height) - row
        # Rows above the next tiles are final.
        yield row, total[:, :finished_rows, :width], cells_valid[:finished_rows, :width]
        total[:, : side - finished_rows] = total[:, finished_rows:].copy()
        total[:, side - finished_rows :] = 0


def _strip(plan: TilePlan, read: Read, row: int, across: int) -> tuple[Array, Array]:
    """Read `px` rows of `across` pixels; outside the scene pixels are mirrored and not valid."""
    rows = min(plan.px, plan.shape[0] - row)
    pixels, valid = read(row, rows)
    outside = ((0, plan.px - rows), (0, across - plan.shape[1]))
    if outside == ((0, 0), (0, 0)):
        return pixels, valid
    return np.pad(pixels, ((0, 0), *outside), mode="reflect"), np.pad(valid, outside)
