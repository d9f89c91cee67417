"""Describe parts of an area by cells of a fixed grid, so that only those parts of files are read. Pure.

Cells are squares of CELL_M whose edges are multiples of it in the CRS of the build. They depend neither on the area nor
on how files are stored, and all sizes of Sentinel-2 pixels nest in them: locks that name the cells that were read can
be followed with files of any layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sgdata.types import Array, Bounds, Grid, Window

CELL_M = 960.0
"""Side of a cell: a multiple of 60 m, and less than a block of 256 pixels of 10 m."""
WHOLE_SHARE = 0.95
"""Share of the cells from which on all are read: cells cost more time than the rest of a window takes to decode."""


@dataclass(frozen=True)
class Cells:
    """Some of the cells over an area.

    Attributes:
        row: Row of the first cell, counted southwards from the origin of the CRS.
        col: Column of the first cell, counted eastwards.
        height: Rows of cells.
        width: Columns of cells.
        bits: Hexadecimal digits of one bit per cell, row by row, the first in the highest bit: whether it is included.
    """

    row: int
    col: int
    height: int
    width: int
    bits: str

    @cached_property
    def included(self) -> Array:
        """(height, width) bool: whether a cell is included."""
        packed = np.frombuffer(bytes.fromhex(self.bits), np.uint8)
        return np.unpackbits(packed, count=self.height * self.width).astype(np.bool_).reshape(self.height, self.width)

    def choose(self, included: Array) -> Cells:
        """Return other cells of the same area: those that are `included` (height, width)."""
        bits = np.packbits(included).tobytes().hex()
        return Cells(self.row, self.col, self.height, self.width, bits)


def over(bounds: Bounds) -> Cells:
    """Return the cells over `bounds` (west, south, east, north), none of them included."""
    west, south, east, north = bounds
    row, col = math.floor(-north / CELL_M), math.floor(west / CELL_M)
    height, width = math.ceil(-south / CELL_M) - row, math.ceil(east / CELL_M) - col
    return Cells(row, col, height, width, "").choose(np.zeros((height, width), np.bool_))


def read_bits(bounds: Bounds, bits: str) -> Cells | None:
    """Return the cells over `bounds` with the `bits` of a document; None if these are of another number of cells."""
    area = over(bounds)
    try:
        size = len(bytes.fromhex(bits))
    except ValueError:
        return None
    return Cells(area.row, area.col, area.height, area.width, bits) if size == -(-area.included.size // 8) else None


def crop(part: Cells, area: Cells) -> Cells:
    """Return those cells of an `area` that are included in a `part`, which may reach beyond it."""
    row, col = area.row - part.row, area.col - part.col
    padded = np.pad(part.included, ((max(-row, 0), area.height), (max(-col, 0), area.width)))
    return area.choose(padded[max(row, 0) :, max(col, 0) :][: area.height, : area.width])


def join(*parts: Cells | None) -> Cells | None:
    """Return the cells that are in any part of the same area; None stands for all, also where each cell is included."""
    included = np.zeros((0, 0), np.bool_)
    for part in parts:
        if part is None:
            return None
        included = included | part.included if included.size else part.included
    return None if included.all() or parts[0] is None else parts[0].choose(included)


def round_up(part: Cells | None) -> Cells | None:
    """Return None, which stands for all cells, where WHOLE_SHARE of them are included; the cells otherwise."""
    return None if part is None or part.included.mean() >= WHOLE_SHARE else part


def hold(held: Cells | None, wanted: Cells | None) -> bool:
    """Return whether the cells that are `held` include all that are `wanted`; None stands for all."""
    return held is None or (wanted is not None and not (wanted.included & ~held.included).any())


def on_pixels(part: Cells, grid: Grid) -> Array:
    """Return (H, W) bool: the pixels of a grid whose centres are in cells that are included."""
    rows, cols = _cell_rows(part, grid), _cell_cols(part, grid)
    # One cell more on each side, which is never included.
    padded = np.pad(part.included, 1)
    return np.asarray(padded[rows + 1][:, cols + 1])


def positions(area: Cells, grid: Grid) -> tuple[Array, Array]:
    """Return (H,) rows and (W,) columns, among the cells of an area, of the pixels of a grid inside it."""
    return _cell_rows(area, grid), _cell_cols(area, grid)


def any_in_cells(area: Cells, grid: Grid, pixels: Array) -> Array:
    """Return (height, width) bool: the cells with a true pixel, by its centre, of `pixels` (H, W) on a grid."""
    return count_in_cells(area, grid, pixels) > 0


def count_in_cells(area: Cells, grid: Grid, pixels: Array) -> Array:
    """Return (height, width) int64: how many true `pixels` (H, W) of a grid have their centres in each cell."""
    found = np.zeros((area.height + 2, area.width + 2), np.int64)
    _add_up(pixels, _cell_rows(area, grid) + 1, _cell_cols(area, grid) + 1, found)
    return found[1:-1, 1:-1]


def _add_up(pixels: Array, rows: Array, cols: Array, found: Array) -> None:
    if not pixels.size:
        return
    starts = np.flatnonzero(np.diff(cols, prepend=cols[0] - 1))
    first = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    by_col = np.add.reduceat(pixels, starts, axis=1, dtype=np.uint16 if pixels.shape[1] < 2**16 else np.int64)
    found[np.ix_(rows[first], cols[starts])] = np.add.reduceat(by_col, first, axis=0, dtype=np.int64)


def _cell_rows(part: Cells, grid: Grid) -> Array:
    """Return (H,) rows of cells, counted from those of `part`; -1 and its height for those beyond."""
    northings = grid.origin[1] - (np.arange(grid.shape[0]) + 0.5) * grid.gsd_m
    return np.asarray(np.clip(np.floor(-northings / CELL_M).astype(np.int64) - part.row, -1, part.height))


def _cell_cols(part: Cells, grid: Grid) -> Array:
    eastings = grid.origin[0] + (np.arange(grid.shape[1]) + 0.5) * grid.gsd_m
    return np.asarray(np.clip(np.floor(eastings / CELL_M).astype(np.int64) - part.col, -1, part.width))


def enclose(part: Cells, grid: Grid) -> Window | None:
    """Return the smallest window of a grid with all its pixels in cells that are included; None without any."""
    if 0 in grid.shape:
        return None
    rows, cols = _cell_rows(part, grid), _cell_cols(part, grid)
    inside = np.pad(part.included, 1)[rows[0] + 1 : rows[-1] + 2, cols[0] + 1 : cols[-1] + 2]
    down, across = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(down):
        return None
    # Cells of pixels follow each other: the first pixel of the first cell, and that after the last one.
    top, bottom = np.searchsorted(rows - rows[0], [down[0], down[-1] + 1]).tolist()
    left, right = np.searchsorted(cols - cols[0], [across[0], across[-1] + 1]).tolist()
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def find_spans(part: Cells, grid: Grid, margin: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield (first row, last row, [(first column, last column), ...]) of the pixels of a grid in cells, ends exclusive.

    Args:
        part: The cells.
        grid: The grid; its pixels count if part of them is in a cell.
        margin: Pixels around each cell that count as well.

    Yields:
        Rows of equal columns from top to bottom, without those that have none.
    """
    tops, bottoms = _pixel_edges(part.row, part.height, -grid.origin[1], grid.gsd_m, grid.shape[0], margin)
    lefts, rights = _pixel_edges(part.col, part.width, grid.origin[0], grid.gsd_m, grid.shape[1], margin)
    cuts = np.unique([*tops, *bottoms])
    for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        columns = part.included[(tops <= first) & (bottoms >= last)].any(axis=0)
        spans: list[tuple[int, int]] = []
        for col in np.flatnonzero(columns & (rights > lefts)).tolist():
            left, right = int(lefts[col]), int(rights[col])
            if spans and left <= spans[-1][1]:
                spans[-1] = (spans[-1][0], right)
            else:
                spans.append((left, right))
        if spans:
            yield first, last, spans


