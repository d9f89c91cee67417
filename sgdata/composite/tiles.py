"""Scenes to composite: staged mask layers -> sights; one tile through all scenes -> its composite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.composite import cloud_masks, rules, staging
from sgdata.composite.rules import CompositeSettings
from sgdata.composite.visits import SIGHT, Observed
from sgdata.rasters import grid, resample
from sgdata.types import Array, Grid, Window

# A composite tile shrinks until its observations fit: memory is flat in the number of dates.
TILE_BYTES = 40 << 20

THREADS = 2


# Sides of tiles, unless the area or the caller ends them: whole pixels of 20 m and 60 m, in pairs.
NEST = 12


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides a composite tile; `folder` keeps finished tiles."""

    grid: Grid
    bands: tuple[str, ...]
    kernel: resample.Kernel
    settings: CompositeSettings
    scenes: tuple[Observed, ...]
    folder: Path


# --- scenes --------------------------------------------------------------------------------


# --- tiles ---------------------------------------------------------------------------------


def tile_shape(job: Job, most: int) -> tuple[int, int]:
    """Height and width, `most` at the most, of tiles whose (T, C, H, W) DN, sights and result fit in TILE_BYTES.

    As wide as can be, for rows lie together in the staged files.
    """
    # Rules that go band by band hold one at a time; of each date there is a sight, and whether it is usable.
    each = len(job.scenes) * (2 * max(len(looked_at(job)), 1) + 2) + 2 * (len(job.bands) + 4)
    pixels = TILE_BYTES // each
    width = min(job.grid.shape[1], most, max(pixels // NEST**2, 1) * NEST)
    return min(most, max(pixels // width // NEST, 1) * NEST), width


def looked_at(job: Job) -> tuple[str, ...]:
    """Bands of which every date is needed at once; of the others only the chosen dates are, or one band at a time."""
    return tuple(b for b in rules.LOOKS_AT.get(job.settings.method, job.bands) if b in job.bands)


def observations(job: Job, window: Window) -> tuple[Array, Array]:
    """(T, C, H, W) uint16 DN with offsets settled in the bands looked at, and (T, H, W) uint8 sight.

    Sight is 0 where any band of the job has no data. Where granules of one pass overlap they hold the same pixels
    twice: the first valid one in order counts.
    """
    target = grid.windowed(job.grid, window)
    bands = looked_at(job)
    stack = np.zeros((len(job.scenes), len(bands), *target.shape), np.uint16)
    sights = np.zeros((len(job.scenes), *target.shape), np.uint8)
    seen: dict[str, Array] = {}
    for scene, planes, sight in zip(job.scenes, stack, sights, strict=True):
        if not set(job.bands) <= scene.files.keys():
            continue  # scouted, and cannot win
        for band, plane in zip(bands, planes, strict=True):
            plane[:] = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
        valid = np.ones(target.shape, np.bool_)
        # A pixel needs all bands valid (SEPAL); bands without a hole need not be looked at to know that.
        for band in job.bands:
            if scene.files[band].holes:
                known = planes[bands.index(band)] if band in bands else None
                valid &= (staging.on_grid(scene.files[band], target, kernel="nearest") if known is None else known) > 0
        before = seen.get(scene.overpass)
        use = valid.copy()
        if before is not None:
            use &= ~before
            valid |= before
        seen[scene.overpass] = valid
        if SIGHT in scene.files:
            sight[:] = staging.on_grid(scene.files[SIGHT], target, kernel="nearest") * use
        else:
            sight[:] = use
    return stack, sights


def composite_tile(job: Job, window: Window) -> Path:
    """Compute one tile, or take it from an earlier run: a `.npy` of (C + 4, h, w) uint16.

    The image, then item index, valid count, days since 1970 and score as in `builds.PROVENANCE_BANDS`.
    """
    path = job.folder / f"r{window.row:06d}-c{window.col:06d}-{window.height}x{window.width}.npy"
    if path.exists():
        return path
    stack, sights = observations(job, window)
    usable = cloud_masks.best_sights(sights)
    content = np.zeros((len(job.bands) + 4, window.height, window.width), np.uint16)
    image = content[: len(job.bands)]
    # Rules that mix dates choose none: index and score stay without value.
    index = score = np.full(usable.shape[1:], rules.NO_VALUE, np.uint16)
    match job.settings.method:
        case "medoid":
            index, score = rules.medoid(stack, usable)
        case "maxndvi":
            index, score = rules.maxndvi(stack, usable)
        case "bap":
            usable = sights > 0
            gsd = next((s.files[SIGHT].lattice.gsd_m for s in job.scenes if SIGHT in s.files), 20.0)
            # Without a mask layer all sights are 1; `check` refuses bap then, any size will do.
            days = tuple(scene.day for scene in job.scenes)
            index, score = rules.bap(stack, sights, days, job.settings.bap, gsd)
        case "median":
            _middle(job, window, usable, image)
        case "geomedian":
            image[:] = rules.geomedian(stack, usable)
    if job.settings.method in {"medoid", "maxndvi", "bap"}:
        _picked(job, window, stack, index, image)
    dates = np.array([*(scene.day for scene in job.scenes), rules.NO_VALUE], np.uint16)
    day = dates[np.minimum(index, len(job.scenes))]
    for plane, values in zip(content[-4:], (index, usable.sum(axis=0, dtype=np.uint16), day, score), strict=True):
        plane[:] = values
    with files.replacing(path, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, content)
    return path


def _middle(job: Job, window: Window, usable: Array, image: Array) -> None:
    """Fill `image` (C, h, w) with the median of each band over the usable dates."""
    staged = [(n, scene) for n, scene in enumerate(job.scenes) if set(job.bands) <= scene.files.keys()]
    stack = np.zeros((len(job.scenes), 1, 0, 0), np.uint16)

    @cache
    def by_blocks(factor: int) -> Array | None:
        coarse = usable[:, ::factor, ::factor]
        return coarse if np.array_equal(resample.finer(coarse, factor, kernel="nearest"), usable) else None

    for band, out in zip(job.bands, image, strict=True):
        target, looks = grid.windowed(job.grid, window), usable
        places = (staging.place(scene.files[band], target) for _, scene in staged)
        (factor, *shift), *others = {(factor, row % factor, col % factor) for factor, row, col in places} or {(1, 0, 0)}
        # Repeats of one coarse pixel have one median: taken there if dates are usable by whole coarse pixels.
        if factor > 1 and not any(shift) and not others and job.kernel == "nearest":
            coarse = by_blocks(factor)
            if coarse is not None:
                target, looks = grid.coarser(target, factor), coarse
        if stack.shape[2:] != target.shape:  # bands of one size share the memory, whose first touch costs most
            stack = np.zeros((len(job.scenes), 1, *target.shape), np.uint16)
        for n, scene in staged:
            stack[n, 0] = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
        out[:] = resample.finer(rules.median(stack, looks)[0], window.height // target.shape[0], kernel="nearest")


def _picked(job: Job, window: Window, stack: Array, index: Array, image: Array) -> None:
    """Fill `image` (C, h, w) of zeros with all bands of the date chosen at each pixel."""
    target, bands = grid.windowed(job.grid, window), looked_at(job)
    # Upsampling costs more than anything else here: only for the dates that won in this tile.
    for n in np.unique(index[index != rules.NO_VALUE]):
        scene, here = job.scenes[n], index == n
        for band, out in zip(job.bands, image, strict=True):
            if band in bands:
                plane = stack[n, bands.index(band)]
            else:
                plane = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
            np.copyto(out, plane, where=here)
