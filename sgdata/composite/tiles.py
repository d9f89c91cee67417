"""Build composites: reduce all staged scenes tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import reuse
from sgdata.composite import cloud_masks, kernels, rules
from sgdata.composite.kernels import NO_VALUE
from sgdata.rasters import cells, grids, resample
from sgdata.rasters.cells import Cells
from sgdata.sentinel2 import MSI
from sgdata.staging import window_staging
from sgdata.staging.scene_staging import BRIGHT_TARGETS, CLEAR_SCORE, StagedScene, data_mask
from sgdata.types import Array, Grid, Window

TILE_BYTES = 40 << 20
"""A tile shrinks until its stack fits, so that memory does not grow with the number of dates."""

PLANES = 5
"""Planes of a tile after its bands."""

ALIGN_PX = 2 * MSI.nesting_px
"""Tile sides are multiples of this many pixels, 12: whole pixels of 20 m and 60 m, in pairs."""


@dataclass(frozen=True, kw_only=True)
class CompositeJob:
    """Everything that determines the tiles of a composite.

    Attributes:
        grid: Grid of the build.
        bands: Bands of the image, in order.
        kernel: Resampling of bands that are coarser than the grid.
        settings: Composite rule and its settings.
        scenes: Staged scenes.
        folder: Folder of finished tiles.
        examined: Positions of the scenes that the rule considers, although it need not read all of them.
    """

    grid: Grid
    bands: tuple[str, ...]
    kernel: resample.Kernel
    settings: rules.CompositeSettings
    scenes: tuple[StagedScene, ...]
    folder: Path
    examined: tuple[int, ...] = ()

    @property
    def bands_to_read(self) -> tuple[str, ...]:
        """Bands of which every date is needed at once."""
        return self.settings.rule.bands_to_read(self.bands)

    @property
    def compared(self) -> tuple[str, ...]:
        """Bands without which a scene cannot be compared with the others."""
        return self.bands_to_read if self.settings.rule.score_range else self.bands


def tile_shape(job: CompositeJob, max_side: int) -> tuple[int, int]:
    """Return the height and width, up to `max_side`, of tiles whose stack and result fit in TILE_BYTES.

    Tiles are as wide as possible, since rows are contiguous in the staged files.
    """
    # Rules that reduce each band alone hold one at a time; each date has a clear score and whether it is usable, twice
    # where some scenes are not read.
    is_whole = all(scene.has_bands(job.bands) and scene.cells(job.bands) is None for scene in job.scenes)
    masks = 2 if is_whole else 4
    bytes_per_pixel = len(job.scenes) * (2 * max(len(job.bands_to_read), 1) + masks) + 2 * (len(job.bands) + PLANES)
    pixels = TILE_BYTES // bytes_per_pixel
    width = min(job.grid.shape[1], max_side, max(pixels // ALIGN_PX**2, 1) * ALIGN_PX)
    return min(max_side, max(pixels // width // ALIGN_PX, 1) * ALIGN_PX), width


def read_stack(job: CompositeJob, window: Window) -> rules.TileStack:
    """Read the DN with offsets corrected, in the bands that the rule needs together, and the clear scores.

    The clear score is 0 where a scene has no data, as in `scene_staging.data_mask`; DN of pixels with data are at least
    1. Where granules of one overpass overlap they have the same pixels twice: the first valid one in order counts. In
    cells of which the bands were not read a scene is not compared.
    """
    target = grids.crop(job.grid, window)
    bands = job.bands_to_read
    dn = np.zeros((len(job.scenes), len(bands), *target.shape), np.uint16)
    mask_scores = np.zeros((len(job.scenes), *target.shape), np.uint8)
    clear_scores = mask_scores
    covered: dict[str, Array] = {}
    for n, scene in enumerate(job.scenes):
        if not scene.has_bands(job.compared):
            continue
        for band, plane in zip(bands, dn[n], strict=True):
            read_part(job, scene, band, target, plane)
        valid = data_mask(scene, job.bands, target, dict(zip(bands, dn[n], strict=True)))
        earlier = covered.get(scene.overpass)
        if earlier is None:
            covered[scene.overpass] = use = valid
        else:
            use = valid & ~earlier
            covered[scene.overpass] = valid | earlier
        mask_scores[n] = use
        if CLEAR_SCORE in scene.files:
            mask_scores[n] *= window_staging.read_on_grid(scene.files[CLEAR_SCORE], target, kernel="nearest")
        part = scene.cells(job.compared)
        within = Window(row=0, col=0, height=window.height, width=window.width)
        if part is not None:
            within = cells.enclose(part, target) or replace(within, height=0)
            if clear_scores is mask_scores:
                clear_scores = mask_scores.copy()
            clear_scores[n] = np.where(cells.on_pixels(part, target), mask_scores[n], 0)
        elif clear_scores is not mask_scores:
            clear_scores[n] = mask_scores[n]
        for plane in dn[n]:
            np.maximum(plane[within.slices], valid[within.slices], out=plane[within.slices])
    if job.settings.rule.needs_mask:
        usable = clear_scores > 0
    else:
        usable = cloud_masks.select_clear(clear_scores)
    # Without a mask no distances exist, and any pixel size will do: the recipe check refuses rules that need them.
    mask_gsd_m = next((s.files[CLEAR_SCORE].grid.gsd_m for s in job.scenes if CLEAR_SCORE in s.files), 20.0)
    days = tuple(scene.day for scene in job.scenes)
    return rules.TileStack(
        dn=dn, mask_scores=mask_scores, clear_scores=clear_scores, usable=usable, days=days, mask_gsd_m=mask_gsd_m
    )


def read_part(job: CompositeJob, scene: StagedScene, band: str, target: Grid, out: Array) -> None:
    """Fill `out` (H, W), the pixels of `target`, where a band was read; the rest of it stays as it is."""
    staged = scene.files[band]
    if staged.cells is None:
        out[:] = window_staging.read_on_grid(staged, target, kernel=job.kernel, offset=scene.offset)
    elif within := cells.enclose(staged.cells, target):
        part = grids.crop(target, within)
        out[within.slices] = window_staging.read_on_grid(staged, part, kernel=job.kernel, offset=scene.offset)


def won_cells(job: CompositeJob, window: Window) -> Array:
    """Return (T, height, width) bool: the cells over the area with a pixel in a window that a scene wins."""
    rule, stack = job.settings.rule, read_stack(job, window)
    over = cells.over(job.grid.bounds)
    found = np.zeros((len(job.scenes), *over.included.shape), np.bool_)
    if isinstance(rule, rules.PickRule):
        index, _ = rule.kernel(stack, job.settings)
        kernels.mark_winners(index, *cells.positions(over, grids.crop(job.grid, window)), found)
    return found


def find_winners(job: CompositeJob, max_side: int, run: Callable[..., Iterable[Any]]) -> dict[int, Cells]:
    """Return, by position, the cells where a scene has the best score at some pixel, by the bands that are read.

    Args:
        job: The composite.
        max_side: Greatest side of a tile.
        run: `run(task, items)` yields the result of each item.
    """
    over = cells.over(job.grid.bounds)
    found = np.zeros((len(job.scenes), *over.included.shape), np.bool_)
    windows = grids.cut_tiles(job.grid.shape, *tile_shape(job, max_side))
    for won in run(partial(won_cells, job), windows):
        found |= won
    return {n: over.choose(cell) for n, cell in enumerate(found) if cell.any()}


def _valid_count(job: CompositeJob, window: Window, stack: rules.TileStack) -> Array:
    """Return (H, W) uint16: the clear dates of each pixel, also those of scenes that cannot win and are not read."""
    mask_scores = stack.mask_scores
    unread = [n for n in job.examined if not job.scenes[n].has_bands(job.compared)]
    if unread:
        mask_scores = mask_scores.copy()
    target = grids.crop(job.grid, window)
    for n in unread:
        scores = window_staging.read_on_grid(job.scenes[n].files[CLEAR_SCORE], target, kernel="nearest")
        # Granules of one pass that overlap are one look.
        for m, other in enumerate(job.scenes):
            if m != n and other.overpass == job.scenes[n].overpass:
                scores = np.where(mask_scores[m] > 0, np.uint8(0), scores)
        mask_scores[n] = scores
    usable = cloud_masks.select_clear(mask_scores) if unread or job.settings.rule.needs_mask else stack.usable
    counts = np.zeros(target.shape, np.uint16)
    kernels.count(usable, counts)
    return counts


def _bright_targets(job: CompositeJob, window: Window, shown: Array) -> Array:
    """Return (H, W) uint8: which kind of bright target a pixel is that is `shown`, 0 if none."""
    staged = job.scenes[0].files.get(BRIGHT_TARGETS) if job.scenes else None
    if staged is None:
        return np.zeros(shown.shape, np.uint8)
    kinds = window_staging.read_on_grid(staged, grids.crop(job.grid, window), kernel="nearest")
    return np.where(shown, kinds, np.uint8(0))


def uncovered(job: CompositeJob, window: Window, inside: Array | None = None) -> int:
    """Return how many pixels of a window, `inside` (H, W) the area if given, no scene has data of."""
    target = grids.crop(job.grid, window)
    missing = np.ones(target.shape, np.bool_) if inside is None else inside[window.slices].copy()
    for scene in job.scenes:
        missing &= ~data_mask(scene, job.bands, target)
        if not missing.any():
            break
    return int(missing.sum())


def composite_tile(job: CompositeJob, window: Window) -> Path:
    """Compute one tile, or take it from an earlier run: a `.npy` of (C + PLANES, h, w) uint16.

    The image, then item index, valid count, days since 1970, score and bright targets as in
    `output_names.PROVENANCE_BANDS`.
    """
    path = job.folder / f"r{window.row:06d}-c{window.col:06d}-{window.height}x{window.width}.npy"
    if reuse.is_unchanged(path):
        return path
    rule, stack = job.settings.rule, read_stack(job, window)
    content = np.zeros((len(job.bands) + PLANES, window.height, window.width), np.uint16)
    image = content[: len(job.bands)]
    # Rules that mix dates choose none: index, day and score have no value.
    index = day = score = np.full(stack.usable.shape[1:], NO_VALUE, np.uint16)
    if isinstance(rule, rules.PickRule):
        index, score = rule.kernel(stack, job.settings)
        _take_dates(job, window, stack.dn, index, image)
        day = np.array([*stack.days, NO_VALUE], np.uint16)[np.minimum(index, len(job.scenes))]
    elif rule.per_band:
        _mix_bands(job, window, rule, stack.usable, image)
    else:
        image[:] = rule.kernel(stack.dn, stack.usable)
    # 0 is no data, and so is no value of a pixel that has data in other bands.
    shown = index != NO_VALUE if isinstance(rule, rules.PickRule) else stack.usable.any(axis=0)
    np.maximum(image, shown.astype(np.uint16), out=image)
    planes = (index, _valid_count(job, window, stack), day, score, _bright_targets(job, window, np.asarray(shown)))
    for plane, values in zip(content[-PLANES:], planes, strict=True):
        plane[:] = values
    with reuse.write_with_note(path) as temporary, temporary.open("wb") as handle:
        # As `np.save` does, which does not notice a disk that is full at the end of the array.
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(content))
        handle.write(content.data)
    return path


def _mix_bands(job: CompositeJob, window: Window, rule: rules.CombineRule, usable: Array, image: Array) -> None:
    """Fill `image` (C, h, w) with each band reduced alone over the usable dates."""
    staged = [(n, scene) for n, scene in enumerate(job.scenes) if scene.has_bands(job.bands)]
    dn = np.zeros((len(job.scenes), 1, 0, 0), np.uint16)

    @cache
    def coarse_usable(factor: int) -> Array | None:
        coarse = usable[:, ::factor, ::factor]
        return coarse if np.array_equal(resample.upsample(coarse, factor, kernel="nearest"), usable) else None

    for band, out in zip(job.bands, image, strict=True):
        target, dates = grids.crop(job.grid, window), usable
        factor = _common_factor(job, band, target)
        # Repeats of one coarse pixel have one result: computed there if dates are usable by whole coarse pixels.
        if factor > 1 and job.kernel == "nearest":
            coarse = coarse_usable(factor)
            if coarse is not None:
                target, dates = grids.coarsen(target, factor), coarse
        if dn.shape[2:] != target.shape:  # bands of one size share the memory, whose first touch costs most
            dn = np.zeros((len(job.scenes), 1, *target.shape), np.uint16)
        for n, scene in staged:
            read_part(job, scene, band, target, dn[n, 0])
        out[:] = resample.upsample(rule.kernel(dn, dates)[0], window.height // target.shape[0], kernel="nearest")


def _common_factor(job: CompositeJob, band: str, target: Grid) -> int:
    """Return how much coarser a band is than the grid: 1 unless all scenes agree and `target` starts on its pixels."""
    places = [
        window_staging.grid_offset(scene.files[band], target) for scene in job.scenes if scene.has_bands(job.bands)
    ]
    factors = {factor if row % factor == col % factor == 0 else 1 for factor, row, col in places}
    return factors.pop() if len(factors) == 1 else 1


def _take_dates(job: CompositeJob, window: Window, dn: Array, index: Array, image: Array) -> None:
    """Fill `image` (C, h, w) of zeros with all bands of the date chosen at each pixel."""
    target = grids.crop(job.grid, window)
    # Upsampling dominates the cost of this step: done only for the dates that won in this tile.
    for n in np.unique(index[index != NO_VALUE]):
        scene, here = job.scenes[n], index == n
        planes = dict(zip(job.bands_to_read, dn[n], strict=True))
        for band, out in zip(job.bands, image, strict=True):
            plane = planes.get(band)
            if plane is None:
                plane = window_staging.read_on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
            np.copyto(out, plane, where=here)