def _pixel_edges(first: int, count: int, origin: float, gsd_m: float, size: int, margin: int) -> tuple[Array, Array]:
    """Return (count,) first pixels of cells along one axis, with their margin, and the ends."""
    edges = (np.arange(first, first + count + 1) * CELL_M - origin) / gsd_m
    low = np.floor(edges[:-1] + 1e-6).astype(np.int64) - margin
    high = np.ceil(edges[1:] - 1e-6).astype(np.int64) + margin
    return np.clip(low, 0, size), np.clip(high, 0, size)


def find_blocks(part: Cells, grid: Grid, margin: int, block: Window) -> list[Window]:
    """Return the parts of a grid that are whole blocks with pixels of cells, cut at its edges, from top to bottom.

    Blocks beside each other are in one part, and so are rows of blocks with the same columns.

    Args:
        part: The cells.
        grid: The grid.
        margin: As in `find_spans`.
        block: A block in pixels of the grid, of which the others are multiples; it may begin before it.
    """
    height, width = grid.shape
    rows, cols = -(-(height - block.row) // block.height), -(-(width - block.col) // block.width)
    wanted = np.zeros((max(rows, 0), max(cols, 0)), np.bool_)
    for first, last, spans in find_spans(part, grid, margin):
        down = slice((first - block.row) // block.height, -(-(last - block.row) // block.height))
        for left, right in spans:
            wanted[down, (left - block.col) // block.width : -(-(right - block.col) // block.width)] = True
    parts: list[Window] = []
    above: list[int] = []  # positions of the parts that end at this row of blocks
    for i, columns in enumerate(wanted):
        top, low = max(block.row + i * block.height, 0), min(block.row + (i + 1) * block.height, height)
        edges = np.flatnonzero(np.diff(columns, prepend=False, append=False)).reshape(-1, 2)
        lefts = np.maximum(block.col + edges[:, 0] * block.width, 0).tolist()
        rights = np.minimum(block.col + edges[:, 1] * block.width, width).tolist()
        row = [Window(row=top, col=a, height=low - top, width=b - a) for a, b in zip(lefts, rights, strict=True)]
        if [(parts[n].col, parts[n].width) for n in above] == [(one.col, one.width) for one in row] and row:
            for n in above:
                parts[n] = Window(row=parts[n].row, col=parts[n].col, height=low - parts[n].row, width=parts[n].width)
            continue
        above = list(range(len(parts), len(parts) + len(row)))
        parts += row
    return parts
