"""Find the cells of an area in which the pixels of each scene can matter to a composite, before its bands are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sgdata.composite import kernels
from sgdata.composite.rules import CompositeSettings
from sgdata.rasters import cells, grids
from sgdata.rasters.cells import Cells
from sgdata.sentinel2 import MSI
from sgdata.staging import scene_staging
from sgdata.staging.scene_staging import CLEAR_SCORE, STRIP_PIXELS, StagedScene
from sgdata.types import Array, Grid

TEST_PIXELS = 50_000
"""Vegetation and water pixels that the test of an offset reads at least, where there are so many: 20 km2."""

ANY_CLEAR = (np.full(256, -1, np.int32), np.array([-1] + [0] * 255, np.int32))
"""Least and greatest score by clear score of rules without scores: every clear date of a pixel matters."""


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Data that decide where scenes can matter.

    Attributes:
        scenes: Scenes with their clear scores.
        ranges: Least and greatest score by clear score of the scenes that the rule considers, by position.
        area: The grid of the build.
        bands: Bands of the composite.
    """

    scenes: tuple[StagedScene, ...]
    ranges: dict[int, tuple[Array, Array]]
    area: Grid
    bands: tuple[str, ...]

    @property
    def grid(self) -> Grid:
        """Grid of the clear scores, which reaches beyond the area."""
        return self.scenes[0].files[CLEAR_SCORE].grid


def find_possible(
    scenes: tuple[StagedScene, ...],
    examined: list[int],
    settings: CompositeSettings,
    *,
    area: Grid,
    bands: tuple[str, ...],
) -> dict[int, Cells]:
    """Return, by position, the cells in which a scene can matter by its clear scores; scenes that cannot are left out.

    With a score range these are the cells where it could win. A scene whose bands are read prevails only where they
    have data; before, it is taken to have data where it is clear, so this is asked again when bands are read, until no
    cell is new. Of other rules, cells that are masked as a whole are left out.

    Args:
        scenes: Scenes with their clear scores.
        examined: Positions of the scenes that the rule considers.
        settings: How many dates become one.
        area: The grid of the build.
        bands: Bands of the composite.

    Returns:
        Cells over the clear scores, which reach farther than the area.
    """
    if not examined:
        return {}
    gsd_m = scenes[0].files[CLEAR_SCORE].grid.gsd_m
    score_range = settings.rule.score_range
    ranges = {n: score_range(settings, scenes[n].day, gsd_m) if score_range else ANY_CLEAR for n in examined}
    search = _Search(scenes=scenes, ranges=ranges, area=area, bands=bands)
    found = _mark(search, [[n] for n in examined])
    # The offset of every scene that a rule without scores considers is tested, and one without a clear pixel is named.
    chosen = {n: ranges[n] for n in examined if found[n].any() or score_range is None}
    groups: dict[str, list[int]] = {}
    for n in chosen:
        groups.setdefault(scenes[n].overpass, []).append(n)
    if len(groups) < len(chosen):
        found = _mark(replace(search, ranges=chosen), [*groups.values()])
    over = cells.over(search.grid.bounds)
    return {n: over.choose(found[n]) for n in chosen}


def _mark(search: _Search, groups: list[list[int]]) -> dict[int, Array]:
    """Return, by position, the (height, width) bool cells where scenes can matter.

    Of the scenes of one overpass in a group the first with data counts, even where it is masked. Where it is not known
    which has, all that may have are needed.
    """
    grid = search.grid
    over = cells.over(grid.bounds)
    found = {n: np.zeros(over.included.shape, np.bool_) for group in groups for n in group}
    for strip in grids.cut_strips(grid.shape, STRIP_PIXELS):
        part = grids.crop(grid, strip)

        def scores(n: int) -> Array:
            return search.scenes[n].files[CLEAR_SCORE].rows(strip.row, strip.row + strip.height)  # noqa: B023

        # The score that each pixel reaches for certain: a scene that cannot exceed it anywhere is not needed.
        certain = np.zeros(part.shape, np.int32)
        for group in groups:
            _raise_certain(search, group, part, scores, certain)
        rows, cols = cells.positions(over, part)
        for group in groups:
            if len(group) == 1:
                kernels.mark_cells(scores(group[0]), search.ranges[group[0]][1], certain, rows, cols, found[group[0]])
                continue
            reaches = np.zeros(part.shape, np.bool_)
            for n in group:
                reaches |= search.ranges[n][1][scores(n)] >= certain
            for n in group:
                some, _ = _data_masks(search, n, part)
                found[n] |= cells.any_in_cells(over, part, reaches & some)
    return {n: _with_neighbours(over, grid, cell) for n, cell in found.items()}


