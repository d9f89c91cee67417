"""Stage the files of a scene, and count the evidence for the offset of its DN."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from sgdata import urls
from sgdata.composite import staging
from sgdata.rasters import grid
from sgdata.scenes import offsets, product_metadata
from sgdata.sentinel2 import MSI
from sgdata.types import Array, Grid

READERS = 4
"""Files of one scene that are read at a time: decompressing, hashing and waiting for a server all release the GIL."""

CLEAR_SCORE = "clear_score"
"""Key of a scene's clear scores among its staged files."""

STRIP_PIXELS = 1 << 19
"""Masks are computed in strips of about this size, so that memory does not grow with the area."""


@dataclass(frozen=True, kw_only=True)
class StagedScene:
    """One staged scene: its overpass, its day (since 1970), the offset to add to its DN, its staged files by band."""

    id: str
    overpass: str
    day: int
    offset: int
    files: dict[str, staging.StagedWindow]

    @property
    def clear_share(self) -> float | None:
        """Share of clear pixels in the area and its margin; None without a mask."""
        scores = self.files.get(CLEAR_SCORE)
        return None if scores is None else round(float(np.count_nonzero(scores.pixels) / scores.pixels.size), 6)


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """One scene to stage: its overpass, its day (since 1970) and the windows to read by band.

    `product` is the address of the product metadata with the offset, `tokens` the service that signs that address.
    `signed` are the addresses with the secrets of the catalogue, for a worker in another process; they are never
    written.
    """

    id: str
    overpass: str
    day: int
    windows: dict[str, staging.WindowRequest]
    product: str | None = None
    tokens: str = ""
    signed: tuple[str, ...] = field(default=(), repr=False)


def stage_scene(request: SceneRequest, *, lattice: Grid) -> tuple[StagedScene, offsets.Evidence]:
    """Stage all files of a scene and count the evidence for its offset. Raises SourceError."""
    scene = stage_files(request)
    product = product_metadata.offset(request.product, request.tokens) if request.product else None
    return scene, replace(offset_evidence(scene, lattice), product=product)


def stage_files(request: SceneRequest) -> StagedScene:
    """Stage a scene's windows without testing its offset. Raises SourceError."""
    for url in request.signed:
        urls.remember(url)
    staged = dict(zip(request.windows, _readers().map(staging.stage, request.windows.values()), strict=True))
    return StagedScene(id=request.id, overpass=request.overpass, day=request.day, offset=0, files=staged)


@cache
def _readers() -> ThreadPoolExecutor:
    """Return the thread pool of this process."""
    return ThreadPoolExecutor(READERS)


def offset_evidence(scene: StagedScene, lattice: Grid) -> offsets.Evidence:
    """Count the dark pixels of the whole area, strip by strip, on DN as they are stored."""
    needed = (MSI.classes.layer, *MSI.offset.test_bands)
    if any(name not in scene.files for name in needed):
        return offsets.Evidence(eligible=0, dark_share=0.0)
    eligible = dark = 0
    # One pixel of the grid per pixel of the scene classification, which is coarser.
    step = max(round(scene.files[MSI.classes.layer].lattice.gsd_m / lattice.gsd_m), 1)
    for strip in grid.strips(lattice.shape, 4 * STRIP_PIXELS, multiple=step):
        target = grid.windowed(lattice, strip)
        classes, *bands = (_thinned(scene.files[name], target, step) for name in needed)
        counted = offsets.count(classes, np.stack(bands))
        eligible, dark = eligible + counted[0], dark + counted[1]
    share = dark / (eligible * len(MSI.offset.test_bands)) if eligible else 0.0
    return offsets.Evidence(eligible=eligible, dark_share=round(share, 6))


def _thinned(staged: staging.StagedWindow, target: Grid, step: int) -> Array:
    """Return every `step`th pixel of the target, down and across."""
    if any(size % step for size in (*staging.place(staged, target), *target.shape)):
        return staging.on_grid(staged, target, kernel="nearest")[::step, ::step]
    # The same pixels without repeating them first.
    return staging.on_grid(staged, grid.coarser(target, step), kernel="nearest")
