"""A scene larger than a model's image: overlapping tiles, row by row, their answers blended into one map. Pure.

A map has cells of `unit` pixels: 1 where each pixel gets an answer, a token's side for embeddings, a tile's side where
the whole tile gets one. Memory holds one row of tiles and its answers, whatever the height of the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sgdata.types import Array

Read = Callable[[int, int], tuple[Array, Array]]
"""First row, rows -> pixels (C, rows, W), and where any was seen (rows, W)."""

Row = tuple[int, Array, Array]
"""First row, answers (K, rows, W) float32, where any pixel was seen (rows, W); in cells."""

Look = Callable[[Array], Array]
"""Tiles (N, C, px, px) -> answers (N, K, px / unit, px / unit) float32."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tiles of `px` pixels over a scene of `shape`, each answered by `channels` x `side` x `side` values; neighbours
    share `overlap` cells at least. `rows` and `cols` are the first cells of tiles, `cells` is the shape of the map."""

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
        """Pixels along a cell."""
        return self.px // self.side


def plan(shape: tuple[int, int], *, px: int, answer: tuple[int, int], overlap: float) -> Plan:
    """Tiles that cover a scene, each sharing `overlap` (a part of its side) with its neighbours; `answer` is (K, side)
    of what a model says of one tile."""
    channels, side = answer
    height, width = (-(-size * side // px) for size in shape)
    shared = int(side * overlap)  # nothing where a tile is one cell
    rows, cols = (starts(size, side, side - shared) for size in (height, width))
    return Plan(
        shape=shape, px=px, side=side, channels=channels, overlap=shared, cells=(height, width), rows=rows, cols=cols
    )


def starts(size: int, side: int, stride: int) -> tuple[int, ...]:
    """First cell of each tile along an axis; the last is moved back to end where the axis ends."""
    last = max(size - side, 0)
    return (*range(0, last, stride), last)


def shares(first: tuple[int, ...], side: int, overlap: int) -> Array:
    """(tiles, side) float32: how much each tile counts in its cells, 1 in sum over all tiles.

    A raised cosine where neighbours overlap, so that an answer fades out before its tile ends.
    """
    # Tiles that share more than half meet in the middle: no flat part is left between the two ramps.
    ramp = min(overlap, side // 2)
    window = np.ones(side)
    window[:ramp] = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(ramp, 1)) ** 2
    window = np.minimum(window, window[::-1])
    total = np.zeros(first[-1] + side)
    for start in first:
        total[start : start + side] += window
    # Divided by the sum, edges and the last tile, which overlaps more than the others, need no case of their own.
    return np.stack([window / total[start : start + side] for start in first]).astype(np.float32)


def blended(plan: Plan, read: Read, look: Look, *, batch: int) -> Iterator[Row]:
    """The map from top to bottom, each cell once.

    The answers are a view, filled anew for the next rows. Tiles in which nothing was seen are not looked at.
    """
    side, unit, (height, width) = plan.side, plan.unit, plan.cells
    across = plan.cols[-1] + side
    shares_down, shares_across = (shares(first, side, plan.overlap) for first in (plan.rows, plan.cols))
    total = np.zeros((plan.channels, side, across), np.float32)
    for i, row in enumerate(plan.rows):
        strip, seen = _strip(plan, read, row * unit, across * unit)
        cells_seen: Array = seen.reshape(side, unit, across, unit).max(axis=(1, 3))
        wanted = [j for j, col in enumerate(plan.cols) if cells_seen[:, col : col + side].any()]
        for few in (wanted[k : k + batch] for k in range(0, len(wanted), batch)):
            tiles = np.stack([strip[:, :, plan.cols[j] * unit : plan.cols[j] * unit + plan.px] for j in few])
            for j, answer in zip(few, look(tiles), strict=True):
                # One after the other, from left to right: the sum has one order, whatever the batch.
                weight = shares_down[i][:, None] * shares_across[j]
                total[:, :, plan.cols[j] : plan.cols[j] + side] += answer * weight
        done = (plan.rows[i + 1] if i + 1 < len(plan.rows) else height) - row
        # Rows above the next tiles are final.
        yield row, total[:, :done, :width], cells_seen[:done, :width]
        total[:, : side - done] = total[:, done:].copy()
        total[:, side - done :] = 0


def _strip(plan: Plan, read: Read, row: int, across: int) -> tuple[Array, Array]:
    """`px` rows of `across` pixels; beyond the scene its own pixels mirrored, which nobody has seen."""
    rows = min(plan.px, plan.shape[0] - row)
    pixels, seen = read(row, rows)
    beyond = ((0, plan.px - rows), (0, across - plan.shape[1]))
    if beyond == ((0, 0), (0, 0)):
        return pixels, seen
    return np.pad(pixels, ((0, 0), *beyond), mode="reflect"), np.pad(seen, beyond)
