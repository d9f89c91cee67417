"""Read, write, hash and search the pixels of windows in scratch, some of which are staged in part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.errors import SourceError
from sgdata.rasters import cells, geotiff
from sgdata.rasters.cells import Cells
from sgdata.sentinel2 import MSI
from sgdata.staging.scene_files import MARGIN_PX
from sgdata.types import Array, Grid, Window

_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class StagedWindow:
    """Pixels of one file in scratch: C-order little-endian bytes of `grid.shape`.

    Attributes:
        path: File of the bytes.
        grid: Grid of the pixels, that of the file they were read from.
        dtype: NumPy type of the values.
        sha256: Pixel hash, as `compute_hash` defines it.
        holes: Whether some pixel of the area may have no data.
        source: Identity of the file they were read from (`sgdata.remote.file_identity`); "" if a server gives none.
        cells: Cells whose pixels were read, with MARGIN_PX pixels around each; None for the whole window.
    """

    path: str
    grid: Grid
    dtype: str
    sha256: str
    holes: bool
    source: str = ""
    cells: Cells | None = None

    def rows(self, first: int, last: int) -> Array:
        """Read (last - first, W) pixels. Raises SourceError where the file is too short."""
        # Read, not mapped: mapping and unmapping thousands of times makes the threads of a build wait for each other.
        width, dtype = self.grid.shape[1], np.dtype(self.dtype).newbyteorder("<")
        values = np.empty((last - first, width), dtype)
        with Path(self.path).open("rb", buffering=0) as handle:
            handle.seek(first * width * dtype.itemsize)
            if handle.readinto(values.data) != values.nbytes:
                raise SourceError(
                    f"{self.path}: ends before row {last} of {self.grid.shape[0]}; remove the scratch folder"
                )
        return values

    @property
    def pixels(self) -> Array:
        """The whole window (H, W)."""
        return self.rows(0, self.grid.shape[0])


def compute_hash(staged: StagedWindow, part: Cells | None) -> str:
    """Return the hash of a window or of some cells of it, which does not depend on how its file is stored.

    It is the SHA-256 of grid and type, as in `geotiff.digest_start`, and of the pixels row by row: all of them, or,
    after the cells as JSON, those in the cells and MARGIN_PX around each.

    Args:
        staged: The window, which holds the cells.
        part: The cells; None for the whole window.
    """
    digest = _start_hash(staged, part)
    for values in _pieces(staged, part):
        digest.update(geotiff.little_endian(values))
    return digest.hexdigest()


def search_and_hash(staged: StagedWindow, part: Cells) -> tuple[str, bool]:
    """Return the hash of some cells of a window, and whether some pixel in them may have no data, in one pass."""
    digest, holes = _start_hash(staged, part), False
    for values in _pieces(staged, part):
        holes = holes or has_holes(values)
        digest.update(geotiff.little_endian(values))
    return digest.hexdigest(), holes


def _start_hash(staged: StagedWindow, part: Cells | None) -> hashlib._Hash:
    digest = hashlib.sha256(geotiff.digest_start(staged.grid, 1, staged.dtype))
    if part is not None:
        digest.update(files.canonical_json(part))
    return digest


def _pieces(staged: StagedWindow, part: Cells | None) -> Iterator[Array]:
    """Yield the pixels that are hashed, row by row, in pieces of at most some megabytes."""
    height, width = staged.grid.shape
    rows = max(_PIECE // max(width * np.dtype(staged.dtype).itemsize, 1), 1)
    if part is None:
        for first in range(0, height, rows):
            yield staged.rows(first, min(first + rows, height))
        return
    top, held = 0, np.empty((0, width), staged.dtype)
    for first, last, spans in cells.find_spans(part, staged.grid, MARGIN_PX):
        if last > top + len(held):  # rows of several cells at a time
            top, held = first, staged.rows(first, max(min(first + rows, height), last))
        values = held[first - top : last - top]
        yield values if spans == [(0, width)] else np.concatenate([values[:, a:b] for a, b in spans], axis=1)


def has_holes(values: Array) -> bool:
    """Return whether some pixel may have no data: 0, or in a layer of bytes a value that is no class."""
    beyond_classes = values.dtype == np.uint8 and np.max(values, initial=0) >= MSI.classes.count
    return bool(beyond_classes or np.min(values, initial=1) == 0)


def write_part(file: int, width: int, part: Window, values: Array) -> None:
    """Write the pixels of a part of a window, whose rows have `width` pixels, to the file of all its pixels."""
    content = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    size = content.itemsize
    if part.width == width:
        rows = [(part.row, content.data.cast("B"))] if content.size else []
    else:
        rows = [(part.row + n, line.data.cast("B")) for n, line in enumerate(content)]
    for row, line in rows:
        at = (row * width + part.col) * size
        while line:  # a disk that fills up takes part of it first
            written = os.pwrite(file, line, at)
            line, at = line[written:], at + written
