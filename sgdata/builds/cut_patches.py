"""Cut the area of a build into patches and split them by blocks of ground."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sgdata import output_names
from sgdata.builds import patch_table
from sgdata.labels import rasterize
from sgdata.rasters import geotiff, grids, vectors
from sgdata.splits import block_split
from sgdata.types import Array, Grid, LabelSpace, Window

if TYPE_CHECKING:
    from sgdata.builds.build_recipe import PatchSettings

log = logging.getLogger("sgdata")


LEAST_GAP_PX = 12


def cut(
    folder: Path,
    name: str,
    grid: Grid,
    settings: PatchSettings,
    split: block_split.SplitSettings,
    *,
    space: LabelSpace,
    outline: str | None = None,
) -> None:
    """Write `patches.parquet`: windows, parts and shares of `space`'s classes (none where the build has no labels)."""
    patches = windows(grid, outline, settings)
    ids: tuple[int, ...] = ()
    counts = np.zeros((len(patches), 0), np.int64)
    if (folder / output_names.LABELS).exists():
        ids = (*space.ids, rasterize.UNMAPPED)
        with geotiff.open_raster(str(folder / output_names.LABELS)) as dataset:
            counts = patch_table.class_counts(dataset.read(1), patches, ids)
    # Unmapped ground is not a class to balance between the parts.
    splits, report = split_area(patch_table.window_boxes(patches), counts[:, :-1] if ids else counts, split)
    log.info("patches: %s, %d left out, leakage %.3f", report.boxes, report.left_out, report.leakage)
    if report.empty:
        log.warning("patches: none for %s; choose a smaller split.block_px or split.gap_px", " and ".join(report.empty))
    rows = patch_table.table(name, grid, patches, splits=splits, counts=counts, ids=ids)
    patch_table.write(folder / output_names.PATCHES, rows)


def windows(grid: Grid, outline: str | None, settings: PatchSettings) -> list[Window]:
    """Return the windows of the patches of an area: those whose pixels are all inside its outline."""
    windows = list(grids.cut_patches(grid.shape, settings.size, settings.stride))
    if outline is None:
        return windows
    # A patch partly outside would teach a model what no data looks like, as one at the edge of the grid would.
    inside = vectors.rasterize_outline(outline, grid)
    return [window for window in windows if inside[window.slices].all()]


def split_area(
    boxes: Array, counts: Array, settings: block_split.SplitSettings
) -> tuple[tuple[str, ...], block_split.SplitReport]:
    """Split by `settings`, or by smaller blocks where the area is too small for them.

    An area is too small if a part is empty or train is smaller than val. Then the largest blocks are used with which no
    part is empty, too small or without a class; failing that, those with the fewest faults. Raises SettingError.
    """
    more_to_train = 1 - settings.test_share > 2 * settings.val_share

    def faults(report: block_split.SplitReport) -> tuple[int, bool, int]:
        # Most of the patches in val, unless wanted so, is nearly as useless as none there.
        small = more_to_train and report.boxes["train"] < report.boxes["val"]
        return len(report.empty), small, sum(map(len, report.lacking.values()))

    attempts = [(settings, *block_split.split(boxes, counts, settings))]
    # A class that is lacking in a large area is rare: no reason to leave the recipe.
    if settings.method == "blocks" and any(faults(attempts[0][2])[:2]):
        for smaller in _smaller_settings(boxes, settings):
            attempts.append((smaller, *block_split.split(boxes, counts, smaller)))
            if not any(faults(attempts[-1][2])):
                break
    used, splits, report = min(attempts, key=lambda attempt: faults(attempt[2]))
    if used != settings:
        # Logged, since the recipe in the output shows the requested sizes.
        log.warning("split: a small area: blocks of %d px, gap of %d px", used.block_px, used.gap_px)
    return splits, report


def _smaller_settings(boxes: Array, settings: block_split.SplitSettings) -> Iterator[block_split.SplitSettings]:
    """Yield ever smaller blocks, not below a patch, that divide the area evenly, first with proportional gaps."""
    side = int((boxes[:, 2:4] - boxes[:, 0:2]).max(initial=0))
    extent = int((boxes[:, 2:4].max(axis=0) - boxes[:, 0:2].min(axis=0)).max())
    sizes = [size for n in range(2, extent // side + 1) if (size := extent // n) < settings.block_px]
    # Patches closer than 120 m share ground: a 60 m pixel resampled to 10 m reaches that far.
    least = min(settings.gap_px, LEAST_GAP_PX)
    gaps = [max(settings.gap_px * size // settings.block_px, least) for size in sizes]
    for size, gap in [*zip(sizes, gaps, strict=True), *((size, least) for size in sizes)]:
        yield replace(settings, block_px=size, gap_px=gap)
