"""Derive per-scene clear masks from the mask layers, over the whole area."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, kept
from sgdata.composite import cloud_masks, scene_staging, staging
from sgdata.composite.rules import VERSION, CompositeSettings
from sgdata.composite.scene_staging import CLEAR_SCORE, STRIP_PIXELS, StagedScene
from sgdata.file_names import file_name
from sgdata.rasters import grids
from sgdata.types import Array, Grid, Window

THINNING = 8
"""Coverage of a scene is counted on every eighth pixel of its clear mask, down and across."""


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """All that decides the clear masks of an area, on the grid of the mask layers; `folder` keeps them."""

    grid: Grid
    settings: cloud_masks.MaskSettings
    reach_m: float
    folder: Path

    @property
    def bright_targets(self) -> Path:
        """File of what the bright target filter found, one byte for each pixel."""
        return self.folder / ".bright.bin"

    @property
    def strips(self) -> list[Window]:
        """Strips of whole blocks, on which cloud fractions are counted."""
        return list(grids.strips(self.grid.shape, STRIP_PIXELS, multiple=cloud_masks.block_px(self.grid.gsd_m)))


def add_clear_masks(
    scenes: tuple[StagedScene, ...],
    settings: cloud_masks.MaskSettings,
    *,
    area: Grid,
    reach_m: float,
    folder: Path,
    run: Callable[..., Iterable[Any]],
) -> tuple[StagedScene, ...]:
    """Return the scenes with their clear scores (see `cloud_masks`) among their staged files.

    All are on one grid that reaches beyond the area, and are computed in strips with a margin, so that no edge shows.

    Args:
        scenes: staged scenes with at least their mask layers.
        settings: how clouds are masked; without a mask layer the scenes are returned as they are.
        area: the grid of the build.
        reach_m: distance in metres up to which the distance to clouds is needed.
        folder: where the masks are kept.
        run: `run(task, items)` yields the result of each item.

    Raises:
        SourceError: the pixels of mask layers do not nest.
    """
    layer = settings.asset
    if layer is None or not scenes:
        return scenes
    west, south, east, north = area.bounds
    reach = layer_reach_m(settings, reach_m)
    layer_grid = replace(scenes[0].files[layer].grid, crs=area.crs)
    wider = (west - reach, south - reach, east + reach, north + reach)
    target = grids.windowed(layer_grid, grids.over(layer_grid, wider))
    decides = (VERSION, settings, reach_m, target, [(scene.id, scene.files[layer].sha256) for scene in scenes])
    folder = folder / files.sha256(files.canonical_json(decides))[:16]
    job = MaskJob(grid=target, settings=settings, reach_m=reach_m, folder=folder)
    if settings.filters and not kept.is_kept(job.bright_targets):
        _write_bright_targets(job, scenes, run)
    scores = run(partial(_clear_scores, job), scenes)
    return tuple(
        replace(scene, files=scene.files | {CLEAR_SCORE: one}) for scene, one in zip(scenes, scores, strict=True)
    )


def _write_bright_targets(job: MaskJob, scenes: tuple[StagedScene, ...], run: Callable[..., Iterable[Any]]) -> None:
    fractions = np.stack(list(run(partial(_cloud_fraction, job), scenes)))
    size = cloud_masks.block_px(job.grid.gsd_m)
    # Each strip travels with the fractions of its own blocks only, since it may go to another machine.
    strips = ((s, fractions[:, s.row // size : -(-(s.row + s.height) // size)]) for s in job.strips)
    with kept.keeping(job.bright_targets) as temporary, temporary.open("wb") as handle:
        for bright in run(partial(_bright_targets, job, scenes), strips):
            handle.write(np.ascontiguousarray(bright).data)  # `tofile` would not notice that a disk is full


def _kinds(job: MaskJob, scene: StagedScene, strip: Window) -> Array:
    layer = scene.files[job.settings.asset or ""]
    target = grids.windowed(job.grid, strip)
    values = staging.on_grid(layer, target, kernel="nearest", beyond=cloud_masks.BEYOND)
    return cloud_masks.kinds(values, job.settings)


def _cloud_fraction(job: MaskJob, scene: StagedScene) -> Array:
    return cloud_masks.cloud_fraction((_kinds(job, scene, strip) for strip in job.strips), job.grid.gsd_m)


def _bright_targets(job: MaskJob, scenes: tuple[StagedScene, ...], part: tuple[Window, Array]) -> Array:
    """Filter one strip by the (T, h, w) cloud fractions of its blocks."""
    strip, fractions = part
    bright_target_filter = cloud_masks.BrightTargetFilter((strip.height, strip.width), job.grid.gsd_m)
    # In the order of the scenes: sums of floats depend on it.
    for scene, fraction in zip(scenes, fractions, strict=True):
        bright_target_filter.add(_kinds(job, scene, strip), fraction)
    return bright_target_filter.bright()


def _clear_scores(job: MaskJob, scene: StagedScene) -> staging.StagedWindow:
    path = job.folder / f"{file_name(scene.id)}.bin"
    # The folder's name depends on everything that decides the bytes: a file kept by an earlier run is this one.
    if not kept.is_kept(path):
        grid, settings = job.grid, job.settings
        margin = cloud_masks.margin_px(settings, grid.gsd_m, job.reach_m)
        targets = _staged(job.bright_targets, grid) if settings.filters else None
        with kept.keeping(path) as temporary, temporary.open("wb") as handle:
            for strip in job.strips:
                first, last = max(strip.row - margin, 0), min(strip.row + strip.height + margin, grid.shape[0])
                kinds = _kinds(job, scene, replace(strip, row=first, height=last - first))
                bright = None if targets is None else _bright_rows(targets, first, last)
                scores = cloud_masks.clear_score(kinds, bright, settings, gsd_m=grid.gsd_m, reach_m=job.reach_m)
                handle.write(np.ascontiguousarray(scores[strip.row - first :][: strip.height]).data)
    return _staged(path, job.grid)


def _bright_rows(targets: staging.StagedWindow, first: int, last: int) -> Array:
    """Return (last - first, W) bool: bright targets, which depend on their surroundings."""
    margin = 2 * cloud_masks.roof_px(targets.grid.gsd_m)
    start, stop = max(first - margin, 0), min(last + margin, targets.grid.shape[0])
    bright = cloud_masks.bright_targets(targets.rows(start, stop), targets.grid.gsd_m)
    return bright[first - start : last - start]


def _staged(path: Path, grid: Grid) -> staging.StagedWindow:
    return staging.StagedWindow(path=str(path), grid=grid, dtype="uint8", sha256="", holes=False)


def layer_reach_m(mask: cloud_masks.MaskSettings, reach_m: float) -> float:
    """Return how far beyond the area, in metres, the mask layer is needed."""
    return max(mask.cloud_buffer_m, mask.shadow_buffer_m, reach_m)


def select_dates(
    scenes: tuple[StagedScene, ...], settings: CompositeSettings, *, area: Grid, bands: tuple[str, ...]
) -> list[int]:
    """Return the positions of the scenes whose pixels can matter to the composite; the others need not be read.

    At most `max_obs` of them, the clearest together, and for a rule with a score range only those that could win
    somewhere. A scene whose bands are staged prevails only where they have data; before, it is taken to have data
    where it is clear, so the selection is made again when bands are staged, until it has no new scene.

    Args:
        scenes: scenes with their clear scores.
        settings: how many dates become one.
        area: the grid of the build.
        bands: bands of the composite.
    """
    positions = examined_dates(scenes, settings)
    masks = [scene.files[CLEAR_SCORE] for scene in scenes if CLEAR_SCORE in scene.files]
    rule = settings.rule
    if rule.score_range is None or not masks:
        return positions
    gsd_m = masks[0].grid.gsd_m
    ranges = {n: rule.score_range(settings, scenes[n].day, gsd_m) for n in positions}
    selected: set[int] = set()
    for strip in grids.strips(masks[0].grid.shape, STRIP_PIXELS):
        rows = strip.row, strip.row + strip.height
        # The score that each pixel reaches for certain: a scene that cannot exceed it anywhere is not read.
        certain = np.zeros((strip.height, strip.width), np.int32)
        for n in positions:
            least = ranges[n][0][masks[n].rows(*rows)]
            if scenes[n].has_bands(bands):
                least = np.where(_has_data(scenes[n], bands, grids.windowed(masks[n].grid, strip), area), least, 0)
            np.maximum(certain, least, out=certain)
        for n in set(positions) - selected:
            if (ranges[n][1][masks[n].rows(*rows)] >= certain).any():
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
