"""Stage the files of scenes and measure the evidence of their offsets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from sgdata.composite import staging
from sgdata.rasters import grid
from sgdata.scenes import offsets, product_metadata
from sgdata.types import Array, Grid

READERS = 4
"""Scenes or tiles at work at a time in one process, and files read for them: inflating, hashing, reducing and waiting
for a server all let other threads run."""


SIGHT = "sight"

# Masks are worked on in strips of about this size: memory is flat in the area.
STRIP_PIXELS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One staged scene: its pass, its day (since 1970), the offset to add to its DN, its staged files by band."""

    id: str
    overpass: str
    day: int
    offset: int
    files: dict[str, staging.Staged]

    @property
    def clear_share(self) -> float | None:
        """Share of the area (and the margin that buffers need) that may be looked at; None where nothing was masked."""
        sight = self.files.get(SIGHT)
        return None if sight is None else round(float(np.count_nonzero(sight.pixels) / sight.pixels.size), 6)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One scene to be staged: its pass, its day (since 1970) and the files to fetch by band."""

    id: str
    overpass: str
    day: int
    pieces: dict[str, staging.Piece]
    product: str | None = None
    """Where the product metadata lie that tell the offset, and the service that signs that address."""
    tokens: str = ""


def visit(scene: Visit, *, lattice: Grid) -> tuple[Observed, offsets.Evidence]:
    """Stage all files of a scene and test its offset. Raises SourceError."""
    observed = scout(scene)
    told = product_metadata.offset(scene.product, scene.tokens) if scene.product else None
    return observed, replace(evidence(observed, lattice), product=told)


def scout(scene: Visit) -> Observed:
    """Stage the files of a scene and ask no more of it."""
    staged = dict(zip(scene.pieces, _readers().map(staging.stage, scene.pieces.values()), strict=True))
    return Observed(id=scene.id, overpass=scene.overpass, day=scene.day, offset=0, files=staged)


@cache
def _readers() -> ThreadPoolExecutor:
    """Per process."""
    return ThreadPoolExecutor(READERS)


def evidence(scene: Observed, lattice: Grid) -> offsets.Evidence:
    """The offset test over the whole area, strip by strip, on DN as they are stored."""
    needed = ("SCL", *offsets.TEST_BANDS)
    if any(name not in scene.files for name in needed):
        return offsets.Evidence(eligible=0, dark_share=0.0)
    eligible = dark = 0
    # One of the grid's pixels for each of the classification's, which are coarser: repeats tell nothing new.
    step = max(round(scene.files["SCL"].lattice.gsd_m / lattice.gsd_m), 1)
    for strip in grid.strips(lattice.shape, 4 * STRIP_PIXELS, multiple=step):
        target = grid.windowed(lattice, strip)
        classes, *bands = (_thinned(scene.files[name], target, step) for name in needed)
        counted = offsets.count(classes, np.stack(bands))
        eligible, dark = eligible + counted[0], dark + counted[1]
    share = dark / (eligible * len(offsets.TEST_BANDS)) if eligible else 0.0
    return offsets.Evidence(eligible=eligible, dark_share=round(share, 6))


def _thinned(staged: staging.Staged, target: Grid, step: int) -> Array:
    """Every `step`th pixel of the target, down and across."""
    if any(size % step for size in (*staging.place(staged, target), *target.shape)):
        return staging.on_grid(staged, target, kernel="nearest")[::step, ::step]
    return staging.on_grid(staged, grid.coarser(target, step), kernel="nearest")  # no repeats to be skipped
