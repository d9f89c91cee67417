"""One tile through all scenes: staged pixels -> observations and masks -> offset evidence or composite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import composite, grid, masks, offsets, resample, staging
from sgdata.types import Array, Grid, Window

OBSERVATION_BYTES = 96 << 20
"""A composite tile shrinks until its observations fit: memory is flat in the number of dates."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One staged scene: its pass, its day (since 1970), the offset to add to its DN, its staged files by band."""

    id: str
    overpass: str
    day: int
    offset: int
    files: dict[str, staging.Staged]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One scene to be staged: its pass, its day (since 1970) and the files to fetch by band."""

    id: str
    overpass: str
    day: int
    pieces: dict[str, staging.Piece]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides a composite tile; `folder` keeps finished tiles."""

    grid: Grid
    bands: tuple[str, ...]
    kernel: resample.Kernel
    method: composite.Method
    mask: masks.MaskSettings
    scenes: tuple[Observed, ...]
    folder: Path


def visit(scene: Visit, *, lattice: Grid, tile: int) -> tuple[Observed, offsets.Evidence]:
    """Stage all files of a scene and test its offset. Raises SourceError."""
    files = {band: staging.stage(piece) for band, piece in scene.pieces.items()}
    observed = Observed(id=scene.id, overpass=scene.overpass, day=scene.day, offset=0, files=files)
    return observed, evidence(observed, lattice=lattice, tile=tile)


def tile_size(dates: int, bands: int, most: int) -> int:
    """The side of a tile in pixels: `most` halved until (T, C, H, W) uint16 observations fit in OBSERVATION_BYTES."""
    size = most
    while size > 64 and 2 * dates * bands * size * size > OBSERVATION_BYTES:
        size //= 2
    return size


def observations(job: Job, window: Window) -> tuple[Array, Array]:
    """(T, C, H, W) uint16 DN with offsets settled, and (T, H, W) bool: clear, and valid in all bands.

    Where granules of one pass overlap they hold the same pixels twice: the first valid one in order counts.
    """
    target = grid.windowed(job.grid, window)
    stack = np.empty((len(job.scenes), len(job.bands), *target.shape), np.uint16)
    usable = np.empty((len(job.scenes), *target.shape), bool)
    seen: dict[str, Array] = {}
    for scene, planes, use in zip(job.scenes, stack, usable, strict=True):
        for band, plane in zip(job.bands, planes, strict=True):
            plane[:] = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
        valid = np.asarray((planes > 0).all(axis=0))
        before = seen.get(scene.overpass)
        use[:] = valid
        if before is not None:
            use &= ~before
            valid |= before
        seen[scene.overpass] = valid
        if job.mask.asset:
            layer = staging.on_grid(scene.files[job.mask.asset], target, kernel="nearest")
            use &= masks.keep(layer, job.mask)
    return stack, usable


def composite_tile(job: Job, window: Window) -> Path:
    """Compute one tile, or take it from an earlier run: a `.npy` of (C + 4, h, w) uint16.

    The image, then item index, valid count, days since 1970 and score as in `builds.PROVENANCE_BANDS`.
    """
    path = job.folder / f"r{window.row:06d}-c{window.col:06d}-{window.height}x{window.width}.npy"
    if path.exists():
        return path
    stack, usable = observations(job, window)
    distance = tuple(i for i, band in enumerate(job.bands) if band in composite.DISTANCE_BANDS)
    result = composite.reduce(stack, usable, method=job.method, distance=distance)
    days = np.array([*(scene.day for scene in job.scenes), composite.NO_VALUE], np.uint16)
    day = days[np.minimum(result.index, len(job.scenes))]
    content = np.concatenate([result.image, np.stack([result.index, result.valid, day, result.score])])
    with staging.placed(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, content)
    return path


def evidence(scene: Observed, *, lattice: Grid, tile: int) -> offsets.Evidence:
    """The offset test over the whole area, tile by tile, on DN as they are stored."""
    needed = ("SCL", *offsets.TEST_BANDS)
    if any(name not in scene.files for name in needed):
        return offsets.Evidence(eligible=0, dark_share=0.0)
    eligible = dark = 0
    for window in grid.tiles(lattice.shape, tile):
        target = grid.windowed(lattice, window)
        classes, *bands = (staging.on_grid(scene.files[name], target, kernel="nearest") for name in needed)
        counted = offsets.count(classes, np.stack(bands))
        eligible, dark = eligible + counted[0], dark + counted[1]
    # Count what SCL tells apart, not the repeats of its coarser pixels on the grid.
    repeats = round(scene.files["SCL"].lattice.gsd_m / lattice.gsd_m) ** 2
    share = dark / (eligible * len(offsets.TEST_BANDS)) if eligible else 0.0
    return offsets.Evidence(eligible=eligible // repeats, dark_share=round(share, 6))