def _raise_certain(
    search: _Search, group: list[int], part: Grid, scores: Callable[[int], Array], certain: Array
) -> None:
    """Raise the certain score (H, W) of each pixel to that of a group of scenes of one overpass."""
    if len(group) == 1:
        (n,) = group
        clear_scores = scores(n)
        if search.scenes[n].is_read(search.bands) and search.scenes[n].has_holes(search.bands):
            # Clear score 0 has a score below 0, as low as no scene has.
            clear_scores = clear_scores * _data_masks(search, n, part)[1]
        kernels.raise_scores(clear_scores, search.ranges[n][0], certain)
        return
    least = np.full(part.shape, np.iinfo(np.int32).max, np.int32)
    one_has = np.zeros(part.shape, np.bool_)
    for n in group:
        some, all_have = _data_masks(search, n, part)
        least = np.where(some, np.minimum(least, search.ranges[n][0][scores(n)]), least)
        one_has |= all_have
    np.maximum(certain, np.where(one_has, least, certain), out=certain)


def _data_masks(search: _Search, n: int, mask_grid: Grid) -> tuple[Array, Array]:
    """Return (H, W) bool: pixels of a mask where some, and where all, of a scene have data; all beyond the area."""
    scene, area = search.scenes[n], search.area
    if not scene.has_holes(search.bands):
        return (np.ones(mask_grid.shape, np.bool_),) * 2
    factor = max(round(mask_grid.gsd_m / area.gsd_m), 1)
    height, width = mask_grid.shape
    fine = replace(mask_grid, gsd_m=area.gsd_m, shape=(height * factor, width * factor))
    west, south, east, north = area.bounds
    x = fine.origin[0] + (np.arange(fine.shape[1]) + 0.5) * fine.gsd_m
    y = fine.origin[1] - (np.arange(fine.shape[0]) + 0.5) * fine.gsd_m
    outside = ((y > north) | (y < south))[:, None] | ((x < west) | (x > east))[None]
    data = (scene_staging.data_mask(scene, search.bands, fine) | outside).reshape(height, factor, width, factor)
    return np.asarray(data.any(axis=(1, 3))), np.asarray(data.all(axis=(1, 3)))


def _with_neighbours(over: Cells, grid: Grid, found: Array) -> Array:
    """Return cells with those around them, if pixels of a grid may lie in two of them."""
    if all(abs(value / grid.gsd_m - round(value / grid.gsd_m)) < 1e-6 for value in (cells.CELL_M, *grid.origin)):
        return found
    return _widen(found)


def _widen(found: Array) -> Array:
    """Return cells (height, width) with the eight around each."""
    padded = np.pad(found, 1)
    down = padded[:-2] | padded[1:-1] | padded[2:]
    return np.asarray(down[:, :-2] | down[:, 1:-1] | down[:, 2:])


# --- bands of these cells ------------------------------------------------------------------


def find_windows(
    scene: StagedScene, possible: Cells, settings: CompositeSettings, *, area: Grid, bands: tuple[str, ...]
) -> tuple[dict[str, Cells | None], Cells | None]:
    """Return the cells of each band that are read of a scene first, and those where its offset is tested.

    A rule with scores is given the bands that it compares; the others follow where the scene wins. Where its swath
    ends, all bands are read: which pixels have data shows in all of them.

    Args:
        scene: The scene, with its scene classification if it has one.
        possible: Cells of `find_possible`.
        settings: How many dates become one.
        area: The grid of the build.
        bands: Bands of the composite.

    Returns:
        Cells by band, None for the whole window, without bands of which no cell is read; and cells over the area.
    """
    over = cells.over(area.bounds)
    wanted = cells.crop(possible, over).included
    if settings.rule.score_range and not wanted.any():
        return {}, None
    eligible, edge = _count_classes(scene, area, over)
    rule = settings.rule
    first = rule.bands_to_read(bands) if rule.score_range else bands
    everywhere = edge & wanted if rule.score_range else np.zeros_like(wanted)
    tested = wanted if rule.score_range is None else np.zeros_like(wanted)
    tested = tested | _choose_tested(eligible, wanted)
    by_band = {}
    for band in bands:
        included = (
            everywhere | (wanted if band in first else False) | (tested if band in MSI.offset.test_bands else False)
        )
        if included.any():
            by_band[band] = cells.join(over.choose(included))
    return by_band, cells.join(over.choose(tested))


def _count_classes(scene: StagedScene, area: Grid, over: Cells) -> tuple[Array, Array]:
    """Return (height, width) by cell: pixels that the test of an offset may use, and whether the swath ends there."""
    eligible = np.zeros(over.included.shape, np.int64)
    empty = np.zeros(over.included.shape, np.bool_)
    layer = scene.files.get(MSI.classes.layer)
    if layer is None:
        return eligible, empty
    for classes, part in scene_staging.strips_of_classes(layer, area):
        eligible += cells.count_in_cells(over, part, np.isin(classes, MSI.classes.offset_test))
        if layer.holes:
            empty |= cells.any_in_cells(over, part, classes == MSI.classes.no_data)
    return eligible, _widen(empty)


def _choose_tested(eligible: Array, wanted: Array) -> Array:
    """Return (height, width) bool: the cells with most pixels to test, first of those that are read anyway."""
    order = np.lexsort((np.arange(eligible.size), -eligible.ravel(), ~wanted.ravel()))
    before = np.cumsum(eligible.ravel()[order]) - eligible.ravel()[order]
    tested = np.zeros(eligible.size, np.bool_)
    tested[order] = (before < TEST_PIXELS) & (eligible.ravel()[order] > 0)
    return tested.reshape(eligible.shape)
