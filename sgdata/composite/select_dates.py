"""Select the dates that can matter to a composite by their clear scores, before their bands are read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sgdata.composite import kernels, scene_staging
from sgdata.composite.rules import CompositeSettings
from sgdata.composite.scene_staging import CLEAR_SCORE, STRIP_PIXELS, StagedScene
from sgdata.rasters import grids
from sgdata.types import Array, Grid

THINNING = 8
"""Coverage of a scene is counted on every eighth pixel of its clear mask, down and across."""


def select_dates(
    scenes: tuple[StagedScene, ...], settings: CompositeSettings, *, area: Grid, bands: tuple[str, ...]
) -> list[int]:
    """Return the positions of the scenes whose pixels can matter to the composite; the others need not be read.

    At most `max_obs` of them, the clearest together, and for a rule with a score range only those that could win
    somewhere. A scene whose bands are staged prevails only where they have data; before, it is taken to have data
    where it is clear, so the selection is made again when bands are staged, until it has no new scene.

    Args:
        scenes: Scenes with their clear scores.
        settings: How many dates become one.
        area: The grid of the build.
        bands: Bands of the composite.
    """
    positions = examined_dates(scenes, settings)
    masks = [scene.files[CLEAR_SCORE] for scene in scenes if CLEAR_SCORE in scene.files]
    rule = settings.rule
    if rule.score_range is None or not masks:
        return positions
    gsd_m = masks[0].grid.gsd_m
    ranges = {n: rule.score_range(settings, scenes[n].day, gsd_m) for n in positions}
    selected: set[int] = set()
    for strip in grids.cut_strips(masks[0].grid.shape, STRIP_PIXELS):
        rows = strip.row, strip.row + strip.height
        # The score that each pixel reaches for certain: a scene that cannot exceed it anywhere is not read.
        certain = np.zeros((strip.height, strip.width), np.int32)
        for n in positions:
            clear_scores = masks[n].rows(*rows)
            if scenes[n].has_bands(bands):
                data = _has_data(scenes[n], bands, grids.crop(masks[n].grid, strip), area)
                # Clear score 0 has a score below 0, as low as no scene has.
                clear_scores = clear_scores if data.all() else clear_scores * data
            kernels.raise_scores(clear_scores, ranges[n][0], certain)
        for n in set(positions) - selected:
            if kernels.any_reaches(masks[n].rows(*rows), ranges[n][1], certain):
                selected.add(n)
    return [n for n in positions if n in selected]


def examined_dates(scenes: tuple[StagedScene, ...], settings: CompositeSettings) -> list[int]:
    """Return the positions of all scenes, or of at most `max_obs`, the clearest together."""
    masks = [scene.files[CLEAR_SCORE] for scene in scenes if CLEAR_SCORE in scene.files]
    if not masks:
        return list(range(len(scenes)))[: settings.max_obs or None]
    if not settings.max_obs or settings.max_obs >= len(scenes):
        return list(range(len(scenes)))
    clear = [mask.pixels[::THINNING, ::THINNING] > 0 for mask in masks]
    return sorted(spread_scenes(clear, settings.max_obs))


def _has_data(scene: StagedScene, bands: tuple[str, ...], mask_grid: Grid, area: Grid) -> Array:
    """Return (H, W) bool: pixels of a mask in which a scene has data, or that are outside the area."""
    if not scene.has_holes(bands):
        return np.ones(mask_grid.shape, np.bool_)
    factor = max(round(mask_grid.gsd_m / area.gsd_m), 1)
    height, width = mask_grid.shape
    fine = replace(mask_grid, gsd_m=area.gsd_m, shape=(height * factor, width * factor))
    west, south, east, north = area.bounds
    x = fine.origin[0] + (np.arange(fine.shape[1]) + 0.5) * fine.gsd_m
    y = fine.origin[1] - (np.arange(fine.shape[0]) + 0.5) * fine.gsd_m
    outside = ((y > north) | (y < south))[:, None] | ((x < west) | (x > east))[None]
    data = scene_staging.has_data(scene, bands, fine) | outside
    return np.asarray(data.reshape(height, factor, width, factor).all(axis=(1, 3)))


def spread_scenes(clear: list[Array], count: int) -> list[int]:
    """Choose `count` of the (H, W) bool masks greedily, each time the one that adds most where least is covered yet.

    The second clear date of a pixel counts half of the first one, the third a third, and so on; ties go to the lowest
    position.
    """
    masks = np.stack(clear).reshape(len(clear), -1)
    dates = np.zeros(masks.shape[1], np.int64)
    chosen: list[int] = []
    for _ in range(min(count, len(clear))):
        # 720720 divides by 1 to 16: with integers the order of summing cannot decide between equals.
        gain = np.array([-1 if n in chosen else (720_720 // (1 + dates[mask])).sum() for n, mask in enumerate(masks)])
        best = int(gain.argmax())
        chosen.append(best)
        dates += masks[best]
    return chosen
